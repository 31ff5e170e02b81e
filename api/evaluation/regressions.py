"""Regressions: figures of a report that are worse than those of the last baseline.

A baseline is an earlier result of the same model, task, device and precision, with the same items
asked in the same way, that was no regression itself. So a regression is told by every report until
it is gone or accepted.
"""

from collections.abc import Sequence
from dataclasses import replace

from api.evaluation.report import Regression, Report, Skipped, TaskReport

MOST_SLOWER = 0.2
"""The share by which the median latency may grow."""


def compared(report: Report, history: Sequence[Report]) -> Report:
    """Return a report with what is worse in it than in earlier reports, the newest first."""
    results = []
    for result in report.results:
        found = _baseline(report, result, history)
        if found is None:
            results.append(result)
            continue
        earlier, before = found
        results.append(
            replace(
                result,
                baseline=earlier.id,
                regressions=tuple(regressions_of(result, before, earlier.id)),
            )
        )
    skipped = [_beside_earlier(one, history) for one in report.skipped]
    return replace(report, results=tuple(results), skipped=tuple(skipped))


def _beside_earlier(skipped: Skipped, history: Sequence[Report]) -> Skipped:
    """Return a set that was left out, with the last report in which its model has answered it."""
    for earlier in history:
        for result in earlier.results:
            if (result.task, result.model.id) == (skipped.task, skipped.model):
                return replace(skipped, baseline=earlier.id)
    return skipped


def regressions_of(now: TaskReport, before: TaskReport, baseline: str) -> list[Regression]:
    """Return what is worse than before: a median latency by more than a fifth, an accuracy below
    the interval of the earlier one.
    """
    found = []
    if now.latency_ms is not None and before.latency_ms is not None:
        limit = before.latency_ms.p50 * (1 + MOST_SLOWER)
        if now.latency_ms.p50 > limit:
            found.append(
                Regression("latency", before.latency_ms.p50, limit, now.latency_ms.p50, baseline)
            )
    if now.accuracy.value < before.accuracy.low:
        found.append(
            Regression(
                "accuracy", before.accuracy.value, before.accuracy.low, now.accuracy.value, baseline
            )
        )
    return found


def sentence_of(result: TaskReport, regression: Regression) -> str:
    """Return what a regression is, in a sentence for people."""
    name = f"{result.task} by {result.model.id}"
    if regression.kind == "latency":
        return (
            f"{name}: median latency {regression.now:.1f} ms, "
            f"{100 * (regression.now / regression.before - 1):.0f} % above {regression.before:.1f} ms "
            f"of {regression.baseline}"
        )
    return (
        f"{name}: accuracy {100 * regression.now:.1f} %, below the interval of "
        f"{100 * regression.before:.1f} % of {regression.baseline}, which begins at "
        f"{100 * regression.limit:.1f} %"
    )


def _baseline(
    report: Report, result: TaskReport, history: Sequence[Report]
) -> tuple[Report, TaskReport] | None:
    for earlier in history:
        if (earlier.way, earlier.concurrency) != (report.way, report.concurrency):
            continue
        for before in earlier.results:
            is_good = earlier.is_accepted or not before.regressions
            if is_good and _key(before) == _key(result):
                return earlier, before
    return None


def _key(result: TaskReport) -> tuple[str, ...]:
    model = result.model
    return (result.task, model.id, model.device, model.dtype, result.set_digest)
