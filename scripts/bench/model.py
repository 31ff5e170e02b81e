"""The networks of the benchmarks: random weights, and a vocabulary whose tokens all have a text.

Greedy decoding never chooses the end token, so each answer has exactly the requested length.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    HrmTextConfig,
    HrmTextForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from scripts.train.special_tokens import BOQ, CONDITION_TOKENS, EOA, EOQ, PAD


@dataclass(frozen=True)
class Size:
    """The sizes of a network.

    `layers` is the number of blocks in each HRM stack. The causal network has as many as both
    stacks together, and `group` of its query heads share keys.
    """

    hidden: int = 512
    head_dim: int = 64
    intermediate: int = 1536
    layers: int = 4
    vocab: int = 8192
    positions: int = 2048
    group: int = 2


SIZES = {
    "reference": Size(),
    # As causal it is a Llama of 115 M parameters and 30 blocks.
    "small": Size(hidden=576, layers=15, group=3),
    "tiny": Size(hidden=64, head_dim=16, intermediate=96, layers=1, vocab=512, positions=1280),
}
# Lower ids are special tokens and bytes. From here on each id is a word of letters.
FIRST_WORD = 8 + 256


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of special tokens, the 256 bytes and words, `vocab` tokens in all.

    It has no merges, so it encodes text as bytes. Words come only from the model.
    """
    specials = [PAD, BOQ, EOQ, EOA, *CONDITION_TOKENS.values()]
    tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"w{_letters(number)}" for number in range(vocab - len(tokens))]
    ids = {token: index for index, token in enumerate(tokens)}
    inner = Tokenizer(models.BPE(vocab=ids, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOQ,
        eos_token=EOA,
        pad_token=PAD,
        additional_special_tokens=[EOQ, *CONDITION_TOKENS.values()],
    )


def hrm_text(cache: Path, size: str) -> Path:
    """Return the directory of the HRM-Text network. It is written if it does not exist.

    The network has two H cycles, three L cycles, and a random initial state of the L stack.
    """
    shape = SIZES[size]
    config = HrmTextConfig(
        **_common(shape),
        num_hidden_layers=shape.layers,
        H_cycles=2,
        L_cycles=3,
        head_dim=shape.head_dim,
    )

    def build() -> Any:
        model = HrmTextForCausalLM(config)
        model.model.z_L_init.data.normal_()
        return model

    return _written(cache / f"hrm-text-{size}", build, shape)


def causal(cache: Path, size: str) -> Path:
    """Return the directory of a causal network. It is written if it does not exist.

    It is a Llama with grouped queries and as many blocks as both HRM stacks.
    """
    shape = SIZES[size]
    heads = shape.hidden // shape.head_dim
    config = LlamaConfig(
        **_common(shape),
        num_hidden_layers=2 * shape.layers,
        num_key_value_heads=heads // shape.group,
    )
    return _written(cache / f"causal-{size}", lambda: LlamaForCausalLM(config), shape)


def _common(shape: Size) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.hidden // shape.head_dim,
        "max_position_embeddings": shape.positions,
        "initializer_range": shape.hidden**-0.5,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
    }


def _written(path: Path, build: Any, shape: Size) -> Path:
    """Return the directory `path`. If it does not exist, write the network of `build` to it."""
    if path.exists():
        return path
    torch.manual_seed(0)
    model = build().eval()
    # The end token has the logit 0. The best of thousands of random logits is above it, so greedy
    # decoding never chooses the end token.
    model.lm_head.weight.data[model.config.eos_token_id] = 0

    # Write to another directory and rename it, so that an interrupted run leaves no half network.
    unfinished = path.with_suffix(".unfinished")
    model.save_pretrained(unfinished)
    tokenizer(shape.vocab).save_pretrained(unfinished)
    unfinished.rename(path)
    return path


def _letters(number: int) -> str:
    """Return a number as a word of letters, a different one for each number."""
    text = ""
    while True:
        number, digit = divmod(number, 26)
        text += chr(ord("a") + digit)
        if number == 0:
            return text
