"""HRM-Text from a Hugging Face directory: prompt format, weights, and the net behind `PagedRunner`.

Prompt: boq, condition tokens, prompt, eoq, all of it seen at once; the response is causal and ends at eoa. The layer
count is taken from the tensors, because exporters write it in three different ways.
"""

import json
from collections.abc import Sequence as Rows
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shared.errors import InvalidRequest
from shared.messages import Generate, Score, Text
from worker.kv.attention import Plan, attend
from worker.kv.store import KVShape, KVStore
from worker.models.errors import ModelFormatError
from worker.models.hrm_text import HrmTextModel, HrmTextShape
from worker.models.weights import check_names, load_tokenizer, read_safetensors_dir
from worker.rolling import encode_rolling_response
from worker.runners.base import RunnerOptions, as_ids, encode_generate, encode_score
from worker.runners.paged import PagedRunner
from worker.sequence import Encoded

EOQ = "<|im_end|>"
CONDITIONS = {
    "direct": "<|object_ref_start|>",
    "cot": "<|object_ref_end|>",
    "noisy": "<|quad_start|>",
    "synth": "<|quad_end|>",
}


class HrmTextLanguage:
    """Names of conditions may be joined by commas; their tokens follow in the order given."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, condition: str) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._boq = _required_id(tokenizer, tokenizer.bos_token or "<|im_start|>")
        self._eoq = _required_id(tokenizer, EOQ)
        self.eos_ids = frozenset({_required_id(tokenizer, tokenizer.eos_token or "<|box_end|>")})
        self._condition = condition
        try:
            self._condition_ids(condition)
        except InvalidRequest as error:
            raise ModelFormatError(f"condition: {error.message}") from None

    def encode(self, task: Generate | Score, window: int) -> Encoded:
        if isinstance(task, Generate):
            ids, head = self._prompt(task.prompt, task.condition, "prompt")
            return encode_generate(ids, task.sampling, window, head=head)
        if task.method == "aios_compat":
            raise InvalidRequest("`aios_compat` scoring is for ACTv1 brains; `strict` is expected.", field="scoring")
        if task.rolling:
            start, _ = self._prompt("", task.condition, "prompts")
            return encode_rolling_response(start, self._plain(task.continuations[0], "prompts"), window)
        continuations = [self._plain(item, "continuations") for item in task.continuations]
        ids, head = self._prompt(task.context, task.condition, "prompts")
        return encode_score(ids, continuations, window, head=head)

    def decode(self, token_ids: Rows[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _prompt(self, text: Text, condition: str | None, field: str) -> tuple[tuple[int, ...], int]:
        """The formatted prompt and the length of the marks it starts with. Given as ids it is used as it is."""
        given = as_ids(text, self._vocab_size, field)
        if given is not None:
            return given, 0
        assert isinstance(text, str)
        head = (self._boq, *self._condition_ids(condition or self._condition))
        return (*head, *self._plain(text.strip(), field), self._eoq), len(head)

    def _plain(self, text: Text, field: str) -> tuple[int, ...]:
        """Ids of text in which the names of special tokens mean nothing special."""
        given = as_ids(text, self._vocab_size, field)
        if given is not None:
            return given
        encoded: Any = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return tuple(encoded["input_ids"])

    def _condition_ids(self, condition: str) -> list[int]:
        names = [name.strip() for name in condition.split(",")]
        unknown = [name for name in names if name not in CONDITIONS]
        if unknown:
            expected = ", ".join(CONDITIONS)
            raise InvalidRequest(f"Unknown condition {unknown[0]!r}: expected some of {expected}.", field="condition")
        if len(set(names)) < len(names):
            raise InvalidRequest("Each condition is expected once at most.", field="condition")
        return [_required_id(self._tokenizer, CONDITIONS[name]) for name in names]


class HrmTextNet:
    is_prefix = True

    def __init__(self, model: HrmTextModel, device: torch.device) -> None:
        shape = model.shape
        self.model = model
        self.device = device
        self.dtype = model.lm_head.weight.dtype
        self.kv_shape = KVShape(shape.num_kv_slots, shape.num_heads, shape.head_dim)
        self._scale = shape.head_dim**-0.5

    def hidden(self, ids: Tensor, plan: Plan, store: KVStore | None) -> Tensor:
        def look(slot: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(plan, store, slot, query, key, value, self._scale)

        out: Tensor = self.model(ids, plan.positions, look)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)


def load(options: RunnerOptions) -> PagedRunner:
    path = Path(options.path)
    model = load_model(path, getattr(torch, options.dtype))
    device = torch.device(options.device)
    net = HrmTextNet(model.to(device), device)
    tokenizer = load_tokenizer(Path(options.tokenizer_path) if options.tokenizer_path else path)
    language = HrmTextLanguage(tokenizer, model.shape.vocab_size, options.condition)
    window = min(options.context_window or model.shape.max_positions, model.shape.max_positions)
    return PagedRunner("hrm-text", _describe(model, options.dtype), net, language, window, options)


def load_model(path: Path, dtype: torch.dtype = torch.float32) -> HrmTextModel:
    """The model of a Hugging Face directory; raises ModelFormatError when weights and config do not match."""
    weights = read_safetensors_dir(path)
    shape = _shape(json.loads((path / "config.json").read_text()), weights, path)
    with torch.device("meta"):
        skeleton = HrmTextModel(shape)
    check_names(dict(skeleton.named_parameters()), weights, path)
    model = HrmTextModel(shape).to(dtype)
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()


def _shape(config: dict[str, Any], weights: dict[str, Tensor], path: Path) -> HrmTextShape:
    try:
        vocab_size, hidden = weights["model.embed_tokens.weight"].shape
        intermediate = weights["model.L_module.layers.0.mlp.down_proj.weight"].shape[1]
        num_heads, h_cycles, l_cycles = (int(config[key]) for key in ("num_attention_heads", "H_cycles", "L_cycles"))
    except KeyError as missing:
        raise ModelFormatError(f"{path} is not a complete HRM-Text export: {missing} is missing.") from None
    head_dim = weights["model.L_module.layers.0.attn.o_proj.weight"].shape[1] // num_heads
    layers = {int(name.split(".")[3]) for name in weights if name.startswith("model.L_module.layers.")}
    rope = config.get("rope_parameters") or {}
    return HrmTextShape(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=num_heads,
        head_dim=head_dim,
        num_layers=len(layers),
        h_cycles=h_cycles,
        l_cycles=l_cycles,
        embedding_scale=config.get("embedding_scale") or 1.0 / config["initializer_range"],
        max_positions=config["max_position_embeddings"],
        rope_theta=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
        norm_eps=config.get("rms_norm_eps", 1e-6),
    )


def _describe(model: HrmTextModel, dtype: str) -> str:
    shape = model.shape
    count = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"HRM-Text: {count / 1e6:.1f} M parameters, hidden {shape.hidden_size}, {shape.num_layers} layers a stack, "
        f"cycles {shape.h_cycles} x {shape.l_cycles}, vocabulary {shape.vocab_size}, {dtype}"
    )


def _required_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ModelFormatError(f"The tokenizer has no {token!r}, which the HRM-Text prompt format needs.")
    return int(found)
