"""Penalties, biases, cuts and log-probabilities.

The oracles are transformers' own processors, and the formulas written out.
"""

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
RESPONSE = [5, 9, 5, 5, 31]
EOS = frozenset({0, 7})


def sequence(output_ids: list[int] | None = None, *, seed: int = 1, **fields: Any) -> TokenSequence:
    """Return a sequence that has generated `output_ids`, or `RESPONSE`."""
    if output_ids is None:
        output_ids = RESPONSE
    sampling = Sampling(max_tokens=64, seed=seed, **fields)
    return TokenSequence("job", Encoded(PROMPT, max_tokens=64), sampling, output_ids=output_ids)


def random_logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, VOCABULARY, generator=generator) * 3


def processed(logits: torch.Tensor, *processors: LogitsProcessor) -> torch.Tensor:
    """Return one row's logits after transformers' processors."""
    ids = torch.tensor([[*PROMPT, *RESPONSE]])
    result: torch.Tensor = LogitsProcessorList(processors)(ids, logits.clone())
    return result


def with_presence_and_frequency(
    logits: torch.Tensor, presence: float, frequency: float
) -> torch.Tensor:
    """Subtract count * frequency, and presence where count > 0; counts are over the response.

    The formula is that of OpenAI's documentation.
    """
    values = logits.clone()
    for token in range(VOCABULARY):
        count = RESPONSE.count(token)
        values[0, token] -= count * frequency
        if count > 0:
            values[0, token] -= presence
    return values


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_penalty_is_transformers(penalty: float) -> None:
    """The penalty applies once to each token of prompt and response, as in transformers.

    It divides positive logits and multiplies negative ones.
    """
    logits = random_logits()
    expected = processed(logits, RepetitionPenaltyLogitsProcessor(penalty))

    adjusted = adjust(logits, [sequence(repetition_penalty=penalty)], EOS)

    torch.testing.assert_close(adjusted, expected)
    assert not torch.equal(expected, logits)


@pytest.mark.parametrize(("presence", "frequency"), [(0.7, 0.0), (0.0, 0.4), (-1.0, 2.0)])
def test_presence_and_frequency_penalties_follow_the_formula(
    presence: float, frequency: float
) -> None:
    """Presence and frequency penalties count the response's tokens, not the prompt's."""
    logits = random_logits()
    expected = with_presence_and_frequency(logits, presence, frequency)

    penalised = sequence(presence_penalty=presence, frequency_penalty=frequency)
    torch.testing.assert_close(adjust(logits, [penalised], EOS), expected)

    fresh = sequence([], presence_penalty=presence, frequency_penalty=frequency)
    assert torch.equal(adjust(logits, [fresh], EOS), logits), "a prompt's tokens are not penalised"


def test_bias_is_added() -> None:
    """A bias is added to its token's logit."""
    logits = random_logits()
    expected = processed(logits, SequenceBiasLogitsProcessor([[[5], 2.5], [[39], -100.0]]))

    biased = sequence(logit_bias=((5, 2.5), (39, -100.0)))

    torch.testing.assert_close(adjust(logits, [biased], EOS), expected)


@pytest.mark.parametrize("min_tokens", [0, 5, 6, 60])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_ends_are_withheld_until_there_are_enough_tokens(min_tokens: int, ignore_eos: bool) -> None:
    """End tokens and stop ids are impossible before `min_tokens`.

    With `ignore_eos` an end token is a token like any other.
    """
    logits = random_logits()
    ends = [12]
    if not ignore_eos:
        ends.extend(EOS)
    oracle = MinNewTokensLengthLogitsProcessor(len(PROMPT), min_tokens, ends)
    expected = processed(logits, oracle)

    # The stop id 5,000 is not in the vocabulary.
    waiting = sequence(min_tokens=min_tokens, ignore_eos=ignore_eos, stop_ids=(12, 5_000))

    assert torch.equal(adjust(logits, [waiting], EOS), expected)
    assert math.isinf(expected[0, 12]) == (min_tokens > len(RESPONSE))


def test_the_order_of_all_together() -> None:
    """The order is repetition, presence and frequency, bias, ends.

    So no bias brings a withheld end token back.
    """
    logits = random_logits()
    with_all = sequence(
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

    torch.testing.assert_close(adjust(logits, [with_all], EOS), expected)
    assert expected[0, 7] == -torch.inf


def test_rows_that_ask_for_nothing_are_not_touched() -> None:
    """A batch that adjusts nothing is returned uncopied; other rows leave a plain row as it is."""
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
    """After temperature, top-k, top-p and min-p the same tokens are left as in transformers.

    All rows are cut together, each by its own parameters.
    """
    logits = random_logits(len(CUTS), seed=4)
    samplings = [Sampling(max_tokens=1, seed=0, temperature=temperature, **cut) for cut in CUTS]
    scaled = (logits.double() - logits.double().amax(-1, keepdim=True)) / temperature

    left = keep_allowed(scaled, samplings).isfinite()

    for row, cut in enumerate(CUTS):
        warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(temperature)]
        if "top_k" in cut:
            warpers.append(TopKLogitsWarper(cut["top_k"]))
        if "top_p" in cut:
            warpers.append(TopPLogitsWarper(cut["top_p"]))
        if "min_p" in cut:
            warpers.append(MinPLogitsWarper(cut["min_p"]))
        expected = processed(logits[row : row + 1], *warpers)
        assert torch.equal(left[row], expected[0].isfinite()), cut
    assert left.sum(-1).unique().numel() > 3, "the cuts hardly differ, so this proved little"


def test_logprobs_are_the_models_own() -> None:
    """Log-probabilities know no penalty, bias, temperature or cut."""
    logits = random_logits(3)
    adjusted = sequence(
        logprobs=3,
        repetition_penalty=2.0,
        logit_bias=((6, 100.0),),
        temperature=0.7,
        top_k=2,
    )
    greedy = sequence(logprobs=0, temperature=0.0)
    without = sequence(temperature=0.0)

    results = sample(logits, [adjusted, greedy, without], EOS, "m")

    for row, num_top in ((0, 3), (1, 0)):
        result = results[row]
        assert isinstance(result, Sampled)
        assert result.logprob is not None
        expected = own_logprobs(logits[row].tolist())
        assert result.logprob.logprob == pytest.approx(expected[result.token], abs=1e-12)

        by_likelihood = sorted(range(VOCABULARY), key=lambda token: -expected[token])
        likeliest = by_likelihood[:num_top]
        for (token, _, logprob), best in zip(result.logprob.top, likeliest, strict=True):
            assert token == best
            assert logprob == pytest.approx(expected[best], abs=1e-12)

    assert isinstance(results[0], Sampled)
    # The bias has decided the token, though it is not in the log-probabilities.
    assert results[0].token == 6
    assert isinstance(results[2], Sampled)
    assert results[2].logprob is None


def own_logprobs(row: list[float]) -> list[float]:
    """Return the log-softmax of one row."""
    total = math.log(math.fsum(math.exp(logit) for logit in row))
    return [logit - total for logit in row]


def test_a_vocabulary_smaller_than_asked_for_is_all_told() -> None:
    """A request for more tokens than there are gets all of them, the likeliest first."""
    sampling = Sampling(max_tokens=1, seed=0, logprobs=5)

    [report] = token_logprobs(torch.tensor([[1.0, 2.0]]), [1], [sampling])

    assert report is not None
    (first, _, _), (second, _, _) = report.top
    assert first == 1
    assert second == 0


def test_rows_that_can_have_no_token_fail_alone() -> None:
    """A row that is not finite and a bias beyond the vocabulary fail; the third row does not."""
    logits = random_logits(3)
    logits[0, 4] = torch.nan
    bias = ((2, 1.0), (VOCABULARY, 1.0))
    sequences = [sequence(), sequence(logit_bias=bias), sequence()]

    broken, refused, fine = sample(logits, sequences, EOS, "m")

    assert isinstance(broken, WorkerFailed)
    assert isinstance(refused, InvalidRequest)
    assert refused.field == "logit_bias"
    [alone] = sample(logits[2:], [sequence()], EOS, "m")
    assert fine == alone


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
    """A row's token and log-probabilities do not depend on its batch mates (P3).

    No end token is sampled before its time.
    """
    logits = random_logits(len(rows), seed=2)
    sequences = [sequence(output_ids, **fields) for fields, output_ids in rows]

    together = sample(logits, sequences, EOS, "m")

    for row, (sampled, result) in enumerate(zip(sequences, together, strict=True)):
        [alone] = sample(logits[row : row + 1], [sampled], EOS, "m")
        # A bias beyond the vocabulary is refused.
        if not isinstance(result, Sampled):
            assert isinstance(alone, InvalidRequest)
            assert isinstance(result, InvalidRequest)
            continue

        assert result == alone
        sampling = sampled.sampling
        assert sampling is not None
        if len(sampled.output_ids) < sampling.min_tokens:
            assert result.token not in sampling.stop_ids
            assert sampling.ignore_eos or result.token not in EOS
