"""Prompts that do not fit the context window, and ids that are no tokens of the vocabulary.

This is the worker's half of X3 and X20.
"""

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
    max_tokens: int,
    overflow: Overflow,
    *,
    most: int | None = None,
    head: int = 0,
    **sampling: object,
) -> Encoded:
    """Encode a prompt of `size` tokens whose answer may have `max_tokens`.

    `most` is the task's `max_prompt_tokens`; the first `head` tokens must stay.
    """
    task = Generate(
        "",
        Sampling(max_tokens=max_tokens, seed=0, **sampling),  # type: ignore[arg-type]
        overflow=overflow,
        max_prompt_tokens=most,
    )
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
    """Under any rule prompt and answer fit together.

    The prompt's head and tail stay, and every token that was cut is counted.
    """
    head = min(head, size - 1)
    kept = size
    if most is not None:
        kept = min(size, max(most, head + 1))
    try:
        encoded = encode(size, asked, overflow, most=most, head=head)
    except ContextExceeded:
        assert overflow != "truncate"
        least_room = 1
        if overflow == "refuse":
            least_room = asked
        assert kept + least_room > WINDOW
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
    """A refusal names the window, the sum, the prompt's tokens and the answer's."""
    with pytest.raises(ContextExceeded, match="maximum context length") as refused:
        encode(size, asked, overflow)

    assert refused.value.status == 400
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.field == field
    assert numbers_in(refused.value.message) == numbers


def numbers_in(message: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", message)]


def test_at_the_edge_nothing_is_refused_or_cut() -> None:
    """A prompt and an answer that just fit are left as they are."""
    assert encode(10, 6, "refuse") == Encoded(tuple(range(10)), 6)
    assert encode(15, 9, "clamp") == Encoded(tuple(range(15)), 1)
    assert encode(10, 6, "truncate") == Encoded(tuple(range(10)), 6)


@pytest.mark.parametrize("token", [-1, VOCABULARY, 2**40])
def test_ids_that_are_no_tokens_are_refused_by_name(token: int) -> None:
    """An id beyond the vocabulary is refused in a bias and in the stop ids.

    Neither would fail by itself: the bias would have no effect, and the stop would never come.
    """
    with pytest.raises(InvalidRequest, match=rf"^logit_bias: .*{VOCABULARY - 1}") as refused:
        encode(3, 3, "clamp", logit_bias=((5, 1.0), (token, 1.0)))
    assert refused.value.field == "logit_bias"

    with pytest.raises(InvalidRequest, match=r"^stop_token_ids: ") as refused:
        encode(3, 3, "clamp", stop_ids=(token,))
    assert refused.value.field == "stop_token_ids"

    accepted = encode(3, 3, "clamp", logit_bias=((VOCABULARY - 1, 1.0),), stop_ids=(0,))
    assert accepted.max_tokens == 3


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
    """A context or a continuation that cannot be scored is refused; the error names which."""
    runner = Echo(RunnerOptions("echo", context_window=64))

    with pytest.raises(InvalidRequest) as refused:
        runner.encode(Score(context, continuations))

    assert refused.value.field == field


def test_a_continuation_that_is_too_long_is_told_with_both_numbers() -> None:
    """A continuation beyond the window is refused with its length and the limit.

    A context that is too long beside a continuation is cut.
    """
    runner = Echo(RunnerOptions("echo", context_window=64))
    with pytest.raises(InvalidRequest) as refused:
        runner.encode(Score("context", ("x" * 100,)))
    length, limit = numbers_in(refused.value.message)
    assert length == 100
    assert limit in (62, 63, 64)

    cut = runner.encode(Score("long " * 20, ("x" * 50,)))
    assert cut.num_truncated >= 50 + 100 - 64 - 1
