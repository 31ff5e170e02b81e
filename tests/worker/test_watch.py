"""While a network writes or listens, its callers see how far it is, and it stops for nobody."""

from pathlib import Path
from typing import Any

import pytest

from shared.tasks.sound import Transcribe, Transcript
from shared.tasks.writing import DescribeImage, Summarize, Written
from tests.fixtures.one_shots import WHISPER_S, write_one_shot, write_whisper
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.sounds import tones, wav
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import NO_FILES, FilesAtHand, TaskOutput, Unwatched
from worker.runners.one_shot import OneShotRunner
from worker.runners.registry import load_runner
from worker.tasks import watch


class Callers(Unwatched):
    """The callers of a batch. They see all reports, and some leave after so many of theirs."""

    def __init__(self, leave_after: dict[int, int] | None = None) -> None:
        self._leave_after = leave_after or {}
        self.reports: list[tuple[int, int, int | None, str]] = []
        self.num_beats = 0

    def heartbeat(self) -> None:
        self.num_beats += 1

    def report(
        self,
        index: int,
        done: int,
        total: int | None = None,
        note: str = "",
        preview: bytes = b"",
    ) -> None:
        self.reports.append((index, done, total, note))

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


def test_the_seconds_that_were_heard_are_shown(tmp_path: Path) -> None:
    """Only sounds longer than a window show them; each task of a batch gets its own."""
    write_whisper(tmp_path, is_multilingual=False)
    runner = make(tmp_path)
    seconds = [3.5 * WHISPER_S, 3.5 * WHISPER_S]
    data = {str(n): wav(tones(440.0 + 50 * n, seconds=one)) for n, one in enumerate(seconds)}
    items = [runner.read(Transcribe(name), FilesAtHand(data)) for name in data]
    for batch in ([0], [1], [0, 1]):
        callers = Callers()
        for output in runner.run([items[number] for number in batch], callers):
            assert isinstance(output, TaskOutput)
            assert isinstance(output.result, Transcript)
        for place, number in enumerate(batch):
            seen = callers.of(place)
            assert seen, "more than a window is told"
            for done, total, note in seen:
                assert 0 < done <= seconds[number]
                assert (total, note) == (seconds[number], "seconds")
