"""Speech in English by hibari, with its own code and the voice of a directory."""

from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from hibari import Hibari

from shared.errors import FleetError, InvalidRequest
from shared.messages import Task
from shared.tasks.sound import Speak, Spoken
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import BatchProgress, Files, NewFile, TaskOutput, TaskRunnerSpec
from worker.media.sound import MEDIA_TYPES, encode_sound

VOICE = "voice.onnx"


class HibariRunner:
    def __init__(self, options: RunnerOptions) -> None:
        self._voice = Hibari(model=str(Path(options.path) / VOICE))
        self.spec = TaskRunnerSpec(
            "hibari",
            options.name,
            found="hibari: text-to-speech",
            max_batch=options.max_batch,
            tasks=("text-to-speech",),
            trial=Speak("a", seed=0),
        )

    def read(self, task: Task, files: Files) -> Speak:
        if not isinstance(task, Speak):
            raise InvalidRequest("This model only speaks.", field="model")
        if task.speaker is not None:
            raise InvalidRequest("This model has one voice.", field="speaker")
        if not self._voice.phonemize(task.text):
            raise InvalidRequest("The text has nothing that can be spoken.", field="inputs")
        return task

    def group_key(self, item: Speak) -> Hashable:
        return None

    def run(self, items: Sequence[Speak], progress: BatchProgress) -> list[TaskOutput | FleetError]:
        return [self._spoken(item, progress) for item in items]

    def _spoken(self, task: Speak, progress: BatchProgress) -> TaskOutput:
        sentences = []
        for sentence in self._voice.stream(task.text, task.speed, task.seed):
            progress.heartbeat()
            sentences.append(sentence)
        samples = np.concatenate(sentences)
        rate = self._voice.sample_rate
        file = NewFile(
            encode_sound(samples, rate, task.format),
            MEDIA_TYPES[task.format],
            f"speech.{task.format}",
        )
        return TaskOutput(Spoken(len(samples) / rate, rate), (file,))


def load(options: RunnerOptions) -> HibariRunner:
    return HibariRunner(options)
