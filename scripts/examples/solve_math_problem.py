"""Solve a mathematical problem.

python -m scripts.examples.solve_math_problem --url http://localhost:8000 "Solve for x: 2x + 3 = 9"
"""

import argparse

import httpx


def solve_math_problem(
    url: str, problem: str, template: str | None = None
) -> tuple[str, str | None]:
    """Return the solution, and the answer that it states or None if it states none.

    `template` is the prompt of the model, with `{problem}` in it. Raises httpx.HTTPError.
    """
    body = {"problem": problem, "template": template, "temperature": 0}
    response = httpx.post(f"{url}/solve/math", json=body, timeout=60)
    response.raise_for_status()
    result = response.json()
    return result["solution"], result["answer"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--template", help="the prompt of the model, with {problem} in it")
    parser.add_argument("problem")
    args = parser.parse_args()

    solution, answer = solve_math_problem(args.url, args.problem, args.template)
    print(solution)
    print(f"answer: {answer}")


if __name__ == "__main__":
    main()
