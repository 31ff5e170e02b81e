"""Language models that see pictures or hear sounds answer as transformers does with the same weights.

This holds whatever shares a step, whatever is cached, and wherever an answer goes on.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from PIL import Image
from redis.asyncio import Redis
from transformers import AutoProcessor

from shared.errors import InvalidRequest
from shared.messages import (
    Chat,
    Done,
    Generate,
    ImagePart,
    Sampling,
    SoundPart,
    TextPart,
    Tokenize,
    Tokenized,
    Turn,
)
from shared.tasks.runner_options import MultimodalOptions
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.sounds import RATE, tones, wav
from tests.fixtures.tiny_multimodal import write_audio_flamingo, write_idefics3, write_llava
from tests.fixtures.worker.fleets import fleet
from worker.engine.engine import Engine
from worker.engine.request import Emission
from worker.engine.runner import RunnerOptions
from worker.engine.take import Take
from worker.engine.task_runner import FilesAtHand
from worker.host.loading import warm_up
from worker.media.sound import decode_sound
from worker.models.errors import ModelFormatError
from worker.runners.multimodal import Media, MultimodalRunner
from worker.runners.registry import detect, load_runner

COUNT = 8
GREEDY = Sampling(max_tokens=COUNT, seed=1, temperature=0.0, ignore_eos=True)
SIZES = {"a": (40, 30), "b": (64, 64), "c": (90, 20)}
IMAGES = {name: picture(*size, seed=n) for n, (name, size) in enumerate(SIZES.items())}
SOUNDS = {"beep": wav(tones(440.0, seconds=0.7)), "chord": wav(tones(300.0, 900.0, seconds=2.9))}
FILES = FilesAtHand({**{name: encoded(image) for name, image in IMAGES.items()}, **SOUNDS})
LISTENING = [
    Chat((Turn("user", (SoundPart("beep"), TextPart("a very good film"))),)),
    Chat((Turn("user", (TextPart("bad"), SoundPart("chord"), TextPart("film"))),)),
    Chat((Turn("user", (SoundPart("chord"), TextPart("good"))), Turn("assistant", "not bad"))),
    Chat((Turn("user", "just a film"),)),
]
SEEING = [
    Chat((Turn("user", (ImagePart("a"), TextPart("a very good film"))),)),
    Chat((Turn("user", (TextPart("bad"), ImagePart("b"), TextPart("film"), ImagePart("c"))),)),
    Chat((Turn("user", (ImagePart("c"), TextPart("good"))), Turn("assistant", "not bad"))),
    Chat((Turn("user", "just a film"),)),
    Chat((Turn("user", (ImagePart("b"), TextPart("a very good film"))),)),
]


@dataclass(frozen=True)
class Tiny:
    """A saved model, and transformers' own greedy answers to dialogues."""

    path: Path
    network: Any
    chats: list[Chat]
    answers: list[list[int]]

    def load(self, **options: Any) -> MultimodalRunner:
        runner = load_runner("auto", RunnerOptions(str(self.path), name="m", **options))
        assert isinstance(runner, MultimodalRunner)
        return runner


def library_inputs(path: Path, chat: Chat) -> dict[str, Any]:
    """Return what transformers' processor makes of a dialogue."""
    messages: list[dict[str, Any]] = []
    images: list[Image.Image] = []
    sounds: list[Any] = []
    for turn in chat.messages:
        parts: list[dict[str, str]] = []
        content = (TextPart(turn.content),) if isinstance(turn.content, str) else turn.content
        for part in content:
            if isinstance(part, ImagePart):
                images.append(IMAGES[part.image])
                parts.append({"type": "image"})
            elif isinstance(part, SoundPart):
                sounds.append(decode_sound(SOUNDS[part.audio], rate=RATE, max_seconds=60))
                parts.append({"type": "audio"})
            else:
                parts.append({"type": "text", "text": part.text})
        messages.append({"role": turn.role, "content": parts})
    processor = AutoProcessor.from_pretrained(path)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    given: dict[str, Any] = {"images": images} if images else {}
    if sounds:
        given["audio"] = sounds
    # The marks before a text, without the mark behind it.
    text = "[CLS] " + text
    return dict(processor(text=[text], add_special_tokens=False, return_tensors="pt", **given))


@torch.no_grad()
def library_answer(network: Any, path: Path, chat: Chat) -> list[int]:
    inputs = library_inputs(path, chat)
    length = inputs["input_ids"].shape[1]
    ids = network.generate(
        **inputs, max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False, eos_token_id=None
    )
    written: list[int] = ids[0, length:].tolist()
    return written


MODELS = [
    (write_llava, SEEING),
    (write_idefics3, SEEING),
    (write_audio_flamingo, LISTENING),
]


@pytest.fixture(scope="module", params=MODELS, ids=["llava", "idefics3", "audio-flamingo"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    path = tmp_path_factory.mktemp("vision")
    write: Callable[[Path], Any]
    write, chats = request.param
    network = write(path)
    answers = [library_answer(network, path, chat) for chat in chats]
    assert len({tuple(answer) for answer in answers}) == len(chats), "each differs"
    return Tiny(path, network, chats, answers)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    path = tmp_path_factory.mktemp("seeing")
    network = write_llava(path)
    return Tiny(path, network, SEEING, [library_answer(network, path, chat) for chat in SEEING])


def said(
    runner: MultimodalRunner,
    chats: Sequence[Chat],
    sampling: Sampling = GREEDY,
    replayed: Sequence[Sequence[int]] = (),
) -> list[list[int]]:
    """Answer dialogues together, and return the ids of each answer."""
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend, files_of=lambda tenant: FILES)
    outputs: list[list[int]] = []
    for number, chat in enumerate(chats):
        given = tuple(replayed[number]) if replayed else ()
        take = Take(str(number), Generate(chat, sampling), replayed_ids=(given,))
        engine.submit(engine.prepare(take))
        outputs.append(list(given))
    while engine.has_work:
        engine.step()
    for emission in emissions:
        assert emission.ended is None or isinstance(emission.ended, Done), emission.ended
        outputs[int(emission.key)] += emission.ids
    return outputs


def test_answers_are_those_of_transformers(tiny: Tiny) -> None:
    """Together, alone, in small steps, and from what was cached."""
    runner = tiny.load(max_batch=8)
    assert said(runner, tiny.chats) == tiny.answers
    assert said(runner, tiny.chats) == tiny.answers
    for number, chat in enumerate(tiny.chats):
        assert said(tiny.load(step_tokens=5, page_size=4), [chat]) == [tiny.answers[number]]


def test_a_replayed_answer_goes_on_as_if_never_cut(tiny: Tiny) -> None:
    replayed = [answer[: number + 1] for number, answer in enumerate(tiny.answers)]
    assert said(tiny.load(step_tokens=9), tiny.chats, replayed=replayed) == tiny.answers


def test_the_next_turn_finds_the_picture_of_the_last(tiny: Tiny) -> None:
    runner = tiny.load(page_size=4)
    engine = Engine(runner, lambda emissions: None, files_of=lambda tenant: FILES)
    first = tiny.chats[0]
    more = Chat((*first.messages, Turn("assistant", "bad"), Turn("user", "not")))
    seen = []
    for chat in (first, more):
        work = engine.prepare(Take("1", Generate(chat, GREEDY)))
        seen.append(work.encoded)
        engine.submit(work)
        while engine.has_work:
            engine.step()
    assert seen[0].held == seen[1].held, "it was computed once"
    length = len(seen[0].prompt_ids)
    assert seen[1].prompt_ids[:length] == seen[0].prompt_ids
    assert engine.load.num_hits == 1


def test_choices_and_penalties_take_pictures(tiny: Tiny) -> None:
    """An id of a picture is none of the vocabulary, to which penalties apply."""
    sampling = replace_sampling(GREEDY, temperature=1.0, n=2, repetition_penalty=1.3)
    runner = tiny.load()
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend, files_of=lambda tenant: FILES)
    engine.submit(engine.prepare(Take("1", Generate(tiny.chats[1], sampling))))
    while engine.has_work:
        engine.step()
    [end] = [emission.ended for emission in emissions if emission.ended is not None]
    assert isinstance(end, Done)
    assert end.num_completion_tokens == 2 * COUNT
    assert len({emission.choice for emission in emissions}) == 2


def replace_sampling(sampling: Sampling, **changes: Any) -> Sampling:
    fields = {name: getattr(sampling, name) for name in sampling.__struct_fields__}
    return Sampling(**(fields | changes))


def test_tokens_are_told_as_the_processor_writes_them(tiny: Tiny) -> None:
    runner = tiny.load()
    encoded_task = runner.encode_with_files(Tokenize(tiny.chats[0]), FILES)
    assert encoded_task.answer is not None
    result = encoded_task.answer.result
    assert isinstance(result, Tokenized)
    assert list(result.ids) == library_inputs(tiny.path, tiny.chats[0])["input_ids"][0].tolist()


def test_what_cannot_be_seen_is_refused(seeing: Tiny) -> None:
    runner = seeing.load(own=MultimodalOptions(max_pixels=40 * 30))
    named = Chat((Turn("user", "the <image> film"),))
    with pytest.raises(InvalidRequest, match=r"messages"):
        runner.encode_with_files(Generate(named, GREEDY), FILES)
    with pytest.raises(InvalidRequest, match=r"messages: expected at most 1200 pixels"):
        runner.encode_with_files(Generate(SEEING[1], GREEDY), FILES)
    broken = FilesAtHand({"a": b"no picture"})
    with pytest.raises(InvalidRequest, match="messages: expected a picture"):
        runner.encode_with_files(Generate(SEEING[0], GREEDY), broken)
    heard = Generate(LISTENING[0], GREEDY)
    with pytest.raises(InvalidRequest, match="messages: this model hears no sounds"):
        runner.encode_with_files(heard, FILES)
    many = Chat((Turn("user", (ImagePart("a"),) * 33),))
    with pytest.raises(InvalidRequest, match="at most 32 pictures and sounds"):
        runner.encode_with_files(Generate(many, GREEDY), FILES)


def test_a_text_alone_is_continued_and_scored(tiny: Tiny) -> None:
    assert warm_up(tiny.load())
    assert detect(str(tiny.path)) == "multimodal"


def test_int8_answers(tiny: Tiny) -> None:
    answers = said(tiny.load(quantize="int8"), tiny.chats)
    assert [len(answer) for answer in answers] == [COUNT] * len(tiny.chats)


def test_a_network_that_sees_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here its states of a picture depend on how often it was asked."""
    write_llava(tmp_path)
    runner = load_runner("auto", RunnerOptions(str(tmp_path)))
    assert isinstance(runner, MultimodalRunner)
    model = type(runner.prompter._network.model)
    own = model.get_image_features
    calls = []

    def drifting(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        output = own(self, *args, **kwargs)
        output.pooler_output = [one + len(calls) for one in output.pooler_output]
        return output

    monkeypatch.setattr(model, "get_image_features", drifting)
    with pytest.raises(ModelFormatError, match="logits differ by"):
        load_runner("auto", RunnerOptions(str(tmp_path)))


def test_pictures_live_as_long_as_they_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.runners.multimodal._KEPT_BYTES", 2 * 3 * 4 * 4)
    pictures = Media(100)
    states = [torch.full((3, 4), float(number)) for number in range(4)]
    held = pictures.add("0", states[0])
    for number in range(1, 4):
        pictures.add(str(number), states[number])
    assert pictures.find("0") is held, "somebody holds it"
    assert pictures.find("1") is None, "there was no room"
    kept = pictures.find("3")
    assert kept is not None
    assert kept.ids == (109, 110, 111)
    found = pictures.states([101, 102, 109, 110, 100])
    assert found[:, 0].tolist() == [0, 0, 3, 3, 0]
    assert pictures.add("1", states[1]).first == 112, "ids are not used again"


async def test_chat_with_pictures_over_http(redis: Redis, seeing: Tiny) -> None:
    """OpenAI's client, with data URLs, streamed and whole; and `image-text-to-text`."""
    runner = seeing.load()
    async with fleet(redis, runner) as client:
        url = "data:image/png;base64," + base64.b64encode(FILES.data["a"]).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "a very good film"},
        ]
        request: dict[str, Any] = {
            "model": "m",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": COUNT,
            "temperature": 0,
            "extra_body": {"ignore_eos": True},
        }
        sdk = openai.AsyncOpenAI(
            base_url=f"{client.base_url}/v1", api_key="none", http_client=client, max_retries=0
        )
        whole = await sdk.chat.completions.create(**request)
        text = whole.choices[0].message.content
        assert text is not None
        assert text.lstrip() == runner.decode(seeing.answers[0])
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == len(
            library_inputs(seeing.path, SEEING[0])["input_ids"][0]
        )
        streamed = ""
        async for chunk in await sdk.chat.completions.create(**request, stream=True):
            streamed += chunk.choices[0].delta.content or ""
        assert streamed == text

        uploaded = await client.post("/v1/artifacts", content=FILES.data["a"])
        body = {
            "task": "image-text-to-text",
            "inputs": {"image": uploaded.json()["id"], "text": "a very good film"},
            "model_id": "m",
            "options": {"temperature": 0, "max_tokens": COUNT, "ignore_eos": True},
        }
        answer = await client.post("/api/inference", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["result"]["text"] == text

        content[0]["image_url"] = {"url": "http://127.0.0.1/a.png"}
        with pytest.raises(
            openai.BadRequestError, match=r"messages\.0\.content\.0\.image_url\.url"
        ):
            await sdk.chat.completions.create(**request)


async def test_chat_with_sounds_over_http(redis: Redis, tmp_path: Path) -> None:
    network = write_audio_flamingo(tmp_path)
    runner = load_runner("auto", RunnerOptions(str(tmp_path), name="m"))
    assert isinstance(runner, MultimodalRunner)
    data = base64.b64encode(SOUNDS["beep"]).decode()
    content = [
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "text", "text": "a very good film"},
    ]
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": COUNT,
        "temperature": 0,
        "ignore_eos": True,
    }
    async with fleet(redis, runner) as client:
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        text = answer.json()["choices"][0]["message"]["content"]
        expected = library_answer(network, tmp_path, LISTENING[0])
        assert text.strip() == runner.decode(expected)

        content[0] = {"type": "image_url", "image_url": {"url": data}}
        refused = await client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == "messages: this model sees no pictures."
        assert refused.json()["error"]["param"] == "messages"
