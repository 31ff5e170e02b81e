"""The Sapient checkpoint loader: the network that it loads, and the faults that it names."""

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
    """Return the message of the error that loading raises."""
    with pytest.raises(ModelFormatError) as caught:
        load_sapient_checkpoint(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "net", [NET, Net(learned=True, puzzle_ndim=0)], ids=["puzzle embedding", "learned positions"]
)
def test_state_dict_names_and_shapes(tmp_path: Path, net: Net) -> None:
    """T1: The state dict of the network has exactly the published names and shapes, less the
    prefix."""
    write_checkpoint(tmp_path, net)

    model = load_sapient_checkpoint(tmp_path).model

    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes(net)
    assert not model.training
    for weight in model.parameters():
        assert not weight.requires_grad


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
    """The size of the vocabulary decides which puzzle a checkpoint is for, not its data path."""
    write_checkpoint(tmp_path, net, data_path=data_path)

    loaded = load_sapient_checkpoint(tmp_path)

    num_cells = 81 if kind == "sudoku" else 900
    positions = "learned" if net.learned else "rope"
    assert loaded.kind.name == kind
    assert loaded.kind.num_cells == num_cells
    assert loaded.model.config.seq_len == num_cells
    assert loaded.description.startswith(f"Sapient HRM for {kind} (checkpoint): ")
    assert f"4 ACT segments, {positions} positions, 3 identifiers" in loaded.description


def test_config_and_dtype(tmp_path: Path) -> None:
    """Cycles, heads, halting and optional numbers come from `all_config.yaml`.

    The weights have the dtype that the caller chooses.
    """
    weights = write_checkpoint(tmp_path, declared={"rope_theta": 500, "rms_norm_eps": 1e-3})

    model = load_sapient_checkpoint(tmp_path, torch.bfloat16).model

    config = model.config
    assert config.num_heads == 2
    assert config.h_cycles == 2
    assert config.l_cycles == 3
    assert config.halt_max_steps == 4
    assert config.rope_theta == 500.0
    assert config.norm_eps == 1e-3
    assert config.intermediate_size == 24
    for tensor in model.state_dict().values():
        assert tensor.dtype == torch.bfloat16
    assert torch.equal(model.H_init, weights["H_init"].bfloat16())


@pytest.mark.parametrize(
    "prefix", ["", "inner.", "model.inner.", "_orig_mod.model.inner.", "model._orig_mod.inner."]
)
def test_prefixes_are_stripped(tmp_path: Path, prefix: str) -> None:
    """Names of tensors lose the prefixes of torch.compile and of the training code."""
    weights = write_checkpoint(tmp_path, prefix=prefix)

    assert torch.equal(load_sapient_checkpoint(tmp_path).model.L_init, weights["L_init"])


def test_the_latest_step_by_number_unless_one_is_named(tmp_path: Path) -> None:
    """A directory loads its latest step, and a file loads itself.

    The directory is as training leaves it, with the predictions of an evaluation beside the
    weights. A published `checkpoint` goes before all steps.
    """

    def loaded(path: Path) -> torch.Tensor:
        return load_sapient_checkpoint(path).model.H_init

    (tmp_path / "step_400").mkdir()
    (tmp_path / "step_200_all_preds.0").write_bytes(b"no weights")
    by_step: dict[int, Weights] = {}
    for step in (9, 20, 3, 100, 40):
        weights = random_weights(NET, step)
        by_step[step] = write_checkpoint(tmp_path, weights=weights, filename=f"step_{step}")
        latest = max(by_step)
        assert torch.equal(loaded(tmp_path), by_step[latest]["H_init"])

    assert torch.equal(loaded(tmp_path / "step_9"), by_step[9]["H_init"])
    published = write_checkpoint(tmp_path, weights=random_weights(NET, 1))
    assert torch.equal(loaded(tmp_path), published["H_init"])


def test_what_is_served_as_a_puzzle(tmp_path: Path) -> None:
    """A puzzle checkpoint is detected by its directory and by its file.

    A raw checkpoint of HRM-Text, which has an `all_config.yaml` too, is none.
    """
    write_checkpoint(tmp_path, filename="step_5")
    assert detect(str(tmp_path)) == "hrm-puzzle"
    assert detect(str(tmp_path / "step_5")) == "hrm-puzzle"

    (tmp_path / "train_metadata.yaml").touch()
    with pytest.raises(ModelFormatError, match="no model we know"):
        detect(str(tmp_path))

    (tmp_path / "train_metadata.yaml").unlink()
    (tmp_path / "step_5").unlink()
    with pytest.raises(ModelFormatError, match=r"all_config\.yaml with checkpoint or step_<N>"):
        detect(str(tmp_path))


@pytest.mark.parametrize("name", shapes(NET))
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    """The error names any tensor that is missing."""
    weights = random_weights(NET)
    del weights[name]
    write_checkpoint(tmp_path, weights=weights)
    assert name in message(tmp_path)


@pytest.mark.parametrize("name", shapes(NET))
def test_a_mis_shaped_tensor_is_named(tmp_path: Path, name: str) -> None:
    """The error names any tensor that has one column too few."""
    weights = random_weights(NET)
    weights[name] = weights[name][..., :-1].clone()
    write_checkpoint(tmp_path, weights=weights)

    named = name
    if name == "H_level.layers.0.mlp.down_proj.weight":
        # The width of the MLP is read from it, and the next tensor contradicts that width.
        named = "mlp.gate_up_proj.weight"
    assert f"{named} has shape" in message(tmp_path)


@pytest.mark.parametrize(
    "name", ["H_level.layers.2.mlp.down_proj.weight", "embed_pos.embedding_weight", "lora.A"]
)
def test_a_tensor_left_over_is_named(tmp_path: Path, name: str) -> None:
    """The error names a tensor that the network does not have."""
    write_checkpoint(tmp_path, weights=random_weights(NET) | {name: torch.zeros(2)})

    assert f"unexpected {name}" in message(tmp_path)


def test_tensors_that_are_ambiguous_or_no_floats_are_named(tmp_path: Path) -> None:
    """The error names a tensor that is there twice, is no float or has too few dimensions."""
    weights = random_weights(NET)

    twice = weights | {"model.H_init": torch.zeros(16)}
    write_checkpoint(tmp_path, weights=twice, prefix="")
    assert "holds H_init twice" in message(tmp_path)

    no_float = weights | {"q_head.bias": torch.zeros(2, dtype=torch.int8)}
    write_checkpoint(tmp_path, weights=no_float)
    assert "q_head.bias is torch.int8" in message(tmp_path)

    no_table = weights | {"puzzle_emb.weights": torch.zeros(2)}
    write_checkpoint(tmp_path, weights=no_table)
    assert "puzzle_emb.weights has shape [2]" in message(tmp_path)


def test_positions_of_another_length_are_named(tmp_path: Path) -> None:
    """A puzzle of another size or vocabulary is refused.

    A learned table fixes the length. A 4 x 4 Sudoku has a maze's vocabulary, but is no maze.
    """
    write_checkpoint(tmp_path, Net(learned=True, cells=80))
    complaint = "embed_pos.embedding_weight has shape [81, 16] where [82, 16] was due"
    assert complaint in message(tmp_path)

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
    """A declaration that is damaged, or that the tensors contradict, is refused."""
    write_checkpoint(tmp_path, declared=declared)
    assert complaint in message(tmp_path)


def test_identifiers_by_name(tmp_path: Path) -> None:
    """Names of identifiers come from the data set's list, if it is there.

    Gaps in it are blank. A list that is damaged or has another length is refused.
    """
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
    """An error in words says which file is missing or damaged, and how."""
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
