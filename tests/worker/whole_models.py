"""One whole tiny model for every loader, on disk; tests damage copies of them."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from scripts.train_sample import byte_tokenizer
from tests.worker import hrm_text_raw, sapient_fixtures
from tests.worker.broken_models import VOCABULARY, write_model

_BERT = BertConfig(
    vocab_size=VOCABULARY,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=34,
    pad_token_id=0,
)


def _causal(path: Path) -> None:
    write_model("causal", path)


def _hrm_text(path: Path) -> None:
    write_model("hrm-text", path)


def _shards(path: Path) -> None:
    """Split `model.safetensors` in two, with an index."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def _causal_shards(path: Path) -> None:
    _causal(path)
    _shards(path)


def _hrm_text_shards(path: Path) -> None:
    _hrm_text(path)
    _shards(path)


def _raw(path: Path) -> None:
    path.mkdir()
    hrm_text_raw.write_config(path, ema=None)
    hrm_text_raw.save_epoch(
        path / "fsdp2_epoch_1", hrm_text_raw.raw_weights(hrm_text_raw.tiny(0)), {}
    )
    byte_tokenizer().save_pretrained(path / "tokenizer")


def _brain(path: Path) -> None:
    write_model("hrm-act", path)


def _sapient(path: Path) -> None:
    sapient_fixtures.write_checkpoint(path)
    (path / "identifiers.json").write_text(json.dumps(["<blank>", "one", "two"]))


def _encoder(path: Path) -> None:
    torch.manual_seed(1)
    BertModel(_BERT).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)


def _classifier(path: Path) -> None:
    torch.manual_seed(1)
    BertForSequenceClassification(_BERT).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)


def _implant(path: Path) -> None:
    path.mkdir()
    write_model("causal", path / "base")
    torch.save({"weight": torch.ones(2, 32), "bias": torch.zeros(2)}, path / "head.pt")
    (path / "starter_brain.json").write_text(json.dumps({"model": "base", "q_head": "head.pt"}))


WRITERS: dict[str, Callable[[Path], None]] = {
    "causal": _causal,
    "causal-shards": _causal_shards,
    "hrm-text": _hrm_text,
    "hrm-text-shards": _hrm_text_shards,
    "raw": _raw,
    "brain": _brain,
    "sapient": _sapient,
    "encoder": _encoder,
    "classifier": _classifier,
    "implant": _implant,
}
