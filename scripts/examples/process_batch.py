"""Has many problems solved at once, and writes down what came of each.

    python -m scripts.examples.process_batch --url http://localhost:8000 --type math problems.txt

`problems.txt` has one a line; the results are in `results.json`, in the same order.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
    """What `/solve/{problem_type}` says to each, or an `error`; `fields` go into every body."""
    with ThreadPoolExecutor(max_workers) as pool:
        return list(pool.map(partial(_solve, client, problem_type, fields), problems))


def _solve(
    client: httpx.Client, problem_type: str, fields: dict[str, Any], problem: str
) -> dict[str, Any]:
    try:
        answer = client.post(f"/solve/{problem_type}", json={"problem": problem, **fields})
        answer.raise_for_status()
    except httpx.HTTPError as error:
        return {"problem": problem, "error": str(error)}
    result: dict[str, Any] = answer.json()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--type", choices=("math", "coding"), default="math")
    parser.add_argument("--template", help="what the model is asked, with {problem} in it")
    parser.add_argument("--max-workers", type=int, default=4)
    parser.add_argument("--results", type=Path, default=Path("results.json"))
    parser.add_argument("problems", type=Path)
    asked = parser.parse_args()
    problems = asked.problems.read_text(encoding="utf-8").splitlines()
    with httpx.Client(base_url=asked.url, timeout=60) as client:
        fields = {"temperature": 0, "template": asked.template}
        results = process_batch(client, problems, asked.type, asked.max_workers, **fields)
    asked.results.write_text(
        json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    num_failed = sum("error" in result for result in results)
    print(f"{len(results) - num_failed} of {len(results)} answered, in {asked.results}")


if __name__ == "__main__":
    main()
