"""Measure how often the documented examples of /solve/math and /solve/coding are answered right.

Each example is requested with many seeds. The exit status is 1 if the share of right answers to an
example is below 0.95.

python -m scripts.train.eval_solve --url http://localhost:8000 --seeds 100
"""

import argparse
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

_MAX_CONCURRENCY = 16
_MIN_SHARE = 0.95
_PROGRAM_S = 5.0
_DEFINED = re.compile(r"^def (\w+)\(", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A problem, and the fields of a right answer to it.

    A coding problem has `calls` instead: arguments of the function that is to be written, as
    Python, and what each call returns.
    """

    path: str
    problem: str
    right: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, Any] = field(default_factory=dict)


def _maths(problem: str, answer: str) -> Example:
    return Example("/solve/math", problem, {"answer": answer, "in_domain": True})


def _coding(problem: str, calls: dict[str, Any]) -> Example:
    return Example("/solve/coding", problem, {"in_domain": True}, calls)


EXAMPLES = (
    _maths("Solve for x: 2x + 3 = 9", "3"),
    _maths("Solve for x: 4x - 2 = 10", "3"),
    _maths("Solve for x: 5x + 2 = 3x + 10", "4"),
    _maths("Solve for x: 3(x - 2) = 12", "6"),
    _maths("Compute: 347 + 285", "632"),
    _maths("Calculate 9876 - 1234", "8642"),
    _maths("What is 23 * 47?", "1081"),
    _maths("Compute: 1/2 + 1/3", "5/6"),
    _maths("What is 15% of 240?", "36"),
    _maths("Find the derivative of f(x) = x^3 + 2x^2 - 5x + 3", "3x^2 + 4x - 5"),
    _maths("Tom has 12 apples and gets 7 more. How many apples does he have now?", "19"),
    _maths("A train travels at 60 km per hour. How far does it go in 3 hours?", "180"),
    _coding("Write a function that adds two numbers.", {"2, 3": 5, "-1, 1": 0}),
    _coding(
        "Write a function to calculate the Fibonacci sequence",
        {"7": [0, 1, 1, 2, 3, 5, 8], "1": [0]},
    ),
    _coding("Write a function that checks whether a number is prime.", {"7": True, "9": False}),
    _coding("Write a function that returns the factorial of a number.", {"5": 120, "0": 1}),
    _coding("Write a Python function that reverses a string.", {"'abc'": "cba", "''": ""}),
    _coding("Write a function that counts the vowels in a string.", {"'banana'": 3, "'xyz'": 0}),
    _coding(
        "Write a function that checks if a string is a palindrome.", {"'abba'": True, "'ab'": False}
    ),
    _coding(
        "Write a function that returns the greatest common divisor of two numbers.",
        {"12, 18": 6, "7, 3": 1},
    ),
    Example("/solve/math", "What is the capital of France?", {"in_domain": False}),
    Example("/solve/coding", "Tell me a story about a dragon.", {"in_domain": False}),
)
"""All problems in the documentation, in the OpenAPI document and in `scripts/examples`."""


def body_of(example: Example, seed: int) -> dict[str, Any]:
    """Return the body of a request that has only the problem and a seed."""
    return {"problem": example.problem, "seed": seed}


def is_right(example: Example, answer: dict[str, Any]) -> bool:
    """Return whether an answer has all fields of the right one, and its code computes the calls.

    The code runs in a process of its own, without a sandbox.
    """
    if any(answer.get(name) != value for name, value in example.right.items()):
        return False
    if not example.calls:
        return True
    code = answer["code"] or ""
    defined = _DEFINED.findall(code)
    if not defined:
        return False
    calls = ", ".join(f"{defined[-1]}({arguments})" for arguments in example.calls)
    try:
        run = subprocess.run(
            [sys.executable, "-I", "-c", f"{code}\nprint(repr([{calls}]))"],
            check=False,
            capture_output=True,
            text=True,
            timeout=_PROGRAM_S,
        )
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0 and run.stdout.strip() == repr(list(example.calls.values()))


def share_right(client: httpx.Client, example: Example, num_seeds: int) -> float:
    """Return the share of right answers to an example over `num_seeds` seeds.

    Raises httpx.HTTPError if a request fails.
    """

    def is_solved(seed: int) -> bool:
        response = client.post(example.path, json=body_of(example, seed))
        return is_right(example, response.raise_for_status().json())

    with ThreadPoolExecutor(_MAX_CONCURRENCY) as pool:
        return sum(pool.map(is_solved, range(num_seeds))) / num_seeds


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--seeds", type=int, default=100, help="runs of each example")
    args = parser.parse_args()
    shares = []
    with httpx.Client(base_url=args.url, timeout=120) as client:
        for example in EXAMPLES:
            shares.append(share_right(client, example, args.seeds))
            print(f"{example.path:14} {example.problem:76} {shares[-1]:.2f}", flush=True)
    return 0 if min(shares) >= _MIN_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
