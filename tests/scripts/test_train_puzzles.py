"""Puzzle networks learn, halt, resume, and are written as the published ones are."""

import itertools
import json
import sys
from dataclasses import replace
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch.nn.functional import one_hot

from scripts.train.puzzle_directory import read_net
from scripts.train.puzzle_nets import (
    Carry,
    Kind,
    NetConfig,
    PuzzleNet,
    Segment,
    flops_per_segment,
    intermediate_size,
    num_parameters,
)
from scripts.train.puzzle_pool import PuzzleArrays, arrays_of
from scripts.train.puzzle_recipe import PUZZLE_RECIPES, PuzzleRecipe, net_config, puzzle_recipe
from scripts.train.recipe_file import read_recipe_file
from scripts.train.sudoku_puzzles import SIZES, held_out
from scripts.train.train_puzzles import (
    PuzzleSource,
    Trainer,
    is_halting,
    main,
    measure,
)
from tests.fixtures.trained_puzzles import written
from worker.models.puzzle_checkpoint import load_puzzle_checkpoint
from worker.puzzles.kinds import Sudoku

KINDS: tuple[Kind, ...] = ("trm", "hrm")
Array = NDArray[np.float64]


def tiny(kind: Kind, size: int = 4, **changes: Any) -> NetConfig:
    recipe = replace(puzzle_recipe(kind, size), hidden=32, heads=2, layers=2, l_cycles=2)
    return net_config(replace(recipe, **changes))


def tiny_trainer(kind: Kind, rows: int = 8, *, bf16: bool = False, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    puzzles = arrays_of(held_out(4, 20))
    source = PuzzleSource(puzzles, 4, np.random.default_rng(0))
    return Trainer(tiny(kind, **changes), source, rows, bf16=bf16)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_fixed_batch_falls(kind: Kind) -> None:
    trainer = tiny_trainer(kind)
    trainer.train_step(lr=0.0)
    rows = trainer.rows
    outcomes = [trainer.learn(rows, lr=5e-3) for _ in range(50)]
    losses = [outcome.loss for outcome in outcomes]
    assert losses[-1] < 0.1 * losses[0]
    # The q loss rises when the first grids are solved, until the head has learnt that they are.
    q_losses = [outcome.q_loss for outcome in outcomes]
    assert q_losses[-1] < 0.7 * max(q_losses)
    assert trainer.step == 51


def test_products_in_bfloat16_train_too() -> None:
    trainer = tiny_trainer("trm")
    trainer.train_step(lr=0.0)
    in_bf16 = tiny_trainer("trm", bf16=True)
    losses = [in_bf16.learn(trainer.rows, lr=5e-3).loss for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_keep_their_puzzle_and_carry_until_they_halt(kind: Kind) -> None:
    trainer = tiny_trainer(kind, halt_max_steps=3)
    carry = trainer.net.initial_carry(8)
    seen = []
    for step in range(1, 8):
        # Nothing is learnt, and the q head of a new net halts no row before the last segment.
        outcome = trainer.train_step(lr=0.0)
        seen.append(trainer.rows.ids.clone())
        assert trainer.rows.steps.tolist() == [(step - 1) % 3 + 1] * 8
        assert trainer.rows.halted.all() == (step % 3 == 0)

        if step % 3 == 1:
            carry = trainer.net.initial_carry(8)
        with torch.no_grad():
            expected = trainer.net(seen[-1], carry)
        assert torch.equal(outcome.segment.logits, expected.logits)
        carry = expected.carry
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[2], seen[3])


def test_a_trm_halts_at_q_halt_alone_and_leaves_q_continue_untrained() -> None:
    trainer = tiny_trainer("trm")
    for _ in range(5):
        outcome = trainer.train_step(lr=1e-2)
    head = trainer.net.q_head
    assert torch.equal(head.weight[1], torch.zeros(32))
    assert head.bias[1].item() == -5
    assert head.weight[0].abs().sum() > 0

    segment = outcome.segment._replace(
        q_halt=torch.tensor([0.5, -1.0]), q_continue=torch.tensor([1.0, -5.0])
    )
    assert is_halting("trm", segment).tolist() == [True, False]
    assert is_halting("hrm", segment).tolist() == [False, True]


def test_an_hrm_trains_q_continue() -> None:
    trainer = tiny_trainer("hrm")
    for _ in range(5):
        trainer.train_step(lr=1e-2)
    assert trainer.net.q_head.weight.abs().sum(1).min() > 0


def test_explorers_do_not_halt_at_once() -> None:
    trainer = tiny_trainer("trm", rows=400)
    torch.nn.init.constant_(trainer.net.q_head.bias, 5.0)
    trainer.train_step(lr=0.0)
    num_explorers = int((~trainer.rows.halted).sum())
    assert 15 < num_explorers < 80


def test_a_state_goes_on_from_its_step() -> None:
    trainer = tiny_trainer("trm")
    for _ in range(3):
        trainer.train_step(lr=1e-3)
    other = tiny_trainer("trm")
    other.load_state(trainer.state())
    assert other.step == 3
    for name, tensor in trainer.average.state_dict().items():
        assert torch.equal(other.average.state_dict()[name], tensor)
    other.train_step(lr=1e-3)
    assert other.step == 4

    with pytest.raises(ValueError, match="another"):
        tiny_trainer("hrm").load_state(trainer.state())


@pytest.mark.parametrize("bias", [5.0, -5.0])
def test_halting_is_measured_at_the_segment_that_halts(bias: float) -> None:
    net = PuzzleNet(tiny("trm"))
    torch.nn.init.constant_(net.q_head.bias, bias)
    measurement = measure(net, arrays_of(held_out(4, 30)))
    assert list(measurement.exact_after) == [1, 2, 4, 8, 16]
    segments = 1 if bias > 0 else 16
    assert measurement.mean_segments == segments
    assert measurement.exact_halting == measurement.exact_after[segments]
    assert measurement.halted == (bias > 0)
    assert sum(part.puzzles for part in measurement.by_blanks) == 30


def test_a_net_that_repeats_its_input_is_right_on_complete_grids_alone() -> None:
    class Repeating(PuzzleNet):
        def forward(self, ids: torch.Tensor, carry: Carry) -> Segment:
            segment = super().forward(ids, carry)
            return segment._replace(logits=one_hot(ids, 6).float())

    net = Repeating(tiny("trm"))
    puzzles = arrays_of(held_out(4, 5))
    complete = PuzzleArrays(puzzles.labels, puzzles.labels)
    assert set(measure(net, complete).exact_after.values()) == {1.0}
    assert measure(net, complete).exact_halting == 1.0
    assert set(measure(net, puzzles).exact_after.values()) == {0.0}


# The published names and shapes, from the equations of each network.


def expected_shapes(config: NetConfig) -> dict[str, tuple[int, ...]]:
    width = config.hidden_size
    positions = config.seq_len + 1
    inner = intermediate_size(width, config.expansion)
    shapes: dict[str, tuple[int, ...]] = {
        "H_init": (width,),
        "L_init": (width,),
        "embed_tokens.embedding_weight": (config.vocab_size, width),
        "lm_head.weight": (config.vocab_size, width),
        "q_head.weight": (2, width),
        "q_head.bias": (2,),
        "puzzle_emb.weights": (1, width),
    }
    if config.positions == "learned":
        shapes["embed_pos.embedding_weight"] = (positions, width)
    levels = ("L_level",) if config.kind == "trm" else ("L_level", "H_level")
    for level in levels:
        for number in range(config.num_layers):
            layer = f"{level}.layers.{number}"
            shapes[f"{layer}.mlp.gate_up_proj.weight"] = (2 * inner, width)
            shapes[f"{layer}.mlp.down_proj.weight"] = (width, inner)
            if config.kind == "trm":
                across = intermediate_size(positions, config.expansion)
                shapes[f"{layer}.mlp_t.gate_up_proj.weight"] = (2 * across, positions)
                shapes[f"{layer}.mlp_t.down_proj.weight"] = (positions, across)
            else:
                shapes[f"{layer}.self_attn.qkv_proj.weight"] = (3 * width, width)
                shapes[f"{layer}.self_attn.o_proj.weight"] = (width, width)
    return shapes


@pytest.mark.parametrize(
    ("kind", "positions"), [("trm", "none"), ("hrm", "learned"), ("hrm", "rope")]
)
def test_a_directory_has_the_published_names_and_shapes(
    kind: Kind, positions: str, tmp_path: Path
) -> None:
    config = tiny(kind, size=6, positions=positions)
    (tmp_path / "step_7").write_bytes(b"of an earlier run")
    measurement = written(tmp_path, PuzzleNet(config), size=6)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "README.md",
        "all_config.yaml",
        "dataset.json",
        "held_out.json",
        "step_120",
    ]

    weights = torch.load(tmp_path / "step_120", weights_only=True)
    shapes = {}
    for name, tensor in weights.items():
        assert tensor.dtype == torch.float32
        shapes[name] = tuple(tensor.shape)
    prefix = "_orig_mod.model.inner."
    assert shapes == {prefix + name: shape for name, shape in expected_shapes(config).items()}

    assert json.loads((tmp_path / "dataset.json").read_text()) == {
        "pad_id": 0,
        "ignore_label_id": 0,
        "blank_identifier_id": 0,
        "vocab_size": 8,
        "seq_len": 36,
        "num_puzzle_identifiers": 1,
        "total_groups": 60,
        "mean_puzzle_examples": 1.0,
        "total_puzzles": 60,
        "sets": ["all"],
    }
    figures = json.loads((tmp_path / "held_out.json").read_text())
    assert figures["exact_halting"] == measurement.exact_halting
    card = " ".join((tmp_path / "README.md").read_text().split())
    assert "2 rows x 3 columns" in card
    assert f"{num_parameters(PuzzleNet(config)):,} parameters" in card


def test_the_configuration_has_the_published_keys(tmp_path: Path) -> None:
    written(tmp_path / "trm", PuzzleNet(tiny("trm")), size=4)
    written(tmp_path / "hrm", PuzzleNet(tiny("hrm")), size=4)
    trm = yaml.safe_load((tmp_path / "trm" / "all_config.yaml").read_text())
    hrm = yaml.safe_load((tmp_path / "hrm" / "all_config.yaml").read_text())
    assert trm["data_paths"] == ["data/sudoku-4x4"]
    assert hrm["data_path"] == "data/sudoku-4x4"
    assert trm["ema"] is True
    shared = {
        "halt_exploration_prob": 0.1,
        "halt_max_steps": 16,
        "H_cycles": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "puzzle_emb_ndim": 32,
        "forward_dtype": "float32",
        "L_layers": 2,
    }
    assert shared.items() <= trm["arch"].items()
    assert shared.items() <= hrm["arch"].items()
    assert trm["arch"]["name"] == "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1"
    own = {"mlp_t": True, "no_ACT_continue": True, "puzzle_emb_len": 1, "pos_encodings": "none"}
    assert own.items() <= trm["arch"].items()
    assert hrm["arch"]["name"] == "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1"
    assert "no_ACT_continue" not in hrm["arch"]
    assert hrm["arch"]["pos_encodings"] == "learned"
    assert hrm["arch"]["H_layers"] == 2


def test_the_published_trm_for_sudoku_has_its_number_of_parameters() -> None:
    recipe = replace(puzzle_recipe("trm", 9), hidden=512, layers=2, expansion=4)
    recipe = replace(recipe, h_cycles=3, l_cycles=6)
    # The published prefix is 15 positions longer than ours, so they are cells here.
    config = replace(net_config(recipe), seq_len=96)
    embedding_of_the_puzzle = 512
    assert num_parameters(PuzzleNet(config)) == 5_028_866 + embedding_of_the_puzzle
    assert flops_per_segment(config) == pytest.approx(25.6e9, rel=0.01)


@pytest.mark.parametrize("net", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_net_and_a_size_name_their_recipe(net: Kind, size: int) -> None:
    recipe = puzzle_recipe(net, size)
    assert (recipe.net, recipe.size) == (net, size)


def test_every_recipe_belongs_to_a_net_and_a_size() -> None:
    assert len(list(PUZZLE_RECIPES.iterdir())) == len(KINDS) * len(SIZES)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("dropout: 0.1\nwarmup: 3\n", r"mine\.yaml: a recipe has no dropout, warmup"),
        (
            "max_blanks: many\n",
            r"mine\.yaml: Expected `int \| null`, got `str` - at `\$.max_blanks`",
        ),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, line: str, error: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text((PUZZLE_RECIPES / "trm-sudoku-4x4.yaml").read_text() + line)
    with pytest.raises(msgspec.ValidationError, match=error):
        read_recipe_file(file, PuzzleRecipe)


def test_a_recipe_without_a_size_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("net: trm\n")
    with pytest.raises(
        msgspec.ValidationError, match=r"mine\.yaml: .*missing required field `size`"
    ):
        read_recipe_file(file, PuzzleRecipe)


# A TRM's segment written from the equations once more, in numpy.


def rms(a: Array) -> Array:
    out: Array = a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-5)
    return out


def swiglu(a: Array, gate_up: Array, down: Array) -> Array:
    gate, up = np.split(a @ gate_up.T, 2, axis=-1)
    out: Array = (gate / (1 + np.exp(-gate)) * up) @ down.T
    return out


def test_a_segment_of_a_trm_is_that_of_the_equations() -> None:
    torch.manual_seed(1)
    config = tiny("trm")
    net = PuzzleNet(config).double()
    torch.nn.init.normal_(net.puzzle_emb.weights)
    torch.nn.init.normal_(net.q_head.weight)
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}

    def level(h: Array, injection: Array) -> Array:
        h = h + injection
        for number in range(config.num_layers):
            layer = f"L_level.layers.{number}"
            names = (f"{layer}.mlp_t", f"{layer}.mlp")
            (up_t, down_t), (up, down) = [
                (weights[f"{name}.gate_up_proj.weight"], weights[f"{name}.down_proj.weight"])
                for name in names
            ]
            t = h.T
            h = rms(t + swiglu(t, up_t, down_t)).T
            h = rms(h + swiglu(h, up, down))
        return h

    ids = arrays_of(held_out(4, 2)).inputs
    segment = net(torch.from_numpy(ids), net.initial_carry(2))
    for row in range(2):
        embedded = weights["embed_tokens.embedding_weight"][ids[row]]
        x = sqrt(32) * np.concatenate((weights["puzzle_emb.weights"], embedded))
        z_h = np.tile(weights["H_init"], (17, 1))
        z_l = np.tile(weights["L_init"], (17, 1))
        for _ in range(config.h_cycles):
            for _ in range(config.l_cycles):
                z_l = level(z_l, z_h + x)
            z_h = level(z_h, z_l)

        q_halt, q_continue = weights["q_head.weight"] @ z_h[0] + weights["q_head.bias"]
        np.testing.assert_allclose(segment.carry.z_h[row].detach().numpy(), z_h, atol=1e-8)
        np.testing.assert_allclose(segment.carry.z_l[row].detach().numpy(), z_l, atol=1e-8)
        logits = z_h[1:] @ weights["lm_head.weight"].T
        np.testing.assert_allclose(segment.logits[row].detach().numpy(), logits, atol=1e-5)
        assert segment.q_halt[row].item() == pytest.approx(q_halt, abs=1e-5)
        assert segment.q_continue[row].item() == pytest.approx(q_continue, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "positions"), [("trm", "none"), ("hrm", "learned"), ("hrm", "rope")]
)
def test_what_is_written_is_served_alike(kind: Kind, positions: str, tmp_path: Path) -> None:
    """The loader of workers, and the one of benchmarks, make the same network of the directory."""
    torch.manual_seed(2)
    net = PuzzleNet(tiny(kind, size=6, positions=positions))
    torch.nn.init.normal_(net.puzzle_emb.weights)
    torch.nn.init.normal_(net.q_head.weight)
    net.requires_grad_(False)
    written(tmp_path, net, size=6)
    loaded = load_puzzle_checkpoint(tmp_path)
    served = loaded.model
    assert loaded.kind == Sudoku(6)
    assert served.config.halts_over_zero == (kind == "trm")

    ids = torch.from_numpy(arrays_of(held_out(6, 2)).inputs)
    segment = net(ids, net.initial_carry(2))
    carry = served.segment(served.embed(ids, torch.zeros(2, dtype=torch.int64)), served.start(2))
    assert torch.allclose(carry[:, 0], segment.carry.z_h, atol=1e-4)
    assert torch.allclose(served.logits(carry), segment.logits, atol=1e-4)
    assert torch.allclose(served.q_values(carry)[0], segment.q_halt, atol=1e-4)

    again = read_net(tmp_path)(ids, net.initial_carry(2))
    assert torch.equal(again.logits, segment.logits)


def test_a_command_trains_stops_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(minutes: str, *more: str) -> int:
        arguments = ["--net", "trm", "--size", "4", "--minutes", minutes, "--threads", "1"]
        sizes = ["--hidden", "32", "--heads", "2", "--batch", "4", "--num-grids", "5"]
        folders = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
        monkeypatch.setattr(sys, "argv", ["train", *arguments, *sizes, *folders, *more])
        main()
        (file,) = (tmp_path / "out").glob("step_*")
        return int(file.name.removeprefix("step_"))

    monkeypatch.setattr("scripts.train.train_puzzles.NUM_HELD_OUT", 20)
    # A run of 0.6 s takes as many steps on any machine: each look at the clock is 0.01 s later.
    ticks = itertools.count(0.0, 0.01)
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr("scripts.train.loop.time", clock)
    first = run("0.01", "--print-every", "1")
    assert first > 0
    assert "step 1 minutes 0.0 loss " in capsys.readouterr().out
    second = run("0.02", "--resume")
    assert second > first
    assert f"from step {first}" in capsys.readouterr().out
    # Its time is over, so it only measures and writes what is there.
    assert run("0.02", "--resume") == second
