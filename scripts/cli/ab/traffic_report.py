"""`aios ab report`: the arms of an experiment, from the log of a running fleet."""

import json
from dataclasses import asdict

from scripts.cli.ab.report import markdown_table, timing_cell
from scripts.cli.ab.traffic import LEAST, ArmFigures, ArmTest, TrafficReport, report_of
from scripts.cli.colours import without_markup
from scripts.cli.fleet_tool import ToolError
from shared.figures import Mean, Share
from shared.queue.broker import open_broker
from shared.queue.experiment_log import ExperimentLog
from shared.settings.command_line import redis_url
from shared.settings.settings import Settings

_COLUMNS = (
    "arm",
    "requests",
    "jobs",
    "done",
    "failed",
    "cancelled",
    "first token p50 / p95, ms",
    "whole p50 / p95, ms",
    "cost, tokens",
    "feedback",
    "mean score",
)
_SIGNIFICANT = 0.05


async def answer(name: str, settings: Settings, *, as_json: bool) -> list[str]:
    """Read the log of an experiment, and return the lines of its report.

    Raise ToolError for an experiment that is not known here and has no log.
    """
    async with open_broker(redis_url(settings), settings.redis_shards) as broker:
        log = ExperimentLog(broker)
        outcomes = await log.outcomes(name)
        feedback = await log.feedback(name)
    known_arms: list[str] = []
    for experiment in settings.ab:
        if experiment.name == name:
            known_arms = [arm.model for arm in experiment.arms]
    report = report_of(name, outcomes, feedback, known_arms)
    if not report.arms:
        raise ToolError(f"{name}: no request of this experiment has ended in the last 30 days")
    if as_json:
        return [json.dumps(asdict(report))]
    return without_markup("\n".join(markdown_lines(report))).splitlines()


def markdown_lines(report: TrafficReport) -> list[str]:
    num_requests = sum(arm.requests for arm in report.arms)
    lines = [f"{report.experiment}: {num_requests} requests.", ""]
    lines += markdown_table(_COLUMNS, [_cells(arm) for arm in report.arms])
    if report.test is not None:
        first, second = report.arms[:2]
        lines.append("")
        lines.append(f"- {_feedback_sentence(first, second, report.test)}")
        lines.append(f"- {_failures_sentence(first, second, report.test)}")
    return lines


def _cells(arm: ArmFigures) -> list[str]:
    return [
        arm.arm,
        f"{arm.requests}",
        f"{arm.jobs}",
        _percent(arm.done),
        _percent(arm.failed),
        _percent(arm.cancelled),
        timing_cell(arm.first_token_ms),
        timing_cell(arm.answer_ms),
        f"{arm.cost}",
        "0" if arm.feedback is None else f"{arm.feedback.count}",
        _mean(arm.feedback),
    ]


def _percent(share: Share | None) -> str:
    if share is None:
        return "-"
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _mean(mean: Mean | None) -> str:
    if mean is None:
        return "-"
    return f"{mean.value:+.2f} ({mean.low:+.2f} to {mean.high:+.2f})"


def _feedback_sentence(first: ArmFigures, second: ArmFigures, test: ArmTest) -> str:
    if test.feedback_p is None or first.feedback is None or second.feedback is None:
        return (
            f"Too little feedback to compare the arms: fewer than {LEAST} scores for one of them."
        )
    difference = first.feedback.value - second.feedback.value
    better = first.arm if difference > 0 else second.arm
    return (
        f"Feedback: {first.arm} less {second.arm} is {difference:+.2f}, permutation test "
        f"p = {test.feedback_p:.3g}. {_verdict(test.feedback_p, f'{better} is rated better')}"
    )


def _failures_sentence(first: ArmFigures, second: ArmFigures, test: ArmTest) -> str:
    failed = (first.failed_requests, second.failed_requests)
    if test.failures_p is None or failed[0] is None or failed[1] is None:
        return f"Too few requests to compare failures: fewer than {LEAST} for one of the arms."
    worse = first.arm if failed[0].value > failed[1].value else second.arm
    return (
        f"Failures: {failed[0].count} of {failed[0].total} requests of {first.arm}, "
        f"{failed[1].count} of {failed[1].total} of {second.arm}, Fisher's exact "
        f"p = {test.failures_p:.3g}. {_verdict(test.failures_p, f'{worse} fails more often')}"
    )


def _verdict(p: float, finding: str) -> str:
    if p < _SIGNIFICANT:
        return f"{finding}, and chance would hardly do that."
    return "The difference may be chance."
