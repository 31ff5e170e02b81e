"""The sampler against the softmax of its logits, and its noise against the published hash."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from shared.messages import Sampling
from worker.engine.sampler import choose
from worker.engine.tensor_noise import gumbel_noise, normal_noise
from worker.native import operators

NUM_DRAWS = 4000
LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


@pytest.fixture(autouse=True, params=["kernel", "torch"])
def chooser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel choose, or torch as on a machine without kernels."""
    if request.param == "torch":
        monkeypatch.setattr(operators, "library", lambda: None)
    elif operators.library() is None:
        pytest.skip("there are no kernels here")


def draws(**fields: float) -> torch.Tensor:
    """Return the share of each token over `NUM_DRAWS` positions of one seed."""
    sampling = Sampling(max_tokens=1, seed=7, **fields)  # type: ignore[arg-type]
    logits = LOGITS.expand(NUM_DRAWS, -1)
    chosen = choose(logits, [sampling] * NUM_DRAWS, range(NUM_DRAWS))
    return torch.bincount(torch.tensor(chosen), minlength=5) / NUM_DRAWS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_follow_the_softmax(temperature: float) -> None:
    """Gumbel-max draws follow softmax(logits / T) within four standard deviations."""
    shares = draws(temperature=temperature)

    expected = (LOGITS / temperature).softmax(-1)
    deviation = (expected * (1 - expected) / NUM_DRAWS).sqrt()
    gaps = (shares - expected).abs()
    assert (gaps <= 4 * deviation + 1e-3).all()


def test_top_k_and_top_p_cut_exactly_what_they_should() -> None:
    """A26: Top-k keeps k tokens, and top-p the smallest set of likeliest tokens that reaches p.

    The likeliest token is always in it.
    """
    likeliest = float(LOGITS.softmax(-1)[0])

    two = draws(top_k=2)
    assert (two[2:] == 0).all()

    one = draws(top_p=likeliest - 0.01)
    assert (one[1:] == 0).all()

    two = draws(top_p=likeliest + 0.01)
    assert two[1] > 0
    assert (two[2:] == 0).all()

    every = draws(top_p=0.999999, temperature=2.0)
    assert (every > 0).all()


def test_temperature_zero_is_greedy_whatever_the_seed() -> None:
    """X4, T5: Temperature zero takes the likeliest token for any seed."""
    samplings = [Sampling(max_tokens=1, seed=seed, temperature=0.0) for seed in range(8)]
    assert choose(LOGITS.expand(8, -1), samplings, range(8)) == [0] * 8


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    """Nothing overflows at the smallest temperature, which takes the likeliest token, too."""
    # The first one is the smallest float above zero.
    for temperature in (5e-324, 1e-300, 1e-6):
        sampling = Sampling(max_tokens=1, seed=3, temperature=temperature)
        assert choose(LOGITS[None], [sampling], [0]) == [0]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10_000)), min_size=1, max_size=6)
)
def test_a_row_is_the_same_alone_and_in_company(rows: list[tuple[int, int]]) -> None:
    """P3: A row's token depends on its own seed, position and logits only."""
    samplings = []
    positions = []
    for seed, position in rows:
        samplings.append(Sampling(max_tokens=1, seed=seed, temperature=1.0, top_p=0.9))
        positions.append(position)
    torch.manual_seed(0)
    logits = torch.randn(len(rows), 50)

    together = choose(logits, samplings, positions)

    assert len(together) == len(rows)
    for row, token in enumerate(together):
        alone = choose(logits[row : row + 1], [samplings[row]], [positions[row]])
        assert alone == [token]


def splitmix64(value: int) -> int:
    """Return the published finaliser's hash, computed with Python's own integers."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


@given(st.integers(0, 2**64 - 1))
def test_noise_is_the_published_hash(key: int) -> None:
    """Noise is a published hash, a change of which would change every seeded output."""
    expected = []
    for token in range(5):
        bits = splitmix64((key + (token + 1) * 0x9E3779B97F4A7C15) % 2**64)
        # The middle of one of 2**52 equal parts of the unit interval: never 0, never 1.
        uniform = ((bits >> 12) + 0.5) * 2.0**-52
        expected.append(-math.log(-math.log(uniform)))

    noise = gumbel_noise([key], 5, torch.device("cpu"))

    assert noise[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_noise_looks_like_gumbel() -> None:
    """Noise has the Gumbel mean and variance, and neighbouring keys do not correlate."""
    noise = gumbel_noise([1, 2], 20_000, torch.device("cpu"))

    assert noise.mean().item() == pytest.approx(0.5772, abs=0.03)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.06)
    assert abs(torch.corrcoef(noise)[0, 1].item()) < 0.03


@given(st.integers(0, 2**64 - 1))
def test_normal_noise_is_box_and_muller_of_the_hash(key: int) -> None:
    uniform = []
    for index in range(6):
        bits = splitmix64((key + (index + 1) * 0x9E3779B97F4A7C15) % 2**64)
        uniform.append(((bits >> 12) + 0.5) * 2.0**-52)
    expected = []
    for first, second in zip(uniform[:3], uniform[3:], strict=True):
        expected.append(math.sqrt(-2 * math.log(first)) * math.cos(2 * math.pi * second))

    noise = normal_noise(key, 3, torch.device("cpu"))

    assert noise.tolist() == pytest.approx(expected, abs=1e-12)


def test_normal_noise_looks_normal() -> None:
    """Noise has mean 0 and variance 1, its fourth moment is 3, and keys do not correlate."""
    noise = torch.stack([normal_noise(key, 20_000, torch.device("cpu")) for key in (1, 2)])

    assert noise.mean().item() == pytest.approx(0.0, abs=0.02)
    assert noise.var().item() == pytest.approx(1.0, abs=0.03)
    assert noise.pow(4).mean().item() == pytest.approx(3.0, abs=0.15)
    assert abs(torch.corrcoef(noise)[0, 1].item()) < 0.03


@pytest.mark.parametrize("shift", [-40.0, 0.0, 40.0])
def test_min_p_is_a_share_of_the_likeliest_wherever_the_logits_lie(shift: float) -> None:
    """A floor of 0.4 keeps the first two of three tokens with 4, 2 and 1 parts.

    A shift of all logits changes nothing.
    """
    logits = torch.tensor([[4.0, 2.0, 1.0]]).log() + shift

    drawn = set()
    for seed in range(200):
        sampling = Sampling(1, seed=seed, temperature=1.0, min_p=0.4)
        [token] = choose(logits, [sampling], [0])
        drawn.add(token)

    assert drawn == {0, 1}
