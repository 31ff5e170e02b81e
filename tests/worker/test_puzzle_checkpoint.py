"""The loader of puzzle checkpoints: the networks that it loads, and the faults that it names."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.worker.puzzle_nets import (
    Net,
    Weights,
    arch,
    random_weights,
    shapes,
    write_checkpoint,
)
from worker.models.errors import ModelFormatError
from worker.models.puzzle_checkpoint import PuzzleCheckpoint, load_puzzle_checkpoint
from worker.models.puzzle_identifiers import read_identifiers
from worker.puzzles.kinds import SUDOKU, Maze, RawTokens, Sudoku
from worker.runners.registry import detect

NET = Net()
TRM = Net("trm", l_layers=2, prefix=3)
URM = Net("urm", l_layers=2)


def message(path: Path) -> str:
    """Return the message of the error that loading raises."""
    with pytest.raises(ModelFormatError) as caught:
        load_puzzle_checkpoint(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "net",
    [
        NET,
        Net(positions="learned", puzzle_ndim=0),
        TRM,
        replace(TRM, mixing=20, positions="none"),
        replace(TRM, positions="learned"),
        URM,
    ],
    ids=["hrm", "hrm, learned positions", "trm", "trm, mixing", "trm, learned positions", "urm"],
)
def test_state_dict_names_and_shapes(tmp_path: Path, net: Net) -> None:
    """T1: The state dict of the network has exactly the published names and shapes, less the
    prefix."""
    write_checkpoint(tmp_path, net)

    model = load_puzzle_checkpoint(tmp_path).model

    actual = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.puzzle_table is not None:
        actual["puzzle_emb.weights"] = tuple(model.puzzle_table.shape)
    assert actual == shapes(net)
    assert not model.training
    for weight in model.parameters():
        assert not weight.requires_grad


@pytest.mark.parametrize(
    ("net", "data_path", "kind"),
    [
        (NET, "data/sudoku-extreme-1k-aug-1000", "sudoku"),
        (NET, "/arc/of/maze/mine", "sudoku"),
        (Net(vocab=6), "data/maze-30x30-hard-1k", "maze"),
        (Net(vocab=12, positions="learned", cells=900), "data/arc-2-aug-1000/", "arc"),
    ],
)
def test_the_vocabulary_tells_the_puzzle(
    tmp_path: Path, net: Net, data_path: str, kind: str
) -> None:
    """The size of the vocabulary decides which puzzle a checkpoint is for, not its data path."""
    write_checkpoint(tmp_path, net, data_path=data_path)

    loaded = load_puzzle_checkpoint(tmp_path)

    num_cells = 81 if kind == "sudoku" else 900
    positions = net.positions
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

    model = load_puzzle_checkpoint(tmp_path, torch.bfloat16).model

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

    assert torch.equal(load_puzzle_checkpoint(tmp_path).model.L_init, weights["L_init"])


def test_the_latest_step_by_number_unless_one_is_named(tmp_path: Path) -> None:
    """A directory loads its latest step, and a file loads itself.

    The directory is as training leaves it, with the predictions of an evaluation beside the
    weights. A published `checkpoint` goes before all steps.
    """

    def loaded(path: Path) -> torch.Tensor:
        return load_puzzle_checkpoint(path).model.H_init

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
    write_checkpoint(tmp_path, Net(positions="learned", cells=80))
    assert "a vocabulary of 11 tokens and 80 cells, which is no puzzle" in message(tmp_path)

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
            {"name": "recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1"},
            "which is no HRM, TRM or URM network for puzzles",
        ),
        (
            {"name": "recursive_reasoning.transformers_baseline@Model_ACTV2"},
            "which is no HRM, TRM or URM network for puzzles",
        ),
        ({"name": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1"}, "no_ACT_continue"),
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
        ({"pos_encodings": "learned"}, "embed_pos.embedding_weight is missing"),
        ({"pos_encodings": "far"}, "neither 'rope', 'learned' nor 'none'"),
        ({"puzzle_emb_len": 0.5}, "arch.puzzle_emb_len is 0.5"),
        ({"no_ACT_continue": "yes"}, "arch.no_ACT_continue is 'yes', neither true nor false"),
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

    Gaps in it are blank: their name stands for the first. A list that is damaged or has another
    length is refused.
    """
    write_checkpoint(tmp_path)
    assert len(load_puzzle_checkpoint(tmp_path).identifiers) == 0

    file = tmp_path / "identifiers.json"
    file.write_text(json.dumps(["<blank>", "007bbfb7", "<blank>"]))
    names = load_puzzle_checkpoint(tmp_path).identifiers
    assert len(names) == 3
    assert names.index("<blank>") == 0
    assert names.index("007bbfb7") == 1
    assert names.index("07bbfb7") is None

    for text, complaint in (
        ("[", "not valid JSON"),
        ('["one" "two"]', "not valid JSON"),
        ('["one"', "not valid JSON"),
        ('["one"] x', "not valid JSON"),
        ("", "not a list of names"),
        ("{}", "not a list of names"),
        ("[1]", "not a list of names"),
    ):
        file.write_text(text)
        assert complaint in message(tmp_path)

    file.write_text('["<blank>"]')
    assert "has 1 names, but puzzle_emb.weights 3 rows" in message(tmp_path)
    file.write_text("[ ]")
    assert "has 0 names, but puzzle_emb.weights 3 rows" in message(tmp_path)

    write_checkpoint(tmp_path, replace(NET, puzzle_ndim=0))
    names = load_puzzle_checkpoint(tmp_path).identifiers
    assert len(names) == 0, "names of rows that this network does not have"


@given(names=st.lists(st.text(max_size=8), min_size=1, max_size=20), indent=st.booleans())
def test_names_are_found_where_json_says(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], indent: bool
) -> None:
    """Any list of names, however it is laid out, is read as json reads it."""
    file = tmp_path_factory.mktemp("names") / "identifiers.json"
    file.write_text(json.dumps(names, indent=2 if indent else None))
    listed = read_identifiers(file)

    assert len(listed) == len(names)
    for name in {*names, "no such name", ""}:
        expected = names.index(name) if name in names else None
        assert listed.index(name) == expected
        prefix = name[:1]
        found = list(listed.beginning_with(prefix))
        assert found == [(one, at) for at, one in enumerate(names) if one.startswith(prefix)]


def test_forms_of_files(tmp_path: Path) -> None:
    """The same TRM in every form that people publish: each loads the same network."""
    weights = random_weights(TRM)
    wanted = weights["L_level.layers.1.mlp.down_proj.weight"]

    def check(path: Path) -> PuzzleCheckpoint:
        loaded = load_puzzle_checkpoint(path)
        assert detect(str(path)) == "hrm-puzzle"
        state = loaded.model.state_dict()
        assert torch.equal(state["L_level.layers.1.mlp.down_proj.weight"], wanted)
        assert loaded.model.config.halts_over_zero
        return loaded

    # TRM's own, with its list of data sets.
    paths = ["data/sudoku-extreme-1k-aug-1000"]
    write_checkpoint(tmp_path / "a", TRM, weights=weights, filename="step_7", data_path=paths)
    assert check(tmp_path / "a").description.startswith("TRM for sudoku (step_7): ")

    # With DISABLE_COMPILE.
    write_checkpoint(tmp_path / "b", TRM, weights=weights, prefix="model.inner.")
    check(tmp_path / "b")

    # URM's wrapper, with the states of an optimizer and of random generators.
    write_checkpoint(tmp_path / "c", TRM, weights=weights)
    (tmp_path / "c" / "checkpoint").unlink()
    wrapped = {
        "step": 12,
        "model_state_dict": {f"module.model.inner.{name}": t for name, t in weights.items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}],
        "rng_state": {"numpy": np.random.RandomState(0).get_state(), "python": (3, (1, 2), None)},
    }
    torch.save(wrapped, tmp_path / "c" / "step_12.pt")
    check(tmp_path / "c")
    check(tmp_path / "c" / "step_12.pt")

    # model.pt, beside its manifest.
    (tmp_path / "d").mkdir()
    bare = {f"model.inner.{name}": tensor for name, tensor in weights.items()}
    torch.save(bare, tmp_path / "d" / "model.pt")
    sizes = {"vocab_size": 11, "seq_len": 81, "num_puzzle_identifiers": 3}
    manifest = {
        "benchmark": "sudoku",
        "arch_config": arch(TRM),
        "dataset_meta": sizes,
        "default_checkpoint": "model.pt",
    }
    (tmp_path / "d" / "manifest.yaml").write_text(yaml.dump(manifest))
    assert check(tmp_path / "d").kind == SUDOKU
    check(tmp_path / "d" / "model.pt")


def lightning_file(weights: Weights, averaged: Weights, **settings: Any) -> dict[str, Any]:
    """Return the contents of nano-trm's file: its names, and averages in a callback's state."""

    def named(tensors: Weights) -> Weights:
        renamed = {}
        for name, tensor in tensors.items():
            theirs = name.replace("embed_tokens.", "input_embedding.").replace("L_level.", "lenet.")
            theirs = theirs.replace("puzzle_emb.weights", "puzzle_emb.embedding.weight")
            renamed[re.sub("^([HL])_init$", r"z_\1_init", theirs)] = tensor
        return renamed

    hyper_parameters = {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "H_cycles": 2,
        "L_cycles": 3,
        "N_supervision": 16,
        "N_supervision_val": 4,
        "puzzle_emb_dim": 16,
        "puzzle_emb_len": 3,
        "rope_theta": 10000,
        "pos_emb_type": "1d",
        "use_mlp": False,
        "use_conv_swiglu": False,
        "vocab_size": 11,
        "seq_len": 81,
        "output_dir": Path("/tmp/experiment"),
    }
    return {
        "epoch": 3,
        "state_dict": named(weights),
        "callbacks": {
            "ModelCheckpoint{...}": {"best_model_score": torch.tensor(0.5)},
            "EMA": {"shadow": named(averaged)},
        },
        "hyper_parameters": hyper_parameters | settings,
    }


def test_lightning_files(tmp_path: Path) -> None:
    """A Lightning file brings its own configuration, one q value, and averaged parameters.

    Parameters are the averages, buffers are as they are. A variant that is not served is refused.
    """
    weights = random_weights(TRM)
    weights["q_head.weight"] = weights["q_head.weight"][:1]
    weights["q_head.bias"] = weights["q_head.bias"][:1]
    averaged = {}
    for name, tensor in random_weights(TRM, seed=1).items():
        if not name.endswith("_init"):
            averaged[name] = tensor[:1] if name.startswith("q_head") else tensor
    torch.save(lightning_file(weights, averaged), tmp_path / "last.ckpt")

    for path in (tmp_path, tmp_path / "last.ckpt"):
        assert detect(str(path)) == "hrm-puzzle"
        model = load_puzzle_checkpoint(path).model
        for name, tensor in model.state_dict().items():
            expected = weights if name.endswith("_init") else averaged
            assert torch.equal(tensor, expected[name]), name
        assert model.puzzle_table is not None
        assert torch.equal(model.puzzle_table, averaged["puzzle_emb.weights"])
        assert model.config.num_q == 1
        assert model.config.halt_max_steps == 4
        assert model.config.puzzle_emb_len == 3
        assert model.config.halts_over_zero

    for setting, value in (("use_mlp", True), ("use_conv_swiglu", True), ("pos_emb_type", "2d")):
        torch.save(lightning_file(weights, averaged, **{setting: value}), tmp_path / "last.ckpt")
        assert f"says {setting} is {value!r}" in message(tmp_path)


def test_any_vocabulary_with_its_data_set_beside(tmp_path: Path) -> None:
    """With dataset.json the sizes are known: small Sudokus, and tokens that nobody explains.

    Sizes that contradict the tensors are refused.
    """
    for vocab, cells, kind in (
        (294, 100, RawTokens(294, 100)),
        (6, 16, Sudoku(4)),
        (8, 36, Sudoku(6)),
        (6, 81, Maze(9)),
        (11, 81, SUDOKU),
    ):
        write_checkpoint(tmp_path, replace(TRM, vocab=vocab, cells=cells))
        sizes = {
            "vocab_size": vocab,
            "seq_len": cells,
            "num_puzzle_identifiers": 3,
            "sets": ["all"],
        }
        (tmp_path / "dataset.json").write_text(json.dumps(sizes))
        loaded = load_puzzle_checkpoint(tmp_path)
        assert loaded.kind == kind
        assert loaded.model.config.seq_len == cells

    (tmp_path / "dataset.json").write_text(json.dumps({"vocab_size": 12, "seq_len": 81}))
    assert "has a vocabulary of 11 tokens, its data set one of 12" in message(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"vocab_size": 11}))
    assert "dataset.json" in message(tmp_path)


def test_tensors_tell_the_number_of_cells(tmp_path: Path) -> None:
    """Without dataset.json, products and tables over positions tell the size of the field."""
    for net in (
        replace(TRM, vocab=8, cells=36, mixing=20, positions="none"),
        replace(TRM, vocab=8, cells=36, positions="learned"),
    ):
        write_checkpoint(tmp_path, net)
        assert load_puzzle_checkpoint(tmp_path).kind == Sudoku(6)


def test_the_table_is_mapped_not_read(tmp_path: Path) -> None:
    """A table of puzzle embeddings costs no memory: only rows that are asked for are read."""
    net = replace(TRM, vocab=12, cells=900, identifiers=400_000, puzzle_ndim=48)
    write_checkpoint(tmp_path, net)
    names = [f"task{number:06}|||t{number % 8}|||0123456789" for number in range(400_000)]
    (tmp_path / "identifiers.json").write_text(json.dumps(names))
    code = (
        "import sys, torch, resource\n"
        "from pathlib import Path\n"
        "import worker.models.puzzle_checkpoint as loader\n"
        "def resident():\n"
        "    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()\n"
        "before = resident()\n"
        "loaded = loader.load_puzzle_checkpoint(Path(sys.argv[1]))\n"
        "row = loaded.identifiers.index('task399999|||t7|||0123456789')\n"
        "loaded.model.embed(torch.zeros(1, 900, dtype=torch.long), torch.tensor([row]))\n"
        "print(row, resident() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    row, growth = done.stdout.split()
    assert int(row) == 399_999
    # The table has 77 MB, the names have 15.
    assert int(growth) < 40e6


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
