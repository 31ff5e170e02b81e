"""Recipes of text models: the sizes of a network, and how it is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import (
    HrmTextConfig,
    HrmTextForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from scripts.train.act_nets import ActNet, ActSizes
from scripts.train.recipe_file import read_recipe_file
from scripts.train.special_tokens import CONTEXT_WINDOW

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """Sizes of a network and of its training.

    `layers` are those of a causal network, or of each of the H and L stacks of an HRM-Text or an
    ACTv1. In an HRM-Text the gradient flows through the last `grad_cycles` L cycles of the last H
    cycle, and through the last one of the others.
    """

    net: Literal["hrm-text", "causal", "actv1"]
    domain: Literal["maths", "code", "short arithmetic"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    head_dim: int
    layers: int
    h_cycles: int = 2
    l_cycles: int = 2
    grad_cycles: int = 2
    steps: int
    batch_size: int
    lr: float
    weight_decay: float = 0.05
    ema_rate: float = 0.999


def read_recipe(file: Path) -> TextRecipe:
    """Return the recipe in a YAML file. Raise msgspec.ValidationError for what is no recipe."""
    return read_recipe_file(file, TextRecipe)


def network(recipe: TextRecipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel | ActNet:
    """Return a network of random weights."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.hidden_size,
        "intermediate_size": recipe.intermediate_size,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.hidden_size // recipe.head_dim,
        "head_dim": recipe.head_dim,
        "max_position_embeddings": CONTEXT_WINDOW,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if recipe.net == "actv1":
        return ActNet(
            ActSizes(
                vocab_size=len(tokenizer),
                hidden_size=recipe.hidden_size,
                intermediate_size=recipe.intermediate_size,
                num_heads=recipe.hidden_size // recipe.head_dim,
                layers=recipe.layers,
                h_cycles=recipe.h_cycles,
                l_cycles=recipe.l_cycles,
                max_positions=CONTEXT_WINDOW,
            )
        )
    if recipe.net == "causal":
        return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))
    config = HrmTextConfig(
        **sizes,
        H_cycles=recipe.h_cycles,
        L_cycles=recipe.l_cycles,
        L_bp_cycles=[recipe.grad_cycles],
        initializer_range=recipe.hidden_size**-0.5,
    )
    return HrmTextForCausalLM(config)
