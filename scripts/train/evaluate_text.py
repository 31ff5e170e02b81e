"""Measure the share of held-out problems that a text model solves, of each kind.

    python -m scripts.train.evaluate_text models/hrm-text-math --count 500

Answers are decoded greedily, or with the temperature and the seed that are given. Shares have
Wilson's intervals of 95 %. Answers are compared as texts, and programs are run against tests. The
exit status is 1 if a kind is below its bar in `--bars`, as in `--bars equation=0.97,sum=0.95`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from api.routes.extraction import answer_in, code_in
from scripts.train.problems.problem import Problem
from scripts.train.problems.python_tasks.checker import check_all
from scripts.train.problems.python_tasks.maker import PythonProblem
from scripts.train.problems.streams import MAKERS, held_out
from shared.figures import Share, share_of
from worker.llm import LLM, SamplingParams

MAX_TOKENS = 320
_SECONDS_OF_A_PROGRAM = 0.5
_TEMPLATES = ("math", "coding")


def solved_by(problems: Sequence[Problem], responses: Sequence[str]) -> list[bool]:
    """Return for each problem whether the response solves it.

    All programs run in one process of their own.
    """
    programs = []
    for problem, response in zip(problems, responses, strict=True):
        if isinstance(problem, PythonProblem):
            programs.append((code_in(response) or "", problem))
    verdicts = iter(check_all(programs, _SECONDS_OF_A_PROGRAM) if programs else ())

    solved = []
    for problem, response in zip(problems, responses, strict=True):
        if isinstance(problem, PythonProblem):
            solved.append(next(verdicts))
        elif problem.answer:
            solved.append(answer_in(response) == problem.answer)
        else:
            solved.append(response.strip() == problem.response)
    return solved


def evaluate(
    path: Path,
    domain: str,
    count: int,
    *,
    kinds: Sequence[str] = (),
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, Share]:
    """Return the share that a model's directory solves of `count` held-out problems of each kind.

    Without `kinds` it is asked those of its domain.
    """
    kinds = kinds or tuple(MAKERS[domain])
    params = SamplingParams(temperature=temperature, seed=seed, max_tokens=MAX_TOKENS)
    template = template_of(path)
    shares = {}
    with LLM(path, max_batch_size=64, threads=1) as llm:
        for kind in kinds:
            problems = held_out(domain, kind, count, seed=seed)
            prompts = [template.replace("{problem}", problem.prompt) for problem in problems]
            outputs = llm.generate(prompts, params)
            solved = solved_by(problems, [output.outputs[0].text for output in outputs])
            shares[kind] = share_of(sum(solved), count)
    return shares


def domain_of(path: Path) -> str:
    """Return the domain on which a model was trained."""
    domain: str = json.loads((path / "training.json").read_text())["domain"]
    return domain


def template_of(path: Path) -> str:
    """Return the template of a model's prompts, which holds `{problem}`."""
    prompting = json.loads((path / "prompting.json").read_text())
    [template] = [prompting[name] for name in _TEMPLATES if name in prompting]
    assert isinstance(template, str)
    return template


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="directory of a model")
    parser.add_argument("--count", type=int, default=500, help="problems of each kind")
    parser.add_argument("--kinds", default="", help="with commas between, instead of all")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bars", default="", help="least shares, as kind=share with commas")
    parser.add_argument("--json", type=Path, help="a file for the shares")
    args = parser.parse_args()
    domain = domain_of(args.path)
    shares = evaluate(
        args.path,
        domain,
        args.count,
        kinds=tuple(filter(None, args.kinds.split(","))),
        temperature=args.temperature,
        seed=args.seed,
    )

    bars = {}
    for bar in filter(None, args.bars.split(",")):
        kind, least = bar.split("=")
        bars[kind] = float(least)
    is_low = False
    print(f"{args.count} held-out problems of each kind, solved (95 % interval):")
    for kind, share in shares.items():
        note = ""
        if share.value < bars.get(kind, 0.0):
            is_low = True
            note = f"  below {bars[kind]}"
        print(f"  {kind:14} {share.value:.3f} ({share.low:.3f} to {share.high:.3f}){note}")
    if args.json:
        values = {kind: asdict(share) for kind, share in shares.items()}
        args.json.write_text(json.dumps(values, indent=2) + "\n")
    return 1 if is_low else 0


if __name__ == "__main__":
    sys.exit(main())
