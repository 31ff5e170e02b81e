"""Generate the tables of docs/metrics.md: metrics, and the numbers that workers tell of a model.

python -m scripts.metrics_page    # after a metric was added or changed; a test compares them
"""

from scripts.generated_pages import code, page_with, table_of
from shared.metric_kinds import MetricInfo, MetricSheet
from shared.metrics import JanitorMetrics, Metrics, WorkerMetrics
from shared.model_load import NUMBERS
from shared.settings import REPO_ROOT

PAGE = REPO_ROOT / "docs" / "metrics.md"
METRICS_MARK = "metrics: made by python -m scripts.metrics_page"
NUMBERS_MARK = "numbers: made by python -m scripts.metrics_page"


def roles() -> dict[str, MetricSheet]:
    """Return the metrics of each kind of process."""
    return {
        "front": Metrics().sheet,
        "worker": WorkerMetrics().sheet,
        "jobs": JanitorMetrics().sheet,
    }


def metrics_table() -> str:
    found: dict[str, MetricInfo] = {}
    told_by: dict[str, list[str]] = {}
    for role, sheet in roles().items():
        for metric in sheet.listed:
            found.setdefault(metric.name, metric)
            told_by.setdefault(metric.name, []).append(role)
    rows = []
    for name, metric in found.items():
        labels = ", ".join(code(label) for label in metric.labels) or "-"
        rows.append([code(name), metric.kind, labels, ", ".join(told_by[name]), metric.meaning])
    return table_of(["name", "type", "labels", "from", "meaning"], rows)


def numbers_table() -> str:
    rows = []
    for name, number in NUMBERS.items():
        told = []
        if number.metric is not None:
            told.append(number.metric)
        if number.total is not None:
            told.append(number.total.metric)
        column = number.column.title if number.column else "-"
        rows.append([code(name), number.unit, code(*told), column, number.meaning])
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
