"""docs/tasks.md names every task, as it is."""

from scripts.tools.tasks_page import PAGE, page, tasks_table
from shared.tasks.task_table import TASKS


def test_it_is_that_of_today() -> None:
    """The page is up to date; `python -m scripts.tools.tasks_page` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_task_is_a_row() -> None:
    rows = tasks_table().splitlines()[2:]
    assert len(rows) == len(TASKS)
    [embed] = [row for row in rows if row.startswith("| `embed` |")]
    for part in ("/v1/embeddings", "/api/inference", "`encoder`", "`onnx`"):
        assert part in embed
    assert not any(row.endswith("| - |") for row in rows), "each has a runner"
