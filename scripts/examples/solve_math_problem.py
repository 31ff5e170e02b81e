"""Has a mathematical problem solved.

python -m scripts.examples.solve_math_problem --url http://localhost:8000 "Solve for x: 2x + 3 = 9"
"""

import argparse

import httpx


def solve_math_problem(
    url: str, problem: str, template: str | None = None
) -> tuple[str, str | None]:
    """The solution, and the answer that it states, if it states one. `template` has `{problem}` in
    it."""
    body = {"problem": problem, "template": template, "temperature": 0}
    answer = httpx.post(f"{url}/solve/math", json=body, timeout=60)
    answer.raise_for_status()
    result = answer.json()
    return result["solution"], result["answer"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--template", help="what the model is asked, with {problem} in it")
    parser.add_argument("problem")
    asked = parser.parse_args()
    solution, answer = solve_math_problem(asked.url, asked.problem, asked.template)
    print(solution)
    print(f"answer: {answer}")


if __name__ == "__main__":
    main()
