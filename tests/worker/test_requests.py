"""Requests through the real engine on the echo runner: several choices, ends, stops and
log-probabilities."""

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
from worker.host.outbox import _add
from worker.runners.echo import EOS, Echo


class Round(Echo):
    """An echo whose n-th choice starts with the prompt's n-th character."""

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        return [Sampled(self._next(part.sequence)) for part in slices]

    def _next(self, sequence: TokenSequence) -> int:
        prompt = sequence.encoded.prompt_ids
        return prompt[(sequence.choice + len(sequence.output_ids)) % len(prompt)]


class Bytes(Echo):
    """Tokens are the bytes of UTF-8, so that characters and stop strings cross them."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


def options(max_batch: int = 3) -> RunnerOptions:
    return RunnerOptions("echo", max_batch=max_batch, context_window=200)


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def texts(emissions: Sequence[Emission], n: int = 1) -> list[str]:
    return [
        "".join(item.text for item in emissions if item.choice == choice) for choice in range(n)
    ]


def done_of(emissions: Sequence[Emission]) -> Done:
    [end] = [item.ended for item in emissions if item.ended is not None]
    assert isinstance(end, Done), end
    return end


def answer(prompt: str, runner: Echo | None = None, **fields: Any) -> list[Emission]:
    fields = {"max_tokens": 20, "seed": 0} | fields
    return run(runner or Echo(options()), [Generate(prompt, Sampling(**fields))], [[]])


def test_each_choice_ends_by_itself() -> None:
    """B52, T10: own stop, own cap; each is told once, with its last token, and the request ends
    with the last one."""
    emissions = answer("abcdX", Round(options()), n=5, max_tokens=4, stop=("cd", "X"))
    assert texts(emissions, 5) == ["ab", "b", "", "d", ""]
    reasons = ("stop", "stop", "stop", "stop", "stop")
    assert done_of(emissions) == Done("stop", 5, 4 + 3 + 2 + 2 + 1, result=Generated(reasons))
    ends = [(item.choice, item.finish_reason) for item in emissions if item.finish_reason]
    assert sorted(ends) == list(enumerate(reasons))
    for choice in range(5):
        own = [item for item in emissions if item.choice == choice]
        assert [item.finish_reason for item in own[:-1]] == [None] * (len(own) - 1)


def test_choices_may_end_for_different_reasons() -> None:
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
    """B65: the text ends before the first stop whose last byte is the `min_tokens`-th token or a
    later one."""
    given = prompt.encode()
    task = Generate(tuple(given), Sampling(40, 0, stop=tuple(stop), min_tokens=min_tokens))
    emissions = run(Bytes(options()), [task], [[]])
    said = (given * 40)[:40]
    expected = said.decode(errors="replace")
    reason = "length"
    count = 40
    for end in range(max(1, min_tokens), 41):
        whole = said[:end].decode(errors="ignore")
        starts = [len(whole) - len(item) for item in stop if whole.endswith(item)]
        if starts and (said[:end].decode(errors="replace") == whole):
            expected = whole[: min(starts)]
            reason = "stop"
            count = end
            break
    assert texts(emissions) == [expected]
    assert done_of(emissions) == Done(reason, len(given), count)


def test_a_stop_string_before_its_time_is_text() -> None:
    emissions = answer("ab.cd.", stop=(".",), min_tokens=4)
    assert texts(emissions) == ["ab.cd"]
    assert done_of(emissions).num_completion_tokens == 6


def test_stop_ids_end_without_text() -> None:
    emissions = answer("abc", stop_ids=(ord("c"), 7_000))
    assert texts(emissions) == ["ab"]
    assert done_of(emissions) == Done("stop", 3, 3)


def test_stop_ids_end_nothing_before_there_are_enough_tokens() -> None:
    """A model without a sampler of ours may say one too early: it has no text then either."""
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
    emissions = answer("eos", **fields)
    assert texts(emissions) == [text]
    assert done_of(emissions) == Done(reason, 3, count)


def test_logprobs_come_with_their_tokens_and_name_what_these_add() -> None:
    """Bytes: a part of a character adds nothing, its last part all of it; the end token has no
    text."""
    emissions = run(Bytes(options()), [Generate(ids_of("aж"), Sampling(3, 0, logprobs=2))], [[]])
    expected = zip(ids_of("aж"), ["a", "", "ж"], strict=True)
    assert [item.logprobs for item in emissions] == [
        (TokenLogprob(0.0, text, ((token, text, 0.0),)),) for token, text in expected
    ]
    ending = answer("eos", logprobs=0)
    assert [item.logprobs[0] for item in ending] == [
        TokenLogprob(0.0, text) for text in ("e", "o", "s", "")
    ]
    assert all(item.logprobs == () for item in answer("ab"))


def test_an_answer_replayed_in_part_says_the_rest_of_each_choice_once() -> None:
    """A takeover when one choice had ended: nothing of it is said again, not even what it held back
    to the last."""
    whole = answer("aEbc", Round(options()), n=3, max_tokens=2, stop=("EN",))
    said = [
        [token for item in whole if item.choice == choice for token in item.ids]
        for choice in range(3)
    ]
    for kept in ((2, 1, 0), (2, 2, 0), (1, 2, 2), (2, 2, 2), (0, 0, 0)):
        emissions: list[Emission] = []
        engine = Engine(Round(options()), emissions.extend)
        replayed = tuple(tuple(ids[:count]) for ids, count in zip(said, kept, strict=True))
        sampling = Sampling(2, 0, n=3, stop=("EN",))
        engine.submit(SequenceWork("0", Encoded(ids_of("aEbc"), 2), sampling, replayed))
        while engine.has_work:
            engine.step()
        assert done_of(emissions) == done_of(whole)
        for choice, count in enumerate(kept):
            rest = [item for item in emissions if item.choice == choice]
            assert [token for item in rest for token in item.ids] == said[choice][count:]
            before = [item for item in whole if item.choice == choice][:count]
            assert texts(before, 3)[choice] + texts(rest, 3)[choice] == texts(whole, 3)[choice]


def test_more_choices_than_places_all_come() -> None:
    emissions = answer("abcdefgh", Round(options(max_batch=2)), n=8, max_tokens=3)
    assert texts(emissions, 8) == [("abcdefgh" * 2)[start : start + 3] for start in range(8)]


def test_a_failing_choice_fails_its_request_alone() -> None:
    class Fragile(Round):
        def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
            if any(part.sequence.choice == 1 and part.sequence.output_ids for part in slices):
                raise RuntimeError("bad luck")
            return super().step(slices)

    tasks = [Generate("ab", Sampling(4, 0, n=3)), Generate("cd", Sampling(4, 0))]
    emissions = run(Fragile(options(max_batch=4)), tasks, [[], []])
    ends = {item.key: item.ended for item in emissions if item.ended is not None}
    assert isinstance(ends["0"], Failed)
    assert ends["1"] == Done("length", 2, 4)
    last = max(number for number, item in enumerate(emissions) if item.key == "0")
    assert emissions[last].ended is ends["0"], "something was said after the end"


def test_joined_events_lose_nothing() -> None:
    """What waits for a slow Redis becomes one event a choice, with its log-probabilities and its
    end."""
    news: list[Any] = []
    for emission in answer("eos", n=1, logprobs=1):
        _add(news, emission)
    [tokens, done] = news
    assert tokens == Tokens(
        (*ids_of("eos"), EOS),
        "eos",
        logprobs=tuple(
            TokenLogprob(0.0, text, ((token, text, 0.0),))
            for token, text in zip((*ids_of("eos"), EOS), ["e", "o", "s", ""], strict=True)
        ),
        finish_reason="stop",
    )
    assert isinstance(done, Done)
