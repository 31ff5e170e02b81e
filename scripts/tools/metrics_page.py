"""Generate the tables of docs/metrics.md: metrics, and the numbers that workers report of a model.

    python -m scripts.tools.metrics_page

Run this after a metric was added or changed. A test compares the page with the output.
"""

from scripts.tools.generated_pages import code, page_with, table_of
from shared.shipped import REPO_ROOT
from shared.telemetry.metric_kinds import MetricInfo, MetricSheet
from shared.telemetry.metrics import JanitorMetrics, Metrics, WorkerMetrics
from shared.telemetry.model_load import NUMBERS

PAGE = REPO_ROOT / "docs" / "metrics.md"
METRICS_MARK = "metrics: made by python -m scripts.tools.metrics_page"
NUMBERS_MARK = "numbers: made by python -m scripts.tools.metrics_page"


def roles() -> dict[str, MetricSheet]:
    """Return the metrics of each role."""
    return {
        "front": Metrics().sheet,
        "worker": WorkerMetrics().sheet,
        "jobs": JanitorMetrics().sheet,
    }


def metrics_table() -> str:
    """Return a table of the metrics of all roles. A metric of several roles has one row."""
    metrics: dict[str, MetricInfo] = {}
    roles_of: dict[str, list[str]] = {}
    for role, sheet in roles().items():
        for metric in sheet.listed:
            metrics.setdefault(metric.name, metric)
            roles_of.setdefault(metric.name, []).append(role)
    rows = []
    for name, metric in metrics.items():
        labels = ", ".join(code(label) for label in metric.labels) or "-"
        rows.append([code(name), metric.kind, labels, ", ".join(roles_of[name]), metric.meaning])
    return table_of(["name", "type", "labels", "from", "meaning"], rows)


def numbers_table() -> str:
    """Return a table of the numbers of a model, with the metrics and columns that show them."""
    rows = []
    for name, number in NUMBERS.items():
        metrics = []
        if number.metric is not None:
            metrics.append(number.metric)
        if number.total is not None:
            metrics.append(number.total.metric)
        column = number.column.title if number.column else "-"
        rows.append([code(name), number.unit, code(*metrics), column, number.meaning])
    return table_of(["field", "in", "metric", "column", "meaning"], rows)


def page() -> str:
    """Return docs/metrics.md as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    text = page_with(metrics_table(), text, METRICS_MARK)
    return page_with(numbers_table(), text, NUMBERS_MARK)


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
