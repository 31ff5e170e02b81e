"""Marks tests by what they need (`torch`, `process`, `redis`), and leaves all of those out of `pytest --fast`.

A pytest plugin. A file needs what it, or a module that it loads, imports at its top level; so nothing has to be
marked by hand, and files that need torch are not even loaded for the fast tier.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("api", "worker", "shared", "scripts", "tests")
TORCH = ("torch", "transformers", "tokenizers", "safetensors")
PROCESS = (
    "subprocess",
    "multiprocessing",
    "scripts.chaos.processes",
    "scripts.embedded_redis",
    "tests.e2e.serving",
)
REDIS_FIXTURES = {"redis_server", "own_redis"}
"""The fixtures that start a redis-server; all others that need one ask for these."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast",
        action="store_true",
        help="only tests that need no torch, no Redis and no other process",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not load a file for the fast tier that would load torch or start processes."""
    if not config.getoption("--fast") or collection_path.suffix != ".py":
        return None
    needs = needs_of_file(collection_path)
    return True if needs else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark all tests; for the fast tier deselect those that start a Redis or are slow."""
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        for need in needs_of_file(item.path):
            item.add_marker(need)
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & REDIS_FIXTURES:
            item.add_marker("redis")

        is_slow = any(item.iter_markers("slow")) or any(item.iter_markers("redis"))
        if is_slow and config.getoption("--fast"):
            dropped.append(item)
        else:
            kept.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@cache
def needs_of_file(path: Path) -> frozenset[str]:
    """Return `torch` and `process`, as far as loading the file leads to them."""
    names = _loaded_by(path)
    needs: set[str] = set()
    if any(name.partition(".")[0] in TORCH for name in names):
        needs.add("torch")
    if names & set(PROCESS):
        needs.add("process")
    return frozenset(needs)


def _loaded_by(path: Path) -> set[str]:
    """Return the modules that loading a file loads, by their dotted names.

    A process is only what tests start: what the product may start when it is told to does not count, so only our
    tests are followed for that. Torch is looked for everywhere.
    """
    names: set[str] = set()
    files = [path]
    seen: set[Path] = set()
    while files:
        file = files.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in _imports(file):
            is_process = name in PROCESS
            if not is_process or file.is_relative_to(ROOT / "tests"):
                names.add(name)
            found = _file_of(name)
            if found is not None:
                files.append(found)
    return names


@cache
def _imports(file: Path) -> tuple[str, ...]:
    """Return what a file imports at its top level; of `from a import b` both `a` and `a.b`."""
    names: list[str] = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


def _file_of(name: str) -> Path | None:
    """Return the source of one of our own modules, None for any other."""
    if name.partition(".")[0] not in ROOMS:
        return None
    path = ROOT.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None
