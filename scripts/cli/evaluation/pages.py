"""A report for people: Markdown for a terminal or a pull request, and one HTML file with plots.

The HTML file needs no other file and no network. Its plots are SVG by matplotlib, which
`pip install 'aios-hrm-fleet[report]'` brings; without it the page has tables only.
"""

from collections.abc import Sequence
from html import escape
from importlib.util import find_spec

from api.evaluation.regressions import sentence_of
from api.evaluation.report import Accuracy, Report, TaskReport, Timing
from scripts.cli.ab.report import html_table, markdown_table, page_of, svg_of

COLUMNS = (
    "task",
    "model",
    "on",
    "right",
    "latency p50 / p95, ms",
    "first token p50 / p95, ms",
    "tokens/s",
    "load, ms",
    "workers' memory, MB",
    "errors",
)
_LISTED = ("report", "made", "asked", "results", "regressions")
_MEGABYTE = 1e6


def as_markdown(report: Report) -> str:
    """Return the table of a report, its regressions, and the sets that were left out."""
    lines = [f"{report.id}, {report.made_at}", ""]
    lines += markdown_table(COLUMNS, [_cells(result) for result in report.results])
    sentences = _sentences(report)
    if sentences:
        lines.append("")
        lines += [f"- {sentence}" for sentence in sentences]
    return "\n".join(lines) + "\n"


def as_html(report: Report, history: Sequence[Report]) -> str:
    """Return one page with the table, the plots, all answers, and earlier reports."""
    parts = [f"<p>{escape(report.id)}, {escape(report.made_at)}</p>"]
    parts.append(html_table(COLUMNS, [_cells(result) for result in report.results]))
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in _sentences(report))
    parts.append(f"<ul>{items}</ul>")
    if report.results and find_spec("matplotlib") is not None:
        parts.append(_plots(report))
        if history:
            parts.append(_course(report, history))
    parts += [_answers(result) for result in report.results]
    parts.append("<h2>Reports</h2>")
    parts.append(html_table(_LISTED, [_listed(one) for one in (report, *history)]))
    return page_of("Evaluation", parts)


def listed(history: Sequence[Report]) -> str:
    """Return a table of reports."""
    return "\n".join(markdown_table(_LISTED, [_listed(report) for report in history])) + "\n"


def _listed(report: Report) -> list[str]:
    return [
        report.id,
        report.made_at,
        report.way,
        f"{len(report.results)}",
        f"{len(report.regressions)}{' (accepted)' if report.is_accepted else ''}",
    ]


def _cells(result: TaskReport) -> list[str]:
    model = result.model
    memory = "-" if model.memory_bytes is None else f"{model.memory_bytes / _MEGABYTE:.0f}"
    return [
        result.task,
        model.id,
        f"{model.device} {model.dtype}".strip() or "-",
        _accuracy_cell(result.accuracy),
        _timing_cell(result.latency_ms),
        _timing_cell(result.first_token_ms),
        _number(result.tokens_per_s),
        _number(model.load_ms),
        memory,
        f"{result.errors} of {len(result.items)}",
    ]


def _accuracy_cell(accuracy: Accuracy) -> str:
    interval = f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}"
    return f"{100 * accuracy.value:.1f} % ({interval}), n={accuracy.count}"


def _timing_cell(timing: Timing | None) -> str:
    return "-" if timing is None else f"{timing.p50:.1f} / {timing.p95:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _sentences(report: Report) -> list[str]:
    sentences = []
    for result, regression in report.regressions:
        sentences.append(f"Regression: {sentence_of(result, regression)}.")
    for skipped in report.skipped:
        model = "" if skipped.model is None else f" by {skipped.model}"
        sentences.append(f"Skipped: {skipped.task}{model}: {skipped.reason.rstrip('.')}.")
    return sentences


def _answers(result: TaskReport) -> str:
    rows = []
    for item in result.items:
        told = item.error or item.answered
        rows.append([item.id, f"{item.score:.2f}", f"{item.latency_ms:.1f}", told])
    table = html_table(("item", "score", "ms", "answer"), rows)
    name = escape(f"{result.task} by {result.model.id}: all answers")
    return f"<details><summary>{name}</summary>{table}</details>"


def _plots(report: Report) -> str:
    """Return an SVG of accuracies with their intervals, and of latencies."""
    from matplotlib.figure import Figure

    names = [f"{result.task}\n{result.model.id}" for result in report.results]
    figure = Figure(figsize=(10, 1.2 + 0.5 * len(names)), layout="constrained")
    share_axes, time_axes = figure.subplots(1, 2, sharey=True)
    for place, result in enumerate(report.results):
        accuracy = result.accuracy
        share_axes.barh(place, 100 * accuracy.value)
        share_axes.plot([100 * accuracy.low, 100 * accuracy.high], [place, place], color="black")
        if result.latency_ms is not None:
            time_axes.barh(place, result.latency_ms.p50)
            time_axes.plot(
                [result.latency_ms.p50, result.latency_ms.p95], [place, place], color="black"
            )
    share_axes.set_yticks(range(len(names)), names)
    share_axes.set(xlabel="right, % (line: interval of 95 %)", xlim=(0, 100))
    # The first result stands at the top, as in the table.
    share_axes.invert_yaxis()
    time_axes.set(xlabel="latency, ms (bar: median, line: to the 95th percentile)", xscale="log")
    return svg_of(figure)


def _course(report: Report, history: Sequence[Report]) -> str:
    """Return an SVG of the median latency of each task and model, over the reports of this way."""
    from matplotlib.figure import Figure

    reports = [one for one in (report, *history) if one.way == report.way]
    courses: dict[str, dict[int, float]] = {}
    for place, one in enumerate(reversed(reports)):
        for result in one.results:
            name = f"{result.task}, {result.model.id}"
            if result.latency_ms is not None:
                courses.setdefault(name, {})[place] = result.latency_ms.p50
    figure = Figure(figsize=(10, max(3.6, 0.2 * len(courses))), layout="constrained")
    axes = figure.subplots()
    for name, medians in courses.items():
        axes.plot(list(medians.keys()), list(medians.values()), marker="o", label=name)
    axes.set_xticks(range(len(reports)))
    axes.set(xlabel="report, the latest on the right", ylabel="median latency, ms", yscale="log")
    figure.legend(loc="outside right upper", fontsize="small")
    return svg_of(figure)
