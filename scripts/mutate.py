"""Small faults put into a file one at a time, and whether its tests notice: `python -m
scripts.mutate [FILE ...]`.

A mutant that survives shows behaviour that no test sees, or a change that makes no difference. The
tree is copied first, so nothing here is touched. Each mutant's tests run in a fork of one process
that has imported what is slow to import, one at a time; they stop at the first failure, and one
that runs much longer than unchanged code counts as well.

    python -m scripts.mutate worker/scheduler.py            all mutants of one file
    python -m scripts.mutate --most 40 --seed 1             a sample of 40 of each file of the table
    python -m scripts.mutate shared/lua/take.lua --list     what would be changed
"""

import argparse
import ast
import importlib
import io
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parent.parent

_QUEUE = ("tests/shared/test_queue.py", "tests/shared/test_taking.py")
_RESERVATIONS = ("tests/shared/test_reservations.py",)
TESTS: dict[str, tuple[str, ...]] = {
    "worker/scheduler.py": (
        "tests/worker/test_scheduler.py",
        "tests/worker/test_classes.py",
        "tests/worker/test_out_of_memory.py",
    ),
    "worker/sampler.py": ("tests/worker/test_sampler.py",),
    "worker/text.py": ("tests/worker/test_policy.py",),
    "worker/scoring.py": ("tests/worker/test_scoring.py", "tests/worker/test_reading.py"),
    "shared/submission.py": (*_QUEUE, "tests/shared/test_limits.py", *_RESERVATIONS),
    "shared/queue.py": (*_QUEUE, "tests/shared/test_shards.py"),
    "shared/reservations.py": _RESERVATIONS,
    "api/admission.py": (
        "tests/api/test_admission.py",
        "tests/api/test_submit.py",
        "tests/api/test_validation.py",
        "tests/api/test_idempotency.py",
        "tests/api/test_redis_hangs.py",
    ),
    "shared/lua/common.lua": (
        *_QUEUE,
        "tests/shared/test_position.py",
        "tests/shared/test_janitor.py",
    ),
    "shared/lua/limits.lua": (
        "tests/shared/test_queue.py",
        "tests/shared/test_limits.py",
        *_RESERVATIONS,
    ),
    "shared/lua/submit.lua": (
        *_QUEUE,
        "tests/shared/test_position.py",
        "tests/shared/test_shards.py",
        *_RESERVATIONS,
        "tests/api/test_followers.py",
    ),
    "shared/lua/reserve.lua": _RESERVATIONS,
    "shared/lua/settle.lua": _RESERVATIONS,
    "shared/lua/void.lua": _RESERVATIONS,
    "shared/lua/take.lua": ("tests/shared/test_taking.py", "tests/shared/test_queue.py"),
    "shared/lua/append.lua": (*_QUEUE, "tests/shared/test_log.py"),
    "shared/lua/end.lua": (*_QUEUE, "tests/api/test_followers.py"),
    "shared/lua/lease.lua": _QUEUE,
}
"""Each file with the tests that must notice, the quickest first."""

_PRELOAD = (
    "pytest",
    "pytest_asyncio",
    "hypothesis",
    "redis.asyncio",
    "httpx",
    "fastapi",
    "msgspec",
    "pydantic_settings",
)
_PRELOAD_FOR_WORKERS = ("torch", "transformers")
_SLOWER = 4.0
_GRACE_S = 20.0

_SWAPS = {
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "~=": "==",
    "+": "-",
    "-": "+",
    "*": "/",
    "/": "*",
    "//": "*",
    "%": "+",
    "and": "or",
    "or": "and",
    "is": "is not",
    "is not": "is",
    "in": "not in",
    "not in": "in",
    "True": "False",
    "False": "True",
    "true": "false",
    "false": "true",
    "min": "max",
    "max": "min",
    "math.min": "math.max",
    "math.max": "math.min",
    "any": "all",
    "all": "any",
    "not": "",
}


@dataclass(frozen=True)
class Mutant:
    """The text from `start` to `end` becomes `text`."""

    line: int
    start: int
    end: int
    old: str
    text: str

    def applied(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]

    def __str__(self) -> str:
        old = " ".join(self.old.split())
        return f"line {self.line}: {old[:60]} -> {self.text or 'nothing'}"


def mutants_of(name: str, source: str) -> list[Mutant]:
    """All mutants of a file, in order."""
    found = _of_lua(source) if name.endswith(".lua") else _of_python(source)
    return sorted(set(found), key=lambda mutant: (mutant.start, mutant.end, mutant.text))


def _of_lua(source: str) -> Iterator[Mutant]:
    """Operators, words and numbers outside of comments and strings; and statements that only call
    something."""
    masked = re.sub(r"--[^\n]*|'[^'\n]*'", lambda match: " " * len(match[0]), source)
    words = (
        r"math\.(?:min|max)\b|\b(?:and|or|true|false|not)\b|<=|>=|==|~=|(?<![-.])[-+*/%<>](?![-.=])"
    )
    for match in re.finditer(words, masked):
        text = {"==": "~="}.get(match[0], _SWAPS.get(match[0]))
        if text is not None:
            yield _mutant(source, match.start(), match.end(), text)
    for match in re.finditer(r"(?<![\w.])\d+(?![\w.])", masked):
        yield _mutant(source, match.start(), match.end(), str(int(match[0]) + 1))
    statement = r"^ *(?:if [^\n]* then )?(\w+\([^\n]*\))(?: end)?$"
    for match in re.finditer(statement, masked, re.MULTILINE):
        if source[match.start(1) : match.end(1)].count("(") == source[
            match.start(1) : match.end(1)
        ].count(")"):
            yield _mutant(source, match.start(1), match.end(1), "local _")


def _of_python(source: str) -> Iterator[Mutant]:
    """Operators, constants, conditions and statements; nothing of strings, annotations and
    imports."""
    tree = ast.parse(source)
    spans = _Spans(source)
    annotations = {id(part) for note in _annotations(tree) for part in ast.walk(note)}
    for node in ast.walk(tree):
        if id(node) in annotations:
            continue
        for left, right in _operands(node):
            start, end = spans.of(left)[1], spans.of(right)[0]
            operator = source[start:end].strip(" ()\n")
            if operator in _SWAPS:
                at = source.index(operator, start)
                yield _mutant(source, at, at + len(operator), _SWAPS[operator])
        for part, text in _changes(node):
            start, end = spans.of(part)
            inner = slice(*spans.of(text)) if isinstance(text, ast.expr) else None
            yield _mutant(source, start, end, source[inner] if inner else str(text))


class _Spans:
    """Where in a source a node stands: `ast` counts lines, and bytes in them."""

    def __init__(self, source: str) -> None:
        self._data = source.encode()
        self._starts = [0]
        for line in self._data.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def of(self, node: ast.AST) -> tuple[int, int]:
        """The first character, and the one behind the last."""
        start = self._place(node.lineno, node.col_offset)  # type: ignore[attr-defined]
        return start, self._place(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def _place(self, line: int, column: int) -> int:
        return len(self._data[: self._starts[line - 1] + column].decode())


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, str | ast.expr]]:
    """A part of a node, and what it becomes: a text, or another part."""
    match node:
        case ast.Constant(value=bool() as value):
            yield node, str(not value)
        case ast.Constant(value=int() | float() as number):
            yield node, repr(number + 1)
        case ast.UnaryOp(op=ast.Not()):
            yield node, node.operand
        case ast.Name(id="min" | "max" | "any" | "all"):
            yield node, _SWAPS[node.id]
        case ast.If() | ast.IfExp() | ast.While():
            yield node.test, "True"
            yield node.test, "False"
        case (
            ast.Expr(value=ast.Call() | ast.Await())
            | ast.AugAssign()
            | ast.Break()
            | ast.Continue()
        ):
            yield node, "pass"
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield value, "None"


def _operands(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """What stands left and right of each operator of a node."""
    match node:
        case ast.Compare():
            yield from zip([node.left, *node.comparators], node.comparators, strict=False)
        case ast.BoolOp():
            yield from zip(node.values, node.values[1:], strict=False)
        case ast.BinOp():
            yield node.left, node.right


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        match node:
            case ast.arg(annotation=ast.expr() as note) | ast.AnnAssign(annotation=note):
                yield note
            case (
                ast.FunctionDef(returns=ast.expr() as note)
                | ast.AsyncFunctionDef(returns=ast.expr() as note)
            ):
                yield note


def _mutant(source: str, start: int, end: int, text: str) -> Mutant:
    return Mutant(source.count("\n", 0, start) + 1, start, end, source[start:end], text)


def run_tests(tree: Path, tests: Sequence[str], limit_s: float) -> tuple[bool, float]:
    """Whether all pass in a fork of this process, and how long that took. One that is too long is
    killed."""
    begun_s = time.monotonic()
    child = os.fork()
    if child == 0:
        _become_pytest(tree, tests)
    while time.monotonic() - begun_s < limit_s:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0, time.monotonic() - begun_s
        time.sleep(0.02)
    os.killpg(child, 9)  # with the servers that its tests have started
    os.waitpid(child, 0)
    return False, limit_s


def _become_pytest(tree: Path, tests: Sequence[str]) -> None:
    import pytest

    status = 1
    try:
        os.setpgid(0, 0)
        os.chdir(tree)
        sys.path[:] = [
            str(tree),
            *(entry for entry in sys.path if entry not in ("", str(REPO_ROOT))),
        ]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            status = int(
                pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", *tests])
            )
    finally:
        os._exit(status)


def copy_tree(target: Path) -> None:
    """What the tests need, without what is built or installed."""
    ignored = shutil.ignore_patterns(
        ".venv", ".git", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"
    )
    shutil.copytree(REPO_ROOT, target, ignore=ignored, symlinks=True)


def try_file(tree: Path, name: str, chosen: Sequence[Mutant]) -> list[Mutant]:
    """The mutants that survive. Raises SystemExit where the tests fail without any."""
    path = tree / name
    source = path.read_text()
    are_fine, seconds = run_tests(tree, TESTS[name], 600)
    if not are_fine:
        raise SystemExit(f"{name}: its tests fail without any change")
    survivors = []
    for mutant in chosen:
        path.write_text(mutant.applied(source))
        try:
            has_survived, _ = run_tests(tree, TESTS[name], _SLOWER * seconds + _GRACE_S)
        finally:
            path.write_text(source)
        if has_survived:
            survivors.append(mutant)
            print(f"{name} survived {mutant}", flush=True)
    return survivors


def is_valid(name: str, source: str) -> bool:
    """Whether Python can read it; Lua that cannot be read fails every test."""
    if name.endswith(".lua"):
        return True
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "files", nargs="*", default=list(TESTS), metavar="FILE", help="files of the table (all)"
    )
    parser.add_argument(
        "--most", type=int, default=0, help="mutants of each file, drawn at random (0: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--list", action="store_true", help="only tell what would be changed")
    given = parser.parse_args(argv)
    if given.list:
        for name in given.files:
            for mutant in drawn_of(name, given.most, given.seed):
                print(f"{name} {mutant}")
        return 0
    are_workers = any(name.startswith("worker/") for name in given.files)
    for module in (*_PRELOAD, *(_PRELOAD_FOR_WORKERS if are_workers else ())):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder) / "tree"
        copy_tree(tree)
        for name in given.files:
            begun_s = time.monotonic()
            chosen = drawn_of(name, given.most, given.seed)
            num_noticed = len(chosen) - len(try_file(tree, name, chosen))
            seconds = time.monotonic() - begun_s
            print(f"{name}: {num_noticed} of {len(chosen)} noticed, {seconds:.0f} s", flush=True)
    return 0


def drawn_of(name: str, most: int, seed: int) -> list[Mutant]:
    """At most so many of a file's mutants (0: all), in order."""
    source = (REPO_ROOT / name).read_text()
    found = [
        mutant for mutant in mutants_of(name, source) if is_valid(name, mutant.applied(source))
    ]
    if not most or most >= len(found):
        return found
    places = random.Random(seed).sample(range(len(found)), most)
    return [found[place] for place in sorted(places)]


if __name__ == "__main__":
    sys.exit(main())
