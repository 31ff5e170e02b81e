"""Choices, ends, stops and log-probabilities of requests, through the real engine and the echo
runner."""

from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from shared.errors import FleetError
from shared.messages import Done, Failed, Generate, Generated, Sampling, TokenLogprob, Tokens
from tests.fixtures.worker.stepping import run
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded, Sampled, Slice, StepResult, TokenSequence
from worker.host.outbox import add_emission
from worker.runners.echo import EOS, Echo


class Round(Echo):
    """An echo whose n-th choice starts with the prompt's n-th character."""

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        return [Sampled(self._next(part.sequence)) for part in slices]

    def _next(self, sequence: TokenSequence) -> int:
        prompt = sequence.encoded.prompt_ids
        position = sequence.choice + len(sequence.output_ids)
        return prompt[position % len(prompt)]


class Bytes(Echo):
    """An echo whose tokens are the bytes of UTF-8: a character or a stop string has several."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


def options(max_batch: int = 3) -> RunnerOptions:
    return RunnerOptions("echo", max_batch=max_batch, context_window=200)


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def of_choice(choice: int, emissions: Sequence[Emission]) -> list[Emission]:
    return [emission for emission in emissions if emission.choice == choice]


def texts(emissions: Sequence[Emission], n: int = 1) -> list[str]:
    """Return the whole text of each choice."""
    texts = [""] * n
    for emission in emissions:
        texts[emission.choice] += emission.text
    return texts


def token_ids(emissions: Sequence[Emission]) -> list[int]:
    ids: list[int] = []
    for emission in emissions:
        ids += emission.ids
    return ids


def done_of(emissions: Sequence[Emission]) -> Done:
    """Return the end of the one request, which must have exactly one."""
    [end] = [emission.ended for emission in emissions if emission.ended is not None]
    assert isinstance(end, Done), end
    return end


def answer(prompt: str, runner: Echo | None = None, **fields: Any) -> list[Emission]:
    """Run one request to its end, by default through a plain echo."""
    sampling = Sampling(**({"max_tokens": 20, "seed": 0} | fields))
    return run(runner or Echo(options()), [Generate(prompt, sampling)], [[]])


def test_each_choice_ends_by_itself() -> None:
    """B52, T10: Each choice has its own stop and its own cap, and the request ends with the last.

    The last emission of a choice, and no other, has its finish reason.
    """
    emissions = answer("abcdX", Round(options()), n=5, max_tokens=4, stop=("cd", "X"))

    assert texts(emissions, 5) == ["ab", "b", "", "d", ""]
    assert done_of(emissions) == Done(
        "stop",
        num_prompt_tokens=5,
        num_completion_tokens=4 + 3 + 2 + 2 + 1,
        result=Generated(("stop", "stop", "stop", "stop", "stop")),
    )
    for choice in range(5):
        reasons = [emission.finish_reason for emission in of_choice(choice, emissions)]
        num_others = len(reasons) - 1
        assert reasons == [None] * num_others + ["stop"]


def test_choices_may_end_for_different_reasons() -> None:
    """Two choices reach the cap, and the third one its stop string."""
    emissions = answer("abcX", Round(options()), n=3, max_tokens=2, stop=("X",))

    assert texts(emissions, 3) == ["ab", "bc", "c"]
    assert done_of(emissions).generated.finish_reasons == ("length", "length", "stop")


@settings(max_examples=300, deadline=None)
@given(
    st.text("abж😀", min_size=1, max_size=9),
    st.lists(st.text("abж", min_size=1, max_size=4), max_size=3),
    st.integers(0, 30),
)
def test_stops_cross_tokens_and_wait_for_enough_of_them(
    prompt: str, stop: list[str], min_tokens: int
) -> None:
    """B65: The text ends before the first stop string that ends with the `min_tokens`-th token or a
    later one."""
    prompt_ids = prompt.encode()
    sampling = Sampling(40, seed=0, stop=tuple(stop), min_tokens=min_tokens)

    emissions = run(Bytes(options()), [Generate(tuple(prompt_ids), sampling)], [[]])

    # The oracle looks at the whole text again after every byte.
    answer_bytes = (prompt_ids * 40)[:40]
    expected = answer_bytes.decode(errors="replace")
    reason = "length"
    num_tokens = 40
    for end in range(max(1, min_tokens), 41):
        text = answer_bytes[:end].decode(errors="ignore")
        is_within_character = answer_bytes[:end].decode(errors="replace") != text
        if is_within_character:
            continue
        starts = []
        for string in stop:
            if text.endswith(string):
                starts.append(len(text) - len(string))
        if starts:
            expected = text[: min(starts)]
            reason = "stop"
            num_tokens = end
            break

    assert texts(emissions) == [expected]
    assert done_of(emissions) == Done(reason, len(prompt_ids), num_tokens)


def test_a_stop_string_before_its_time_is_text() -> None:
    """A stop string among the first `min_tokens` tokens ends nothing and stays in the text."""
    emissions = answer("ab.cd.", stop=(".",), min_tokens=4)

    assert texts(emissions) == ["ab.cd"]
    assert done_of(emissions).num_completion_tokens == 6


def test_stop_ids_end_without_text() -> None:
    """A stop id ends the answer, counts as a token and adds no text."""
    emissions = answer("abc", stop_ids=(ord("c"), 7_000))

    assert texts(emissions) == ["ab"]
    assert done_of(emissions) == Done("stop", 3, 3)


def test_stop_ids_end_nothing_before_there_are_enough_tokens() -> None:
    """A stop id before `min_tokens` ends nothing and adds no text.

    A model without our sampler may choose one too early.
    """
    emissions = answer("abc", stop_ids=(ord("c"),), min_tokens=4)

    assert texts(emissions) == ["abab"]
    assert done_of(emissions) == Done("stop", 3, 6)


@pytest.mark.parametrize(
    ("fields", "text", "reason", "count"),
    [
        ({}, "eos", "stop", 4),
        ({"min_tokens": 6}, "eoseos", "stop", 7),
        ({"ignore_eos": True, "max_tokens": 9}, "eos", "length", 9),
        ({"min_tokens": 12, "max_tokens": 10}, "eoseoseose", "length", 10),
    ],
)
def test_the_end_token(fields: dict[str, Any], text: str, reason: str, count: int) -> None:
    """The end token ends an answer that is long enough, unless it is to be ignored."""
    emissions = answer("eos", **fields)

    assert texts(emissions) == [text]
    assert done_of(emissions) == Done(reason, 3, count)


def test_logprobs_come_with_their_tokens_and_name_what_these_add() -> None:
    """Each log-probability names the text that its token adds.

    The first byte of a character adds nothing, and its last byte adds all of it. The end token has
    no text. A request that asks for no log-probabilities gets none.
    """
    first, second, third = ids_of("aж")
    task = Generate((first, second, third), Sampling(3, seed=0, logprobs=2))
    emissions = run(Bytes(options()), [task], [[]])
    assert [emission.logprobs for emission in emissions] == [
        (TokenLogprob(0.0, "a", ((first, "a", 0.0),)),),
        (TokenLogprob(0.0, "", ((second, "", 0.0),)),),
        (TokenLogprob(0.0, "ж", ((third, "ж", 0.0),)),),
    ]

    ending = answer("eos", logprobs=0)
    assert [emission.logprobs[0] for emission in ending] == [
        TokenLogprob(0.0, "e"),
        TokenLogprob(0.0, "o"),
        TokenLogprob(0.0, "s"),
        TokenLogprob(0.0, ""),
    ]

    for emission in answer("ab"):
        assert emission.logprobs == ()


def test_an_answer_replayed_in_part_says_the_rest_of_each_choice_once() -> None:
    """A worker that takes a job over repeats nothing of a choice that had ended.

    That holds for the text which the choice held back to its end, too.
    """
    whole = answer("aEbc", Round(options()), n=3, max_tokens=2, stop=("EN",))

    # The numbers of each choice's tokens that are in the log when the other worker begins.
    for num_replayed in ((2, 1, 0), (2, 2, 0), (1, 2, 2), (2, 2, 2), (0, 0, 0)):
        replayed = []
        for choice, count in enumerate(num_replayed):
            ids = token_ids(of_choice(choice, whole))
            replayed.append(tuple(ids[:count]))
        emissions: list[Emission] = []
        engine = Engine(Round(options()), emissions.extend)
        sampling = Sampling(2, seed=0, n=3, stop=("EN",))
        work = SequenceWork("0", Encoded(ids_of("aEbc"), 2), sampling, tuple(replayed))
        engine.submit(work)
        while engine.has_work:
            engine.step()

        assert done_of(emissions) == done_of(whole)
        for choice, count in enumerate(num_replayed):
            of_whole = of_choice(choice, whole)
            before = of_whole[:count]
            rest = of_choice(choice, emissions)
            assert token_ids(rest) == token_ids(of_whole)[count:]
            assert texts([*before, *rest], 3)[choice] == texts(whole, 3)[choice]


def test_more_choices_than_places_all_come() -> None:
    """Eight choices of one request are all answered by a batch of two."""
    emissions = answer("abcdefgh", Round(options(max_batch=2)), n=8, max_tokens=3)

    assert texts(emissions, 8) == ["abc", "bcd", "cde", "def", "efg", "fgh", "gha", "hab"]


def test_a_failing_choice_fails_its_request_alone() -> None:
    """A choice that raises ends its request, and the request beside it is answered."""

    class Fragile(Round):
        def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
            for part in slices:
                if part.sequence.choice == 1 and part.sequence.output_ids:
                    raise RuntimeError("bad luck")
            return super().step(slices)

    tasks = [Generate("ab", Sampling(4, seed=0, n=3)), Generate("cd", Sampling(4, seed=0))]
    emissions = run(Fragile(options(max_batch=4)), tasks, [[], []])

    failed = [emission for emission in emissions if emission.key == "0"]
    answered = [emission for emission in emissions if emission.key == "1"]
    assert isinstance(failed[-1].ended, Failed), "something was said after the end"
    assert done_of(answered) == Done("length", 2, 4)


def test_joined_events_lose_nothing() -> None:
    """Events that wait for a slow Redis become one event for each choice.

    It keeps the log-probabilities and the end.
    """
    news: list[Any] = []
    for emission in answer("eos", n=1, logprobs=1):
        add_emission(news, emission)

    [tokens, done] = news
    assert tokens == Tokens(
        (ord("e"), ord("o"), ord("s"), EOS),
        "eos",
        logprobs=(
            TokenLogprob(0.0, "e", ((ord("e"), "e", 0.0),)),
            TokenLogprob(0.0, "o", ((ord("o"), "o", 0.0),)),
            TokenLogprob(0.0, "s", ((ord("s"), "s", 0.0),)),
            TokenLogprob(0.0, "", ((EOS, "", 0.0),)),
        ),
        finish_reason="stop",
    )
    assert isinstance(done, Done)
