"""Figures of the arms of an experiment, read from its log, for `aios ab report`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scripts.cli.ab.comparison import Timing
from shared.figures import (
    Mean,
    Share,
    fisher_test,
    mean_of,
    percentile,
    permutation_test,
    share_of,
)
from shared.queue.experiment_log import Feedback, JobOutcome

LEAST = 10
"""The fewest values of each arm that are compared."""


@dataclass(frozen=True)
class ArmFigures:
    """The figures of one arm. Those without a basis are None.

    `done`, `failed` and `cancelled` are shares of its jobs. A request has failed if one of its jobs
    has. Times are of jobs that are done. `cost` is in tokens. `feedback` is the mean score.
    """

    arm: str
    requests: int
    jobs: int
    done: Share | None
    failed: Share | None
    cancelled: Share | None
    failed_requests: Share | None
    first_token_ms: Timing | None
    answer_ms: Timing | None
    cost: int
    feedback: Mean | None


@dataclass(frozen=True)
class ArmTest:
    """Two arms beside each other.

    The p values are the chance of a difference at least as large if both were equal: of the mean
    scores, and of the shares of requests that failed. They are None where there is too little data.
    """

    first: str
    second: str
    feedback_p: float | None
    failures_p: float | None


@dataclass(frozen=True)
class TrafficReport:
    """The figures of all arms of an experiment, and a test of the first two."""

    experiment: str
    arms: Sequence[ArmFigures]
    test: ArmTest | None


def report_of(
    experiment: str,
    outcomes: Sequence[JobOutcome],
    feedback: Sequence[Feedback],
    known_arms: Collection[str] = (),
) -> TrafficReport:
    """Return the figures of an experiment. Arms are those known, and those of the log, by name."""
    names = set(known_arms)
    names.update(outcome.arm for outcome in outcomes)
    names.update(one.arm for one in feedback)

    arms = []
    scores = []
    for name in sorted(names):
        arm_scores = [one.score for one in feedback if one.arm == name]
        scores.append(arm_scores)
        arms.append(_figures(name, [one for one in outcomes if one.arm == name], arm_scores))
    test = None
    if len(arms) > 1:
        test = _test(arms[0], arms[1], scores[0], scores[1])
    return TrafficReport(experiment, arms, test)


def _figures(arm: str, outcomes: Sequence[JobOutcome], scores: Sequence[float]) -> ArmFigures:
    states = [outcome.state for outcome in outcomes]
    requests = {outcome.request_id for outcome in outcomes}
    failed = {outcome.request_id for outcome in outcomes if outcome.state == "failed"}
    done = [outcome for outcome in outcomes if outcome.state == "done"]
    first_ms = [outcome.first_ms for outcome in done if outcome.first_ms is not None]
    return ArmFigures(
        arm=arm,
        requests=len(requests),
        jobs=len(states),
        done=_share(states.count("done"), len(states)),
        failed=_share(states.count("failed"), len(states)),
        cancelled=_share(states.count("cancelled"), len(states)),
        failed_requests=_share(len(failed), len(requests)),
        first_token_ms=_timing(first_ms),
        answer_ms=_timing([outcome.total_ms for outcome in done]),
        cost=sum(outcome.cost for outcome in outcomes),
        feedback=mean_of(scores) if scores else None,
    )


def _share(count: int, total: int) -> Share | None:
    return share_of(count, total) if total else None


def _timing(times_ms: Sequence[float]) -> Timing | None:
    if not times_ms:
        return None
    ordered = sorted(times_ms)
    return Timing(p50=percentile(ordered, 50), p95=percentile(ordered, 95))


def _test(
    first: ArmFigures,
    second: ArmFigures,
    first_scores: Sequence[float],
    second_scores: Sequence[float],
) -> ArmTest:
    feedback_p = None
    if min(len(first_scores), len(second_scores)) >= LEAST:
        feedback_p = permutation_test(first_scores, second_scores)
    failures_p = None
    if min(first.requests, second.requests) >= LEAST:
        assert first.failed_requests is not None
        assert second.failed_requests is not None
        failures_p = fisher_test(first.failed_requests, second.failed_requests)
    return ArmTest(first.arm, second.arm, feedback_p, failures_p)
