"""Texts of answers, with tokenizers of every kind.

The oracle is the tokenizer's own decoding of prompt and answer together.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from httpx import AsyncClient
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


def decoded(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


@dataclass(frozen=True)
class Drawn:
    """A random prompt and its answer.

    The first `num_whole` tokens of the prompt end with a character. A character that begins behind
    them belongs to the answer.
    """

    prompt: list[int]
    answer: list[int]
    num_whole: int


def behind(
    tokenizer: PreTrainedTokenizerFast,
    prompt: Sequence[int],
    answer: Sequence[int],
    num_whole: int = 10**6,
) -> str:
    """Decode both together. Return the text behind the first `num_whole` tokens of the prompt."""
    before = decoded(tokenizer, prompt[:num_whole])
    whole = decoded(tokenizer, [*prompt, *answer])
    assert whole.startswith(before), "the decoder takes back what it said"
    return whole.removeprefix(before)


def drawn(tokenizer: PreTrainedTokenizerFast, seed: int) -> Drawn:
    """Draw a prompt and an answer, cut anywhere, within a character too.

    Either may be blank, or consist of special tokens alone.
    """
    draw = random.Random(seed)
    ordinary = []
    for piece, token in tokenizer.get_vocab().items():
        is_byte = piece.startswith("<0x")
        if token < 60 and not is_byte:
            ordinary.append(token)

    ids: list[int] = []
    # The numbers of tokens after which a character ends.
    bounds = [0]
    for _ in range(draw.choice([1, 2, 4, 12, 40])):
        word = draw.choice(ordinary)
        is_half_a_character = "\ufffd" in decoded(tokenizer, [word])
        if is_half_a_character:
            continue
        ids.append(word)
        bounds.append(len(ids))
        for character in draw.choices(CHARACTERS, k=draw.randint(0, 2)):
            ids += spelled(tokenizer, character)
            bounds.append(len(ids))

    cut = draw.randint(0, len(ids))
    num_whole = max(bound for bound in bounds if bound <= cut)
    return Drawn(ids[:cut], ids[cut:], num_whole)


def text_of(emissions: Sequence[Emission]) -> str:
    return "".join(emission.text for emission in emissions)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_joined_are_what_both_decoded_together_show_behind_the_prompt(kind: str) -> None:
    """The pieces of a stream add up to the text that both decoded together have behind the prompt.

    A peek at a token shows the piece that pushing it yields.
    """
    tokenizer = tokenizer_of(kind)
    for seed in range(300):
        case = drawn(tokenizer, seed)
        stream = TextStream(lambda ids: decoded(tokenizer, ids), prompt_ids=case.prompt)

        text = ""
        for token in case.answer:
            expected = stream.peek(token)
            piece = stream.push(token)
            assert piece == expected
            text += piece
        text += stream.flush()

        if case.answer:
            assert text == behind(tokenizer, case.prompt, case.answer, case.num_whole), case


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
    """The first piece has the space that the tokenizer puts between prompt and answer.

    The expected texts are written by hand.
    """
    tokenizer = tokenizer_of(kind)
    answer = tokenizer.convert_tokens_to_ids(pieces)
    prompt_ids = tokenizer(prompt)["input_ids"] or [0]
    task = Generate(tuple(prompt_ids), sampling(len(answer)))

    emissions = run(Scripted(tokenizer, [answer]), [task], [[]])

    assert text_of(emissions) == expected


def sampling(max_tokens: int, **fields: object) -> Sampling:
    return Sampling(max_tokens, seed=0, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_choices_and_takeovers_say_the_same(kind: str) -> None:
    """Pieces before and after a takeover are those of a worker that never stopped.

    The other worker takes over after any token.
    """
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

        pieces = pieces_of(runner, task, ((), ()))
        for number, answer in enumerate(answers):
            is_cut_in_a_character = "\ufffd" in decoded(tokenizer, [*prompt, *answer])
            if not is_cut_in_a_character:
                assert "".join(pieces[number]) == behind(tokenizer, prompt, answer)

        for cut in range(1, count):
            replayed = (tuple(answers[0][:cut]), tuple(answers[1][:cut]))
            rest = pieces_of(runner, task, replayed)
            assert rest == [pieces[0][cut:], pieces[1][cut:]]


def pieces_of(
    runner: Scripted, task: Generate, replayed: tuple[tuple[int, ...], ...]
) -> list[list[str]]:
    """Return the pieces of two choices, one for each new token."""
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    engine.submit(SequenceWork("0", runner.encode(task), task.sampling, replayed))
    while engine.has_work:
        engine.step()

    pieces: list[list[str]] = [[], []]
    for emission in emissions:
        if emission.ids:
            pieces[emission.choice].append(emission.text)
    return pieces


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_are_found_in_the_text_as_it_stands_behind_the_prompt(kind: str) -> None:
    """An answer ends before its stop string, which is part of the text behind the prompt."""
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

        # The same two characters may stand at the very beginning, too.
        assert text_of(emissions) == text[: text.index(stop)]


async def completed(client: AsyncClient, body: dict[str, object]) -> str:
    response = await client.post("/v1/completions", json=body)
    return str(response.json()["choices"][0]["text"])


async def streamed(client: AsyncClient, body: dict[str, object]) -> str:
    """Return the pieces of a streamed completion, joined."""
    response = await client.post("/v1/completions", json=body | {"stream": True})
    text = ""
    for line in response.text.splitlines():
        # `data: [DONE]` is no chunk.
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            text += chunk["choices"][0]["text"]
    return text


async def test_echo_and_streams_over_http(redis: Redis) -> None:
    """A prompt given as ids and its answer are one text, and a stream adds up to the answer.

    The cut between prompt and answer is within a character.
    """
    prompts = {}
    answers = {}
    runners = {}
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        prompts[kind] = tokenizer("hello ")["input_ids"] + spelled(tokenizer, "你")[:2]
        answers[kind] = spelled(tokenizer, "你")[2:] + tokenizer("world hello")["input_ids"]
        runners[kind] = Scripted(tokenizer, [answers[kind]], kind)

    async with fleet_inside(redis, runners) as client:
        for kind in KINDS:
            tokenizer = tokenizer_of(kind)
            prompt = prompts[kind]
            answer = answers[kind]
            hello = tokenizer("hello ")["input_ids"]
            body = {"model": kind, "prompt": prompt, "max_tokens": len(answer)}

            text = await completed(client, body)
            assert text == behind(tokenizer, prompt, answer, num_whole=len(hello))
            assert await streamed(client, body) == text

            whole = decoded(tokenizer, [*prompt, *answer])
            assert await completed(client, body | {"echo": True, "logprobs": None}) == whole, kind
            assert await completed(client, body | {"echo": True, "logprobs": 1}) == whole, kind

            # A prompt given as text is echoed as it is.
            echo = await completed(client, body | {"prompt": "hello ", "echo": True})
            assert echo == "hello " + behind(tokenizer, hello, answer)


class Mute(Echo):
    """An echo whose tokenizer cannot decode one token."""

    def decode(self, token_ids: Sequence[int]) -> str:
        if ord("!") in token_ids:
            raise FleetError("no such token")
        return super().decode(token_ids)


@pytest.mark.parametrize("prompt", ["a!", "!a"])
def test_an_answer_that_cannot_be_decoded_fails_alone(prompt: str) -> None:
    """An answer that cannot be decoded fails, and the answers beside it are done.

    The token that breaks the tokenizer stands in the prompt, and in the middle of the answer.
    """
    runner = Mute(RunnerOptions("echo", max_batch=4))
    tasks = [
        Generate("ok", sampling(4)),
        Generate(prompt, sampling(4, n=2)),
        Generate("yes", sampling(6)),
    ]

    ends = {}
    for emission in run(runner, tasks, [[], [], []]):
        if emission.ended is not None:
            ends[emission.key] = emission.ended
    assert isinstance(ends["0"], Done)
    assert isinstance(ends["1"], Failed)
    assert isinstance(ends["2"], Done)
