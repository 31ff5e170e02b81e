"""Train a sample puzzle network on generated Sudokus, and write it as the published ones are.

    python -m scripts.train.train_puzzles --net trm --size 4 --out models/sample-trm-sudoku-4x4 \
        --minutes 60

Training is deep supervision with ACT. A batch holds rows at different segments of their puzzles.
One step is one segment of all rows, with a loss on the cells and on the q head; rows that halt are
replaced by new puzzles, and the others keep their carry. The saved weights are an exponential
moving average. The pool of puzzles and the state for `--resume` are kept in the directory of
`--cache`.
"""

import argparse
import math
import os
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
    Positions,
    PuzzleNet,
    Segment,
    flops_per_segment,
    num_parameters,
)
from scripts.train.puzzle_pool import Pool, PoolSettings, PuzzleArrays, images, load_pool
from scripts.train.sudoku_puzzles import SIZES

WARMUP_STEPS = 200
WEIGHT_DECAY = 0.1
EMA_RATE = 0.999
EXPLORATION = 0.1
NUM_HELD_OUT = 1000
_MEASURED_SEGMENTS = (1, 2, 4, 8, 16)
_MEASURED_AT_ONCE = 250
_BLANK = 1


@dataclass(frozen=True)
class Recipe:
    """Sizes of a network and of its training."""

    hidden: int
    layers: int
    expansion: float
    heads: int
    h_cycles: int
    l_cycles: int
    batch: int
    lr: float
    num_grids: int
    max_blanks: int | None = None
    halt_max_steps: int = 16
    positions: Positions = "none"


# Small nets, so that a core trains hundreds to thousands of rows a second. Inner widths are
# multiples of 256, so an expansion that asks for less costs as much. A step costs H * (L + 1)
# passes forward and 2 * (L + 1) backward: with short cycles there are more steps, and hard puzzles
# need several segments. A TRM of hidden 64 and 2 layers with cycles 2 x 3 solves nearly all of size
# 4 at once. An HRM finds rows, columns and boxes far sooner with learned positions, as in the
# published recipe for Sudoku: after 48 seconds of size 4 it solved 0.99 of the puzzles, with rotary
# ones 0.08.
RECIPES: dict[tuple[Kind, int], Recipe] = {
    ("trm", 4): Recipe(
        hidden=32,
        layers=1,
        expansion=4,
        heads=2,
        h_cycles=2,
        l_cycles=1,
        batch=64,
        lr=2e-3,
        num_grids=20_000,
    ),
    ("trm", 6): Recipe(
        hidden=64,
        layers=1,
        expansion=4,
        heads=2,
        h_cycles=2,
        l_cycles=1,
        batch=64,
        lr=2e-3,
        num_grids=40_000,
    ),
    ("trm", 9): Recipe(
        hidden=128,
        layers=1,
        expansion=3,
        heads=4,
        h_cycles=2,
        l_cycles=2,
        batch=64,
        lr=2e-3,
        num_grids=10_000,
        max_blanks=45,
    ),
    ("hrm", 4): Recipe(
        hidden=64,
        layers=1,
        expansion=4,
        heads=2,
        h_cycles=2,
        l_cycles=2,
        batch=64,
        lr=2e-3,
        num_grids=20_000,
        positions="learned",
    ),
    ("hrm", 6): Recipe(
        hidden=96,
        layers=1,
        expansion=4,
        heads=3,
        h_cycles=2,
        l_cycles=2,
        batch=64,
        lr=2e-3,
        num_grids=40_000,
        positions="learned",
    ),
    ("hrm", 9): Recipe(
        hidden=96,
        layers=1,
        expansion=4,
        heads=3,
        h_cycles=2,
        l_cycles=2,
        batch=64,
        lr=1e-3,
        num_grids=10_000,
        max_blanks=45,
        positions="learned",
    ),
}


def net_config(kind: Kind, size: int, recipe: Recipe) -> NetConfig:
    return NetConfig(
        kind=kind,
        vocab_size=size + 2,
        seq_len=size**2,
        hidden_size=recipe.hidden,
        expansion=recipe.expansion,
        num_heads=recipe.heads,
        num_layers=recipe.layers,
        h_cycles=recipe.h_cycles,
        l_cycles=recipe.l_cycles,
        halt_max_steps=recipe.halt_max_steps,
        positions=recipe.positions,
    )


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
        self._source = source

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
        ids, labels = self._source.draw(int(halted.sum()))
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
        # A short average at first, so that the random weights of the start soon leave it.
        keep = min(EMA_RATE, self.step / (self.step + 10))
        _update_average(self.average, self.net, keep)
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


@torch.no_grad()
def _update_average(average: PuzzleNet, net: PuzzleNet, keep: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - keep)


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


def learning_rate(step: int, progress: float, peak: float) -> float:
    """Return the learning rate of a step, at `progress` from 0 to 1 of the run's time.

    It is a cosine from the peak to a tenth of it, after a linear warm-up.
    """
    warmth = min(1.0, (step + 1) / WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * warmth * (0.1 + 0.9 * cosine)


class Meter:
    """Sums over the steps since the last line that was printed."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._steps = 0
        self._loss = 0.0
        self._q_loss = 0.0
        self._cells = 0.0
        self._finished = 0
        self._solved = 0
        self._segments = 0

    def add(self, outcome: Outcome, rows: Rows) -> None:
        """Count a step. `rows` are as the step left them."""
        self._steps += 1
        self._loss += outcome.loss
        self._q_loss += outcome.q_loss
        self._cells += outcome.right_cells.float().mean().item()
        self._finished += int(rows.halted.sum())
        self._solved += int(outcome.right_cells[rows.halted].all(-1).sum())
        self._segments += int(rows.steps[rows.halted].sum())

    def line(self) -> str:
        finished = max(1, self._finished)
        seconds = time.monotonic() - self._started_s
        return (
            f"loss {self._loss / self._steps:.4f} q {self._q_loss / self._steps:.4f} "
            f"cells {self._cells / self._steps:.4f} "
            f"exact {self._solved / finished:.4f} segments {self._segments / finished:.2f} "
            f"{self._finished / seconds:,.0f} puzzles/s"
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


def _print_measurement(measurement: Measurement) -> None:
    after = [f"{n}: {share:.3f}" for n, share in measurement.exact_after.items()]
    print(
        f"held out, exact after segments {{{', '.join(after)}}}, halting "
        f"{measurement.exact_halting:.3f} after {measurement.mean_segments:.2f}; "
        f"{measurement.halted:.3f} halt, {measurement.right_of_halted:.3f} of them right",
        flush=True,
    )


class Run:
    """A training of some minutes, which is saved often and may go on after it was stopped."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._recipe = _recipe(args)
        self._state_file = args.cache / f"{args.out.name}.pt"
        self._pool = self._load_pool()
        config = net_config(args.net, args.size, self._recipe)
        self._minutes_before = 0.0
        state = None
        if args.resume and self._state_file.exists():
            state = torch.load(self._state_file, map_location="cpu", weights_only=True)
            self._minutes_before = state["minutes"]

        # A run that goes on shows other images than those with which it began.
        first_step = state["step"] if state else 0
        torch.manual_seed(args.seed + first_step)
        rng = np.random.default_rng([args.seed, first_step])
        source = PuzzleSource(self._pool.training, args.size, rng)
        self._trainer = Trainer(
            config, source, self._recipe.batch, device=args.device, bf16=args.bf16
        )
        if state:
            self._trainer.load_state(state)
        self._started_s = time.monotonic()
        print(
            f"{num_parameters(self._trainer.net):,} parameters, "
            f"{flops_per_segment(config) / 1e6:.1f} MFLOP per segment, "
            f"{len(self._pool.training):,} puzzles, from step {first_step}",
            flush=True,
        )

    def _load_pool(self) -> Pool:
        settings = PoolSettings(
            size=self._args.size,
            num_grids=self._recipe.num_grids,
            num_held_out=NUM_HELD_OUT,
            max_blanks=self._recipe.max_blanks,
        )
        started_s = time.monotonic()
        pool = load_pool(settings, self._args.cache, self._args.threads)
        print(f"{settings.file_name}: {time.monotonic() - started_s:.0f} s", flush=True)
        return pool

    @property
    def _minutes(self) -> float:
        return self._minutes_before + (time.monotonic() - self._started_s) / 60

    def train(self) -> None:
        args = self._args
        meter = Meter()
        saved_at = self._minutes
        measured_at = self._minutes
        while self._minutes < args.minutes:
            progress = self._minutes / args.minutes
            lr = learning_rate(self._trainer.step, progress, self._recipe.lr)
            outcome = self._trainer.train_step(lr)
            meter.add(outcome, self._trainer.rows)
            step = self._trainer.step
            if step % args.print_every == 0:
                print(f"step {step} {meter.line()} {self._minutes:.2f} min", flush=True)
                meter = Meter()
            if self._minutes - saved_at >= args.save_minutes:
                self._save()
                saved_at = self._minutes
            if self._minutes - measured_at >= args.measure_minutes:
                self._write(self._pool.held_out.first(500))
                measured_at = self._minutes

        self._save()
        self._write(self._pool.held_out)

    def _save(self) -> None:
        """Save what `--resume` needs. The file is replaced at once, so it is always whole."""
        unfinished = self._state_file.with_suffix(".unfinished")
        torch.save(self._trainer.state() | {"minutes": self._minutes}, unfinished)
        os.replace(unfinished, self._state_file)

    def _write(self, puzzles: PuzzleArrays) -> None:
        """Measure the average, and write it as a directory that can be served."""
        measurement = measure(self._trainer.average, puzzles)
        _print_measurement(measurement)
        args = self._args
        run = TrainingRun(
            command=f"python -m scripts.train.train_puzzles {shlex.join(sys.argv[1:])}",
            size=args.size,
            step=self._trainer.step,
            minutes=self._minutes,
            machine=_machine(self._trainer.device, args.threads),
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
        write_directory(args.out, self._trainer.average, run, measurement)


def _machine(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{threads} of {os.cpu_count()} CPU cores"


def _recipe(args: argparse.Namespace) -> Recipe:
    """Return the recipe of a size, with what the command says otherwise."""
    recipe = RECIPES[args.net, args.size]
    changes = {}
    for name in asdict(recipe):
        value = getattr(args, name)
        if value is not None:
            changes[name] = value
    return replace(recipe, **changes)


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
    recipe = parser.add_argument_group("recipe", "by default that of the net and the size")
    recipe.add_argument("--hidden", type=int)
    recipe.add_argument("--layers", type=int)
    recipe.add_argument("--expansion", type=float)
    recipe.add_argument("--heads", type=int)
    recipe.add_argument("--h-cycles", type=int)
    recipe.add_argument("--l-cycles", type=int)
    recipe.add_argument("--batch", type=int)
    recipe.add_argument("--lr", type=float)
    recipe.add_argument("--num-grids", type=int)
    recipe.add_argument("--max-blanks", type=int)
    recipe.add_argument("--halt-max-steps", type=int)
    recipe.add_argument("--positions", choices=("rope", "learned"), help="of an HRM")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Run(args).train()


if __name__ == "__main__":
    main()
