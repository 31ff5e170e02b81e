"""Texts of answers against the tokenizer's own decoding of prompt and answer together, for
tokenizers of every kind."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis
from transformers import PreTrainedTokenizerFast

from shared.errors import FleetError
from shared.messages import Done, Failed, Generate, Sampling
from tests.fixtures.e2e.inside import fleet_inside
from tests.fixtures.scripted_runner import Scripted
from tests.fixtures.worker.stepping import run
from tests.fixtures.worker.tokenizer_kinds import KINDS, spelled, tokenizer_of
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import RunnerOptions
from worker.runners.echo import Echo
from worker.text.detokenizer import TextStream

CHARACTERS = ("é", "你", "😀", "\u0301")


def shown(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


@dataclass(frozen=True)
class Drawn:
    """The first `num_whole` tokens of the prompt end with a character; the one begun behind them is
    the answer's."""

    prompt: list[int]
    answer: list[int]
    num_whole: int


def behind(
    tokenizer: PreTrainedTokenizerFast,
    prompt: Sequence[int],
    answer: Sequence[int],
    num_whole: int = 10**6,
) -> str:
    """What decoding both together shows behind the first `num_whole` tokens of the prompt."""
    text = shown(tokenizer, prompt[:num_whole])
    whole = shown(tokenizer, [*prompt, *answer])
    assert whole.startswith(text), "the decoder takes back what it said"
    return whole[len(text) :]


def drawn(tokenizer: PreTrainedTokenizerFast, seed: int) -> Drawn:
    """A prompt and an answer, cut anywhere, within a character too. Either may be blank, or special
    tokens alone."""
    draw = random.Random(seed)
    vocabulary = tokenizer.get_vocab()
    ordinary = [
        number
        for piece, number in vocabulary.items()
        if not piece.startswith("<0x") and number < 60
    ]
    ids: list[int] = []
    bounds = [0]
    for _ in range(draw.choice([1, 2, 4, 12, 40])):
        word = draw.choice(ordinary)
        if "\ufffd" in shown(tokenizer, [word]):
            continue  # half a character
        for piece in (
            [word],
            *(spelled(tokenizer, item) for item in draw.choices(CHARACTERS, k=draw.randint(0, 2))),
        ):
            ids += piece
            bounds.append(len(ids))
    cut = draw.randint(0, len(ids))
    return Drawn(ids[:cut], ids[cut:], max(bound for bound in bounds if bound <= cut))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_joined_are_what_both_decoded_together_show_behind_the_prompt(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for seed in range(300):
        case = drawn(tokenizer, seed)
        stream = TextStream(lambda ids: shown(tokenizer, ids), prompt_ids=case.prompt)
        pieces = []
        for token in case.answer:
            expected = stream.peek(token)
            pieces.append(stream.push(token))
            assert pieces[-1] == expected
        pieces.append(stream.flush())
        if case.answer:
            assert "".join(pieces) == behind(tokenizer, case.prompt, case.answer, case.num_whole), (
                case
            )


@pytest.mark.parametrize(
    ("kind", "prompt", "pieces", "expected"),
    [
        ("word_piece", "hello", ["##al", "hello"], "al hello"),
        ("word_piece", "hello .", ["hello"], " hello"),
        ("metaspace", "hello", ["▁world"], " world"),
        ("metaspace", "hello ", ["world"], "world"),
        ("metaspace", "hello ", ["▁world"], " world"),
        ("metaspace", "", ["▁world", "▁world"], "world world"),
        ("metaspace_bare", "hello ", ["▁world"], " world"),
        ("llama", "hello", ["</s>", "▁world"], " world"),
        ("llama", "hello ", ["▁", "▁world"], "  world"),
        ("byte_level", "hello ", ["world", "Ġ", "hello"], "world hello"),
    ],
)
def test_the_first_piece_has_the_space_that_it_should(
    kind: str, prompt: str, pieces: list[str], expected: str
) -> None:
    """By hand."""
    tokenizer = tokenizer_of(kind)
    answer = tokenizer.convert_tokens_to_ids(pieces)
    prompt_ids = tokenizer(prompt)["input_ids"] or [0]
    emissions = run(
        Scripted(tokenizer, [answer]), [Generate(tuple(prompt_ids), sampling(len(answer)))], [[]]
    )
    assert "".join(item.text for item in emissions) == expected


def sampling(max_tokens: int, **fields: object) -> Sampling:
    return Sampling(max_tokens, seed=0, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_choices_and_takeovers_say_the_same(kind: str) -> None:
    """Wherever another worker goes on, the pieces before and after are those of one that never
    stopped."""
    tokenizer = tokenizer_of(kind)
    for seed in range(1000, 1006):
        case = drawn(tokenizer, seed)
        other = drawn(tokenizer, seed + 50)
        count = min(len(case.answer), len(other.answer), 12)
        if count == 0 or case.num_whole == 0:
            continue
        prompt = case.prompt[: case.num_whole]
        answers = [case.answer[:count], other.answer[:count]]
        runner = Scripted(tokenizer, answers)
        task = Generate(tuple(prompt), sampling(count, n=2, logprobs=0))
        pieces = said(runner, task, ((), ()))
        for number, answer in enumerate(answers):
            if "\ufffd" not in shown(tokenizer, [*prompt, *answer]):
                assert "".join(pieces[number]) == behind(tokenizer, prompt, answer)
        for cut in range(1, count):
            rest = said(runner, task, (tuple(answers[0][:cut]), tuple(answers[1][:cut])))
            assert rest == [pieces[0][cut:], pieces[1][cut:]]


def said(
    runner: Scripted, task: Generate, replayed: tuple[tuple[int, ...], ...]
) -> list[list[str]]:
    """The pieces of each choice, one for each new token."""
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    engine.submit(SequenceWork("0", runner.encode(task), task.sampling, replayed))
    while engine.has_work:
        engine.step()
    return [
        [item.text for item in emissions if item.choice == number and item.ids]
        for number in range(2)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_are_found_in_the_text_as_it_stands_behind_the_prompt(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for seed in range(2000, 2040):
        case = drawn(tokenizer, seed)
        if not case.prompt or not case.answer:
            continue
        text = behind(tokenizer, case.prompt, case.answer, case.num_whole)
        if len(text) < 3:
            continue
        stop = text[1:3]
        task = Generate(tuple(case.prompt), sampling(len(case.answer), stop=(stop,)))
        emissions = run(Scripted(tokenizer, [case.answer]), [task], [[]])
        assert "".join(item.text for item in emissions) == text[: text.index(stop)]


async def test_echo_and_streams_over_http(redis: Redis) -> None:
    """A prompt given as ids and its answer are one text; a stream's pieces are the whole answer's
    text."""
    runners = {}
    cases = {}
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        prompt = tokenizer("hello ")["input_ids"] + spelled(tokenizer, "你")[:2]
        answer = spelled(tokenizer, "你")[2:] + tokenizer("world hello")["input_ids"]
        runners[kind] = Scripted(tokenizer, [answer], kind)
        cases[kind] = (tokenizer, prompt, answer)
    async with fleet_inside(redis, runners) as client:
        for kind, (tokenizer, prompt, answer) in cases.items():
            body = {"model": kind, "prompt": prompt, "max_tokens": len(answer)}
            plain = (await client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
            num_whole = len(tokenizer("hello ")["input_ids"])
            assert plain == behind(tokenizer, prompt, answer, num_whole)
            for logprobs in (None, 1):
                echo = await client.post(
                    "/v1/completions", json=body | {"echo": True, "logprobs": logprobs}
                )
                assert echo.json()["choices"][0]["text"] == shown(tokenizer, [*prompt, *answer]), (
                    kind
                )
            stream = await client.post("/v1/completions", json=body | {"stream": True})
            frames = [line[6:] for line in stream.text.splitlines() if line.startswith("data: {")]
            assert "".join(json.loads(frame)["choices"][0]["text"] for frame in frames) == plain
            text = await client.post(
                "/v1/completions", json=body | {"prompt": "hello ", "echo": True}
            )
            ids = tokenizer("hello ")["input_ids"]
            assert text.json()["choices"][0]["text"] == "hello " + behind(tokenizer, ids, answer)


class Mute(Echo):
    """Its tokenizer cannot decode one token."""

    def decode(self, token_ids: Sequence[int]) -> str:
        if ord("!") in token_ids:
            raise FleetError("no such token")
        return super().decode(token_ids)


@pytest.mark.parametrize("prompt", ["a!", "!a"])
def test_an_answer_that_cannot_be_decoded_fails_alone(prompt: str) -> None:
    """The engine goes on: in the prompt's own text, and in the middle of an answer."""
    runner = Mute(RunnerOptions("echo", max_batch=4))
    tasks = [
        Generate("ok", sampling(4)),
        Generate(prompt, sampling(4, n=2)),
        Generate("yes", sampling(6)),
    ]
    ends = {
        item.key: item.ended for item in run(runner, tasks, [[], [], []]) if item.ended is not None
    }
    assert isinstance(ends["1"], Failed)
    assert isinstance(ends["0"], Done) and isinstance(ends["2"], Done)
