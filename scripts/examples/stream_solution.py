"""Prints a solution as it comes, as bare text.

python -m scripts.examples.stream_solution --url http://localhost:8000 --type math "Compute: 347 +
285"
"""

import argparse
from collections.abc import Iterator
from typing import Any

import httpx


def stream_solution(
    url: str, problem: str, problem_type: str = "math", **fields: Any
) -> Iterator[str]:
    """The pieces of `/solve/{problem_type}`'s answer; `fields` go into the body. Raises
    httpx.HTTPError."""
    body = {"problem": problem, "stream": True, **fields}
    with httpx.stream("POST", f"{url}/solve/{problem_type}", json=body, timeout=60) as answer:
        if answer.is_error:
            answer.read()
            answer.raise_for_status()
        yield from answer.iter_text()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--type", choices=("math", "coding"), default="math")
    parser.add_argument("--template", help="what the model is asked, with {problem} in it")
    parser.add_argument("problem")
    asked = parser.parse_args()
    for chunk in stream_solution(
        asked.url, asked.problem, asked.type, temperature=0, template=asked.template
    ):
        print(chunk, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
