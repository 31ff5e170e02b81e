"""Measure the share of held-out problems that a text model solves, of each kind.

    python -m scripts.train.evaluate_text models/hrm-text-math --count 500

Answers are decoded greedily, or with the seed and the temperature that are given. Shares have
Wilson's intervals of 95 %. Answers are compared as texts, and programs are run against tests. The
exit status is 1 if a kind is below its bar in `--bars`, as in `--bars equation=0.97,sum=0.95`.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from api.routes.extraction import answer_in, code_in
from scripts.train.problems.problem import Problem
from scripts.train.problems.python_tasks import Attempt, run_attempts
from scripts.train.problems.streams import CODE, MAKERS, held_out
from worker.llm import LLM, SamplingParams

MAX_TOKENS = 320
_Z = 1.96


@dataclass(frozen=True)
class Score:
    """How many problems of a kind were solved, with the bounds of an interval of 95 %."""

    solved: int
    problems: int

    @property
    def share(self) -> float:
        return self.solved / self.problems

    def interval(self) -> tuple[float, float]:
        """Return Wilson's score interval."""
        n = self.problems
        share = self.share
        center = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
        return max(0.0, center - half), min(1.0, center + half)


def solved_by(problems: Sequence[Problem], responses: Sequence[str]) -> list[bool]:
    """Return for each problem whether the response solves it.

    All programs run in one process of their own.
    """
    attempts = []
    for problem, response in zip(problems, responses, strict=True):
        if problem.kind == CODE:
            attempts.append(Attempt(problem, code_in(response) or ""))
    verdicts = iter(run_attempts(attempts))

    solved = []
    for problem, response in zip(problems, responses, strict=True):
        if problem.kind == CODE:
            solved.append(next(verdicts))
        elif problem.answer:
            solved.append(answer_in(response) == problem.answer)
        else:
            solved.append(response.strip() == problem.response)
    return solved


def evaluate(
    path: Path,
    count: int,
    *,
    kinds: Sequence[str] = tuple(MAKERS),
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, Score]:
    """Return the score of a model's directory on `count` held-out problems of each kind."""
    problems = []
    for kind in kinds:
        problems += held_out(kind, count, seed=seed)
    params = SamplingParams(temperature=temperature, seed=seed, max_tokens=MAX_TOKENS)
    with LLM(path, max_batch_size=64, threads=1) as llm:
        template = prompt_template(path)
        outputs = llm.generate(
            [template.replace("{problem}", problem.prompt) for problem in problems], params
        )

    solved = solved_by(problems, [output.outputs[0].text for output in outputs])
    scores = {}
    for number, kind in enumerate(kinds):
        of_kind = solved[number * count : (number + 1) * count]
        scores[kind] = Score(sum(of_kind), count)
    return scores


def prompt_template(path: Path) -> str:
    """Return the template of a model for maths, which holds `{problem}`."""
    template: str = json.loads((path / "prompting.json").read_text())["math"]
    return template


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="directory of a model")
    parser.add_argument("--count", type=int, default=500, help="problems of each kind")
    parser.add_argument("--kinds", default=",".join(MAKERS), help="with commas between")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bars", default="", help="least shares, as kind=share with commas")
    parser.add_argument("--json", type=Path, help="a file for the scores")
    args = parser.parse_args()
    scores = evaluate(
        args.path,
        args.count,
        kinds=args.kinds.split(","),
        temperature=args.temperature,
        seed=args.seed,
    )

    bars = {}
    for bar in filter(None, args.bars.split(",")):
        kind, share = bar.split("=")
        bars[kind] = float(share)
    is_low = False
    print(f"{args.count} held-out problems of each kind, solved (95 % interval):")
    for kind, score in scores.items():
        low, high = score.interval()
        note = ""
        if score.share < bars.get(kind, 0.0):
            is_low = True
            note = f"  below {bars[kind]}"
        print(f"  {kind:14} {score.share:.3f} ({low:.3f} to {high:.3f}){note}")
    if args.json:
        args.json.write_text(json.dumps({k: asdict(v) for k, v in scores.items()}, indent=2) + "\n")
    return 1 if is_low else 0


if __name__ == "__main__":
    sys.exit(main())
