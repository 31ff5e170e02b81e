"""The Python tasks of the shipped models: requests, solutions and the tests of answers."""

import itertools
import random
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from scripts.train.problems.problem import is_held_out
from scripts.train.problems.python_tasks import checker
from scripts.train.problems.python_tasks.checker import cases, check, check_all, code_of
from scripts.train.problems.python_tasks.maker import MAKERS, MAX_RESPONSE, PythonProblem
from scripts.train.problems.python_tasks.tasks import composed_keys, parts_of
from tests.fixtures.slowness import within

LONG_S = 60.0
"""Far more than a code without an endless loop takes, on a busy machine too."""


def _draw(rng: random.Random) -> PythonProblem:
    problem = MAKERS["code"](rng)
    assert isinstance(problem, PythonProblem)
    return problem


def _problems(count: int, seed: int) -> list[PythonProblem]:
    rng = random.Random(seed)
    return [_draw(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def many() -> list[PythonProblem]:
    return _problems(50_000, seed=1)


@pytest.mark.process
def test_the_code_of_every_response_passes_its_own_tests() -> None:
    problems = _problems(1500, seed=2)

    solutions = [(code_of(problem.response), problem) for problem in problems]
    outcomes = check_all(solutions, seconds=LONG_S)

    wrong = [problem for problem, passed in zip(problems, outcomes, strict=True) if not passed]
    assert wrong == []


@pytest.mark.process
def test_the_code_of_another_task_fails() -> None:
    # By their maps and reduction, so that these problems differ in the filter only.
    groups: dict[str, list[PythonProblem]] = {}
    for problem in _problems(3000, seed=3):
        if problem.key.startswith("each: list") and not problem.function_name:
            groups.setdefault(problem.key.split(" | ", 2)[2], []).append(problem)
    solutions = []
    for problems in groups.values():
        for problem, other in itertools.pairwise(problems):
            if problem.key != other.key:
                solutions.append((other.answer, problem))

    outcomes = check_all(solutions)

    # Some filters keep the same elements nearly always, such as those different from 7.
    assert len(outcomes) > 60
    assert sum(outcomes) < 0.06 * len(outcomes)


@pytest.mark.process
def test_a_changed_solution_fails(
    many: list[PythonProblem], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "each: list | even | - | sum"
    problem = next(problem for problem in many if problem.key == key)
    changes = {
        "x % 2 == 0": "x % 2 == 1",
        "sum(": "max(",
        "x for": "x ** 2 for",
        "return": "print",
        "for x in": "for y in",
        "(numbers)": "()",
        "in numbers": "in numbers[1:]",
    }
    solutions = [(problem.answer, problem)]
    for old, new in changes.items():
        assert old in problem.answer
        solutions.append((problem.answer.replace(old, new), problem))

    assert check_all(solutions, seconds=LONG_S) == [True] + [False] * len(changes)
    monkeypatch.setattr(checker, "check_all", partial(check_all, seconds=LONG_S))
    assert check(problem.answer, problem)


@pytest.mark.process
def test_the_demanded_name_is_needed() -> None:
    named = next(problem for problem in _problems(100, seed=4) if problem.function_name)
    free = next(problem for problem in _problems(100, seed=4) if not problem.function_name)
    renamed = "def some_other_name("

    solutions = []
    for problem in (named, free):
        start = problem.answer.index("def ")
        end = problem.answer.index("(", start) + 1
        solutions.append((problem.answer[:start] + renamed + problem.answer[end:], problem))

    assert check_all(solutions, seconds=LONG_S) == [False, True]


ENDLESS_BODIES = ("while True: pass", "return 10 ** 10 ** 10")
HOSTILE_BODIES = (
    "import os; os.remove('/tmp/x')",
    "return open('/etc/passwd').read()",
    "return __import__('subprocess').run(['ls'])",
    "x = [0] * 10**10; return len(x)",
    "x = 'a' * 10**8\n    while True: x += x",
    "import sys; sys.exit(0)",
    "raise SystemExit",
    "raise KeyboardInterrupt",
    "return f(numbers)",
    "return range(10**9)",
    "return 'a' * 10**7",
    "return f",
    "return 1 +",
    "\x00",
    "return '\ud800'",
    "return ().__class__.__base__.__subclasses__()",
)


@pytest.mark.process
def test_hostile_code_is_a_failure_and_no_more(many: list[PythonProblem]) -> None:
    problem = next(problem for problem in many if problem.key == "known: is_sorted")
    problem = replace(problem, function_name="")
    good = problem.answer
    endless = [("while True: pass", problem)]
    for body in ENDLESS_BODIES:
        endless.append((f"def f(numbers):\n    {body}", problem))
    solutions = [(good, problem)]
    for body in HOSTILE_BODIES:
        solutions.append((f"def f(numbers):\n    {body}", problem))
    solutions += [("", problem), ("x = 1", problem), (good, problem)]

    with within(8, "all of them end"):
        assert check_all(endless, seconds=0.3) == [False] * len(endless)
        # On a busy machine the good code may take long.
        outcomes = check_all(solutions, seconds=LONG_S)

    assert outcomes == [True] + [False] * (len(solutions) - 2) + [True]


@pytest.mark.process
def test_numbers_are_compared_by_value(many: list[PythonProblem]) -> None:
    problem = next(problem for problem in many if problem.key == "known: celsius_to_fahrenheit")
    problem = replace(problem, function_name="")
    codes = {
        "def f(c):\n    return c * 1.8 + 32": True,
        "def f(c):\n    return c * 1.8 + 31.9": False,
        "def f(c):\n    return 10 ** 400": False,
        "def f(c):\n    return float('nan')": False,
        "def f(c):\n    return str(c * 1.8 + 32)": False,
        "def f(c):\n    return [c * 1.8 + 32]": False,
    }

    outcomes = check_all([(code, problem) for code in codes], seconds=LONG_S)

    assert outcomes == list(codes.values())


def test_held_out_combinations_are_left_out_but_not_their_parts(many: list[PythonProblem]) -> None:
    training = [problem for problem in many if not is_held_out(problem.key)]
    held_out = [problem for problem in many if is_held_out(problem.key)]
    seen = Counter(name for problem in training for name in parts_of(problem.key))

    assert 0.02 * len(many) < len(held_out) < 0.06 * len(many)
    assert not {problem.key for problem in held_out} & {problem.key for problem in training}
    for problem in held_out:
        for name in parts_of(problem.key):
            assert seen[name] > 0, (problem.key, name)


def test_no_well_known_function_is_held_out(many: list[PythonProblem]) -> None:
    known = {problem.key for problem in many if problem.key.startswith("known")}

    assert len(known) > 90
    assert not any(is_held_out(key) for key in known)


def test_there_are_many_combinations() -> None:
    keys = list(composed_keys())

    assert len(keys) > 100_000
    assert len(set(keys)) == len(keys)


def test_drawn_keys_are_among_the_combinations(many: list[PythonProblem]) -> None:
    keys = set(composed_keys())

    for problem in many:
        assert problem.key in keys or problem.key.startswith("known")


def test_a_seed_gives_the_same_problems() -> None:
    assert _problems(200, seed=5) == _problems(200, seed=5)
    assert _problems(200, seed=5) != _problems(200, seed=6)


def test_cases_are_the_same_at_every_call_and_tell_something() -> None:
    num_dull = 0
    for problem in _problems(300, seed=7):
        tests = cases(problem)
        assert tests == cases(problem)
        results = [repr(result) for _, result in tests]
        num_dull += len(set(results)) == 1

    assert num_dull < 15


def test_the_documented_prompts_occur(many: list[PythonProblem]) -> None:
    answers = {problem.prompt.rstrip("."): problem.answer for problem in many}

    fibonacci = answers["Write a function to calculate the Fibonacci sequence"]
    assert "a, b = b, a + b" in fibonacci
    assert answers["Write a function that adds two numbers"] == "def add(a, b):\n    return a + b"


def test_responses_are_short_and_end_with_the_code(many: list[PythonProblem]) -> None:
    lengths = sorted(len(problem.response) for problem in many)

    assert lengths[-1] < MAX_RESPONSE
    assert lengths[len(lengths) // 2] < 250
    for problem in many:
        sentence, block = problem.response.split("\n\n", 1)
        assert sentence.startswith("This function ")
        assert sentence.endswith(".")
        assert block == f"```python\n{problem.answer}\n```"
        assert code_of(problem.response) == problem.answer + "\n"
        assert problem.answer.count("\n") < 9


def test_no_slot_of_a_wording_stays_empty(many: list[PythonProblem]) -> None:
    for problem in many:
        assert "@" not in problem.prompt + problem.response
        assert "{" not in problem.prompt
        assert "None" not in problem.prompt or problem.key == "known: divide"
        assert "  " not in problem.prompt
        if problem.function_name:
            assert problem.function_name in problem.prompt
            assert f"def {problem.function_name}(" in problem.answer


def test_one_prompt_in_three_demands_a_name(many: list[PythonProblem]) -> None:
    named = [problem.function_name for problem in many if problem.function_name]

    assert 0.3 < len(named) / len(many) < 0.37
    assert len(set(named)) > 3000
