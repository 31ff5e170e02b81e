"""The choice among shapes by their measured speeds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.hardware.measurements import Measurement, best_of, in_words

speeds = st.floats(0.01, 1e6)
measured_shapes = st.lists(
    st.builds(Measurement, st.integers(1, 8), st.integers(1, 8), speeds, speeds),
    min_size=1,
    unique_by=lambda measured: measured.workers,
)


@pytest.mark.parametrize(
    ("measurements", "expected"),
    [
        # The fastest with a full batch, however slow it is with one row.
        ([(1, 2, 186.0, 24.0), (2, 1, 165.0, 40.0)], (1, 2)),
        ([(1, 2, 165.0, 24.0), (2, 1, 186.0, 13.0)], (2, 1)),
        # Within 5 % of it the fastest with one row.
        ([(1, 2, 96.0, 24.0), (2, 1, 100.0, 13.0)], (1, 2)),
        ([(1, 2, 100.0, 13.0), (2, 1, 96.0, 24.0)], (2, 1)),
        ([(1, 2, 94.0, 24.0), (2, 1, 100.0, 13.0)], (2, 1)),
        # Where that is equal too, the fewest workers.
        ([(4, 1, 100.0, 20.0), (2, 2, 96.0, 19.5), (1, 4, 60.0, 30.0)], (2, 2)),
        ([(1, 1, 1.0, 1.0)], (1, 1)),
    ],
)
def test_the_choice(
    measurements: list[tuple[int, int, float, float]], expected: tuple[int, int]
) -> None:
    """The order of the measurements does not matter."""
    values = [Measurement(*measurement) for measurement in measurements]
    for one_order in (values, values[::-1]):
        best = best_of(one_order)
        assert (best.workers, best.threads) == expected


@given(measured_shapes)
def test_nothing_is_much_faster_than_the_choice(measurements: list[Measurement]) -> None:
    best = best_of(measurements)
    assert best in measurements
    fastest = max(measured.batch_tokens_per_s for measured in measurements)
    assert best.batch_tokens_per_s >= 0.95 * fastest


def test_measurements_in_words() -> None:
    """The shape to take comes first, and slow models keep a decimal."""
    one = Measurement(1, 2, 186.4, 7.25)
    two = Measurement(2, 1, 165.2, 4.0)
    expected = "1 x 2 does 186 tokens/s at 16 and 7.2 at 1, 2 x 1 165 and 4.0"
    assert in_words([two, one], 16) == expected
    assert in_words([one], 16) == "1 x 2 does 186 tokens/s at 16 and 7.2 at 1"
