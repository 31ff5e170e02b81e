"""The doors between the rooms, read off the import graph.

api -> shared <- worker, there is no cycle, and each room loads only what it may.

The sources are parsed, not imported, except in the last test. Imports inside functions count too.
Only for cycles an import inside a function or under TYPE_CHECKING is forgiven.
"""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("api", "worker", "shared", "scripts")
MAY_ENTER = {
    "api": {"shared"},
    "worker": {"shared"},
    "shared": set(),
    "scripts": {"api", "worker", "shared"},
}
TENSORS = {"torch", "transformers", "tokenizers", "safetensors"}
POLICY = (
    "worker.engine.runner",
    "worker.engine.scheduler",
    "worker.engine.sequence",
    "worker.text.encoding",
    "worker.kv.pages",
    "worker.kv.prefix",
    "worker.text.answers",
    "worker.host.budget",
    "worker.engine.engine_stats",
    "worker.engine.request",
    "worker.puzzles.arc",
    "worker.puzzles.kinds",
    "worker.puzzles.checks",
    "worker.text.detokenizer",
    "worker.engine.take",
    "worker.engine.task_runner",
    "worker.engine.task_engine",
    "worker.runners.echo_task",
    "worker.hardware.shapes",
    "worker.hardware.measurements",
)
REACH_REDIS = (
    "worker.host.intake",
    "worker.host.metrics_reporter",
    "worker.host.tenant_files",
    "worker.host.ledger",
    "worker.host.outbox",
    "worker.host.known_models",
    "worker.host.model_host",
    "worker.host.service",
    "worker.__main__",
    "worker.jobs",
)


@dataclass
class Module:
    """Imports of one source file, by their full dotted names, ours and foreign.

    `at_load` are those at its top level.
    """

    name: str
    imports: set[str] = field(default_factory=set)
    at_load: set[str] = field(default_factory=set)


def read_modules(root: Path) -> dict[str, Module]:
    """Return every module of the four rooms under `root`, by dotted name.

    Imports of our own packages are resolved to modules. A module also imports the packages it lies
    in, since their `__init__` runs first.
    """
    files = {}
    for room_name in ROOMS:
        for path in sorted((root / room_name).rglob("*.py")):
            files[dotted(path, root)] = path

    modules = {}
    for name, path in files.items():
        parent = name.rpartition(".")[0]
        module = Module(name)
        for prefix in prefixes(parent):
            if prefix in files:
                module.imports.add(prefix)

        package = name if path.name == "__init__.py" else parent
        for target, at_load in imported(ast.parse(path.read_text(encoding="utf-8")), package):
            resolved = resolve(target, files)
            module.imports.add(resolved)
            if at_load:
                module.at_load.add(resolved)

        modules[name] = module

    return modules


def resolve(target: str, files: Collection[str]) -> str:
    """Return the module of ours in which the imported name lies, or the name if it is foreign."""
    for prefix in prefixes(target):
        if prefix in files:
            return prefix
    return target


def dotted(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def prefixes(name: str) -> Iterator[str]:
    """Yield `a.b.c`, `a.b` and `a`."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def imported(tree: ast.AST, package: str, at_load: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield the dotted name of each import in `tree`, and whether loading the module runs it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, at_load
        elif isinstance(node, ast.ImportFrom):
            source = source_of(node, package)
            for alias in node.names:
                yield f"{source}.{alias.name}", at_load
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            is_later = is_function or is_type_checking(node)
            yield from imported(node, package, at_load and not is_later)


def source_of(node: ast.ImportFrom, package: str) -> str:
    """Return the absolute name of the module that `node` imports from."""
    module = node.module or ""
    if node.level == 0:
        return module
    # One dot is the package itself, each further dot its parent.
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{module}".strip(".")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def reach(modules: dict[str, Module], start: str) -> dict[str, list[str]]:
    """Return everything that `start` imports, directly or not, with the path that leads there."""
    paths = {start: [start]}
    todo = [start]
    while todo:
        name = todo.pop()
        if name not in modules:
            continue
        for target in sorted(modules[name].imports):
            if target not in paths:
                paths[target] = [*paths[name], target]
                todo.append(target)

    return paths


def room(name: str) -> str:
    return name.partition(".")[0]


def within(name: str, names: Iterable[str]) -> bool:
    """Return whether `name` is one of `names` or inside one of them."""
    return any(prefix in names for prefix in prefixes(name))


def crossed_doors(modules: dict[str, Module]) -> list[str]:
    """Return each import of a room that the importing room may not enter."""
    crossings = []
    for name, module in modules.items():
        allowed = MAY_ENTER[room(name)] | {room(name)}
        for target in sorted(module.imports):
            if room(target) in ROOMS and room(target) not in allowed:
                crossings.append(f"{name} -> {target}")
    return crossings


def forbidden_reach(modules: dict[str, Module]) -> list[str]:
    """Return each path by which a module loads a package that it may not reach."""
    forbidden = []
    for name in modules:
        banned = banned_for(name)
        for target, path in reach(modules, name).items():
            if room(target) in banned:
                forbidden.append(" -> ".join(path))
    return forbidden


def banned_for(name: str) -> set[str]:
    """Return the foreign packages that module `name` may not reach."""
    if room(name) in ("api", "shared"):
        return TENSORS
    if within(name, POLICY):
        return {"torch", "redis", "asyncio"}
    if room(name) == "worker" and not within(name, REACH_REDIS):
        return {"redis"}
    return set()


def cycles(modules: dict[str, Module]) -> list[str]:
    """Return the import cycles at load time, each once, as a closed path."""
    visited: set[str] = set()
    closed_paths: list[str] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            cycle = path[path.index(name) :]
            closed_paths.append(" -> ".join([*cycle, name]))
        elif name in modules and name not in visited:
            for target in sorted(modules[name].at_load):
                visit(target, [*path, name])
            visited.add(name)

    for name in sorted(modules):
        visit(name, [])

    return closed_paths


def test_no_room_enters_another_by_a_wrong_door() -> None:
    assert crossed_doors(read_modules(ROOT)) == []


def test_tensors_and_redis_stay_where_they_belong() -> None:
    assert forbidden_reach(read_modules(ROOT)) == []


def test_no_import_cycle() -> None:
    assert cycles(read_modules(ROOT)) == []


PLANTED_DOORS = {
    "api/http/app.py": ("import worker.engine.engine", "api.http.app -> worker.engine.engine"),
    "api/late.py": (
        "def f():\n    from worker.engine import engine",
        "api.late -> worker.engine.engine",
    ),
    "worker/host/service.py": (
        "if True:\n    from api.http.app import run",
        "worker.host.service -> api.http.app",
    ),
    "shared/queue/leases.py": ("from scripts import tool", "shared.queue.leases -> scripts.tool"),
    "shared/events/log.py": ("import api", "shared.events.log -> api"),
}
PLANTED_REACH = {
    "api/http/app.py": ("import shared.heavy", "api.http.app -> shared.heavy -> torch.nn"),
    "shared/late.py": ("def f():\n    import transformers", "shared.late -> transformers"),
    "worker/engine/scheduler.py": (
        "from worker.engine.sequence import Sequence",
        "worker.engine.scheduler -> worker.engine.sequence -> torch.Tensor",
    ),
    "worker/kv/pages.py": ("import asyncio", "worker.kv.pages -> asyncio"),
    "worker/text/detokenizer.py": (
        "from shared.queue.leases import take",
        "worker.text.detokenizer -> shared.queue.leases -> redis.asyncio.Redis",
    ),
    "worker/kv/store.py": ("from ..lease import renew", "worker.kv.store -> worker.lease -> redis"),
    "worker/models/deep/net.py": (
        "from redis import Redis",
        "worker.models.deep.net -> redis.Redis",
    ),
    "worker/engine/engine.py": ("import redis", "worker.engine.engine -> redis"),
    "worker/kv/__init__.py": ("import torch", "worker.kv.pages -> worker.kv -> torch"),
}
BACKGROUND = {
    "worker/kv/pages.py": "",
    "worker/engine/engine.py": "",
    "scripts/tool.py": "from api.http import app\nimport worker.engine.engine, torch",
    "shared/heavy.py": "import torch.nn",
    "shared/queue/leases.py": "from redis.asyncio import Redis",
    "worker/engine/sequence.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"
    ),
    "worker/lease.py": "import redis",
    "worker/jobs/generate.py": "import redis, torch\nfrom shared.queue import leases",
}


def plant(root: Path, files: dict[str, str]) -> dict[str, Module]:
    """Write the files, each in packages, and return their modules."""
    for name in ROOMS:
        (root / name).mkdir()
    for path, source in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    for folder in root.rglob("*/"):
        (folder / "__init__.py").touch()
    return read_modules(root)


@pytest.mark.parametrize("path", PLANTED_DOORS)
def test_a_planted_crossing_is_caught(path: str, tmp_path: Path) -> None:
    source, expected = PLANTED_DOORS[path]
    background = {
        "worker/engine/engine.py": "",
        "api/http/app.py": "",
        "scripts/tool.py": "import api.http.app, worker.engine.engine, shared",
    }
    assert crossed_doors(plant(tmp_path, background | {path: source})) == [expected]


@pytest.mark.parametrize("path", PLANTED_REACH)
def test_a_planted_library_is_caught(path: str, tmp_path: Path) -> None:
    source, expected = PLANTED_REACH[path]
    forbidden = forbidden_reach(plant(tmp_path, BACKGROUND | {path: source}))
    assert expected in forbidden
    for line in forbidden:
        assert not line.startswith(("scripts.", "worker.jobs."))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("from shared import b", "import shared.a", ["shared.a -> shared.b -> shared.a"]),
        (
            "from .b import x",
            "try:\n    from .a import y\nfinally:\n    pass",
            ["shared.a -> shared.b -> shared.a"],
        ),
        ("from shared import b", "def f():\n    import shared.a", []),
        (
            "from shared import b",
            "import typing\nif typing.TYPE_CHECKING:\n    import shared.a",
            [],
        ),
        ("from shared import b", "from shared import c", []),
    ],
)
def test_a_planted_cycle_is_caught(
    left: str, right: str, expected: list[str], tmp_path: Path
) -> None:
    modules = plant(tmp_path, {"shared/a.py": left, "shared/b.py": right, "shared/c.py": ""})
    assert cycles(modules) == expected


@pytest.mark.parametrize("light", ["shared", "api"])
def test_loading_a_light_room_loads_no_tensors(light: str) -> None:
    names = [name for name in read_modules(ROOT) if room(name) == light]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
print(*sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert TENSORS.isdisjoint(result.stdout.split())
