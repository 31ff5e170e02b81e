"""The directory of a trained puzzle network, in the format of the published checkpoints.

It has the weights `step_<N>`, a flat state dict in float32, `all_config.yaml`, the data set's
`dataset.json`, the measured figures `held_out.json`, and a model card.
"""

import json
import os
import re
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from scripts.train.puzzle_nets import PREFIX_LEN, Kind, NetConfig, PuzzleNet, num_parameters
from scripts.train.sudoku_puzzles import HELD_OUT_ONE_IN, layout_of

# What torch.compile, the head of losses and the ACT wrapper put before names in training.
PREFIX = "_orig_mod.model.inner."

_ARCH_NAMES = {
    "trm": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
    "hrm": "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1",
}
_NAMES = {
    "trm": "Tiny Recursive Model (TRM, MLP-mixing)",
    "hrm": "Hierarchical Reasoning Model (HRM)",
}
_HALTING_RULES = {"trm": "q_halt is over 0", "hrm": "q_halt is over q_continue"}


@dataclass(frozen=True)
class BlanksShare:
    """Figures of the held-out puzzles with `fewest` to `most` blank cells, with halting."""

    fewest: int
    most: int
    puzzles: int
    exact: float
    mean_segments: float


@dataclass(frozen=True)
class Measurement:
    """Shares of held-out puzzles that a network solves.

    `exact_after` is by the number of segments, the same for all puzzles. `exact_halting` is with
    each puzzle's answer at the segment at which it halts by the q head, or at the last one.
    `halted` halt before the last one, and of those `right_of_halted` are solved.
    """

    puzzles: int
    exact_after: dict[int, float]
    exact_halting: float
    mean_segments: float
    halted: float
    right_of_halted: float
    by_blanks: list[BlanksShare]


@dataclass(frozen=True)
class TrainingRun:
    """Settings and length of the training that made a network."""

    command: str
    size: int
    step: int
    minutes: float
    machine: str
    batch: int
    lr: float
    weight_decay: float
    warmup_steps: int
    ema_rate: float
    exploration: float
    bf16: bool
    seed: int
    num_training_grids: int
    num_training_puzzles: int

    @property
    def data_set(self) -> str:
        return f"sudoku-{self.size}x{self.size}"


def write_directory(out: Path, net: PuzzleNet, run: TrainingRun, measurement: Measurement) -> None:
    """Write all files of a network to `out`. Weights of earlier steps there are removed."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, tensor in net.state_dict().items():
        weights[PREFIX + name] = tensor.detach().cpu().float().clone()
    file = out / f"step_{run.step}"
    # Renamed when it is complete: a reader finds the whole file or none.
    unfinished = out / "unfinished"
    torch.save(weights, unfinished)
    os.replace(unfinished, file)
    for earlier in out.glob("step_*"):
        if re.fullmatch(r"step_\d+", earlier.name) and earlier != file:
            earlier.unlink()

    config = yaml.safe_dump(all_config(net.config, run), sort_keys=False)
    (out / "all_config.yaml").write_text(config)
    (out / "dataset.json").write_text(json.dumps(dataset(net.config, run), indent=2) + "\n")
    (out / "held_out.json").write_text(json.dumps(asdict(measurement), indent=2) + "\n")
    card = model_card(net, run, measurement, num_bytes=file.stat().st_size)
    (out / "README.md").write_text(card)


def read_net(directory: Path) -> PuzzleNet:
    """Return the network that `write_directory` wrote, without gradients."""
    arch = yaml.safe_load((directory / "all_config.yaml").read_text())["arch"]
    sizes = json.loads((directory / "dataset.json").read_text())
    kind: Kind = "hrm" if arch["name"] == _ARCH_NAMES["hrm"] else "trm"
    config = NetConfig(
        kind=kind,
        vocab_size=sizes["vocab_size"],
        seq_len=sizes["seq_len"],
        hidden_size=arch["hidden_size"],
        expansion=arch["expansion"],
        num_heads=arch["num_heads"],
        num_layers=arch["L_layers"],
        h_cycles=arch["H_cycles"],
        l_cycles=arch["L_cycles"],
        halt_max_steps=arch["halt_max_steps"],
        positions=arch["pos_encodings"],
    )
    [file] = directory.glob("step_*")
    weights = torch.load(file, weights_only=True)
    net = PuzzleNet(config)
    net.load_state_dict({name.removeprefix(PREFIX): weights[name] for name in weights})
    return net.requires_grad_(False).eval()


def all_config(config: NetConfig, run: TrainingRun) -> dict[str, Any]:
    """Return the configuration of a training under the published keys."""
    arch: dict[str, Any] = {
        "name": _ARCH_NAMES[config.kind],
        "loss": {"name": "losses@ACTLossHead", "loss_type": "softmax_cross_entropy"},
        "halt_exploration_prob": run.exploration,
        "halt_max_steps": config.halt_max_steps,
        "H_cycles": config.h_cycles,
        "L_cycles": config.l_cycles,
        "H_layers": 0 if config.kind == "trm" else config.num_layers,
        "L_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_heads": config.num_heads,
        "expansion": config.expansion,
        "puzzle_emb_ndim": PREFIX_LEN * config.hidden_size,
        "pos_encodings": config.positions,
        "forward_dtype": "float32",
    }
    data_path = f"data/{run.data_set}"
    top: dict[str, Any] = {"arch": arch}
    if config.kind == "trm":
        arch["puzzle_emb_len"] = PREFIX_LEN
        arch["mlp_t"] = True
        arch["no_ACT_continue"] = True
        top["data_paths"] = [data_path]
    else:
        top["data_path"] = data_path
    return top | {
        "global_batch_size": run.batch,
        "lr": run.lr,
        "lr_min_ratio": 0.1,
        "lr_warmup_steps": run.warmup_steps,
        "weight_decay": run.weight_decay,
        "beta1": 0.9,
        "beta2": 0.95,
        "run_name": f"{config.kind}-{run.data_set}",
        "seed": run.seed,
        "ema": True,
        "ema_rate": run.ema_rate,
    }


def dataset(config: NetConfig, run: TrainingRun) -> dict[str, Any]:
    """Return what the published data sets say of themselves. A group is one puzzle here."""
    return {
        "pad_id": 0,
        "ignore_label_id": 0,
        "blank_identifier_id": 0,
        "vocab_size": config.vocab_size,
        "seq_len": config.seq_len,
        "num_puzzle_identifiers": 1,
        "total_groups": run.num_training_puzzles,
        "mean_puzzle_examples": 1.0,
        "total_puzzles": run.num_training_puzzles,
        "sets": ["all"],
    }


def model_card(net: PuzzleNet, run: TrainingRun, measurement: Measurement, num_bytes: int) -> str:
    """Return the README of a network, in Markdown."""
    sections = (
        "---\nlicense: apache-2.0\n---",
        f"# sample-{net.config.kind}-{run.data_set}",
        _what_it_is(net, run, num_bytes),
        "## How it was made",
        _how_it_was_made(run),
        "## What it solves",
        _what_it_solves(measurement),
        "## Licence",
        "Apache-2.0, as the project.",
    )
    return "\n\n".join(sections) + "\n"


def _what_it_is(net: PuzzleNet, run: TrainingRun, num_bytes: int) -> str:
    config = net.config
    layout = layout_of(run.size)
    layers = f"layers {config.num_layers}"
    if config.kind == "hrm":
        layers += f" in each of H and L, {config.num_heads} heads, "
        layers += f"{config.positions} positions"
    return _paragraphs(
        f"A small {_NAMES[config.kind]} that solves Sudokus of {run.size} x {run.size} cells, with "
        f"boxes of {layout.box_height} rows x {layout.box_width} columns. "
        f"{num_parameters(net):,} parameters, {num_bytes / 1e6:.2f} MB in float32: hidden "
        f"{config.hidden_size}, {layers}, expansion {config.expansion:g}, cycles "
        f"{config.h_cycles} x {config.l_cycles}, at most {config.halt_max_steps} ACT segments. The "
        f"format is that of the published checkpoints: `step_{run.step}`, `all_config.yaml`, "
        "`dataset.json`.",
        "Tokens: digit d is d + 1, a blank cell is 1, and 0, padding, is not used. The identifier "
        f"is 0. A puzzle halts where {_HALTING_RULES[config.kind]}.",
        "It was made to test and to measure serving with a network that learnt something. It is "
        "not a solver to rely on: verify its answers.",
    )


def _how_it_was_made(run: TrainingRun) -> str:
    products = "bfloat16" if run.bf16 else "float32"
    command = f"```bash\n{run.command}\n```\n\n"
    return command + _paragraphs(
        f"{run.minutes:.1f} minutes and {run.step:,} steps on {run.machine}: batch {run.batch}, "
        f"AdamW, peak learning rate {run.lr:g} with {run.warmup_steps} steps of warm-up and a "
        f"cosine, products in {products}, deep supervision with ACT, weights averaged with "
        f"{run.ema_rate:g}. The puzzles were generated by the project "
        "(`scripts/train/sudoku_puzzles.py`), each with exactly one solution: "
        f"{run.num_training_puzzles:,} of {run.num_training_grids:,} random grids, shown as "
        "random symmetric images.",
        f"One puzzle in {HELD_OUT_ONE_IN} is held out, by a hash that all its symmetric images "
        "share, so that training sees no image of it.",
    )


def _what_it_solves(measurement: Measurement) -> str:
    by_segments = ["| segments | mean segments | exact |", "|---|---|---|"]
    for segments, share in measurement.exact_after.items():
        by_segments.append(f"| {segments} each | {segments} | {share:.3f} |")
    figures = f"{measurement.mean_segments:.2f} | {measurement.exact_halting:.3f}"
    by_segments.append(f"| halting by the q head | {figures} |")

    by_blanks = ["| blank cells | puzzles | exact | mean segments |", "|---|---|---|---|"]
    for part in measurement.by_blanks:
        figures = f"{part.puzzles} | {part.exact:.3f} | {part.mean_segments:.2f}"
        by_blanks.append(f"| {part.fewest} to {part.most} | {figures} |")

    return "\n\n".join(
        (
            f"Of {measurement.puzzles:,} held-out puzzles, with the whole grid right:",
            "\n".join(by_segments),
            _paragraphs(
                f"The q head halts {measurement.halted:.3f} of them before the last segment, and "
                f"{measurement.right_of_halted:.3f} of those are right. By difficulty, with "
                "halting:"
            ),
            "\n".join(by_blanks),
            "`held_out.json` has the same figures.",
        )
    )


def _paragraphs(*texts: str) -> str:
    """Return paragraphs in lines of the width of the project's documents."""
    lines = [
        textwrap.fill(text, width=120, break_long_words=False, break_on_hyphens=False)
        for text in texts
    ]
    return "\n\n".join(lines)
