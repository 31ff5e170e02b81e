"""Measure what a recurrent model loses, and gains in speed, at other depths.

python -m scripts.bench.depth --depths 2x2 2x1 1x2
python -m scripts.bench.depth --model checkpoints/sudoku --problems sudoku.jsonl --depths 16 8 4 1

Depths are H and L cycles for HRM-Text, and ACT segments for brains and puzzles. Problems are those
of the model's domain that no training sees, or the lines of a file: JSON with `prompt` and
`answer`, or with `puzzle` and `solution`. A text from a file is right if its last line is that of
the answer; decoding is greedy. A puzzle is right if all its cells are.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter as now
from typing import Any

from scripts.bench.measure import header
from scripts.train.evaluate_text import domain_of, solved_by, template_of
from scripts.train.problems.problem import Problem
from scripts.train.problems.streams import WEIGHTS, held_out
from shared.messages import Solution
from shared.settings.settings import DEFAULT_MODEL
from worker.llm import LLM, PuzzleInput, SamplingParams


@dataclass(frozen=True)
class Result:
    """The results at one depth. `num_units` are tokens, or puzzles, in `seconds`."""

    num_right: int
    num_units: int
    seconds: float


@dataclass(frozen=True)
class TextProblem:
    """A problem of a domain, or one of a file, which has nothing but an answer."""

    prompt: str
    answer: str = ""
    problem: Problem | None = None


@dataclass(frozen=True)
class PuzzleProblem:
    puzzle: PuzzleInput
    solution: PuzzleInput


def main(argv: Sequence[str] | None = None) -> int:
    """Print a header and a line for each depth."""
    args = _arguments(argv)
    texts, puzzles = _problems(args)
    print(header(model=args.model, threads=args.threads, problems=len(texts) + len(puzzles)))
    print("depth    right            at a time: 1          all")
    options: dict[str, Any] = {"segments": args.segments} if args.segments else {}
    settings = {"threads": args.threads, "dtype": args.dtype, "prefix_cache": False}
    with LLM(args.model, max_batch_size=args.batch, options=options, **settings) as llm:
        for depth in args.depths:
            if puzzles:
                alone = solved(llm, puzzles[: args.alone], depth, at_a_time=1)
                together = solved(llm, puzzles, depth, at_a_time=len(puzzles))
            else:
                alone = answered(llm, texts[: args.alone], depth, at_a_time=1)
                together = answered(llm, texts, depth, at_a_time=len(texts))
            print(_line(depth, alone, together, len(texts) + len(puzzles)), flush=True)
    return 0


def answered(llm: LLM, problems: Sequence[TextProblem], depth: str, *, at_a_time: int) -> Result:
    """Answer the problems, so many at a time, and count the right answers."""
    cycles = depth if "x" in depth else None
    max_steps = None if "x" in depth else int(depth)
    params = SamplingParams(temperature=0, max_tokens=None, cycles=cycles, max_steps=max_steps)
    texts: list[str] = []
    num_tokens = 0
    begun_s = now()
    for first in range(0, len(problems), at_a_time):
        part = problems[first : first + at_a_time]
        outputs = llm.generate([problem.prompt for problem in part], params)
        for output in outputs:
            num_tokens += len(output.outputs[0].token_ids)
            texts.append(output.outputs[0].text)
    seconds = now() - begun_s
    return Result(_num_right(problems, texts), num_tokens, seconds)


def solved(llm: LLM, problems: Sequence[PuzzleProblem], depth: str, *, at_a_time: int) -> Result:
    """Solve the puzzles, so many at a time, and count the right solutions."""
    num_right = 0
    begun_s = now()
    for first in range(0, len(problems), at_a_time):
        part = problems[first : first + at_a_time]
        solutions = llm.solve([problem.puzzle for problem in part], max_steps=int(depth))
        for problem, solution in zip(part, solutions, strict=True):
            num_right += _cells(solution) == _cells(problem.solution)
    return Result(num_right, len(problems), now() - begun_s)


def _num_right(problems: Sequence[TextProblem], texts: Sequence[str]) -> int:
    """Return how many of the texts are right. Programs are run."""
    known: list[Problem] = []
    answers: list[str] = []
    num_right = 0
    for problem, text in zip(problems, texts, strict=True):
        if problem.problem is not None:
            known.append(problem.problem)
            answers.append(text)
        else:
            num_right += _last_line(text) == _last_line(problem.answer)
    return num_right + sum(solved_by(known, answers))


def _last_line(text: str) -> str:
    return text.strip().rsplit("\n", 1)[-1]


def _cells(grid: Solution | PuzzleInput) -> list[str]:
    """Return all cells as text, row by row."""
    rows: Any = grid.grid if isinstance(grid, Solution) else grid
    cells: list[str] = []
    for row in rows:
        cells += map(str, row)
    return cells


def _line(depth: str, alone: Result, together: Result, total: int) -> str:
    right = f"{together.num_right} of {total} ({together.num_right / total:.3f})"
    rates = [result.num_units / result.seconds for result in (alone, together)]
    return f"{depth:8} {right:16} {rates[0]:8.1f} a second {rates[1]:8.1f} a second"


def _problems(args: argparse.Namespace) -> tuple[list[TextProblem], list[PuzzleProblem]]:
    texts: list[TextProblem] = []
    puzzles: list[PuzzleProblem] = []
    if args.problems is None:
        path = Path(args.model)
        if not (path / "training.json").exists():
            raise SystemExit(f"{path} does not tell its domain: give --problems.")
        domain = domain_of(path)
        template = template_of(path)
        for kind in args.kinds or WEIGHTS[domain]:
            for problem in held_out(domain, kind, args.count):
                prompt = template.replace("{problem}", problem.prompt)
                texts.append(TextProblem(prompt, problem=problem))
        return texts, puzzles

    for line in args.problems.read_text().splitlines():
        fields = json.loads(line)
        if "puzzle" in fields:
            puzzles.append(PuzzleProblem(fields["puzzle"], fields["solution"]))
        else:
            texts.append(TextProblem(fields["prompt"], fields["answer"]))
    return texts, puzzles


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="directory of a model")
    parser.add_argument("--depths", nargs="+", default=["2x2", "2x1", "1x2", "1x1"])
    parser.add_argument("--problems", type=Path, help="file with a problem a line, all of one kind")
    parser.add_argument("--kinds", nargs="*", help="of the model's domain (default: all)")
    parser.add_argument("--count", type=int, default=45, help="problems of each kind")
    parser.add_argument("--alone", type=int, default=20, help="problems that are timed one by one")
    parser.add_argument("--segments", choices=("max", "q_halt"), help="of a brain: its own depth")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
