"""Raw HRM-Text checkpoints with a fault are refused, and the error names the fault.

They are not whole, not served, or not what their configuration says.
"""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.worker.hrm_text_raw import (
    raw_weights,
    save_epoch,
    save_state,
    tiny,
    write_config,
)
from worker.models.errors import ModelFormatError
from worker.models.hrm_text_checkpoint import load_checkpoint

Weights = tuple[dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Return plain and averaged parameters; the averages lack the buffer."""
    plain = raw_weights(tiny(0))
    average = raw_weights(tiny(1))
    del average["model.zL_init"]
    return plain, average


@pytest.fixture(scope="module")
def saved(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw")
    save_epoch(path / "fsdp2_epoch_10", *weights)
    return path


def without(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the weights without one tensor."""
    rest = dict(weights)
    del rest[name]
    return rest


LAYER = "model.H_level.core.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(
            lambda plain: without(plain, LAYER),
            "missing model.H_module.layers.1.mlp.down_proj.weight",
            id="lost",
        ),
        pytest.param(
            lambda plain: plain | {"model.router.weight": torch.ones(2, 2)},
            "unexpected model.router.weight",
            id="left over",
        ),
        pytest.param(
            lambda plain: plain | {LAYER: torch.ones(3, 3)},
            r"H_module.layers.1.mlp.down_proj.weight has shape",
            id="misshapen",
        ),
        pytest.param(
            lambda plain: without(plain, "embed_tokens.embedding_weight"),
            "model.embed_tokens.weight",
            id="no table",
        ),
    ],
)
def test_unmatched_tensors_are_named(
    tmp_path: Path,
    weights: Weights,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    expected: str,
) -> None:
    """A tensor that is missing, left over or misshapen is an error that names it (T6)."""
    write_config(tmp_path)
    save_epoch(tmp_path / "fsdp2_epoch_1", change(weights[0]), {})
    with pytest.raises(ModelFormatError, match=expected):
        load_checkpoint(tmp_path, use_ema=False)


def test_averages_are_all_there_or_refused(tmp_path: Path, weights: Weights) -> None:
    """Plain and averaged weights are never mixed.

    The error names the missing average, and the setting that does without averages.
    """
    write_config(tmp_path)
    save_epoch(tmp_path / "fsdp2_epoch_1", weights[0], without(weights[1], "lm_head.weight"))
    with pytest.raises(
        ModelFormatError, match=r"\(EMA\) by the name of lm_head.weight; set use_ema to false"
    ):
        load_checkpoint(tmp_path)


def test_averages_by_number_are_refused(tmp_path: Path, weights: Weights) -> None:
    """Averages that the optimizer numbers are refused, as their names would be a guess."""
    write_config(tmp_path)
    plain, average = weights
    numbered = {index: {"param_ema": tensor} for index, tensor in enumerate(average.values())}
    save_state(tmp_path / "fsdp2_epoch_1", {"model": plain, "optim": {"state": numbered}})

    with pytest.raises(ModelFormatError, match="keeps no averaged weights"):
        load_checkpoint(tmp_path)

    loaded = load_checkpoint(tmp_path, use_ema=False)
    assert torch.equal(loaded.model.lm_head.weight, plain["lm_head.weight"])


@pytest.mark.parametrize(
    ("arch", "metadata", "expected"),
    [
        ({"name": "baselines.trm_nocarry@TinyRecursiveModel"}, {}, "TinyRecursiveModel"),
        ({"norm_type": "post"}, {}, "norm_type"),
        ({"attn_type": "causal"}, {}, "attn_type"),
        ({"pos_emb_type": "none"}, {}, "pos_emb_type"),
        ({"H_override": {"rope_theta": 500.0}}, {}, "rope_theta"),
        ({"num_heads": None}, {}, "num_heads"),
        ({"num_heads": 5}, {}, "5 heads"),
        ({"n_layers": 3}, {}, "3 layers"),
        ({"n_layers": 6}, {}, "missing model.L_module.layers.2"),
        ({"hidden_size": 96}, {}, "embed_tokens.weight has shape"),
        ({}, {"vocab_size": 264}, "embed_tokens.weight has shape"),
        ({}, {"max_seq_len": "long"}, "max_seq_len"),
    ],
)
def test_what_the_configuration_says_must_be_served_and_true(
    saved: Path, tmp_path: Path, arch: dict[str, Any], metadata: dict[str, Any], expected: str
) -> None:
    """A configuration that is not served, or does not fit the tensors, is refused."""
    write_config(tmp_path, metadata=metadata, **arch)
    (tmp_path / "fsdp2_epoch_1").symlink_to(saved / "fsdp2_epoch_10")
    with pytest.raises(ModelFormatError, match=expected):
        load_checkpoint(tmp_path)


class Attack:
    """An object whose pickle makes a directory when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        (".metadata", None, "not saved to the end"),
        (".metadata", pickle.dumps(Attack()), r"names \w+\.mkdir"),
        (".metadata", b"not a pickle", "not the index"),
        (".metadata", pickle.dumps({}), "holds a dict"),
        ("__0_0.distcp", None, "cannot be read: FileNotFoundError"),
        ("__0_0.distcp", b"", "cannot be read"),
    ],
)
def test_damaged_files_are_refused_and_run_nothing(
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    content: bytes | None,
    expected: str,
) -> None:
    """A damaged or malicious file of a checkpoint is refused, and none of its code runs."""
    write_config(tmp_path)
    epoch = tmp_path / "fsdp2_epoch_1"
    epoch.mkdir()
    for entry in (saved / "fsdp2_epoch_10").iterdir():
        if entry.name != file:
            (epoch / entry.name).write_bytes(entry.read_bytes())
    if content is not None:
        (epoch / file).write_bytes(content)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ModelFormatError, match=expected):
        load_checkpoint(tmp_path)

    assert not (tmp_path / "attacked").exists()


def test_missing_parts_of_the_directory_are_named(saved: Path, tmp_path: Path) -> None:
    """A directory without its configuration or without an epoch is refused by that name."""
    (tmp_path / "fsdp2_epoch_1").symlink_to(saved / "fsdp2_epoch_10")
    with pytest.raises(ModelFormatError, match=r"all_config\.yaml cannot be read"):
        load_checkpoint(tmp_path)

    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFormatError, match="no directory fsdp2_epoch_<number>"):
        load_checkpoint(tmp_path / "empty")
