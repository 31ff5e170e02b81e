"""`/v1/audio` as the OpenAI clients expect it: transcripts of speech, and their translations."""

from collections.abc import Iterable, Sequence
from typing import Any

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan, progress_payload
from api.http.error_format import OPENAI
from api.http.problem import Problem
from api.http.request_state import Usage
from api.schemas.audio import (
    Answer,
    AudioTranscriptionRequest,
    AudioTranslationRequest,
    SpeakRequest,
    SpokenRequest,
    transcription,
)
from api.schemas.files import MadeFile, made_file
from api.stream.request_events import JobEvent, Outcome, OutcomeBuilder
from api.stream.stream_format import EVENTS_WITH_DONE
from api.stream.timings import Timings
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo, Progress
from shared.tasks.sound import Transcript


def _plan(body: SpokenRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    task = body.task()
    notes = {
        "format": body.response_format,
        "timestamps": task.timestamps,
        "task": "translate" if task.translate else "transcribe",
    }
    return TaskPlan([task], notes=notes)


def _whole(work: SubmittedWork, outcomes: Sequence[Outcome]) -> Answer:
    return transcription(outcomes[0].as_a(Transcript), dict(work.record.notes))


def _delta(text: str) -> dict[str, str]:
    return {"type": "transcript.text.delta", "delta": text}


class TranscriptEvents:
    """OpenAI's events of a transcript. A delta is what has become final of a text so far."""

    def __init__(self, work: SubmittedWork) -> None:
        self._work = work
        self._builder = OutcomeBuilder(work.record.n)
        self._num_sent = 0

    def opening(self) -> Any:
        return None

    def of(self, job: int, event: JobEvent) -> Iterable[Any]:
        self._builder.add(event)
        if isinstance(event, Progress):
            yield progress_payload(self._work.id, job, event)
            # A note that begins behind the last delta leaves a gap, which the last delta fills.
            if event.num_left_out <= self._num_sent < event.num_settled:
                start = self._num_sent - event.num_left_out
                yield _delta(event.note[start : event.num_settled - event.num_left_out])
                self._num_sent = event.num_settled

    def closing(self, usage: Usage, timings: Timings | None) -> Iterable[Any]:
        text = self._builder.outcome().as_a(Transcript).text
        if self._num_sent == 0 or self._num_sent < len(text):
            yield _delta(text[self._num_sent :])
        yield {"type": "transcript.text.done", "text": text}

    def failed(self, problem: Problem) -> Any:
        return OPENAI.body(problem)


def _endpoint(name: str, body: type[SpokenRequest], *, with_stream: bool) -> Endpoint:
    return Endpoint(
        name=name,
        task="automatic-speech-recognition",
        body=body,
        answer=Answer,
        plan=_plan,
        render=_whole,
        stream=TranscriptEvents if with_stream else None,
        stream_format=EVENTS_WITH_DONE,
        errors=OPENAI,
    )


def _plan_speech(body: SpeakRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    return TaskPlan([body.task()])


def _speech(work: SubmittedWork, outcomes: Sequence[Outcome]) -> MadeFile:
    [file] = outcomes[0].artifacts
    return made_file(file)


DIALECT = Dialect(
    (
        Post(
            "/v1/audio/speech",
            "create_speech",
            "A text as it is spoken.",
            (
                Endpoint(
                    name="speech",
                    task="text-to-speech",
                    body=SpeakRequest,
                    answer=MadeFile,
                    plan=_plan_speech,
                    render=_speech,
                    errors=OPENAI,
                    sends_file=True,
                ),
            ),
            tag="openai",
            job_task="speak",
        ),
        Post(
            "/v1/audio/transcriptions",
            "create_transcription",
            "The words that are spoken in a sound.",
            (_endpoint("transcriptions", AudioTranscriptionRequest, with_stream=True),),
            tag="openai",
            job_task="transcribe",
        ),
        Post(
            "/v1/audio/translations",
            "create_translation",
            "The words that are spoken in a sound, in English.",
            (_endpoint("translations", AudioTranslationRequest, with_stream=False),),
            tag="openai",
            job_task="translate_speech",
        ),
    )
)
