"""The sampler against what softmax says, and the hash against itself."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from shared.messages import Sampling
from worker.engine.sampler import choose, gumbel_noise

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def draws(sampling_fields: dict[str, float], count: int = 4000) -> torch.Tensor:
    """Shares of each token over `count` positions of one seed."""
    samplings = [Sampling(max_tokens=1, seed=7, **sampling_fields)] * count  # type: ignore[arg-type]
    chosen = choose(LOGITS.expand(count, -1), samplings, range(count))
    return torch.bincount(torch.tensor(chosen), minlength=5) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_follow_the_softmax(temperature: float) -> None:
    """Gumbel-max draws from softmax(logits / T): within 4 standard deviations."""
    expected = (LOGITS / temperature).softmax(-1)
    spread = (expected * (1 - expected) / 4000).sqrt()
    assert ((draws({"temperature": temperature}) - expected).abs() <= 4 * spread + 1e-3).all()


def test_top_k_and_top_p_cut_exactly_what_they_should() -> None:
    """A26: the smallest set of likeliest tokens whose mass reaches p; the likeliest one is always
    in it."""
    shares = LOGITS.softmax(-1)
    assert (draws({"top_k": 2})[2:] == 0).all()
    assert (draws({"top_p": float(shares[0]) - 0.01})[1:] == 0).all()
    two = draws({"top_p": float(shares[0]) + 0.01})
    assert two[1] > 0
    assert (two[2:] == 0).all()
    assert (draws({"top_p": 0.999999, "temperature": 2.0}) > 0).all()


def test_temperature_zero_is_greedy_whatever_the_seed() -> None:
    """X4, T5."""
    samplings = [Sampling(max_tokens=1, seed=seed, temperature=0.0) for seed in range(8)]
    assert choose(LOGITS.expand(8, -1), samplings, range(8)) == [0] * 8


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    """No overflow: the smallest float there is still picks the likeliest token."""
    for temperature in (5e-324, 1e-300, 1e-6):
        assert choose(
            LOGITS[None], [Sampling(max_tokens=1, seed=3, temperature=temperature)], [0]
        ) == [0]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10_000)), min_size=1, max_size=6)
)
def test_a_row_is_the_same_alone_and_in_company(rows: list[tuple[int, int]]) -> None:
    """P3: noise depends on seed, position and token id only."""
    samplings = [Sampling(max_tokens=1, seed=seed, temperature=1.0, top_p=0.9) for seed, _ in rows]
    positions = [position for _, position in rows]
    torch.manual_seed(0)
    logits = torch.randn(len(rows), 50)
    together = choose(logits, samplings, positions)
    alone = [choose(logits[i : i + 1], [samplings[i]], [positions[i]])[0] for i in range(len(rows))]
    assert together == alone


def splitmix64(value: int) -> int:
    """The published finaliser, in Python's own integers."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


@given(st.integers(0, 2**64 - 1))
def test_noise_is_the_published_hash(key: int) -> None:
    """The hash is part of what a seed means: a change here changes every seeded output."""
    expected = []
    for token in range(5):
        bits = splitmix64((key + (token + 1) * 0x9E3779B97F4A7C15) % 2**64)
        uniform = ((bits >> 12) + 0.5) * 2.0**-52
        expected.append(-math.log(-math.log(uniform)))
    assert gumbel_noise([key], 5, torch.device("cpu"))[0].tolist() == pytest.approx(
        expected, abs=1e-12
    )


def test_noise_looks_like_gumbel() -> None:
    """Mean, variance, and no correlation between neighbouring keys."""
    noise = gumbel_noise([1, 2], 20_000, torch.device("cpu"))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.03)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.06)
    assert abs(torch.corrcoef(noise)[0, 1].item()) < 0.03


@pytest.mark.parametrize("shift", [-40.0, 0.0, 40.0])
def test_min_p_is_a_share_of_the_likeliest_wherever_the_logits_lie(shift: float) -> None:
    """Of tokens with 4, 2 and 1 parts, a floor of 0.4 leaves the first two."""
    logits = torch.tensor([[4.0, 2.0, 1.0]]).log() + shift
    drawn = {
        choose(logits, [Sampling(1, seed, temperature=1.0, min_p=0.4)], [0])[0]
        for seed in range(200)
    }
    assert drawn == {0, 1}
