"""Tests of answers: the code of a response is run on the arguments of its task."""

import ast
import math
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from scripts.train.problems.python_tasks.maker import PythonProblem
from scripts.train.problems.python_tasks.parts import Arguments
from scripts.train.problems.python_tasks.tasks import task_of

Case = tuple[Arguments, Any]
# A task is tested with so many arguments, which are chosen among more to have different results.
NUM_CASES = 16
NUM_CANDIDATES = 48


def cases(problem: PythonProblem) -> list[Case]:
    """Return arguments and the expected result for each, the same ones at every call.

    The results come from the meanings of the parts, and never from the code of the response.
    """
    task = task_of(problem.key, problem.parameters)
    rng = random.Random(f"{problem.key}/{problem.parameters}")
    by_result: dict[str, list[Case]] = {}
    for _ in range(NUM_CANDIDATES):
        arguments = task.inputs(rng)
        result = task.reference(*arguments)
        by_result.setdefault(repr(result), []).append((arguments, result))

    found: list[Case] = []
    while len(found) < NUM_CASES:
        for group in by_result.values():
            if group:
                found.append(group.pop())
    return found[:NUM_CASES]


_CODE_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def code_of(response: str) -> str:
    """Return the first code block of a response, or all of it if there is none."""
    match = _CODE_BLOCK.search(response)
    return match[1] if match else response


# Runs on its own under `python -I -c`. It reads the seconds for each code, and then a line for each
# code: (code, function name, arguments of each call). It answers with a line for each code: the
# list of the results of its calls, or None if it failed.
# Each code runs in a process of its own, with limits on time, memory and files. These limits stop
# accidents of a model. They are no sandbox against an attacker.
_RUNNER = r"""
import ast, builtins, collections, functools, itertools, math, operator, os, re
import resource, select, signal, string, sys, time, types

ALLOWED = {"math", "itertools", "functools", "collections", "operator", "string", "re"}
REFUSED = {"open", "input", "exec", "eval", "compile", "breakpoint", "help", "exit", "quit",
           "memoryview", "globals", "locals", "vars"}
MEMORY = 512 * 2**20
MAX_OUTPUT = 2**20


def guarded_import(name, globals=None, locals=None, fromlist=(), level=0):
    if level or name not in ALLOWED:
        raise ImportError(name)
    return __import__(name, globals, locals, fromlist, level)


def plain(value):
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if kind in (list, tuple, set):
        return kind(plain(item) for item in value)
    raise TypeError(kind)


def results_of(code, name, calls):
    allowed = {key: value for key, value in vars(builtins).items() if key not in REFUSED}
    allowed["__import__"] = guarded_import
    allowed["print"] = lambda *args, **options: None
    scope = {"__builtins__": allowed, "__name__": "answer"}
    exec(code, scope)
    found = scope.get(name)
    if not name:
        functions = [x for x in scope.values() if type(x) is types.FunctionType]
        found = functions[-1]
    return [plain(found(*arguments)) for arguments in calls]


def run_child(line, end, seconds):
    job = ast.literal_eval(line)
    limit = int(seconds) + 1
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    try:
        output = repr(results_of(*job)).encode()
    except BaseException:
        output = b""
    while output:
        output = output[os.write(end, output):]


def run(line, seconds):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            run_child(line, writer, seconds)
        finally:
            os._exit(0)
    os.close(writer)
    output = b""
    deadline = time.monotonic() + seconds + 1
    while len(output) < MAX_OUTPUT:
        ready, _, _ = select.select([reader], [], [], max(0, deadline - time.monotonic()))
        piece = os.read(reader, 65536) if ready else b""
        if not piece:
            break
        output += piece
    else:
        output = b""
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return output.decode() or "None"


sys.setrecursionlimit(2000)
devnull = os.open(os.devnull, os.O_WRONLY)
os.dup2(devnull, 2)
seconds = float(sys.stdin.readline())
for line in sys.stdin:
    print(ascii(run(line, seconds)), flush=True)
"""


def check_all(solutions: Sequence[tuple[str, PythonProblem]], seconds: float = 1.0) -> list[bool]:
    """Return for each code whether it solves its problem.

    All codes run in one new Python process, each in a child that has `seconds` for all its cases.
    """
    expected = []
    jobs = []
    for code, problem in solutions:
        tests = cases(problem)
        expected.append([result for _, result in tests])
        job = (code, problem.function_name, [arguments for arguments, _ in tests])
        jobs.append(ascii(job))
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [sys.executable, "-I", "-c", _RUNNER],
            input="\n".join([str(seconds), *jobs]),
            capture_output=True,
            text=True,
            cwd=folder,
            check=True,
            timeout=60 + (seconds + 2) * len(jobs),
        )
    outcomes = []
    lines = process.stdout.splitlines()
    for line, results in zip(lines, expected, strict=True):
        outcomes.append(_are_equal(_parsed(ast.literal_eval(line)), results))
    return outcomes


def check(code: str, problem: PythonProblem) -> bool:
    """Return whether a code solves a problem. See `check_all` for many of them."""
    return check_all([(code, problem)])[0]


def _parsed(text: str) -> Any:
    """Return the value that a code has printed, None if it cannot be read."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _are_equal(actual: Any, expected: Any) -> bool:
    """Return whether results are equal. Floats may differ by rounding, a tuple may be a list."""
    if isinstance(actual, bool) or isinstance(expected, bool):
        return actual is expected
    if isinstance(expected, int | float) and isinstance(actual, int | float):
        if isinstance(expected, int) and isinstance(actual, int):
            return actual == expected
        try:
            return math.isclose(actual, expected, rel_tol=1e-9, abs_tol=1e-9)
        except OverflowError:
            return False
    if isinstance(expected, list | tuple) and isinstance(actual, list | tuple):
        if len(actual) != len(expected):
            return False
        return all(map(_are_equal, actual, expected))
    if isinstance(expected, dict) and isinstance(actual, dict):
        if set(actual) != set(expected):
            return False
        return all(_are_equal(actual[key], value) for key, value in expected.items())
    return type(actual) is type(expected) and bool(actual == expected)
