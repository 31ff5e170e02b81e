"""What requests ask of logits, against transformers' own processors and the formulas written
out."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from shared.errors import InvalidRequest, WorkerFailed
from shared.messages import Sampling
from worker.engine.logits import adjust, token_logprobs
from worker.engine.sampler import keep_allowed, sample
from worker.engine.sequence import Encoded, Sampled, TokenSequence

VOCABULARY = 40
PROMPT = (3, 9, 9, 20)
SAID = [5, 9, 5, 5, 31]
EOS = frozenset({0, 7})


def sequence(said: list[int] | None = None, *, seed: int = 1, **fields: Any) -> TokenSequence:
    sampling = Sampling(max_tokens=64, seed=seed, **fields)
    return TokenSequence(
        "job", Encoded(PROMPT, 64), sampling, output_ids=SAID if said is None else said
    )


def random_logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def processed(
    logits: torch.Tensor, *processors: LogitsProcessor, said: list[int] = SAID
) -> torch.Tensor:
    """What transformers makes of one row."""
    result: torch.Tensor = LogitsProcessorList(processors)(
        torch.tensor([[*PROMPT, *said]]), logits.clone()
    )
    return result


def with_presence_and_frequency(
    logits: torch.Tensor, presence: float, frequency: float
) -> torch.Tensor:
    """OpenAI's formula: logit - count * frequency - (count > 0) * presence, over the response."""
    values = logits.clone()
    for token in range(VOCABULARY):
        count = SAID.count(token)
        values[0, token] -= count * frequency + (presence if count else 0)
    return values


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_penalty_is_transformers(penalty: float) -> None:
    """Prompt and response alike, each token once, dividing what is positive and multiplying what is
    negative."""
    logits = random_logits()
    expected = processed(logits, RepetitionPenaltyLogitsProcessor(penalty))
    torch.testing.assert_close(
        adjust(logits, [sequence(repetition_penalty=penalty)], EOS), expected
    )
    assert not torch.equal(expected, logits)


@pytest.mark.parametrize(("presence", "frequency"), [(0.7, 0.0), (0.0, 0.4), (-1.0, 2.0)])
def test_presence_and_frequency_penalties_follow_the_formula(
    presence: float, frequency: float
) -> None:
    logits = random_logits()
    item = sequence(presence_penalty=presence, frequency_penalty=frequency)
    torch.testing.assert_close(
        adjust(logits, [item], EOS), with_presence_and_frequency(logits, presence, frequency)
    )
    fresh = sequence([], presence_penalty=presence, frequency_penalty=frequency)
    assert torch.equal(adjust(logits, [fresh], EOS), logits), "a prompt's tokens are not penalised"


def test_bias_is_added() -> None:
    logits = random_logits()
    expected = processed(logits, SequenceBiasLogitsProcessor([[[5], 2.5], [[39], -100.0]]))
    torch.testing.assert_close(
        adjust(logits, [sequence(logit_bias=((5, 2.5), (39, -100.0)))], EOS), expected
    )


@pytest.mark.parametrize("min_tokens", [0, 5, 6, 60])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_ends_are_withheld_until_there_are_enough_tokens(min_tokens: int, ignore_eos: bool) -> None:
    """End tokens and stop ids; an end token that ends nothing is a token like any other."""
    logits = random_logits()
    ends = [12] if ignore_eos else [12, *EOS]
    oracle = MinNewTokensLengthLogitsProcessor(len(PROMPT), min_tokens, ends)
    item = sequence(min_tokens=min_tokens, ignore_eos=ignore_eos, stop_ids=(12, 5_000))
    assert torch.equal(adjust(logits, [item], EOS), processed(logits, oracle))
    assert math.isinf(oracle(torch.tensor([[*PROMPT, *SAID]]), logits)[0, 12]) == (
        min_tokens > len(SAID)
    )


def test_the_order_of_all_together() -> None:
    """Repetition, presence and frequency, bias, ends: no bias brings a withheld end back."""
    logits = random_logits()
    item = sequence(
        repetition_penalty=1.7,
        presence_penalty=0.5,
        frequency_penalty=-0.3,
        logit_bias=((5, 4.0), (7, 100.0)),
        min_tokens=9,
    )
    expected = processed(logits, RepetitionPenaltyLogitsProcessor(1.7))
    expected = with_presence_and_frequency(expected, 0.5, -0.3)
    expected = processed(
        expected,
        SequenceBiasLogitsProcessor([[[5], 4.0], [[7], 100.0]]),
        MinNewTokensLengthLogitsProcessor(len(PROMPT), 9, sorted(EOS)),
    )
    torch.testing.assert_close(adjust(logits, [item], EOS), expected)
    assert expected[0, 7] == -torch.inf


def test_rows_that_ask_for_nothing_are_not_touched() -> None:
    """Nothing is copied for them, and company changes nothing."""
    logits = random_logits(2)
    plain = [
        sequence(temperature=0.0),
        sequence(top_k=3, top_p=0.5, min_p=0.1, logprobs=2, min_tokens=5),
    ]
    assert adjust(logits, plain, EOS) is logits
    mixed = adjust(logits, [plain[0], sequence(logit_bias=((1, 9.0),))], EOS)
    assert torch.equal(mixed[0], logits[0])
    assert torch.equal(logits, random_logits(2)), "the model's own logits are as they were"


CUTS: list[dict[str, Any]] = [
    {"min_p": 0.05},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"top_k": 5},
    {"top_k": 1},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"top_k": 100},
    {"top_k": 8, "top_p": 0.8},
    {"top_k": 8, "min_p": 0.1},
    {"top_p": 0.95, "min_p": 0.02},
    {"top_k": 12, "top_p": 0.9, "min_p": 0.05},
    {},
]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_cuts_are_transformers(temperature: float) -> None:
    """Temperature, then top-k, top-p and min-p: the same tokens are left as transformers leaves,
    all rows together."""
    logits = random_logits(len(CUTS), seed=4)
    samplings = [Sampling(max_tokens=1, seed=0, temperature=temperature, **cut) for cut in CUTS]
    scaled = (logits.double() - logits.double().amax(-1, keepdim=True)) / temperature
    left = keep_allowed(scaled, samplings).isfinite()
    for row, cut in enumerate(CUTS):
        warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(temperature)]
        warpers += [TopKLogitsWarper(cut["top_k"])] if "top_k" in cut else []
        warpers += [TopPLogitsWarper(cut["top_p"])] if "top_p" in cut else []
        warpers += [MinPLogitsWarper(cut["min_p"])] if "min_p" in cut else []
        assert torch.equal(left[row], processed(logits[row : row + 1], *warpers)[0].isfinite()), cut
    assert left.sum(-1).unique().numel() > 3, "the cuts hardly differ, so this proved little"


def test_logprobs_are_the_models_own() -> None:
    """Neither penalties nor bias, temperature or cuts are in them."""
    logits = random_logits(3)
    odd = {"repetition_penalty": 2.0, "logit_bias": ((6, 100.0),), "temperature": 0.7, "top_k": 2}
    items = [
        sequence(logprobs=3, **odd),
        sequence(logprobs=0, temperature=0.0),
        sequence(temperature=0.0),
    ]
    results = sample(logits, items, EOS, "m")
    rows = logits.tolist()
    for row, result in enumerate(results[:2]):
        assert isinstance(result, Sampled) and result.logprob is not None
        total = math.log(math.fsum(math.exp(value) for value in rows[row]))
        assert result.logprob.logprob == pytest.approx(rows[row][result.token] - total, abs=1e-12)
        likeliest = sorted(range(VOCABULARY), key=lambda token: -rows[row][token])[
            : 3 if row == 0 else 0
        ]
        assert [token for token, _, _ in result.logprob.top] == likeliest
        expected = [rows[row][token] - total for token in likeliest]
        assert [value for _, _, value in result.logprob.top] == pytest.approx(expected, abs=1e-12)
    assert isinstance(results[0], Sampled) and results[0].token == 6
    assert isinstance(results[2], Sampled) and results[2].logprob is None


def test_a_vocabulary_smaller_than_asked_for_is_all_told() -> None:
    [report] = token_logprobs(
        torch.tensor([[1.0, 2.0]]), [1], [Sampling(max_tokens=1, seed=0, logprobs=5)]
    )
    assert report is not None
    assert [token for token, _, _ in report.top] == [1, 0]


def test_rows_that_can_have_no_token_fail_alone() -> None:
    logits = random_logits(3)
    logits[0, 4] = torch.nan
    bias = ((2, 1.0), (VOCABULARY, 1.0))
    broken, refused, fine = sample(
        logits, [sequence(), sequence(logit_bias=bias), sequence()], EOS, "m"
    )
    assert isinstance(broken, WorkerFailed)
    assert isinstance(refused, InvalidRequest) and refused.field == "logit_bias"
    assert fine == sample(logits[2:], [sequence()], EOS, "m")[0]


FIELDS = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**63 - 1), "temperature": st.sampled_from([0.0, 0.5, 1.5])},
    optional={
        "top_k": st.integers(0, 50),
        "top_p": st.floats(0.01, 1.0),
        "min_p": st.floats(0.0, 1.0),
        "repetition_penalty": st.floats(0.1, 5.0),
        "presence_penalty": st.floats(-2.0, 2.0),
        "frequency_penalty": st.floats(-2.0, 2.0),
        "logit_bias": st.dictionaries(st.integers(0, VOCABULARY + 1), st.floats(-100, 100)).map(
            lambda bias: tuple(bias.items())
        ),
        "min_tokens": st.integers(0, 9),
        "stop_ids": st.lists(st.integers(0, VOCABULARY - 1), max_size=3).map(tuple),
        "ignore_eos": st.booleans(),
        "logprobs": st.integers(0, 5),
    },
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(FIELDS, st.lists(st.integers(0, VOCABULARY - 1), max_size=12)),
        min_size=1,
        max_size=5,
    )
)
def test_a_row_is_the_same_alone_and_in_company(
    rows: list[tuple[dict[str, Any], list[int]]],
) -> None:
    """P3, whatever its mates ask for; no end is sampled before its time, and log-probabilities are
    the same too."""
    logits = random_logits(len(rows), seed=2)
    items = [sequence(said, **fields) for fields, said in rows]
    together = sample(logits, items, EOS, "m")
    for row, (item, result) in enumerate(zip(items, together, strict=True)):
        [alone] = sample(logits[row : row + 1], [item], EOS, "m")
        if isinstance(result, Sampled):
            assert result == alone
            sampling = item.sampling
            assert sampling is not None
            ends = {*sampling.stop_ids, *(() if sampling.ignore_eos else EOS)}
            assert result.token not in ends or len(item.output_ids) >= sampling.min_tokens
        else:
            assert isinstance(alone, InvalidRequest) and isinstance(result, InvalidRequest)
