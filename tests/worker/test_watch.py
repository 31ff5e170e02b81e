"""While a network writes or listens, its callers see how far it is, and it stops for nobody."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from shared.tasks.sound import Transcribe, Transcript
from shared.tasks.writing import DescribeImage, Summarize, Written
from tests.fixtures.one_shots import WHISPER_S, write_one_shot, write_whisper
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.sounds import tones, wav
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import NO_FILES, FilesAtHand, TaskOutput, Unwatched
from worker.runners.one_shot import Item, OneShotRunner
from worker.runners.registry import load_runner
from worker.tasks import watch
from worker.tasks.watch import Watch


class Callers(Unwatched):
    """The callers of a batch. They see all reports, and some leave after so many of theirs."""

    def __init__(self, leave_after: dict[int, int] | None = None) -> None:
        self._leave_after = leave_after or {}
        self.reports: list[tuple[int, int, int | None, str]] = []
        self.settled: dict[int, list[str]] = defaultdict(list)
        self.lengths: list[int] = []
        self.num_beats = 0

    def heartbeat(self) -> None:
        self.num_beats += 1

    def report(
        self,
        index: int,
        done: int,
        total: int | None = None,
        note: str = "",
        *,
        preview: bytes = b"",
        num_left_out: int = 0,
        num_settled: int = 0,
    ) -> None:
        self.reports.append((index, done, total, note))
        self.settled[index].append(note[:num_settled])
        self.lengths.append(num_left_out + len(note))

    def of(self, index: int) -> list[tuple[int, int | None, str]]:
        return [report[1:] for report in self.reports if report[0] == index]

    def is_wanted(self, index: int) -> bool:
        return len(self.of(index)) < self._leave_after.get(index, 1000)


@pytest.fixture(autouse=True)
def always_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_REPORT_EVERY_S", 0.0)


def make(path: Path, **more: Any) -> OneShotRunner:
    runner = load_runner("auto", RunnerOptions(str(path), name="m", **more))
    assert isinstance(runner, OneShotRunner)
    return runner


def texts_of(runner: OneShotRunner, items: list[Any], callers: Callers) -> list[str]:
    texts = []
    for output in runner.run(items, callers):
        assert isinstance(output, TaskOutput)
        assert isinstance(output.result, Written)
        texts.append(output.result.text)
    return texts


def test_a_text_is_shown_while_it_is_written(tmp_path: Path) -> None:
    write_one_shot("summarization", tmp_path)
    runner = make(tmp_path)
    tasks = [Summarize("good", max_tokens=9), Summarize("bad bad bad", max_tokens=9)]
    items = [runner.read(task, NO_FILES) for task in tasks]
    callers = Callers()
    texts = texts_of(runner, items, callers)
    assert len(set(texts)) == 2
    for index, text in enumerate(texts):
        seen = callers.of(index)
        assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1))
        notes = [note for _, _, note in seen]
        assert notes[-1] == text
        assert all(text.startswith(note) for note in notes)
        assert len(set(notes)) > 3
    assert callers.num_beats > 8


def test_a_row_that_nobody_wants_ends_and_the_others_go_on(tmp_path: Path) -> None:
    write_one_shot("summarization", tmp_path)
    runner = make(tmp_path)
    tasks = [Summarize("good", max_tokens=9), Summarize("bad bad bad", max_tokens=9)]
    items = [runner.read(task, NO_FILES) for task in tasks]
    whole = texts_of(runner, items, Callers())
    callers = Callers(leave_after={0: 2})
    first, second = texts_of(runner, items, callers)
    assert second == whole[1]
    assert whole[0].startswith(first)
    assert len(first) < len(whole[0])

    alone = Callers(leave_after={0: 2})
    texts_of(runner, items[:1], alone)
    assert len(alone.of(0)) <= 3, "the call ended with its only row"


def test_beams_are_not_shown(tmp_path: Path) -> None:
    model = write_one_shot("summarization", tmp_path)
    assert model.generation_config is not None
    model.generation_config.num_beams = 3
    model.save_pretrained(tmp_path)
    runner = make(tmp_path)
    items = [runner.read(Summarize("good", max_tokens=6), NO_FILES)]
    callers = Callers()
    assert texts_of(runner, items, callers)
    assert callers.reports == []
    assert callers.num_beats > 3


def test_a_caption_is_shown_from_its_prompt_on(tmp_path: Path) -> None:
    write_one_shot("image-to-text", tmp_path)
    runner = make(tmp_path)
    files = FilesAtHand({"x": encoded(picture())})
    items = [runner.read(DescribeImage("x", max_tokens=6), files)]
    callers = Callers()
    [text] = texts_of(runner, items, callers)
    assert text.startswith(callers.of(0)[0][2])
    assert callers.of(0)[-1][2] == text


SOUNDS = {
    # The sounds' tones, and their lengths in Whisper's windows.
    "a": ((300.0, 900.0), 1.5),
    "b": ((150.0, 2000.0), 3.5),
    "c": ((440.0,), 1.2),
    "d": ((90.0, 700.0), 2.5),
    "e": ((1000.0, 3000.0), 3.5),
}


def hearing(path: Path, *, num_beams: int, has_segments: bool = True) -> OneShotRunner:
    """Return a Whisper. One without segments keeps all that it writes in a window."""
    write_whisper(path, is_multilingual=False)
    file = path / "generation_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["num_beams"] = num_beams
    if not has_segments:
        first_time = values["no_timestamps_token_id"] + 1
        values["suppress_tokens"] += range(first_time + 1, first_time + 1 + 50 * WHISPER_S)
    file.write_text(json.dumps(values), encoding="utf-8")
    return make(path)


def sounds_of(runner: OneShotRunner) -> list[Item]:
    data = {}
    for name, (hertz, num_windows) in SOUNDS.items():
        data[name] = wav(tones(*hertz, seconds=num_windows * WHISPER_S))
    return [runner.read(Transcribe(name), FilesAtHand(data)) for name in data]


def side_by_side(items: list[Item]) -> list[Item]:
    """Return sounds as a batch needs them: all as long as the longest."""
    longest = max(item.chunks[0]["attention_mask"].shape[-1] for item in items)
    padded = []
    for item in items:
        [chunk] = item.chunks
        filled = dict(chunk)
        for name in ("input_features", "attention_mask"):
            num_missing = longest - chunk[name].shape[-1]
            filled[name] = pad(chunk[name], (0, num_missing))
        padded.append(replace(item, chunks=[filled]))
    return padded


def transcripts_of(runner: OneShotRunner, items: list[Item], callers: Callers) -> list[str]:
    texts = []
    for output in runner.run(items, callers):
        assert isinstance(output, TaskOutput)
        assert isinstance(output.result, Transcript)
        texts.append(output.result.text)
    return texts


def test_the_words_so_far_of_each_sound_are_shown(tmp_path: Path) -> None:
    """Sounds leave a batch at different times. Each shows the words that it has alone."""
    runner = hearing(tmp_path, num_beams=1, has_segments=False)
    sounds = sounds_of(runner)
    alone = [transcripts_of(runner, [sound], Callers())[0] for sound in sounds]
    assert len(set(alone)) == len(alone), "different sounds have different words"
    callers = Callers()
    assert transcripts_of(runner, side_by_side(sounds), callers) == alone

    for index, (_, num_windows) in enumerate(SOUNDS.values()):
        seen = callers.of(index)
        seconds = math.ceil(num_windows * WHISPER_S)
        assert {total for _, total, _ in seen} == {seconds}
        assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
        assert len({done for done, _, _ in seen}) >= math.ceil(num_windows)
        notes = [note for _, _, note in seen]
        assert all(alone[index].startswith(note) for note in notes)
        assert [len(note) for note in notes] == sorted(len(note) for note in notes)
        assert len(set(notes)) > 3
        assert notes[-1] == alone[index]


@pytest.mark.parametrize("num_beams", [1, 5])
def test_settled_words_stay(tmp_path: Path, num_beams: int) -> None:
    """Words of the present window may still change, but not those of windows before."""
    runner = hearing(tmp_path, num_beams=num_beams)
    sounds = sounds_of(runner)
    alone = [transcripts_of(runner, [sound], Callers())[0] for sound in sounds]
    callers = Callers()
    assert transcripts_of(runner, side_by_side(sounds), callers) == alone
    num_with_settled = 0
    for index, text in enumerate(alone):
        settled = callers.settled[index]
        assert all(text.startswith(words) for words in settled)
        assert [len(words) for words in settled] == sorted(len(words) for words in settled)
        num_with_settled += len(set(settled)) > 1
    assert num_with_settled >= 3


def test_a_long_transcript_shows_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = hearing(tmp_path, num_beams=1, has_segments=False)
    item = sounds_of(runner)[1]
    whole = Callers()
    [text] = transcripts_of(runner, [item], whole)
    monkeypatch.setattr(watch, "_MOST_CHARACTERS", 4)
    callers = Callers()
    assert transcripts_of(runner, [item], callers) == [text]
    expected = [note for _, _, note in whole.of(0)]
    assert [note for _, _, note in callers.of(0)] == [note[-4:] for note in expected]
    assert callers.lengths == [len(note) for note in expected]


def test_a_sound_that_nobody_wants_ends_and_the_others_go_on(tmp_path: Path) -> None:
    runner = hearing(tmp_path, num_beams=1, has_segments=False)
    items = side_by_side(sounds_of(runner))
    whole = Callers()
    texts = transcripts_of(runner, items, whole)
    callers = Callers(leave_after={1: 3})
    found = transcripts_of(runner, items, callers)
    assert found[:1] + found[2:] == texts[:1] + texts[2:]
    assert len(found[1]) < len(texts[1])

    alone = Callers(leave_after={0: 3})
    transcripts_of(runner, items[1:2], alone)
    assert alone.num_beats < whole.num_beats / 3, "each window ended with its first step"


class Letters:
    """A tokenizer of numbers, whose times begin at 100. 99 is an end."""

    first_time = 100

    def read(self, tokens: Sequence[int]) -> tuple[str, str]:
        return self.guess(tokens), ""

    def guess(self, tokens: Sequence[int]) -> str:
        return "".join(chr(token) for token in tokens if token < 99)

    def is_end(self, token: int) -> bool:
        return token == 99


def rows(*texts: str) -> Tensor:
    """Return ids: a mark, and these letters."""
    return torch.tensor([[1, *map(ord, text)] for text in texts])


def test_a_window_that_is_written_again_is_not_shown() -> None:
    """Whisper does so for some of its sounds only, whose rows tell nothing of the others'."""
    callers = Callers(leave_after={1: 3})
    listening = Watch(callers, [0, 1, 2]).over_listening(Letters(), [3000, 3000, 6000])
    listening.begin_window(torch.tensor([[0, 3000], [0, 3000], [0, 6000]]))
    listening(rows("A", "B", "C"), None)
    listening(rows("AA", "BB", "CC"), None)
    shown = len(callers.reports)
    assert listening(rows("D"), None).tolist() == [False]
    assert listening(rows("AAA", "BBB", "CCC"), None).tolist() == [False] * 3
    assert len(callers.reports) == shown
    chosen = [torch.tensor([*map(ord, text)]) for text in ("AA", "D", "CC")]
    listening.end_window(chosen, [True, False, False])

    listening.begin_window(torch.tensor([[3000, 3000], [3000, 3000], [3000, 6000]]))
    assert listening(rows("E", "F"), None).tolist() == [False] * 2, "two beams of the last one"
    assert callers.of(0)[-1] == (30, 30, ""), "silence was skipped"
    assert callers.of(1)[-1] == (30, 30, "D")
    assert callers.of(2)[-1] == (30, 60, "CCE")


def test_a_likeliest_beam_that_has_ended_stays() -> None:
    callers = Callers()
    listening = Watch(callers, [0]).over_listening(Letters(), [3000])
    listening.begin_window(torch.tensor([[0, 3000]]))
    end = chr(99)
    for step in (("A", "B"), ("A" + end, "BB"), ("BBB", "BBC")):
        listening(rows(*step), None)
    assert [note for _, _, note in callers.of(0)] == ["A", "A", "A"]
