"""The special tokens of HRM-Text, and a tokenizer of these and of bytes."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD = "<|endoftext|>"
BOQ = "<|im_start|>"
"""Begins the question."""
EOQ = "<|im_end|>"
"""Ends the question."""
EOA = "<|box_end|>"
"""Ends the answer."""
CONDITION_TOKENS = {
    "direct": "<|object_ref_start|>",
    "cot": "<|object_ref_end|>",
    "noisy": "<|quad_start|>",
    "synth": "<|quad_end|>",
}
SPECIAL_TOKENS = (PAD, BOQ, EOQ, EOA, *CONDITION_TOKENS.values())
CONTEXT_WINDOW = 512


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer without merges: eight special tokens, then the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return as_transformers(tokenizer)


def as_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return a tokenizer that has the special tokens as one of transformers."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOQ,
        eos_token=EOA,
        pad_token=PAD,
        additional_special_tokens=[EOQ, *CONDITION_TOKENS.values()],
        model_max_length=CONTEXT_WINDOW,
    )
