"""Solve many problems at the same time and write the results to a file.

    python -m scripts.examples.process_batch --url http://localhost:8000 --type math problems.txt

`problems.txt` has one problem a line. The results are in `results.json`, in the same order.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx


def process_batch(
    client: httpx.Client,
    problems: list[str],
    problem_type: str,
    max_workers: int = 4,
    **fields: Any,
) -> list[dict[str, Any]]:
    """Return the response of `/solve/{problem_type}` to each problem, in the order of the problems.

    `fields` are added to the body of every request. A request that fails gives a result with the
    problem and an `error`.
    """

    def solve(problem: str) -> dict[str, Any]:
        return _solve(client, problem_type, {"problem": problem, **fields})

    with ThreadPoolExecutor(max_workers) as pool:
        return list(pool.map(solve, problems))


def _solve(client: httpx.Client, problem_type: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        response = client.post(f"/solve/{problem_type}", json=body)
        response.raise_for_status()
    except httpx.HTTPError as error:
        return {"problem": body["problem"], "error": str(error)}
    result: dict[str, Any] = response.json()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--type", choices=("math", "coding"), default="math")
    parser.add_argument("--template", help="the prompt of the model, with {problem} in it")
    parser.add_argument("--max-workers", type=int, default=4)
    parser.add_argument("--results", type=Path, default=Path("results.json"))
    parser.add_argument("problems", type=Path)
    args = parser.parse_args()

    problems = args.problems.read_text(encoding="utf-8").splitlines()
    with httpx.Client(base_url=args.url, timeout=60) as client:
        results = process_batch(
            client,
            problems,
            args.type,
            max_workers=args.max_workers,
            temperature=0,
            template=args.template,
        )

    text = json.dumps(results, indent=2, ensure_ascii=False)
    args.results.write_text(f"{text}\n", encoding="utf-8")
    num_solved = 0
    for result in results:
        if "error" not in result:
            num_solved += 1
    print(f"{num_solved} of {len(results)} answered, in {args.results}")


if __name__ == "__main__":
    main()
