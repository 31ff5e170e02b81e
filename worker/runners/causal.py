"""Any Hugging Face causal LM, unmodified, through transformers' attention interface over our pages.

The network's own code runs; only its attention function is ours. On loading, a short forward through our path is
compared with the network's own: a mechanism that our attention does not cover is refused, never served wrong.
"""

import inspect
from collections.abc import Callable
from collections.abc import Sequence as Rows
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from shared.errors import InvalidRequest
from shared.messages import Generate, Score, Text
from worker.kv.attention import Plan, Span, attend
from worker.kv.store import KVShape, KVStore
from worker.models.errors import ModelFormatError
from worker.models.linear import prepare_linears
from worker.models.q_head import QHead, find_implant, load_q_head
from worker.models.weights import load_tokenizer, start_ids
from worker.rolling import encode_rolling
from worker.runners.base import RunnerOptions, as_ids, encode_generate, encode_score
from worker.runners.paged import PagedRunner
from worker.sequence import Encoded

_INTERFACE = "aios_paged"
_SELF_CHECK_TOKENS = 8
_SELF_CHECK_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}


@dataclass(frozen=True)
class _Step:
    plan: Plan
    store: KVStore | None


_step: ContextVar[_Step] = ContextVar("aios_step")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Our attention in the shape transformers asks for: [1, heads, T, head_dim] in, [1, T, heads, head_dim] out."""
    step = _step.get()
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    slot: Any = module.layer_idx
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    return attend(step.plan, step.store, slot, query, key, value, scale, sliding_window)[None], None


ALL_ATTENTION_FUNCTIONS.register(_INTERFACE, _attention)  # no mask function beside it: then none is ever made


class CausalLanguage:
    """Prompts with the tokenizer's own special tokens; a continuation's ids are those behind its context's.

    Scoring tokenizes as lm-evaluation-harness does: spaces at a context's end belong to the continuation, and both
    together are cut where the context alone would end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._start = start_ids(tokenizer)
        self.eos_ids = eos_ids

    def encode(self, task: Generate | Score, window: int) -> Encoded:
        if task.condition is not None:
            raise InvalidRequest("This model knows no conditions; leave `condition` out.", field="condition")
        if isinstance(task, Generate):
            return encode_generate(self._ids(task.prompt, "prompt"), task, window, vocab_size=self._vocab_size)
        if task.method == "aios_compat":
            raise InvalidRequest("`aios_compat` scoring is for ACTv1 brains; `strict` is expected.", field="scoring")
        if task.rolling:
            return encode_rolling(self._start, self._plain(task.continuations[0], "prompts"), window)
        text = task.context.rstrip() if isinstance(task.context, str) else task.context
        context = self._ids(text, "prompts") or self._start
        tails = [self._continuation(task.context, context, item) for item in task.continuations]
        return encode_score(context, tails, window)

    def decode(self, token_ids: Rows[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _continuation(self, context: Text, context_ids: tuple[int, ...], text: Text) -> tuple[int, ...]:
        """`context` as it was given, `context_ids` without the spaces at its end."""
        if not isinstance(context, str) or not isinstance(text, str):
            return self._plain(text, "continuations")
        if not context.strip():
            return self._plain(context + text, "continuations")
        behind = self._ids(context + text, "continuations")[len(context_ids) :]
        return behind or self._plain(text, "continuations")  # the context may swallow a continuation

    def _ids(self, text: Text, field: str) -> tuple[int, ...]:
        return self._encoded(text, field, special=True)

    def _plain(self, text: Text, field: str) -> tuple[int, ...]:
        return self._encoded(text, field, special=False)

    def _encoded(self, text: Text, field: str, *, special: bool) -> tuple[int, ...]:
        given = as_ids(text, self._vocab_size, field)
        if given is not None:
            return given
        encoded: Any = self._tokenizer(text, add_special_tokens=special)
        return tuple(encoded["input_ids"])


class CausalNet:
    """`q_head` reads the same last states that the logits are made of, where an implant has one."""

    is_prefix = False

    def __init__(self, model: PreTrainedModel, device: torch.device, q_head: QHead | None = None) -> None:
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        self.model = model
        self.device = device
        self.dtype = model.dtype
        self.q_head = q_head
        self.kv_shape = KVShape(config.num_hidden_layers, kv_heads, head_dim)

    def hidden(self, ids: Tensor, plan: Plan, store: KVStore | None) -> Tensor:
        token = _step.set(_Step(plan, store))
        try:
            out = self.model.base_model(input_ids=ids[None], position_ids=plan.positions[None], use_cache=False)
        finally:
            _step.reset(token)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        head: Callable[[Tensor], Tensor] = self.model.get_output_embeddings()
        return head(hidden).float()


def load(options: RunnerOptions) -> PagedRunner:
    implant = find_implant(Path(options.path))
    path = implant.base if implant else Path(options.path)
    model = _load_model(path, getattr(torch, options.dtype))
    config = model.config.get_text_config()
    device = torch.device(options.device)
    q_head = load_q_head(implant.q_head, config.hidden_size).to(device) if implant else None
    net = CausalNet(nn.Module.to(model, device), device, q_head)
    _check_against_own_forward(net, path)
    tokenizer = load_tokenizer(Path(options.tokenizer_path) if options.tokenizer_path else path)
    language = CausalLanguage(tokenizer, config.vocab_size, _eos_ids(model, tokenizer))
    limits = (options.context_window, config.max_position_embeddings, implant.max_seq_len if implant else None)
    window = min(limit for limit in limits if limit)
    count = model.num_parameters() / 1e6
    found = f"{type(model).__name__}: {count:.1f} M parameters, vocabulary {config.vocab_size}, {options.precision}"
    found += f", q head {implant.q_head.name}" if implant else ""
    prepare_linears(model, quantize=options.quantize)
    return PagedRunner("causal", found, net, language, window, options)


def _load_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    try:
        loading: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, output_loading_info=True, attn_implementation="eager"
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelFormatError(f"No causal language model could be loaded from {path}: {error}") from None
    model, info = loading
    unmatched = {key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    problems = [f"{key.replace('_', ' ')} {', '.join(names[:5])}" for key, names in unmatched.items() if names]
    if problems:
        raise ModelFormatError(f"The weights in {path} do not match the model: {'; '.join(problems)}.")
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise ModelFormatError(f"{type(model).__name__} takes no position ids and cannot be served from pages.")
    loaded: PreTrainedModel = model.requires_grad_(False).eval()
    return loaded


@torch.inference_mode()
def _check_against_own_forward(net: CausalNet, path: Path) -> None:
    """Refuse a network whose logits through our attention differ from its own."""
    ids = torch.arange(1, 1 + _SELF_CHECK_TOKENS, device=net.device)[None]
    own = net.model(input_ids=ids, use_cache=False).logits.float()
    if not torch.isfinite(own).all():
        raise ModelFormatError(f"Logits of the network in {path} are not finite: its weights are broken.")
    net.model.set_attn_implementation(_INTERFACE)
    positions = torch.arange(_SELF_CHECK_TOKENS, device=net.device)
    span = Span(0, _SELF_CHECK_TOKENS, positions[None], has_fresh=True, is_causal=True)
    gap = (net.logits(net.hidden(ids[0], Plan(positions, (span,)), None)) - own).abs().max().item()
    if not gap <= _SELF_CHECK_TOLERANCE[net.dtype] * max(1.0, own.abs().max().item()):
        name = type(net.model).__name__
        raise ModelFormatError(
            f"{name} in {path} has an attention or logit rule not served yet: logits differ by {gap:.3g}."
        )


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a response, by generation config, else by config, and by tokenizer; there may be none."""
    generation = model.generation_config.eos_token_id if model.generation_config else None
    declared = generation if generation is not None else model.config.get_text_config().eos_token_id
    listed = declared if isinstance(declared, list) else [declared]
    return frozenset(int(item) for item in [*listed, tokenizer.eos_token_id] if item is not None)
