"""The loop that trains a network of any kind: learning rate, progress, states to go on from.

A run has a length in steps or in minutes. Its state is saved often, so that a run which was stopped
goes on with `resume`. `history.jsonl` keeps a line of figures for each part of the run, and
`history.png` draws them.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Never, Protocol

import torch
from tqdm import tqdm

Figure = float | torch.Tensor
"""A number. One that a device still computes is a tensor of no dimension."""
_FINAL_SHARE = 0.1
"""The learning rate at the end, as a share of the peak."""


class Learner(Protocol):
    """A network in training."""

    @property
    def step(self) -> int:
        """The number of steps so far."""

    def train_step(self, lr: float) -> Mapping[str, Figure]:
        """Make a step of the optimizer. Return its figures, such as the loss."""

    def measure(self, minutes: float, *, is_last: bool) -> Mapping[str, float]:
        """Write the network so that it can be served, after so many minutes of training.

        Return the shares of held-out data that it solves.
        """

    def state(self) -> dict[str, Any]:
        """Return tensors and numbers with which another run goes on."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raise ValueError for one of another network."""


@dataclass(frozen=True)
class Length:
    """The length of a run, with those that it goes on from: so many steps or so many minutes."""

    steps: int | None = None
    minutes: float | None = None

    def progress(self, step: int, minutes: float) -> float:
        """Return how much of the run is done, from 0 to 1."""
        shares = [0.0]
        if self.steps is not None:
            shares.append(step / self.steps)
        if self.minutes is not None:
            shares.append(minutes / self.minutes)
        return min(1.0, max(shares))


@dataclass(frozen=True)
class Schedule:
    """The length, the learning rate and the intervals of a run.

    Its state and its history are kept in `folder`.
    """

    length: Length
    peak_lr: float
    folder: Path
    warmup_steps: int = 200
    print_steps: int = 100
    save_minutes: float = 3
    measure_minutes: float = 15


def learning_rate(step: int, progress: float, peak: float, warmup_steps: int) -> float:
    """Return the learning rate of a step, at `progress` from 0 to 1 of the run.

    It rises linearly for `warmup_steps`, and falls as a cosine to a tenth of the peak.
    """
    warmth = min(1.0, (step + 1) / warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * warmth * (_FINAL_SHARE + (1 - _FINAL_SHARE) * cosine)


class Mean:
    """The means of figures over some steps, each over the steps that have it."""

    def __init__(self) -> None:
        self._values: dict[str, list[Figure]] = {}

    def add(self, figures: Mapping[str, Figure]) -> None:
        for name, value in figures.items():
            self._values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        """Return the means, and begin anew."""
        means = {name: fmean(map(float, values)) for name, values in self._values.items()}
        self._values = {}
        return means


class TrainingLoop:
    """Trains a network to the end of its schedule, from the start or from a saved state."""

    def __init__(self, learner: Learner, schedule: Schedule, *, resume: bool = False) -> None:
        self._learner = learner
        self._schedule = schedule
        self._minutes_before = 0.0
        schedule.folder.mkdir(parents=True, exist_ok=True)
        self._state_file = schedule.folder / "state.pt"
        self._history = schedule.folder / "history.jsonl"
        if resume and self._state_file.exists():
            state = torch.load(self._state_file, map_location="cpu", weights_only=True)
            learner.load_state(state["learner"])
            self._minutes_before = state["minutes"]
            print(f"goes on from step {learner.step}", flush=True)
        else:
            self._history.unlink(missing_ok=True)
        self._started_s = time.monotonic()

    @property
    def minutes(self) -> float:
        """The minutes of training so far, with those of the runs before."""
        return self._minutes_before + (time.monotonic() - self._started_s) / 60

    @property
    def progress(self) -> float:
        return self._schedule.length.progress(self._learner.step, self.minutes)

    def run(self) -> dict[str, float]:
        """Train to the end. Return what the network then solves of held-out data."""
        learner = self._learner
        schedule = self._schedule
        mean = Mean()
        saved_at = self.minutes
        measured_at = self.minutes
        with tqdm(total=schedule.length.steps, initial=learner.step, unit="step") as bar:
            while self.progress < 1:
                lr = learning_rate(
                    learner.step, self.progress, schedule.peak_lr, schedule.warmup_steps
                )
                mean.add(learner.train_step(lr))
                bar.update()

                if learner.step % schedule.print_steps == 0:
                    self._tell(bar, mean.take() | {"lr": lr})
                if self.minutes - saved_at >= schedule.save_minutes:
                    self._save()
                    saved_at = self.minutes
                if self.minutes - measured_at >= schedule.measure_minutes:
                    self._tell(bar, learner.measure(self.minutes, is_last=False))
                    measured_at = self.minutes

            self._save()
            measured = dict(learner.measure(self.minutes, is_last=True))
            self._tell(bar, measured)
        draw(self._history, self._history.with_suffix(".png"))
        return measured

    def _tell(self, bar: "tqdm[Never]", figures: Mapping[str, float]) -> None:
        """Print figures above the bar, and keep them in the history."""
        line = {"step": self._learner.step, "minutes": round(self.minutes, 2)}
        for name, value in figures.items():
            line[name] = float(f"{value:.4g}")
        with self._history.open("a") as file:
            file.write(json.dumps(line) + "\n")
        bar.write(" ".join(f"{name} {value:,}" for name, value in line.items()))

    def _save(self) -> None:
        """Save what `resume` needs. The file is replaced at once, so it is always whole."""
        unfinished = self._state_file.with_suffix(".unfinished")
        torch.save({"learner": self._learner.state(), "minutes": self.minutes}, unfinished)
        os.replace(unfinished, self._state_file)


@torch.no_grad()
def update_average(
    average: torch.nn.Module, net: torch.nn.Module, *, step: int, rate: float
) -> None:
    """Move the parameters of `average` towards those of `net`.

    The average is short at first, so that the random weights of the start soon leave it.
    """
    keep = min(rate, step / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - keep)


def draw(history: Path, picture: Path) -> None:
    """Draw the loss, and the shares that were solved, over the steps of a run."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in history.read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    figure = Figure(figsize=(9, 4), layout="constrained")
    loss_axes, share_axes = figure.subplots(1, 2)
    loss_axes.plot([line["step"] for line in losses], [line["loss"] for line in losses])
    loss_axes.set(xlabel="step", ylabel="loss", yscale="log")

    measured = [line for line in lines if "loss" not in line]
    names = sorted({name for line in measured for name in line} - {"step", "minutes"})
    for name in names:
        points = [(line["step"], line[name]) for line in measured if name in line]
        share_axes.plot(*zip(*points, strict=True), marker=".", label=name)
    share_axes.set(xlabel="step", ylabel="solved of held-out problems", ylim=(0, 1.02))
    if names:
        share_axes.legend(fontsize="small")
    figure.savefig(picture, dpi=100)
