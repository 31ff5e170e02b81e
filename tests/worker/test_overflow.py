"""What does not fit the context window, or is no token of the vocabulary: the worker's half of X3
and X20."""

import re

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from shared.errors import ContextExceeded, InvalidRequest
from shared.messages import Generate, Overflow, Sampling, Score, Text
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Encoded
from worker.runners.echo import Echo
from worker.text.encoding import encode_generate

WINDOW = 16
VOCABULARY = 1000


def encode(
    size: int,
    asked: int,
    overflow: Overflow,
    *,
    most: int | None = None,
    head: int = 0,
    **sampling: object,
) -> Encoded:
    task = Generate("", Sampling(asked, 0, **sampling), overflow=overflow, max_prompt_tokens=most)  # type: ignore[arg-type]
    return encode_generate(tuple(range(size)), task, WINDOW, vocab_size=VOCABULARY, head=head)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["truncate", "clamp", "refuse"]),
    st.none() | st.integers(1, 40),
    st.integers(0, 7),
)
def test_what_is_accepted_fits_and_keeps_the_end_of_the_prompt(
    size: int, asked: int, overflow: Overflow, most: int | None, head: int
) -> None:
    """Whatever the rule: prompt and answer fit; head and tail of the prompt stay; every cut token
    is counted."""
    head = min(head, size - 1)
    kept = size if most is None else min(size, max(most, head + 1))
    try:
        encoded = encode(size, asked, overflow, most=most, head=head)
    except ContextExceeded:
        assert overflow != "truncate"
        assert kept + (asked if overflow == "refuse" else 1) > WINDOW
        return
    prompt = encoded.prompt_ids
    assert 1 <= encoded.max_tokens <= asked
    assert len(prompt) + encoded.max_tokens <= WINDOW
    assert len(prompt) + encoded.num_truncated == size
    assert prompt == (*range(head), *range(size - len(prompt) + head, size))
    assert len(prompt) > head
    if overflow == "truncate":
        assert encoded.max_tokens >= min(asked, WINDOW // 2)
    else:
        assert len(prompt) == kept, "only `truncate` cuts more than was asked for"
    if overflow == "refuse":
        assert encoded.max_tokens == asked


@pytest.mark.parametrize(
    ("size", "asked", "overflow", "field", "numbers"),
    [
        (10, 7, "refuse", "max_tokens", [16, 17, 10, 7]),
        (16, 1, "refuse", "prompt", [16, 17, 16, 1]),
        (16, 9, "clamp", "prompt", [16, 17, 16, 1]),
        (40, 9, "clamp", "prompt", [16, 41, 40, 1]),
    ],
)
def test_a_refusal_names_all_numbers(
    size: int, asked: int, overflow: Overflow, field: str, numbers: list[int]
) -> None:
    with pytest.raises(ContextExceeded, match="maximum context length") as refused:
        encode(size, asked, overflow)
    assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")
    assert refused.value.field == field
    assert list(map(int, re.findall(r"\d+", refused.value.message))) == numbers


def test_at_the_edge_nothing_is_refused_or_cut() -> None:
    assert encode(10, 6, "refuse") == Encoded(tuple(range(10)), 6)
    assert encode(15, 9, "clamp") == Encoded(tuple(range(15)), 1)
    assert encode(10, 6, "truncate") == Encoded(tuple(range(10)), 6)


@pytest.mark.parametrize("token", [-1, VOCABULARY, 2**40])
def test_ids_that_are_no_tokens_are_refused_by_name(token: int) -> None:
    """Neither would break anything visibly: a bias on nothing, an end that never comes."""
    with pytest.raises(InvalidRequest, match=rf"^logit_bias: .*{VOCABULARY - 1}") as refused:
        encode(3, 3, "clamp", logit_bias=((5, 1.0), (token, 1.0)))
    assert refused.value.field == "logit_bias"
    with pytest.raises(InvalidRequest, match=r"^stop_token_ids: ") as refused:
        encode(3, 3, "clamp", stop_ids=(token,))
    assert refused.value.field == "stop_token_ids"
    assert encode(3, 3, "clamp", logit_bias=((VOCABULARY - 1, 1.0),), stop_ids=(0,)).max_tokens == 3


@pytest.mark.parametrize(
    ("context", "continuations", "field"),
    [
        ("context", ("ok", ""), "continuations"),
        ("context", ("ok", "x" * 100), "continuations"),
        ("context", ((0x110000,),), "continuations"),
        ((-1,), ("ok",), "prompts"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(
    context: Text, continuations: tuple[Text, ...], field: str
) -> None:
    runner = Echo(RunnerOptions("echo", context_window=64))
    with pytest.raises(InvalidRequest) as refused:
        runner.encode(Score(context, continuations))
    assert refused.value.field == field


def test_a_continuation_that_is_too_long_is_told_with_both_numbers() -> None:
    runner = Echo(RunnerOptions("echo", context_window=64))
    with pytest.raises(InvalidRequest) as refused:
        runner.encode(Score("context", ("x" * 100,)))
    length, limit = map(int, re.findall(r"\d+", refused.value.message))
    assert (length, limit) in {(100, limit) for limit in range(62, 65)}
    assert runner.encode(Score("long " * 20, ("x" * 50,))).num_truncated >= 50 + 100 - 64 - 1
