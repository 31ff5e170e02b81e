"""Generate the table of docs/tasks.md: what each task does, where it is asked for, and who does it.

    python -m scripts.tools.tasks_page

Run this after a task was added or changed. A test compares the page with the output.
"""

from inspect import getdoc

from api.endpoints.dialects import POSTS
from api.endpoints.endpoint import Endpoint
from scripts.tools.generated_pages import code, page_with, table_of
from shared.shipped import REPO_ROOT
from shared.tasks.runner_table import RUNNERS
from shared.tasks.task_table import TASKS, TaskInfo

PAGE = REPO_ROOT / "docs" / "tasks.md"
MARK = "tasks: made by python -m scripts.tools.tasks_page"


def tasks_table() -> str:
    """Return a table of all tasks that are built in."""
    rows = []
    for name, info in TASKS.items():
        rows.append([code(name), _what(info), _paths(name), _runners(name)])
    return table_of(["task", "does", "asked for at", "runners"], rows)


def _what(info: TaskInfo) -> str:
    """Return the first paragraph about a task."""
    text = getdoc(info.spec) or ""
    paragraph = text.partition("\n\n")[0]
    return " ".join(paragraph.split())


def _paths(name: str) -> str:
    paths = []
    for post in POSTS:
        for endpoint in post.endpoints:
            if isinstance(endpoint, Endpoint) and endpoint.task == name and post.path not in paths:
                paths.append(post.path)
    # The stream of local inference is the same path once more.
    return code(*[path for path in paths if path != "/api/inference/stream"])


def _runners(name: str) -> str:
    runners = []
    for runner, info in RUNNERS.items():
        if name in (*info.tasks, *info.tasks_of_some):
            runners.append(runner)
    return code(*runners)


def page() -> str:
    """Return docs/tasks.md as it should be."""
    return page_with(tasks_table(), PAGE.read_text(encoding="utf-8"), MARK)


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
