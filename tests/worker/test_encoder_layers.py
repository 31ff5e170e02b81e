"""The layers of an encoder in one call of the kernels: the states of the network's own code."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from tests.fixtures.worker.kernels import computing_with
from worker.models import encoder_layers
from worker.models.encoder_layers import join_encoder
from worker.models.linear import Int8PanelLinear
from worker.native import library as native
from worker.runners.encoder import class_logits, last_states

SIZES = {
    "vocab_size": 60,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
ROWS = [tuple(range(5, 5 + length)) for length in (20, 1, 7, 33, 2)]
PAD_ID = 0


@pytest.fixture(autouse=True, params=native.INSTRUCTIONS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute with the kernels for one set of instructions."""
    with computing_with(request.param, monkeypatch):
        yield


def network(
    kind: type[PretrainedConfig] = BertConfig,
    dtype: torch.dtype = torch.float32,
    loader: Any = AutoModel,
    **options: Any,
) -> PreTrainedModel:
    """Return a network of random weights, whose states are far from those of other rows."""
    config = kind(**(SIZES | options))
    with torch.inference_mode(False):
        model: PreTrainedModel = loader.from_config(config).to(dtype)
    for parameter in model.requires_grad_(False).eval().parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def joined(model: PreTrainedModel, *, is_int8: bool = False) -> PreTrainedModel:
    encoder = join_encoder(model)
    assert encoder is not None
    if is_int8:
        round_all(encoder)
    encoder.pack()
    return model


def round_all(module: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, Int8PanelLinear(layer.weight, layer.bias))


def largest_error(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Return the largest error of a row, as a share of its states."""
    errors = [0.0]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.isfinite().all()
        difference = (one.float() - other.float()).norm() / other.float().norm()
        errors.append(float(difference))
    return max(errors)


@pytest.mark.parametrize(
    "kind", [BertConfig, RobertaConfig, XLMRobertaConfig, ElectraConfig], ids=str
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str
)
def test_states_are_those_of_the_network(
    kind: type[PretrainedConfig], dtype: torch.dtype, tolerance: float
) -> None:
    model = network(kind, dtype)
    expected = last_states(model, ROWS, PAD_ID)
    assert largest_error(last_states(joined(model), ROWS, PAD_ID), expected) < tolerance


def test_states_in_int8_are_those_of_the_network_in_int8() -> None:
    model = network()
    rounded = copy.deepcopy(model)
    exact = last_states(model, ROWS, PAD_ID)
    round_all(rounded.base_model.encoder)
    expected = last_states(rounded, ROWS, PAD_ID)
    found = last_states(joined(model, is_int8=True), ROWS, PAD_ID)
    assert 1e-3 < largest_error(expected, exact) < 0.1
    assert largest_error(found, expected) < 0.5 * largest_error(expected, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_labels_are_those_of_the_network(dtype: torch.dtype) -> None:
    model = network(dtype=dtype, loader=AutoModelForSequenceClassification)
    types = [(0,) * (len(row) // 2) + (1,) * (len(row) - len(row) // 2) for row in ROWS]
    expected = class_logits(model, ROWS, PAD_ID, types)
    found = class_logits(joined(model), ROWS, PAD_ID, types)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert largest_error([found], [expected]) < tolerance


@pytest.mark.parametrize("num_threads", [1, 2])
def test_no_bit_of_a_text_depends_on_the_others(
    num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither do they on the number of layers in a call."""
    model = joined(network())
    together = last_states(model, ROWS, PAD_ID)
    torch.set_num_threads(num_threads)
    for row, states in zip(ROWS, together, strict=True):
        [alone] = last_states(model, [row], PAD_ID)
        assert alone.equal(states)
    monkeypatch.setattr(encoder_layers, "FEW_ROWS", 8)
    for states, again in zip(together, last_states(model, ROWS, PAD_ID), strict=True):
        assert again.equal(states)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (BertConfig, {"hidden_act": "gelu_new"}),
        (BertConfig, {"hidden_act": "relu"}),
        (BertConfig, {"hidden_size": 40, "num_attention_heads": 4}),
        (BertConfig, {"is_decoder": True}),
        (MPNetConfig, {}),
        (DistilBertConfig, {}),
    ],
    ids=str,
)
def test_other_networks_stay_as_they_are(
    kind: type[PretrainedConfig], options: dict[str, Any]
) -> None:
    model = network(kind, **options)
    modules = [type(module) for module in model.modules()]
    assert join_encoder(model) is None
    assert [type(module) for module in model.modules()] == modules
