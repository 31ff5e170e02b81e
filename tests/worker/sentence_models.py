"""Tiny sentence-embedding directories of every kind, made from a seed, and their vectors by
sentence-transformers.

`python -m tests.worker.sentence_models` (with `pip install sentence-transformers==6.2.0`) writes
the golden vectors anew. Files are written out by hand from the format's documentation; nothing is
taken from `worker.models`.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from scripts.train_sample import byte_tokenizer

GOLDEN = Path(__file__).parent / "golden" / "sentence_vectors.json"
TEXTS = (
    "good",
    "A very good film indeed",
    "not good, not bad, just a film that is very, very long: " + "so " * 12,
)
HIDDEN = 24
MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
PROMPTS = {"prompts": {"query": "Find: ", "document": ""}, "default_prompt_name": "query"}
LONG_CAPITALS = {"prompts": {"query": "\u1e9e\u1e9e: "}, "default_prompt_name": "query"}
"""Of three bytes each; the small letter has two."""
DENSE = {"in_features": HIDDEN, "out_features": 7, "bias": True}
TANH = "torch.nn.modules.activation.Tanh"

CASES: dict[str, dict[str, Any]] = {
    **{mode: {"modes": [mode]} for mode in MODES},
    "several": {"modes": ["lasttoken", "mean", "cls"]},
    "new spelling": {"pooling": {"embedding_dimension": HIDDEN, "pooling_mode": ["mean", "cls"]}},
    "normalized": {"modes": ["cls"], "steps": ["Normalize"]},
    "dense": {"modes": ["mean"], "steps": [DENSE | {"activation_function": TANH}]},
    "dense, normalized": {
        "modes": ["cls", "max"],
        "steps": [
            {
                "in_features": 2 * HIDDEN,
                "out_features": 7,
                "bias": False,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
            "Normalize",
        ],
    },
    "prompt": {"modes": ["mean"], "prompts": PROMPTS},
    "prompt not pooled": {"modes": ["mean"], "prompts": PROMPTS, "include_prompt": False},
    "prompt not pooled, weighted": {
        "modes": ["weightedmean", "cls"],
        "prompts": PROMPTS,
        "include_prompt": False,
    },
    "short": {"modes": ["mean"], "limits": {"max_seq_length": 16, "do_lower_case": False}},
    "lower case": {"modes": ["mean"], "limits": {"max_seq_length": 40, "do_lower_case": True}},
    "lower case, prompt not pooled": {
        "modes": ["mean"],
        "prompts": LONG_CAPITALS,
        "include_prompt": False,
        "limits": {"max_seq_length": 40, "do_lower_case": True},
    },
    "causal": {"modes": ["lasttoken"], "steps": ["Normalize"], "network": "causal"},
}


def _network(kind: str) -> PreTrainedModel:
    torch.manual_seed(4)
    if kind == "causal":
        config = Qwen3Config(
            vocab_size=264,
            hidden_size=HIDDEN,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=12,
            max_position_embeddings=64,
            initializer_range=0.2,
            pad_token_id=0,
        )
        return Qwen3ForCausalLM(config).eval()
    config = BertConfig(
        vocab_size=264,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
    )
    return BertModel(config).eval()


def write_sentence_model(path: Path, case: str) -> Path:
    """The directory of a case."""
    told = CASES[case]
    _network(told.get("network", "bert")).save_pretrained(path)
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(path)
    names = ["Transformer", "Pooling"]
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(
        json.dumps(told.get("pooling") or _pooling(told))
    )
    for place, step in enumerate(told.get("steps", ()), start=2):
        name = step if isinstance(step, str) else "Dense"
        directory = path / f"{place}_{name}"
        directory.mkdir()
        names.append(name)
        if name == "Dense":
            _write_dense(directory, step)
        else:
            (directory / "config.json").write_text("{}")
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": f"{place}_{name}" if place else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for place, name in enumerate(names)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    if "prompts" in told:
        (path / "config_sentence_transformers.json").write_text(json.dumps(told["prompts"]))
    if "limits" in told:
        (path / "sentence_bert_config.json").write_text(json.dumps(told["limits"]))
    return path


def _pooling(told: dict[str, Any]) -> dict[str, Any]:
    flags = {flag: mode in told["modes"] for mode, flag in MODES.items()}
    return {
        "word_embedding_dimension": HIDDEN,
        "include_prompt": told.get("include_prompt", True),
    } | flags


def _write_dense(directory: Path, config: dict[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(6)
    weights = {
        "linear.weight": torch.randn(
            config["out_features"], config["in_features"], generator=generator
        )
        * 0.3
    }
    if config["bias"]:
        weights["linear.bias"] = torch.randn(config["out_features"], generator=generator)
    save_file(weights, directory / "model.safetensors")


def own_vectors(path: Path) -> list[list[float]]:
    """Those of sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu")
    vectors: list[list[float]] = model.encode(list(TEXTS), batch_size=1).tolist()
    return vectors


def main() -> int:
    golden = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            vectors = own_vectors(write_sentence_model(Path(directory) / "model", case))
        golden[case] = [[round(value, 6) for value in vector] for vector in vectors]
    lines = [f" {json.dumps(case)}: {json.dumps(vectors)}" for case, vectors in golden.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
