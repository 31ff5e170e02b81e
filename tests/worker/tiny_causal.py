"""Tiny random transformers causal LMs, one for each mechanism that our pages must serve, and what
they say alone.

Weights are four times their usual size, so that attention is far from uniform and a key too many or
too few shows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from scripts.train_sample import byte_tokenizer

VOCABULARY = 264
WINDOW = 6
LONGEST = 96
SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": LONGEST,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
}
ALTERNATING = ["sliding_attention", "full_attention"]


def gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LONGEST, n_embd=48, n_layer=2, n_head=3, eos_token_id=3
    )
    return GPT2LMHeadModel(config)


def llama() -> PreTrainedModel:
    """Grouped queries and tied embeddings."""
    return LlamaForCausalLM(LlamaConfig(**SHARED, tie_word_embeddings=True))


def qwen2() -> PreTrainedModel:
    """Biased projections; a window on the second layer only."""
    config = Qwen2Config(
        **SHARED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    )
    assert config.layer_types == ALTERNATING[::-1]
    return Qwen2ForCausalLM(config)


def qwen3() -> PreTrainedModel:
    """Normed queries and keys; heads wider than the hidden size has room for."""
    return Qwen3ForCausalLM(Qwen3Config(**SHARED | {"head_dim": 16}))


def mistral() -> PreTrainedModel:
    """A window on every layer."""
    return MistralForCausalLM(MistralConfig(**SHARED, sliding_window=WINDOW))


def mixtral() -> PreTrainedModel:
    """Experts and a window; a router that reports itself, which only training wants."""
    config = MixtralConfig(
        **SHARED, num_local_experts=4, sliding_window=WINDOW, output_router_logits=True
    )
    return MixtralForCausalLM(config)


def olmoe() -> PreTrainedModel:
    return OlmoeForCausalLM(OlmoeConfig(**SHARED, num_experts=5, num_experts_per_tok=2))


def gemma2() -> PreTrainedModel:
    """Alternating windows, a score scale of its own and soft-capped logits."""
    config = Gemma2Config(
        **SHARED,
        layer_types=ALTERNATING,
        sliding_window=WINDOW,
        attn_logit_softcapping=None,
        query_pre_attn_scalar=7,
        final_logit_softcapping=5.0,
    )
    return Gemma2ForCausalLM(config)


def gemma3() -> PreTrainedModel:
    """Alternating windows, each kind of layer with a rope of its own."""
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**SHARED, layer_types=ALTERNATING, sliding_window=WINDOW)
    )


FAMILIES = {
    build.__name__: build
    for build in (gpt2, llama, qwen2, qwen3, mistral, mixtral, olmoe, gemma2, gemma3)
}


def write(build: Callable[[], PreTrainedModel], path: Path) -> PreTrainedModel:
    """Build a model, save it with the byte tokenizer at `path`, and return it."""
    torch.manual_seed(1)
    model = build().eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    model.generation_config.eos_token_id = 3
    model.generation_config.pad_token_id = 0
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return model


def greedy(model: PreTrainedModel, prompt: tuple[int, ...], count: int) -> list[int]:
    """What transformers' own generate says to a prompt alone."""
    ids = torch.tensor([prompt])
    out: Any = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
    )  # type: ignore[operator]
    said: list[int] = out[0, len(prompt) :].tolist()
    return said


def log_likelihood(
    model: PreTrainedModel, context: tuple[int, ...], tail: tuple[int, ...]
) -> float:
    """The sum of the tail's log-probabilities under the model's own forward."""
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *tail]])).logits[0]
    table = logits.double().log_softmax(-1)
    return sum(float(table[len(context) - 1 + place, token]) for place, token in enumerate(tail))
