"""Print a solution as it comes, as plain text.

python -m scripts.examples.stream_solution --url http://localhost:8000 "Compute: 347 + 285"
"""

import argparse
from collections.abc import Iterator
from typing import Any

import httpx


def stream_solution(
    url: str, problem: str, problem_type: str = "math", **fields: Any
) -> Iterator[str]:
    """Yield the pieces of the solution that `/solve/{problem_type}` streams.

    `fields` are added to the body of the request. Raises httpx.HTTPError.
    """
    body = {"problem": problem, "stream": True, **fields}
    with httpx.stream("POST", f"{url}/solve/{problem_type}", json=body, timeout=60) as response:
        if response.is_error:
            # A streamed body is read only on request, and the error's text is in it.
            response.read()
            response.raise_for_status()
        yield from response.iter_text()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--type", choices=("math", "coding"), default="math")
    parser.add_argument("--template", help="the prompt of the model, with {problem} in it")
    parser.add_argument("problem")
    args = parser.parse_args()

    pieces = stream_solution(
        args.url,
        args.problem,
        args.type,
        temperature=0,
        template=args.template,
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
