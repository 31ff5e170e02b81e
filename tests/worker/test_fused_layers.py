"""Replaced norms and MLPs compute what the modules of transformers computed, or are left alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from worker.models.fused_layers import FusedAttention, FusedMlp, FusedRmsNorm, fuse_layers
from worker.native import operators

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}

pytestmark = pytest.mark.skipif(operators.library() is None, reason="there are no kernels here")


def llama(**others: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**(SIZES | others)))


def qwen() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES))


def gemma() -> PreTrainedModel:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES))


def mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(sliding_window=4, **SIZES))


def cohere() -> PreTrainedModel:
    return CohereForCausalLM(CohereConfig(**SIZES))


def stablelm() -> PreTrainedModel:
    return StableLmForCausalLM(StableLmConfig(**SIZES))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=2))


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "num_norms", "num_mlps", "num_attentions"),
    [
        (llama, 5, 2, 2),
        (lambda: llama(mlp_bias=True, attention_bias=True, rms_norm_eps=1e-3), 5, 2, 2),
        (mistral, 5, 2, 2),
        # It has norms of queries and keys, too, which no rotation may precede.
        (qwen, 9, 2, 0),
        # Its activation is no SiLU, its norms multiply by one more than their weight.
        (gemma, 0, 0, 0),
        (lambda: llama(hidden_act="gelu"), 5, 0, 2),
        # No kernel computes norms of this width.
        (lambda: llama(hidden_size=70, head_dim=34), 0, 2, 2),
        # It rotates pairs of neighbours, and a part of each head.
        (cohere, 0, 2, 0),
        (stablelm, 0, 2, 0),
        (gpt2, 0, 0, 0),
    ],
)
def test_what_computes_the_same_is_replaced(
    make: Callable[[], PreTrainedModel],
    num_norms: int,
    num_mlps: int,
    num_attentions: int,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    model = make().to(dtype).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.normal_(1.0, 0.3)
    ids = torch.randint(64, (2, 9))
    expected: Tensor = model(ids).logits

    assert fuse_layers(model) == num_norms + num_mlps + num_attentions

    assert kinds(model).count(FusedRmsNorm) == num_norms
    assert kinds(model).count(FusedMlp) == num_mlps
    assert kinds(model).count(FusedAttention) == num_attentions
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(model(ids).logits, expected, atol=tolerance, rtol=tolerance)


def test_nothing_is_replaced_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "library", lambda: None)
    assert fuse_layers(llama()) == 0
