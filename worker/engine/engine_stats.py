"""Plain numbers of what one engine has done. Its thread adds to them; any thread may read them.

A runner need not know its engine: the counts of the thread that steps the runner are found in a
context variable.
"""

from contextvars import ContextVar

from shared.telemetry.histogram import BucketHistogram

_STEP_BOUNDS_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
_ROW_BOUNDS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 128, 256)


class EngineStats:
    """The counts of one engine since it was created.

    `num_segments` counts ACT segments, one for each row of a pass. `num_settled` counts the
    segments that were their row's last. Of `num_drafted` tokens that were drafted, `num_accepted`
    were right.
    """

    def __init__(self) -> None:
        self.rows = BucketHistogram(_ROW_BOUNDS)
        self.steps_s = BucketHistogram(_STEP_BOUNDS_S)
        self.last_step_s = 0.0
        self.num_tokens = 0
        self.num_prompt_tokens = 0
        self.num_failures = 0
        self.num_segments = 0
        self.num_settled = 0
        self.num_drafted = 0
        self.num_accepted = 0

    def note_step(self, num_rows: int, seconds: float) -> None:
        """Count a step of `num_rows` rows that took `seconds`."""
        self.rows.add(num_rows)
        self.steps_s.add(seconds)
        self.last_step_s = seconds


# A runner that no engine steps counts into the default, which nobody reads.
_stats = ContextVar("counts", default=EngineStats())  # noqa: B039


def count_for(stats: EngineStats) -> None:
    """Add the counts of this thread's runners to `stats` from now on."""
    _stats.set(stats)


def count_segments(num_segments: int, num_settled: int) -> None:
    """Count ACT segments, one for each row of a pass, and those that were their row's last."""
    stats = _stats.get()
    stats.num_segments += num_segments
    stats.num_settled += num_settled
