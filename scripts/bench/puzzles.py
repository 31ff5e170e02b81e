"""Measure what ACT, width and precision give on a trained puzzle network.

python -m scripts.bench.puzzles --model models/sample-trm-sudoku-6x6

The puzzles are Sudokus that its training never saw. The parts:

    curve      exact accuracy after each number of ACT segments
    act        halting by the network's own rule beside all segments of every row
    loop       the engine beside the loop that a user would write: torch, batches of 64, all segments
    width      samples with verification: accuracy, and the mean number of samples that were computed
    precision  float32, bfloat16 and int8: exact accuracy, and the cosine of the carry per segment

Sides that are compared take turns, and a ratio is the median over the rounds.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt, sqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.bench.measure import header, take_turns
from scripts.train.puzzle_directory import read_net
from scripts.train.puzzle_nets import PuzzleNet
from scripts.train.sudoku_puzzles import Puzzle, held_out
from shared.messages import Halt, Solution
from shared.tasks.samples import ONE_SAMPLE, Answer, Sampled
from worker.engine.runner import RunnerOptions
from worker.llm import LLM
from worker.models import linear
from worker.models.puzzle_checkpoint import load_puzzle_checkpoint
from worker.models.puzzle_net import RecurrentPuzzleModel
from worker.runners.hrm_puzzle import load as load_runner

PARTS = ("curve", "act", "loop", "width", "precision")
_LOOP_BATCH = 64
_CURVE = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Share:
    """So many of all, with the 95 % interval of Wilson (1927)."""

    count: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        share = self.count / self.total
        z = 1.96
        centre = share + z * z / (2 * self.total)
        spread = z * sqrt(share * (1 - share) / self.total + z * z / (4 * self.total**2))
        scale = 1 + z * z / self.total
        return (centre - spread) / scale, (centre + spread) / scale

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count / self.total:.3f} ({low:.3f} to {high:.3f})"


class Bench:
    """A network, and puzzles that it never saw."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._path = Path(args.model)
        checkpoint = load_puzzle_checkpoint(self._path)
        self._steps = checkpoint.model.config.halt_max_steps
        size = isqrt(checkpoint.kind.num_cells)
        self._puzzles = held_out(size, args.count, seed=1, max_blanks=args.max_blanks)

    def run(self, parts: Sequence[str]) -> None:
        for part in parts:
            print(f"\n{part}")
            {
                "curve": self.curve,
                "act": self.act,
                "loop": self.loop,
                "width": self.width,
                "precision": self.precision,
            }[part]()

    def curve(self) -> None:
        with self._llm() as llm:
            for steps in [steps for steps in _CURVE if steps <= self._steps]:
                print(f"{steps:4} segments: exact {self._exact(self._solve(llm, 'max', steps))}")

    def act(self) -> None:
        """Solve the puzzles by both rules in turn, with the batch kept full."""
        with self._llm() as llm:
            turns = take_turns(
                self._args.rounds,
                dynamic=partial(self._solve, llm, "q_halt"),
                fixed=partial(self._solve, llm, "max"),
            )
        self._print_rates({name: [turn.seconds for turn in turns[name]] for name in turns})
        for name, rounds in turns.items():
            answers = rounds[0].value
            mean = statistics.fmean(answer.solution.steps for answer in answers)
            print(f"  {name}: exact {self._exact(answers)}, {mean:.2f} segments on average")

    def loop(self) -> None:
        net = read_net(self._path)
        with self._llm() as llm:
            turns = take_turns(
                self._args.rounds,
                engine=lambda: self._exact(self._solve(llm, "q_halt")),
                all_segments=lambda: self._exact(self._solve(llm, "max")),
                loop=lambda: self._plain_loop(net),
            )
        seconds = {name: [turn.seconds for turn in turns[name]] for name in turns}
        self._print_rates({"engine": seconds["engine"], "loop": seconds["loop"]})
        self._print_rates(
            {"engine, all segments": seconds["all_segments"], "loop": seconds["loop"]}
        )
        for name, rounds in turns.items():
            print(f"  {name}: exact {rounds[0].value}")

    @torch.inference_mode()
    def _plain_loop(self, net: PuzzleNet) -> Share:
        """Return the share of right answers, computed as one would without an engine."""
        answers: list[list[int]] = []
        for first in range(0, len(self._puzzles), _LOOP_BATCH):
            ids = torch.tensor(
                [tokens_of(puzzle) for puzzle in self._puzzles[first : first + _LOOP_BATCH]]
            )
            carry = net.initial_carry(len(ids))
            for _ in range(self._steps):
                segment = net(ids, carry)
                carry = segment.carry
            answers += segment.logits.argmax(-1).tolist()
        right = 0
        for tokens, puzzle in zip(answers, self._puzzles, strict=True):
            right += [token - 1 for token in tokens] == list(puzzle.solution)
        return Share(right, len(answers))

    def width(self) -> None:
        """Print a line for each number of samples and each noise."""
        with self._llm() as llm:
            for halt in ("q_halt", "max"):
                first = self._solve(llm, halt)
                print(f"  {halt}: one sample: exact {self._exact(first)}, cost 1.00")
                for noise in self._args.noises:
                    for count in self._args.samples:
                        sampled = Sampled(count, noise, select="verified", seed=0)
                        answers = self._solve(llm, halt, sampled=sampled)
                        runs = [answer.num_run for answer in answers]
                        print(
                            f"  {halt}: {count} samples of noise {noise:g}: exact "
                            f"{self._exact(answers)}, cost {statistics.fmean(runs):.2f}"
                        )

    def precision(self) -> None:
        """Compare each precision with float32: what is right, and how the carries drift."""
        ids = torch.tensor([tokens_of(puzzle) for puzzle in self._puzzles[:_LOOP_BATCH]])
        exact = _carries(_model(self._path, "float32", "none"), ids, self._steps)
        self._precision("float32", "none", ids, exact)
        self._precision("bfloat16", "none", ids, exact)
        self._precision("float32", "int8", ids, exact)
        # Layers of small networks keep their weights; here they are rounded, too.
        least = linear.MIN_INT8_WEIGHTS
        linear.MIN_INT8_WEIGHTS = 0
        try:
            self._precision("float32", "int8", ids, exact, note=" of all layers")
        finally:
            linear.MIN_INT8_WEIGHTS = least

    def _precision(
        self, dtype: str, quantize: str, ids: Tensor, exact: Sequence[Tensor], note: str = ""
    ) -> None:
        with self._llm(dtype=dtype, quantize=quantize) as llm:
            share = self._exact(self._solve(llm, "max"))
            halting = self._exact(self._solve(llm, "q_halt"))
        model = _model(self._path, dtype, quantize)
        cosines = []
        for ours, theirs in zip(_carries(model, ids, self._steps), exact, strict=True):
            flat = F.cosine_similarity(ours.flatten(1), theirs.flatten(1), dim=1)
            cosines.append(float(flat.mean()))
        drift = " ".join(f"{cosines[step - 1]:.4f}" for step in _CURVE if step <= self._steps)
        name = quantize if quantize != "none" else dtype
        print(f"  {name}{note}: exact {share}, halting {halting}; cosine {drift}")

    def _llm(self, **settings: Any) -> LLM:
        args = self._args
        return LLM(
            self._path,
            max_batch_size=args.batch,
            threads=args.threads,
            **{"dtype": "float32", **settings},
        )

    def _solve(
        self,
        llm: LLM,
        halt: Halt,
        max_steps: int | None = None,
        sampled: Sampled = ONE_SAMPLE,
    ) -> list[Answer]:
        grids = [puzzle.text for puzzle in self._puzzles]
        return llm.solve_sampled(grids, sampled, halt=halt, max_steps=max_steps)

    def _exact(self, answers: Sequence[Answer]) -> Share:
        right = 0
        for answer, puzzle in zip(answers, self._puzzles, strict=True):
            right += _digits(answer.solution) == list(puzzle.solution)
        return Share(right, len(answers))

    def _print_rates(self, seconds: dict[str, list[float]]) -> None:
        (name, ours), (other, theirs) = seconds.items()
        ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
        rates = []
        for side, times in ((name, ours), (other, theirs)):
            rates.append(f"{side} {len(self._puzzles) / statistics.median(times):.0f} puzzles/s")
        print(
            f"  {', '.join(rates)}: ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def tokens_of(puzzle: Puzzle) -> list[int]:
    """Return the cells of a puzzle as tokens: digit d is d + 1."""
    return [digit + 1 for digit in puzzle.givens]


def _digits(solution: Solution) -> list[int]:
    digits: list[int] = []
    for row in solution.grid:
        digits += [int(cell) for cell in row]
    return digits


def _model(path: Path, dtype: str, quantize: str) -> RecurrentPuzzleModel:
    return load_runner(RunnerOptions(path=str(path), dtype=dtype, quantize=quantize)).model


@torch.inference_mode()
def _carries(model: RecurrentPuzzleModel, ids: Tensor, steps: int) -> list[Tensor]:
    """Return the carry [B, latents, positions, H] in fp32 after each segment."""
    x = model.embed(ids, torch.zeros(len(ids), dtype=torch.long))
    carry = model.start(len(ids))
    carries = []
    for _ in range(steps):
        carry = model.segment(x, carry)
        carries.append(carry.float())
    return carries


def main(argv: Sequence[str] | None = None) -> int:
    """Print a header, and the figures of each part."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    print(header(model=args.model, threads=args.threads, batch=args.batch, puzzles=args.count))
    Bench(args).run(args.parts)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="directory of a network for Sudokus")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--count", type=int, default=500, help="puzzles")
    parser.add_argument("--max-blanks", type=int, help="most blank cells of a puzzle")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--noises", type=float, nargs="+", default=[0.3, 1.0])
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
