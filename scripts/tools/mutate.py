"""Test the tests by mutation: make one small fault in a file, and see whether its tests fail.

    # All mutants of one file:
    python -m scripts.tools.mutate worker/engine/scheduler.py
    # A sample of 40 mutants of each file of the table TESTS:
    python -m scripts.tools.mutate --most 40 --seed 1
    # A list of the mutants, without running tests:
    python -m scripts.tools.mutate shared/queue/lua/take.lua --list

A mutant survives if the tests pass with it. Then no test checks that behaviour, or the fault makes
no difference. The tool works in a copy of the tree. The tests of each mutant run in a fork of a
process that has imported the slow modules, one mutant at a time, and stop at the first failure. A
run that takes much longer than that of the unchanged code counts as a failure.
"""

import argparse
import ast
import importlib
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[2]

_QUEUE = ("tests/shared/test_queue.py", "tests/shared/test_taking.py")
_RESERVATIONS = ("tests/shared/test_reservations.py",)
_USAGE = ("tests/shared/test_usage_ledger.py", "tests/shared/test_budgets.py")
TESTS: dict[str, tuple[str, ...]] = {
    "worker/engine/scheduler.py": (
        "tests/worker/test_scheduler.py",
        "tests/worker/test_classes.py",
        "tests/worker/test_out_of_memory.py",
    ),
    "worker/engine/sampler.py": ("tests/worker/test_sampler.py",),
    "worker/text/detokenizer.py": ("tests/worker/test_policy.py",),
    "worker/engine/scoring.py": ("tests/worker/test_scoring.py", "tests/worker/test_reading.py"),
    "shared/queue/submission.py": (*_QUEUE, "tests/shared/test_limits.py", *_RESERVATIONS),
    "shared/queue/leases.py": (*_QUEUE, "tests/shared/test_shards.py"),
    "shared/queue/reservations.py": _RESERVATIONS,
    "api/submit/admission.py": (
        "tests/api/test_admission.py",
        "tests/api/test_submit.py",
        "tests/api/test_validation.py",
        "tests/api/test_idempotency.py",
        "tests/api/test_redis_hangs.py",
    ),
    "shared/queue/lua/common.lua": (
        *_QUEUE,
        "tests/shared/test_position.py",
        "tests/shared/test_janitor.py",
        *_USAGE,
    ),
    "shared/queue/lua/limits.lua": (
        "tests/shared/test_queue.py",
        "tests/shared/test_limits.py",
        *_RESERVATIONS,
        *_USAGE,
    ),
    "shared/queue/lua/submit.lua": (
        *_QUEUE,
        "tests/shared/test_position.py",
        "tests/shared/test_shards.py",
        *_RESERVATIONS,
        "tests/api/test_followers.py",
    ),
    "shared/queue/lua/reserve.lua": _RESERVATIONS,
    "shared/queue/lua/settle.lua": (*_RESERVATIONS, *_USAGE),
    "shared/queue/lua/settle_budgets.lua": _USAGE,
    "shared/queue/lua/void.lua": _RESERVATIONS,
    "shared/queue/lua/take.lua": ("tests/shared/test_taking.py", "tests/shared/test_queue.py"),
    "shared/queue/lua/append.lua": (*_QUEUE, "tests/shared/test_log.py"),
    "shared/queue/lua/end.lua": (*_QUEUE, "tests/api/test_followers.py"),
    "shared/queue/lua/lease.lua": _QUEUE,
}
"""The tests that must notice the mutants of each file, the quickest first."""

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
# The time limit of a run: so many times that of the unchanged code, and so many seconds more.
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
    """A fault in a source: `old`, from `start` to `end` in characters, becomes `text`."""

    line: int
    start: int
    end: int
    old: str
    text: str

    def applied(self, source: str) -> str:
        """Return the source with this fault."""
        return source[: self.start] + self.text + source[self.end :]

    def __str__(self) -> str:
        old = " ".join(self.old.split())
        return f"line {self.line}: {old[:60]} -> {self.text or 'nothing'}"


def mutants_of(name: str, source: str) -> list[Mutant]:
    """Return all mutants of a file in the order of their positions."""
    mutants = _of_lua(source) if name.endswith(".lua") else _of_python(source)
    return sorted(set(mutants), key=lambda mutant: (mutant.start, mutant.end, mutant.text))


def _of_lua(source: str) -> Iterator[Mutant]:
    """Yield mutants of operators, keywords, numbers and call statements of Lua.

    Comments and strings have none.
    """
    # Comments and strings become blanks of the same length, so that all positions stay the same.
    masked = re.sub(r"--[^\n]*|'[^'\n]*'", lambda match: " " * len(match[0]), source)

    operators = (
        r"math\.(?:min|max)\b|\b(?:and|or|true|false|not)\b|<=|>=|==|~=|(?<![-.])[-+*/%<>](?![-.=])"
    )
    for match in re.finditer(operators, masked):
        text = _SWAPS.get(match[0])
        if match[0] == "==":
            text = "~="  # where Python has `!=`
        if text is not None:
            yield _mutant(source, match.start(), match.end(), text)
    for match in re.finditer(r"(?<![\w.])\d+(?![\w.])", masked):
        yield _mutant(source, match.start(), match.end(), str(int(match[0]) + 1))

    statement = r"^ *(?:if [^\n]* then )?(\w+\([^\n]*\))(?: end)?$"
    for match in re.finditer(statement, masked, re.MULTILINE):
        call = source[match.start(1) : match.end(1)]
        if call.count("(") == call.count(")"):
            yield _mutant(source, match.start(1), match.end(1), "local _")


def _of_python(source: str) -> Iterator[Mutant]:
    """Yield mutants of operators, constants, conditions and statements of Python.

    Strings, annotations and imports have none.
    """
    tree = ast.parse(source)
    spans = _Spans(source)
    annotated: set[int] = set()
    for annotation in _annotations(tree):
        for node in ast.walk(annotation):
            annotated.add(id(node))

    for node in ast.walk(tree):
        if id(node) in annotated:
            continue
        for left, right in _operands(node):
            _, start = spans.of(left)
            end, _ = spans.of(right)
            operator = source[start:end].strip(" ()\n")
            if operator in _SWAPS:
                position = source.index(operator, start)
                yield _mutant(source, position, position + len(operator), _SWAPS[operator])
        for part, replacement in _replacements(node):
            start, end = spans.of(part)
            if isinstance(replacement, ast.expr):
                inner_start, inner_end = spans.of(replacement)
                text = source[inner_start:inner_end]
            else:
                text = replacement
            yield _mutant(source, start, end, text)


class _Spans:
    """The positions of nodes in a source, in characters.

    `ast` gives them as a line and a number of bytes in it.
    """

    def __init__(self, source: str) -> None:
        self._data = source.encode()
        self._starts = [0]
        for line in self._data.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def of(self, node: ast.AST) -> tuple[int, int]:
        """Return the positions of a node's first character and of the one behind its last."""
        start = self._position(node.lineno, node.col_offset)  # type: ignore[attr-defined]
        end = self._position(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
        return start, end

    def _position(self, line: int, column: int) -> int:
        return len(self._data[: self._starts[line - 1] + column].decode())


def _replacements(node: ast.AST) -> Iterator[tuple[ast.AST, str | ast.expr]]:
    """Yield parts of a node, each with the text or the other part that replaces it."""
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
    """Yield the left and the right operand of each operator of a node."""
    match node:
        case ast.Compare():
            yield from zip([node.left, *node.comparators], node.comparators, strict=False)
        case ast.BoolOp():
            yield from zip(node.values, node.values[1:], strict=False)
        case ast.BinOp():
            yield node.left, node.right


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the annotations of parameters, variables and results."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.arg(annotation=ast.expr() as annotation) | ast.AnnAssign(annotation=annotation)
            ):
                yield annotation
            case (
                ast.FunctionDef(returns=ast.expr() as annotation)
                | ast.AsyncFunctionDef(returns=ast.expr() as annotation)
            ):
                yield annotation


def _mutant(source: str, start: int, end: int, text: str) -> Mutant:
    line = source.count("\n", 0, start) + 1
    return Mutant(line, start, end, old=source[start:end], text=text)


def run_tests(tree: Path, tests: Sequence[str], limit_s: float) -> tuple[bool, float]:
    """Run tests in a fork of this process; return whether all pass, and the seconds they took.

    A fork that takes longer than `limit_s` is killed and counts as failed.
    """
    started_s = time.monotonic()
    child = os.fork()
    if child == 0:
        _become_pytest(tree, tests)
    while time.monotonic() - started_s < limit_s:
        ended_pid, status = os.waitpid(child, os.WNOHANG)
        if ended_pid:
            return status == 0, time.monotonic() - started_s
        time.sleep(0.02)

    # The group of the fork also holds the servers that its tests have started.
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False, limit_s


def _become_pytest(tree: Path, tests: Sequence[str]) -> None:
    """Run tests of a copied tree, and end this process with status 0 if all pass."""
    import pytest

    status = 1
    try:
        os.setpgid(0, 0)
        os.chdir(tree)
        # Bytecode of one mutant would be taken for that of the next, if both have the same length
        # and were written in the same second.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        # Modules are imported from the copy, not from this checkout.
        inherited = [entry for entry in sys.path if entry not in ("", str(REPO_ROOT))]
        sys.path[:] = [str(tree), *inherited]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            status = int(pytest.main([*options, *tests]))
    finally:
        # Not sys.exit: a fork must not clean up or flush anything of its parent.
        os._exit(status)


def copy_tree(target: Path) -> None:
    """Copy the checkout, without files that are built or installed."""
    ignored = shutil.ignore_patterns(
        ".venv", ".git", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"
    )
    shutil.copytree(REPO_ROOT, target, ignore=ignored, symlinks=True)


def try_file(tree: Path, name: str, mutants: Sequence[Mutant]) -> list[Mutant]:
    """Run the tests of a file with each of the mutants, and return those that survive.

    Raise SystemExit if the tests fail without a mutant.
    """
    path = tree / name
    source = path.read_text()
    have_passed, seconds = run_tests(tree, TESTS[name], limit_s=600)
    if not have_passed:
        raise SystemExit(f"{name}: its tests fail without any change")
    survivors = []
    for mutant in mutants:
        path.write_text(mutant.applied(source))
        try:
            has_survived, _ = run_tests(tree, TESTS[name], limit_s=_SLOWER * seconds + _GRACE_S)
        finally:
            path.write_text(source)
        if has_survived:
            survivors.append(mutant)
            print(f"{name} survived {mutant}", flush=True)
    return survivors


def is_valid(name: str, source: str) -> bool:
    """Return whether Python can parse a source.

    Lua is not checked: every test of a script that Redis cannot parse fails.
    """
    if name.endswith(".lua"):
        return True
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "files", nargs="*", default=list(TESTS), metavar="FILE", help="files of the table (all)"
    )
    parser.add_argument(
        "--most", type=int, default=0, help="mutants of each file, drawn at random (0: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.list:
        for name in args.files:
            for mutant in drawn_of(name, args.most, args.seed):
                print(f"{name} {mutant}")
        return 0

    modules = list(_PRELOAD)
    if any(name.startswith("worker/") for name in args.files):
        modules += _PRELOAD_FOR_WORKERS
    for module in modules:
        importlib.import_module(module)

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder) / "tree"
        copy_tree(tree)
        for name in args.files:
            started_s = time.monotonic()
            mutants = drawn_of(name, args.most, args.seed)
            num_noticed = len(mutants) - len(try_file(tree, name, mutants))
            seconds = time.monotonic() - started_s
            print(f"{name}: {num_noticed} of {len(mutants)} noticed, {seconds:.0f} s", flush=True)
    return 0


def drawn_of(name: str, most: int, seed: int) -> list[Mutant]:
    """Return at most `most` mutants of a file (0: all), drawn at random, in their order."""
    source = (REPO_ROOT / name).read_text()
    mutants = []
    for mutant in mutants_of(name, source):
        if is_valid(name, mutant.applied(source)):
            mutants.append(mutant)
    if not most or most >= len(mutants):
        return mutants
    indexes = random.Random(seed).sample(range(len(mutants)), most)
    return [mutants[index] for index in sorted(indexes)]


if __name__ == "__main__":
    sys.exit(main())
