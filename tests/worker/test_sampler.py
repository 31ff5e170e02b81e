"""The sampler against what softmax says, and the hash against itself."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from shared.messages import Sampling
from worker.sampler import gumbel_noise, sample

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def draws(sampling_fields: dict[str, float], count: int = 4000) -> torch.Tensor:
    """Shares of each token over `count` positions of one seed."""
    samplings = [Sampling(max_tokens=1, seed=7, **sampling_fields)] * count  # type: ignore[arg-type]
    chosen = sample(LOGITS.expand(count, -1), samplings, range(count))
    return torch.bincount(torch.tensor(chosen), minlength=5) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_follow_the_softmax(temperature: float) -> None:
    """Gumbel-max draws from softmax(logits / T): within 4 standard deviations."""
    expected = (LOGITS / temperature).softmax(-1)
    spread = (expected * (1 - expected) / 4000).sqrt()
    assert ((draws({"temperature": temperature}) - expected).abs() <= 4 * spread + 1e-3).all()


def test_top_k_and_top_p_cut_exactly_what_they_should() -> None:
    """A26: the smallest set of likeliest tokens whose mass reaches p; the likeliest one is always in it."""
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
    assert sample(LOGITS.expand(8, -1), samplings, range(8)) == [0] * 8


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10_000)), min_size=1, max_size=6))
def test_a_row_is_the_same_alone_and_in_company(rows: list[tuple[int, int]]) -> None:
    """P3: noise depends on seed, position and token id only."""
    samplings = [Sampling(max_tokens=1, seed=seed, temperature=1.0, top_p=0.9) for seed, _ in rows]
    positions = [position for _, position in rows]
    torch.manual_seed(0)
    logits = torch.randn(len(rows), 50)
    together = sample(logits, samplings, positions)
    alone = [sample(logits[i : i + 1], [samplings[i]], [positions[i]])[0] for i in range(len(rows))]
    assert together == alone


def test_noise_is_pinned_and_looks_like_gumbel() -> None:
    """The hash is part of the sampler's version: a change here changes every seeded output."""
    noise = gumbel_noise([1, 2], 20_000, torch.device("cpu"))
    assert noise[0, :3].tolist() == pytest.approx(PINNED, abs=1e-12)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.03)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.06)
    assert abs(torch.corrcoef(noise)[0, 1].item()) < 0.03


PINNED = [0.0, 0.0, 0.0]
