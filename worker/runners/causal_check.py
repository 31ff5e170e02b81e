"""What of a causal LM our attention covers: looked at on loading, so that nothing is served wrong.

First the network is watched: what each layer hands to its attention, and which mask it asks for,
tried pair by pair, so that a window or a chunk shows whatever its size. Then its logits through our
pages - in parts, beside another row, token by token - are compared with its own, which shows
whatever else mixes the tokens of a step.
"""

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from shared.messages import Sampling
from worker.kv.batch import BatchBuilder
from worker.kv.store import KVShape, KVStore
from worker.models.errors import ModelFormatError
from worker.runners.causal_net import CausalNet
from worker.sequence import Encoded, Slice, TokenSequence

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""transformers' mask function: (batch, head, query, key) indices, broadcast -> whether the query
may look."""

_INTERFACE = "aios_watched"
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_HARMLESS = {"dropout", "is_causal", "position_ids", "cache_position", "position_embeddings"}
_NAMES = {"softcap": "soft-capped attention scores", "s_aux": "attention sinks"}
_GRID = 256
_WATCHED_TOKENS = 4
_CHECKED_TOKENS = 8
_SMALL_WINDOW = 64
_PAGE_SIZE = 4
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}


@dataclass
class _Calls:
    """What the layers asked of their attention: `shapes` are (heads, head_dim) of keys and of
    values."""

    slots: list[int] = field(default_factory=list)
    shapes: set[tuple[int, int]] = field(default_factory=set)
    contexts: list[tuple[int | None, Rule | None]] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)


_calls: ContextVar[_Calls] = ContextVar("aios_calls")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Notes the call; the output has the right shape and no meaning."""
    calls, slot = _calls.get(), getattr(module, "layer_idx", None)
    if slot is None or key.shape[2] != query.shape[2]:
        calls.unknown.add("attention to something other than its own tokens")
    calls.slots.append(-1 if slot is None else int(slot))
    calls.shapes |= {(item.shape[1], item.shape[3]) for item in (key, value)}
    calls.contexts.append((sliding_window, mask if callable(mask) else None))
    given = {name for name, item in others.items() if item is not None and item is not False}
    calls.unknown |= {_NAMES.get(name, f"`{name}`") for name in given - _HARMLESS}
    return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


ALL_ATTENTION_FUNCTIONS.register(_INTERFACE, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(_INTERFACE, lambda *_, mask_function, **__: mask_function)


def refuse_by_config(config: PretrainedConfig) -> None:
    """Raise ModelFormatError naming what the config declares and our attention does not have."""
    text = config.get_text_config()
    others = sorted(set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES)
    problem = None
    if config.is_encoder_decoder:
        problem = "it is an encoder-decoder"
    elif getattr(text, "attention_chunk_size", None) is not None:
        problem = "it attends in chunks (attention_chunk_size)"
    elif others:
        problem = f"it has layers of type {', '.join(others)}"
    if problem is not None:
        raise ModelFormatError(
            f"{config.model_type} cannot be served from pages: {problem}; serve another model."
        )


@torch.inference_mode()
def kv_shape(model: PreTrainedModel, longest: int) -> KVShape:
    """What a token's keys and values are, found by watching a forward; raises ModelFormatError for
    what is not ours."""
    calls = _Calls()
    token = _calls.set(calls)
    model.set_attn_implementation(_INTERFACE)
    try:
        model.base_model(
            input_ids=torch.arange(_WATCHED_TOKENS, device=model.device)[None], use_cache=False
        )
    finally:
        _calls.reset(token)
    problem = _problem(calls, longest)
    if problem is not None:
        raise ModelFormatError(
            f"{type(model).__name__} cannot be served from pages: {problem}; serve another model."
        )
    ((heads, head_dim),) = calls.shapes
    return KVShape(len(calls.slots), heads, head_dim)


def _problem(calls: _Calls, longest: int) -> str | None:
    """Why pages cannot serve what was seen; None if they can."""
    if not calls.slots:
        return "its attention cannot be replaced"
    if calls.unknown:
        return f"its attention has {', '.join(sorted(calls.unknown))}"
    if len(calls.shapes) > 1:
        return f"its keys and values differ in size (heads x head size: {sorted(calls.shapes)})"
    if sorted(calls.slots) != list(range(len(calls.slots))):
        return "its layers do not attend once each"
    if not all(_is_ours(window, rule, longest) for window, rule in set(calls.contexts)):
        return "its attention mask is neither causal nor a sliding window"
    return None


def _is_ours(window: int | None, rule: Rule | None, longest: int) -> bool:
    """Whether a mask is causal and, with a window, sliding: everywhere near the window's edges, and
    on a wide grid."""
    if rule is None:
        return False
    edges = [factor * (window or 1) + step for factor in range(4) for step in range(-2, 3)]
    marks = [*edges, *torch.linspace(0, longest - 1, _GRID).long().tolist()]
    places = torch.tensor(sorted({mark for mark in marks if 0 <= mark < longest}))
    query, key, zero = places[:, None], places[None, :], torch.zeros((), dtype=torch.long)
    behind = query - key
    ours = (behind >= 0) & (behind < (window or longest))
    return torch.equal(ours, rule(zero, zero, query, key).expand_as(ours))


@torch.inference_mode()
def check_against_own_forward(net: CausalNet, own: list[Tensor], rows: list[list[int]]) -> None:
    """Refuse a network whose logits through our pages differ from `own`, [tokens, vocab] of each of
    the `rows`."""
    scale = max(1.0, *(item.abs().max().item() for item in own))
    pairs = ((logits, own[row][place]) for row, place, logits in _paged_logits(net, rows))
    gap = max((logits - expected).abs().max().item() for logits, expected in pairs)
    if not gap <= _TOLERANCE[net.dtype] * scale:
        name = type(net.model).__name__
        problem = (
            f"{name} has an attention or logit rule not served yet: logits differ by {gap:.3g}"
        )
        raise ModelFormatError(f"{problem}; serve another model.")


@torch.inference_mode()
def own_logits(model: PreTrainedModel, rows: list[list[int]]) -> list[Tensor]:
    """The network's own logits [tokens, vocab] of each row, in float32."""
    model.set_attn_implementation("eager")
    batches = (torch.tensor([row], device=model.device) for row in rows)
    return [model(input_ids=ids, use_cache=False).logits[0].float() for ids in batches]


def check_rows(config: PretrainedConfig, longest: int) -> list[list[int]]:
    """Two rows of token ids, longer than the sliding window where that is small."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    count = max(
        _CHECKED_TOKENS, window + 4 if window is not None and window <= _SMALL_WINDOW else 0
    )
    return [
        [step * (place + 1) % text.vocab_size for place in range(min(count, longest))]
        for step in (3, 5)
    ]


def _paged_logits(net: CausalNet, rows: list[list[int]]) -> Iterator[tuple[int, int, Tensor]]:
    """(row, position, logits [vocab]): one row computed in two parts, the other at once, then both
    token by token."""
    length = len(rows[0])
    prompt, per_row = length - 3, -(-length // _PAGE_SIZE)
    store = KVStore(net.kv_shape, 2 * per_row, _PAGE_SIZE, net.dtype, net.device)
    sequences = [
        TokenSequence(
            str(row),
            Encoded(tuple(ids[:prompt])),
            Sampling(1, 0),
            pages=list(range(row, 2 * per_row, 2)),
        )
        for row, ids in enumerate(rows)
    ]
    part = prompt // 2
    for shares in ((part, prompt), (prompt - part, 1), (1, 1)):
        slices = [Slice(sequence, share) for sequence, share in zip(sequences, shares, strict=True)]
        batch = BatchBuilder(_PAGE_SIZE, net.device, is_prefix=False).build(slices)
        hidden = net.hidden(batch.ids, batch.plan, store)
        for row, state in zip(batch.samplers, batch.sampled.tolist(), strict=True):
            yield row, sequences[row].num_tokens - 1, net.logits(hidden[state])
        for sequence, share, ids in zip(sequences, shares, rows, strict=True):
            sequence.num_computed += share
            sequence.output_ids += ids[sequence.num_tokens : sequence.num_computed + 1]
