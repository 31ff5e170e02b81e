"""Measure how often the documented examples of /solve/math and /solve/coding are answered right.

Each example is requested with many seeds. The exit status is 1 if the share of right answers to an
example is below 0.95.

python -m scripts.train.eval_solve --url http://localhost:8000 --seeds 100
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

_MAX_CONCURRENCY = 16
_MIN_SHARE = 0.95


@dataclass(frozen=True)
class Example:
    """A problem and the fields of a right answer to it.

    `right` has the result, or the text with which the model declines problems of other kinds.
    """

    path: str
    problem: str
    right: dict[str, Any]


EXAMPLES = (
    Example("/solve/math", "Solve for x: 2x + 3 = 9", {"answer": "3"}),
    Example("/solve/math", "Solve for x: 4x - 2 = 10", {"answer": "3"}),
    Example("/solve/math", "Compute: 347 + 285", {"answer": "632"}),
    Example(
        "/solve/coding",
        "Write a function that adds two numbers.",
        {"code": None, "solution": "I solve linear equations and integer arithmetic."},
    ),
)
"""All problems in the documentation, in the OpenAPI document and in `scripts/examples`."""


def body_of(example: Example, seed: int) -> dict[str, Any]:
    """Return the body of a request that has only the problem and a seed."""
    return {"problem": example.problem, "seed": seed}


def is_right(example: Example, answer: dict[str, Any]) -> bool:
    """Return whether an answer has all fields of the right one."""
    return all(answer[name] == value for name, value in example.right.items())


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
            print(f"{example.path:14} {example.problem:40} {shares[-1]:.2f}", flush=True)
    return 0 if min(shares) >= _MIN_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
