"""OpenAI's own client transcribes sounds in every format."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from redis.asyncio import Redis

from api.http.request_state import Usage
from api.routes.audio import TranscriptEvents
from api.schemas.audio import transcription
from api.schemas.plain_text import PlainText
from shared.messages import Done, Progress
from shared.tasks.sound import Speak, SpokenPart, Timestamps, Transcribe, Transcript
from tests.fixtures.one_shots import WHISPER_S, write_one_shot, write_whisper
from tests.fixtures.sounds import tones, wav
from tests.fixtures.worker.fleets import fleet
from worker.engine import task_engine
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import NO_FILES, FilesAtHand, TaskOutput, Unwatched
from worker.media.sound import decode_sound
from worker.runners.one_shot import OneShotRunner, load
from worker.tasks import watch

SOUND = wav(tones(440.0, 1320.0, seconds=0.5))


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> OneShotRunner:
    path = tmp_path_factory.mktemp("speech")
    write_one_shot("automatic-speech-recognition", path)
    return load(RunnerOptions(str(path), name="t"))


def transcript_of(runner: OneShotRunner, timestamps: Timestamps) -> Transcript:
    """Return what the runner hears."""
    item = runner.read(Transcribe("x", timestamps), FilesAtHand({"x": SOUND}))
    [output] = runner.run([item], Unwatched())
    assert isinstance(output, TaskOutput)
    assert isinstance(output.result, Transcript)
    return output.result


@asynccontextmanager
async def client_of(redis: Redis, runner: OneShotRunner) -> AsyncIterator[openai.AsyncOpenAI]:
    async with fleet(redis, runner) as http:
        yield openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none", http_client=http)


async def test_openais_client_transcribes(redis: Redis, runner: OneShotRunner) -> None:
    expected = transcript_of(runner, "segment")
    assert expected.text and len(expected.parts) > 1, "it hears something"
    file = ("a.wav", SOUND)

    async with client_of(redis, runner) as client:
        create: Any = client.audio.transcriptions.create
        plain = await create(file=file, model="t")
        text = await create(file=file, model="t", response_format="text")
        verbose = await create(file=file, model="t", response_format="verbose_json")
        words = await create(
            file=file,
            model="t",
            response_format="verbose_json",
            timestamp_granularities=["word"],
        )
        srt = await create(file=file, model="t", response_format="srt")
        vtt = await create(file=file, model="t", response_format="vtt")
        events = [event async for event in await create(file=file, model="t", stream=True)]

    assert plain.text == expected.text
    assert plain.usage.seconds == pytest.approx(0.5)
    assert text == expected.text + "\n"
    assert (verbose.text, verbose.duration) == (expected.text, pytest.approx(0.5))
    parts = [(part.text, part.start, part.end) for part in expected.parts]
    assert [(one.text, one.start, one.end) for one in verbose.segments] == parts
    assert [(one.word, one.start, one.end) for one in words.words] == parts
    assert verbose.words is None and words.segments is None
    assert_subtitles(srt, expected, mark=",")
    assert vtt.startswith("WEBVTT\n\n")
    assert_subtitles(vtt, expected, mark=".")
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert {events[0].delta, events[1].text} == {expected.text}


async def test_a_long_transcript_is_streamed_in_deltas(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beams may still change the words of a window, which come when it has ended."""
    monkeypatch.setattr(watch, "_REPORT_EVERY_S", 0.0)
    monkeypatch.setattr(task_engine, "REPORT_EVERY_S", 0.0)
    write_whisper(tmp_path, is_multilingual=False)
    whisper = load(RunnerOptions(str(tmp_path), name="t"))
    file = ("a.wav", wav(tones(440.0, seconds=3.5 * WHISPER_S)))

    async with client_of(redis, whisper) as client:
        create: Any = client.audio.transcriptions.create
        expected = (await create(file=file, model="t")).text
        cache = {"Cache-Control": "no-cache"}
        stream = await create(file=file, model="t", stream=True, extra_headers=cache)
        events = [event async for event in stream]

    deltas = []
    notes = []
    for event in events[:-1]:
        if event.type == "transcript.text.delta":
            deltas.append(event.delta)
        else:
            notes.append(event.note)
    assert len(deltas) > 1
    assert "".join(deltas) == expected
    assert (events[-1].type, events[-1].text) == ("transcript.text.done", expected)
    assert len(set(notes)) > 3


def deltas_of(steps: list[Progress], text: str) -> list[str]:
    """Return the deltas of a transcript with this progress."""
    work: Any = SimpleNamespace(id="x", record=SimpleNamespace(n=1))
    events = TranscriptEvents(work)
    payloads: list[Any] = []
    for step in steps:
        payloads += events.of(0, step)
    done: Done = Done("automatic-speech-recognition", 0, 0, result=Transcript(text, 60.0))
    payloads += events.of(0, done)
    payloads += events.closing(Usage(), None)
    assert payloads[-1] == {"type": "transcript.text.done", "text": text}
    return [one["delta"] for one in payloads if one.get("type") == "transcript.text.delta"]


def test_deltas_are_what_is_new_of_the_settled_words() -> None:
    steps = [
        Progress(0, 60, "one too"),
        Progress(30, 60, "one two", num_settled=3),
        Progress(30, 60, " two three", num_left_out=3, num_settled=8),
        Progress(30, 60, "o three", num_left_out=6, num_settled=8),
    ]
    assert deltas_of(steps, "one two three") == ["one", " two ", "three"]
    gap = [
        Progress(0, 60, "one", num_settled=3),
        Progress(9, 60, "three", num_left_out=8, num_settled=13),
    ]
    assert deltas_of(gap, "one two three four") == ["one", " two three four"]
    assert deltas_of([], "one") == ["one"]
    assert deltas_of([], "") == [""]
    assert deltas_of([Progress(60, 60, "one", num_settled=3)], "one") == ["one"]


def assert_subtitles(text: str, expected: Transcript, *, mark: str) -> None:
    """Assert that the parts of a transcript are all there, with their times."""
    clock = rf"(\d\d):(\d\d):(\d\d){re.escape(mark)}(\d\d\d)"
    found = re.findall(rf"{clock} --> {clock}\n(.*)\n", text)
    assert len(found) == len(expected.parts)
    for part, row in zip(expected.parts, found, strict=True):
        assert row[8] == part.text
        assert seconds_of(row[:4]) == pytest.approx(part.start, abs=0.001)
        assert seconds_of(row[4:8]) == pytest.approx(part.end, abs=0.001)


def seconds_of(clock: tuple[str, ...]) -> float:
    hours, minutes, seconds, milliseconds = map(int, clock)
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


async def test_what_a_model_cannot_do_is_told(redis: Redis, runner: OneShotRunner) -> None:
    async with client_of(redis, runner) as client:
        with pytest.raises(openai.BadRequestError, match="one language, and does not translate"):
            await client.audio.translations.create(file=("a.wav", SOUND), model="t")
        with pytest.raises(openai.BadRequestError, match="expected a sound"):
            await client.audio.transcriptions.create(file=("a.wav", b"none"), model="t")
        with pytest.raises(openai.NotFoundError, match="nobody"):
            await client.audio.transcriptions.create(file=("a.wav", SOUND), model="nobody")


async def test_openais_client_speaks(redis: Redis, tmp_path: Path) -> None:
    write_one_shot("text-to-speech", tmp_path)
    speaker = load(RunnerOptions(str(tmp_path), name="t"))
    item = speaker.read(Speak("good film", 7, "flac", 1.5, 2), NO_FILES)
    [expected] = speaker.run([item], Unwatched())
    assert isinstance(expected, TaskOutput)

    async with client_of(redis, speaker) as client:
        create = client.audio.speech.create
        flac = await create(
            input="good film",
            model="t",
            voice="2",
            response_format="flac",
            speed=1.5,
            extra_body={"seed": 7},
        )
        mp3 = await create(input="good film", model="t", voice="alloy")
        again = await create(input="good film", model="t", voice="alloy")
        with pytest.raises(openai.BadRequestError, match="this model has 3 voices"):
            await create(input="good film", model="t", voice="3")
        job = await client.post(
            "/jobs", body={"task": "speak", "input": "a", "model": "t"}, cast_to=dict[str, Any]
        )
        assert job["state"] in ("queued", "running", "done")

    assert flac.content == expected.files[0].data
    assert flac.response.headers["content-type"] == "audio/flac"
    assert flac.response.headers["content-length"] == str(len(flac.content))
    assert mp3.response.headers["content-type"] == "audio/mpeg"
    assert len(decode_sound(mp3.content, rate=16_000, max_seconds=60)) > 1000
    assert mp3.content != again.content, "without a seed each is its own"


def test_times_of_hours_and_of_an_open_end() -> None:
    parts = (SpokenPart("a", 3599.9996, 3725.25), SpokenPart("b", 3725.25, None))
    notes = {"format": "srt", "timestamps": "segment", "task": "transcribe"}
    answer = transcription(Transcript("a b", 3730.5, None, parts), notes)
    assert isinstance(answer, PlainText)
    assert answer.root == (
        "1\n01:00:00,000 --> 01:02:05,250\na\n\n2\n01:02:05,250 --> 01:02:10,500\nb\n\n"
    )
