"""The Sapient checkpoint loader: what it makes of the files, and that every fault is refused by
name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.worker.sapient_fixtures import (
    Net,
    Weights,
    random_weights,
    shapes,
    write_checkpoint,
)
from worker.models.errors import ModelFormatError
from worker.models.sapient_checkpoint import load_sapient_checkpoint
from worker.runners.registry import detect

NET = Net()


def message(path: Path) -> str:
    with pytest.raises(ModelFormatError) as caught:
        load_sapient_checkpoint(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "net", [NET, Net(learned=True, puzzle_ndim=0)], ids=["puzzle embedding", "learned positions"]
)
def test_state_dict_names_and_shapes(tmp_path: Path, net: Net) -> None:
    """T1: the network's own state dict is the published list less its prefix, no name more or
    less."""
    write_checkpoint(tmp_path, net)
    model = load_sapient_checkpoint(tmp_path).model
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes(net)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    ("net", "data_path", "kind"),
    [
        (NET, "data/sudoku-extreme-1k-aug-1000", "sudoku"),
        (NET, "/arc/of/maze/mine", "sudoku"),
        (Net(vocab=6), "data/maze-30x30-hard-1k", "maze"),
        (Net(vocab=12, learned=True, cells=900), "data/arc-2-aug-1000/", "arc"),
    ],
)
def test_the_vocabulary_tells_the_puzzle(
    tmp_path: Path, net: Net, data_path: str, kind: str
) -> None:
    write_checkpoint(tmp_path, net, data_path=data_path)
    loaded = load_sapient_checkpoint(tmp_path)
    assert loaded.kind.name == kind
    assert loaded.model.config.seq_len == loaded.kind.num_cells == (81 if kind == "sudoku" else 900)
    assert loaded.description.startswith(f"Sapient HRM for {kind} (checkpoint): ")
    assert (
        f"4 ACT segments, {'learned' if net.learned else 'rope'} positions, 3 identifiers"
        in loaded.description
    )


def test_config_and_dtype(tmp_path: Path) -> None:
    """Cycles, heads, halting and the optional numbers come from all_config.yaml; weights arrive in
    the dtype asked."""
    weights = write_checkpoint(tmp_path, declared={"rope_theta": 500, "rms_norm_eps": 1e-3})
    model = load_sapient_checkpoint(tmp_path, torch.bfloat16).model
    config = model.config
    assert (config.num_heads, config.h_cycles, config.l_cycles, config.halt_max_steps) == (
        2,
        2,
        3,
        4,
    )
    assert (config.rope_theta, config.norm_eps, config.intermediate_size) == (500.0, 1e-3, 24)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    assert torch.equal(model.H_init, weights["H_init"].bfloat16())


@pytest.mark.parametrize(
    "prefix", ["", "inner.", "model.inner.", "_orig_mod.model.inner.", "model._orig_mod.inner."]
)
def test_prefixes_are_stripped(tmp_path: Path, prefix: str) -> None:
    weights = write_checkpoint(tmp_path, prefix=prefix)
    assert torch.equal(load_sapient_checkpoint(tmp_path).model.L_init, weights["L_init"])


def test_the_latest_step_by_number_unless_one_is_named(tmp_path: Path) -> None:
    """A checkpoint directory as training leaves it, with the predictions of an evaluation beside
    the weights."""

    def loaded(path: Path) -> torch.Tensor:
        return load_sapient_checkpoint(path).model.H_init

    made: dict[int, Weights] = {}
    (tmp_path / "step_400").mkdir()
    (tmp_path / "step_200_all_preds.0").write_bytes(b"no weights")
    for step in (9, 20, 3, 100, 40):
        made[step] = write_checkpoint(
            tmp_path, weights=random_weights(NET, step), filename=f"step_{step}"
        )
        assert torch.equal(loaded(tmp_path), made[max(made)]["H_init"])
    assert torch.equal(loaded(tmp_path / "step_9"), made[9]["H_init"])
    published = write_checkpoint(tmp_path, weights=random_weights(NET, 1))
    assert torch.equal(loaded(tmp_path), published["H_init"])


def test_what_is_served_as_a_puzzle(tmp_path: Path) -> None:
    """By directory and by file; HRM-Text's raw checkpoints, which have an all_config.yaml too, are
    none."""
    write_checkpoint(tmp_path, filename="step_5")
    assert detect(str(tmp_path)) == detect(str(tmp_path / "step_5")) == "hrm-puzzle"
    (tmp_path / "train_metadata.yaml").touch()
    with pytest.raises(ModelFormatError, match="no model we know"):
        detect(str(tmp_path))
    (tmp_path / "train_metadata.yaml").unlink()
    (tmp_path / "step_5").unlink()
    with pytest.raises(ModelFormatError, match=r"all_config\.yaml with checkpoint or step_<N>"):
        detect(str(tmp_path))


@pytest.mark.parametrize("name", shapes(NET))
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    weights = random_weights(NET)
    del weights[name]
    write_checkpoint(tmp_path, weights=weights)
    assert name in message(tmp_path)


@pytest.mark.parametrize("name", shapes(NET))
def test_a_mis_shaped_tensor_is_named(tmp_path: Path, name: str) -> None:
    """A column too few. A narrower down_proj is taken for the MLP's width, which gate_up_proj then
    contradicts."""
    weights = random_weights(NET)
    weights[name] = weights[name][..., :-1].clone()
    write_checkpoint(tmp_path, weights=weights)
    named = name if name != "H_level.layers.0.mlp.down_proj.weight" else "mlp.gate_up_proj.weight"
    assert f"{named} has shape" in message(tmp_path)


@pytest.mark.parametrize(
    "name", ["H_level.layers.2.mlp.down_proj.weight", "embed_pos.embedding_weight", "lora.A"]
)
def test_a_tensor_left_over_is_named(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, weights=random_weights(NET) | {name: torch.zeros(2)})
    assert f"unexpected {name}" in message(tmp_path)


def test_tensors_that_are_ambiguous_or_no_floats_are_named(tmp_path: Path) -> None:
    write_checkpoint(
        tmp_path, weights=random_weights(NET) | {"model.H_init": torch.zeros(16)}, prefix=""
    )
    assert "holds H_init twice" in message(tmp_path)
    write_checkpoint(
        tmp_path, weights=random_weights(NET) | {"q_head.bias": torch.zeros(2, dtype=torch.int8)}
    )
    assert "q_head.bias is torch.int8" in message(tmp_path)
    write_checkpoint(tmp_path, weights=random_weights(NET) | {"puzzle_emb.weights": torch.zeros(2)})
    assert "puzzle_emb.weights has shape [2]" in message(tmp_path)


def test_positions_of_another_length_are_named(tmp_path: Path) -> None:
    """A learned table fixes the length; a 4 x 4 Sudoku has a maze's vocabulary, and is not taken
    for one."""
    write_checkpoint(tmp_path, Net(learned=True, cells=80))
    assert "embed_pos.embedding_weight has shape [81, 16] where [82, 16] was due" in message(
        tmp_path
    )
    write_checkpoint(tmp_path, Net(vocab=6), data_path="data/sudoku-4x4")
    assert "has the vocabulary of maze, but was trained on data/sudoku-4x4" in message(tmp_path)
    write_checkpoint(tmp_path, Net(vocab=13))
    assert (
        "vocabulary of 13 tokens, which is no puzzle we know: 11 (sudoku), 6 (maze), 12 (arc)"
        in message(tmp_path)
    )


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        (
            {"name": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1"},
            "no Sapient HRM network",
        ),
        ({"name": None}, "arch.name is 'None'"),
        ({"hidden_size": None}, "arch.hidden_size is None"),
        ({"hidden_size": 32}, "H_init has shape [16] where [32] was due"),
        ({"num_heads": 5}, "does not divide into 5 heads"),
        ({"H_cycles": 0}, "arch.H_cycles is 0, not a whole number from 1 up"),
        ({"L_cycles": "two"}, "arch.L_cycles is 'two'"),
        ({"L_layers": True}, "arch.L_layers is True"),
        ({"H_layers": 3}, "missing H_level.layers.2"),
        ({"L_layers": 2}, "missing L_level.layers.1"),
        ({"H_layers": 1}, "unexpected H_level.layers.1"),
        ({"pos_encodings": "learned"}, "missing embed_pos.embedding_weight"),
        ({"pos_encodings": "none"}, "neither 'rope' nor 'learned'"),
        ({"puzzle_emb_ndim": 0}, "unexpected puzzle_emb.weights"),
        ({"puzzle_emb_ndim": -1}, "arch.puzzle_emb_ndim is -1"),
        ({"puzzle_emb_ndim": 32}, "puzzle_emb.weights has shape [3, 16] where [3, 32] was due"),
        ({"rope_theta": "far"}, "arch.rope_theta is 'far', not a number over 0"),
        ({"rms_norm_eps": 0}, "arch.rms_norm_eps is 0"),
    ],
)
def test_a_declaration_that_the_tensors_do_not_fit_is_refused(
    tmp_path: Path, declared: dict[str, Any], complaint: str
) -> None:
    write_checkpoint(tmp_path, declared=declared)
    assert complaint in message(tmp_path)


def test_identifiers_by_name(tmp_path: Path) -> None:
    """The data set's list of names, if it is there; gaps are blank, and a list of another length is
    refused."""
    write_checkpoint(tmp_path)
    assert load_sapient_checkpoint(tmp_path).identifiers == {}
    file = tmp_path / "identifiers.json"
    file.write_text(json.dumps(["<blank>", "007bbfb7", "<blank>"]))
    assert load_sapient_checkpoint(tmp_path).identifiers == {"<blank>": 0, "007bbfb7": 1}
    for text, complaint in (
        ("[", "not valid JSON"),
        ("{}", "not a list of names"),
        ("[1]", "not a list of names"),
    ):
        file.write_text(text)
        assert complaint in message(tmp_path)
    file.write_text('["<blank>"]')
    assert "has 1 names, but puzzle_emb.weights 3 rows" in message(tmp_path)
    write_checkpoint(tmp_path, replace(NET, puzzle_ndim=0))
    assert load_sapient_checkpoint(tmp_path).identifiers == {}, (
        "names of rows that this network does not have"
    )


def test_unreadable_checkpoints_are_refused_in_words(tmp_path: Path) -> None:
    assert "neither a file named checkpoint nor one named step_<number>" in message(tmp_path)
    write_checkpoint(tmp_path)
    config = tmp_path / "all_config.yaml"
    for text, complaint in (
        ("a: [", "not valid YAML"),
        ("[]", "no section arch"),
        ("arch: hrm", "no section arch"),
    ):
        config.write_text(text)
        assert complaint in message(tmp_path)
    config.unlink()
    assert "has no all_config.yaml" in message(tmp_path)
    write_checkpoint(tmp_path)
    for damage in (b"PK\x03\x04 cut short", b""):
        (tmp_path / "checkpoint").write_bytes(damage)
        assert str(tmp_path / "checkpoint") in message(tmp_path)
    torch.save({"model": random_weights(NET)}, tmp_path / "checkpoint")
    assert "something other than a flat map of named tensors" in message(tmp_path)
