"""docs/metrics.md names every metric and every number of a model, as it is."""

from scripts.tools.metrics_page import PAGE, metrics_table, numbers_table, page, roles
from shared.telemetry.model_load import NUMBERS, ModelLoad


def test_it_is_that_of_today() -> None:
    """The page is up to date; `python -m scripts.tools.metrics_page` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_metric_is_a_row() -> None:
    rows = metrics_table().splitlines()[2:]
    names = set()
    for sheet in roles().values():
        for metric in sheet.listed:
            names.add(metric.name)
    assert len(rows) == len(names)
    assert "| `aios_worker_tokens_total` | counter | `model` | worker | Tokens generated. |" in rows
    assert "| `aios_janitor_sweeps_total` | counter | `sweep` | jobs | Sweeps done. |" in rows
    assert any("| front, worker |" in row for row in rows)


def test_every_number_is_a_row() -> None:
    rows = numbers_table().splitlines()[2:]
    assert len(rows) == len(NUMBERS)
    assert (
        "| `waiting` | rows | `aios_worker_waiting` | WAIT | Rows that wait for a place "
        "or for pages. |"
    ) in rows
    assert set(NUMBERS) == set(ModelLoad.__struct_fields__) - {"id"}
