"""Write held-out problems as the questions of `aios ab run` and of evaluations.

    python -m scripts.train.write_questions maths --count 10 --out assets/eval/maths.jsonl

A line has the prompt, the right answer, its kind, and as reference the response in training, of
which the log-likelihood can be compared. Programs have no answer: only tests can judge them.
"""

import argparse
import json
from pathlib import Path

from scripts.train.problems.python_tasks.maker import PythonProblem
from scripts.train.problems.streams import MAKERS, OTHER, held_out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("domain", choices=sorted(MAKERS))
    parser.add_argument("--count", type=int, default=10, help="questions of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    lines = []
    for kind in MAKERS[args.domain]:
        if kind == OTHER:
            continue
        for problem in held_out(args.domain, kind, args.count, seed=args.seed):
            line = {"prompt": problem.prompt, "kind": kind, "reference": problem.response}
            if not isinstance(problem, PythonProblem):
                line["answer"] = problem.answer
            lines.append(json.dumps(line, ensure_ascii=False))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
