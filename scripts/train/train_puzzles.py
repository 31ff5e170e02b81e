"""Train a sample puzzle network on generated Sudokus, and write it as the published ones are.

    python -m scripts.train.train_puzzles --net trm --size 4 --out models/sample-trm-sudoku-4x4 \
        --minutes 60

Training is deep supervision with ACT. A batch holds rows at different segments of their puzzles.
One step is one segment of all rows, with a loss on the cells and on the q head; rows that halt are
replaced by new puzzles, and the others keep their carry. The saved weights are an exponential
moving average. The sizes are those of the recipe in `scripts/train/recipes/puzzles`. The pool of puzzles
and the state for `--resume` are kept in the directory of `--cache`.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.train.loop import Length, Schedule, TrainingLoop, update_average
from scripts.train.puzzle_directory import (
    BlanksShare,
    Measurement,
    TrainingRun,
    write_directory,
)
from scripts.train.puzzle_nets import (
    Carry,
    Kind,
    NetConfig,
    PuzzleNet,
    Segment,
    flops_per_segment,
    num_parameters,
)
from scripts.train.puzzle_pool import Pool, PoolSettings, PuzzleArrays, images, load_pool
from scripts.train.puzzle_recipe import PuzzleRecipe, net_config, puzzle_recipe
from scripts.train.sudoku_puzzles import SIZES

WARMUP_STEPS = 200
WEIGHT_DECAY = 0.1
EMA_RATE = 0.999
EXPLORATION = 0.1
NUM_HELD_OUT = 1000
_MEASURED_SEGMENTS = (1, 2, 4, 8, 16)
_MEASURED_AT_ONCE = 250
_BLANK = 1


class PuzzleSource:
    """Random images of a pool's training puzzles."""

    def __init__(self, puzzles: PuzzleArrays, size: int, rng: np.random.Generator) -> None:
        self._puzzles = puzzles
        self._size = size
        self._rng = rng

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return inputs and labels [count, cells] of puzzles drawn with replacement."""
        chosen = self._rng.integers(len(self._puzzles), size=count)
        drawn = PuzzleArrays(self._puzzles.inputs[chosen], self._puzzles.labels[chosen])
        shown = images(drawn, self._size, self._rng)
        return torch.from_numpy(shown.inputs), torch.from_numpy(shown.labels)


@dataclass
class Rows:
    """The rows of a batch. `steps` counts the segments that each has had of its puzzle."""

    ids: Tensor
    labels: Tensor
    carry: Carry
    steps: Tensor
    halted: Tensor


class Outcome(NamedTuple):
    """Result of one training step, a segment of all rows.

    `loss` is the cross entropy of a cell, `q_loss` that of the q head. `right_cells` is
    [rows, cells].
    """

    loss: float
    q_loss: float
    segment: Segment
    right_cells: Tensor


def is_halting(kind: Kind, segment: Segment) -> Tensor:
    """Return for each row whether the q head halts it.

    A TRM does not train its q_continue.
    """
    if kind == "trm":
        return segment.q_halt > 0
    return segment.q_halt > segment.q_continue


class Trainer:
    """A net in training, its average, and the rows of its batch."""

    def __init__(
        self,
        config: NetConfig,
        source: PuzzleSource,
        batch: int,
        *,
        device: str = "cpu",
        bf16: bool = False,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self._bf16 = bf16
        self.step = 0
        self.net = PuzzleNet(config).to(self.device)
        self.average = PuzzleNet(config).to(self.device)
        self.average.load_state_dict(self.net.state_dict())
        self.average.requires_grad_(False)
        self.optimizer = _optimizer(self.net)
        self.rows = self._halted_rows(batch)
        self.source = source

    def _halted_rows(self, count: int) -> Rows:
        ids = torch.zeros(count, self.config.seq_len, dtype=torch.int64, device=self.device)
        steps = torch.zeros(count, dtype=torch.int64, device=self.device)
        return Rows(
            ids=ids,
            labels=ids.clone(),
            carry=self.net.initial_carry(count),
            steps=steps,
            halted=torch.ones_like(steps, dtype=torch.bool),
        )

    def train_step(self, lr: float) -> Outcome:
        """Train one segment of all rows, after those that have halted are replaced."""
        self._replace_halted_rows()
        outcome = self.learn(self.rows, lr)
        self._advance(outcome.segment)
        return outcome

    def _replace_halted_rows(self) -> None:
        rows = self.rows
        halted = rows.halted
        ids, labels = self.source.draw(int(halted.sum()))
        rows.ids[halted] = ids.to(self.device)
        rows.labels[halted] = labels.to(self.device)
        rows.steps[halted] = 0
        fresh = self.net.initial_carry(len(halted))
        is_fresh = halted[:, None, None]
        rows.carry = Carry(
            z_h=torch.where(is_fresh, fresh.z_h, rows.carry.z_h),
            z_l=torch.where(is_fresh, fresh.z_l, rows.carry.z_l),
        )

    def learn(self, rows: Rows, lr: float) -> Outcome:
        """Run one segment of `rows`, which stay as they are, and make a step of the optimizer."""
        segment = self._segment(rows.ids, rows.carry)
        right_cells = segment.logits.argmax(-1) == rows.labels
        loss = F.cross_entropy(segment.logits.flatten(0, 1), rows.labels.flatten())
        is_solved = right_cells.all(-1).float()
        q_loss = F.binary_cross_entropy_with_logits(segment.q_halt, is_solved)
        if self.config.kind == "hrm":
            target = self._continue_target(rows, segment)
            q_loss = q_loss + F.binary_cross_entropy_with_logits(segment.q_continue, target)

        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        (loss + 0.5 * q_loss).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        update_average(self.average, self.net, step=self.step, rate=EMA_RATE)
        return Outcome(loss.item(), q_loss.item(), _detached(segment), right_cells)

    def _segment(self, ids: Tensor, carry: Carry) -> Segment:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            segment: Segment = self.net(ids, carry)
        return segment

    @torch.no_grad()
    def _continue_target(self, rows: Rows, segment: Segment) -> Tensor:
        """Return what continuing is worth: the better choice's chance after the next segment.

        A row that has had all its segments can only halt then.
        """
        following = self._segment(rows.ids, segment.carry)
        best = torch.maximum(following.q_halt, following.q_continue)
        is_last = rows.steps + 1 >= self.config.halt_max_steps
        return torch.where(is_last, following.q_halt, best).sigmoid()

    def _advance(self, segment: Segment) -> None:
        """Keep the carries of all rows, and tell those that halt.

        One row in ten explores: it may not halt before a random number of segments.
        """
        rows = self.rows
        rows.carry = segment.carry
        rows.steps += 1
        most = self.config.halt_max_steps
        explores = torch.rand(len(rows.steps), device=self.device) < EXPLORATION
        fewest = torch.randint_like(rows.steps, 2, most + 1) * explores
        may_halt = rows.steps >= fewest
        rows.halted = is_halting(self.config.kind, segment) & may_halt | (rows.steps >= most)

    def state(self) -> dict[str, Any]:
        """Return what a run needs to go on, without the rows: it goes on with new puzzles."""
        return {
            "config": asdict(self.config),
            "step": self.step,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raise ValueError for one of another network."""
        if state["config"] != asdict(self.config):
            raise ValueError(f"the saved network is another: {state['config']}")
        self.step = state["step"]
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rows = self._halted_rows(len(self.rows.steps))


def _optimizer(net: PuzzleNet) -> torch.optim.Optimizer:
    """Return AdamW, without weight decay for the bias of the q head and the puzzle embedding."""
    kept = [net.q_head.bias, net.puzzle_emb.weights]
    kept_ids = {id(parameter) for parameter in kept}
    decayed = [parameter for parameter in net.parameters() if id(parameter) not in kept_ids]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def _detached(segment: Segment) -> Segment:
    z_h, z_l = segment.carry
    return Segment(
        carry=Carry(z_h.detach(), z_l.detach()),
        logits=segment.logits.detach(),
        q_halt=segment.q_halt.detach(),
        q_continue=segment.q_continue.detach(),
    )


@torch.no_grad()
def measure(net: PuzzleNet, puzzles: PuzzleArrays) -> Measurement:
    """Return what a net solves of puzzles, after fixed numbers of segments and with halting."""
    device = net.H_init.device
    most = net.config.halt_max_steps
    num_puzzles = len(puzzles)
    solved = np.zeros((num_puzzles, most + 1), dtype=bool)
    ends = np.full(num_puzzles, most)
    for start in range(0, num_puzzles, _MEASURED_AT_ONCE):
        part = slice(start, start + _MEASURED_AT_ONCE)
        ids = torch.from_numpy(puzzles.inputs[part]).to(device)
        labels = torch.from_numpy(puzzles.labels[part]).to(device)
        carry = net.initial_carry(len(ids))
        for step in range(1, most + 1):
            segment = net(ids, carry)
            carry = segment.carry
            is_right = (segment.logits.argmax(-1) == labels).all(-1)
            solved[part, step] = is_right.cpu().numpy()
            halts = is_halting(net.config.kind, segment).cpu().numpy()
            ends[part] = np.where(halts, np.minimum(ends[part], step), ends[part])

    exact = solved[np.arange(num_puzzles), ends]
    halted = ends < most
    blanks = (puzzles.inputs == _BLANK).sum(1)
    return Measurement(
        puzzles=num_puzzles,
        exact_after={n: float(solved[:, n].mean()) for n in _MEASURED_SEGMENTS if n <= most},
        exact_halting=float(exact.mean()),
        mean_segments=float(ends.mean()),
        halted=float(halted.mean()),
        right_of_halted=float(exact[halted].mean()) if halted.any() else 0.0,
        by_blanks=_by_blanks(blanks, exact, ends),
    )


def _by_blanks(blanks: Any, exact: Any, ends: Any) -> list[BlanksShare]:
    """Return the figures of four parts of the puzzles, of about the same number each."""
    shares = []
    bounds = np.quantile(blanks, (0.25, 0.5, 0.75, 1.0), method="nearest")
    above = 0
    for most in bounds.tolist():
        chosen = (blanks > above) & (blanks <= most)
        above = most
        if chosen.any():
            shares.append(
                BlanksShare(
                    fewest=int(blanks[chosen].min()),
                    most=int(most),
                    puzzles=int(chosen.sum()),
                    exact=float(exact[chosen].mean()),
                    mean_segments=float(ends[chosen].mean()),
                )
            )
    return shares


class PuzzleLearner:
    """A puzzle network in training, as the loop sees it."""

    def __init__(self, args: argparse.Namespace, recipe: PuzzleRecipe, pool: Pool) -> None:
        self._args = args
        self._recipe = recipe
        self._pool = pool
        torch.manual_seed(args.seed)
        self.trainer = Trainer(
            net_config(recipe),
            self._source(0),
            recipe.batch,
            device=args.device,
            bf16=args.bf16,
        )

    def _source(self, step: int) -> PuzzleSource:
        """A run that goes on shows other images than those with which it began."""
        rng = np.random.default_rng([self._args.seed, step])
        return PuzzleSource(self._pool.training, self._args.size, rng)

    @property
    def step(self) -> int:
        return self.trainer.step

    def train_step(self, lr: float) -> Mapping[str, float]:
        """Train one segment. `exact` is the share of the rows that were solved as they halted."""
        outcome = self.trainer.train_step(lr)
        rows = self.trainer.rows
        figures = {
            "loss": outcome.loss,
            "q_loss": outcome.q_loss,
            "cells": outcome.right_cells.float().mean().item(),
            "halted": rows.halted.float().mean().item(),
        }
        if rows.halted.any():
            figures["exact"] = outcome.right_cells[rows.halted].all(-1).float().mean().item()
            figures["segments"] = rows.steps[rows.halted].float().mean().item()
        return figures

    def measure(self, minutes: float, *, is_last: bool) -> Mapping[str, float]:
        """Measure the average, and write it as a directory that can be served."""
        args = self._args
        trainer = self.trainer
        held_out = self._pool.held_out
        measurement = measure(trainer.average, held_out if is_last else held_out.first(500))
        run = TrainingRun(
            command=f"python -m scripts.train.train_puzzles {shlex.join(sys.argv[1:])}",
            size=args.size,
            step=trainer.step,
            minutes=minutes,
            machine=_machine(trainer.device, args.threads),
            batch=self._recipe.batch,
            lr=self._recipe.lr,
            weight_decay=WEIGHT_DECAY,
            warmup_steps=WARMUP_STEPS,
            ema_rate=EMA_RATE,
            exploration=EXPLORATION,
            bf16=args.bf16,
            seed=args.seed,
            num_training_grids=self._recipe.num_grids,
            num_training_puzzles=len(self._pool.training),
        )
        write_directory(args.out, trainer.average, run, measurement)
        figures = {f"exact after {n}": share for n, share in measurement.exact_after.items()}
        return figures | {"exact halting": measurement.exact_halting}

    def state(self) -> dict[str, Any]:
        return self.trainer.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.trainer.load_state(state)
        torch.manual_seed(self._args.seed + self.step)
        self.trainer.source = self._source(self.step)


def _machine(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{threads} of {os.cpu_count()} CPU cores"


def _recipe(args: argparse.Namespace) -> PuzzleRecipe:
    """Return the recipe of a net and a size, with what the command says otherwise."""
    recipe = puzzle_recipe(args.net, args.size)
    changes = {}
    for name in asdict(recipe):
        value = getattr(args, name)
        if value is not None:
            changes[name] = value
    return replace(recipe, **changes)


def _load_pool(args: argparse.Namespace, recipe: PuzzleRecipe) -> Pool:
    settings = PoolSettings(
        size=args.size,
        num_grids=recipe.num_grids,
        num_held_out=NUM_HELD_OUT,
        max_blanks=recipe.max_blanks,
    )
    started_s = time.monotonic()
    pool = load_pool(settings, args.cache, args.threads)
    print(f"{settings.file_name}: {time.monotonic() - started_s:.0f} s", flush=True)
    return pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=("trm", "hrm"), required=True)
    parser.add_argument("--size", type=int, choices=SIZES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of this run and those before")
    parser.add_argument("--resume", action="store_true", help="go on from the saved state")
    parser.add_argument("--cache", type=Path, default=Path(".train"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16, where fast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--print-every", type=int, default=100, help="steps")
    parser.add_argument("--save-minutes", type=float, default=3)
    parser.add_argument("--measure-minutes", type=float, default=15)
    sizes = parser.add_argument_group("recipe", "by default that of the net and the size")
    sizes.add_argument("--hidden", type=int)
    sizes.add_argument("--layers", type=int)
    sizes.add_argument("--expansion", type=float)
    sizes.add_argument("--heads", type=int)
    sizes.add_argument("--h-cycles", type=int)
    sizes.add_argument("--l-cycles", type=int)
    sizes.add_argument("--batch", type=int)
    sizes.add_argument("--lr", type=float)
    sizes.add_argument("--num-grids", type=int)
    sizes.add_argument("--max-blanks", type=int)
    sizes.add_argument("--halt-max-steps", type=int)
    sizes.add_argument("--positions", choices=("rope", "learned"), help="of an HRM")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    recipe = _recipe(args)
    learner = PuzzleLearner(args, recipe, _load_pool(args, recipe))
    config = learner.trainer.config
    print(
        f"{num_parameters(learner.trainer.net):,} parameters, "
        f"{flops_per_segment(config) / 1e6:.1f} MFLOP per segment",
        flush=True,
    )
    schedule = Schedule(
        length=Length(minutes=args.minutes),
        peak_lr=recipe.lr,
        folder=args.cache / args.out.name,
        warmup_steps=WARMUP_STEPS,
        print_steps=args.print_every,
        save_minutes=args.save_minutes,
        measure_minutes=args.measure_minutes,
    )
    TrainingLoop(learner, schedule, resume=args.resume).run()


if __name__ == "__main__":
    main()
