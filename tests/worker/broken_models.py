"""Tiny models of every kind on disk, whole or with NaN written into their weights."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import HrmTextConfig, HrmTextForCausalLM, LlamaConfig, LlamaForCausalLM

from scripts.train_sample import byte_tokenizer
from tests.worker.act_fixtures import Net, write_bundle

VOCABULARY = 264
SICK = VOCABULARY - 1
"""The token whose embedding is broken, unless said."""

EMBEDDINGS = {
    "causal": "model.embed_tokens.weight",
    "hrm-text": "model.embed_tokens.weight",
    "hrm-act": "inner.embed_tokens.embedding_weight",
}


def write_model(kind: str, path: Path) -> Path:
    """A random model whose embeddings are not its output weights, so that one row can be broken."""
    torch.manual_seed(3)
    path.mkdir()
    byte_tokenizer().save_pretrained(path / "tokenizer" if kind == "hrm-act" else path)
    if kind == "hrm-act":
        write_bundle(path, Net(vocab=VOCABULARY, max_seq_len=96, experts=2), tokenizer="tokenizer")
    elif kind == "hrm-text":
        HrmTextForCausalLM(_hrm_text_config()).eval().save_pretrained(path)
    else:
        LlamaForCausalLM(_llama_config()).eval().save_pretrained(path)
    return path


def sick_row(kind: str, source: Path, target: Path, token: int = SICK) -> Path:
    """A copy in which the embedding of one token is not a number."""
    return _broken(source, target, EMBEDDINGS[kind], slice(token, token + 1))


def sick_all(kind: str, source: Path, target: Path) -> Path:
    """A copy with one NaN in the output weights, as a broken checkpoint has it: nothing can be said
    with it."""
    return _broken(
        source,
        target,
        "inner.lm_head.weight" if kind == "hrm-act" else "lm_head.weight",
        slice(7, 8),
    )


def _broken(source: Path, target: Path, name: str, rows: slice) -> Path:
    shutil.copytree(source, target)
    [file] = target.glob("*.safetensors")
    tensors = load_file(file)
    tensors[name][rows, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    return target


def _llama_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=96,
        tie_word_embeddings=False,
        initializer_range=0.3,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )


def _hrm_text_config() -> HrmTextConfig:
    return HrmTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=16,
        H_cycles=2,
        L_cycles=2,
        max_position_embeddings=96,
        initializer_range=0.15,
        embedding_scale=2.5,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
