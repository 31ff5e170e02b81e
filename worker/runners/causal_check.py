"""Checks on loading that our attention covers a causal LM, so that nothing is served wrong.

First a forward is watched: the arguments of each layer's attention, and its mask. The mask is
compared with ours pair by pair of positions, which shows a window or a chunk of any size.

Then the logits through our pages are compared with the network's own: in parts, beside another row,
token by token. That shows any other mechanism that mixes the tokens of a step.
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
from worker.engine.sequence import Encoded, Slice, TokenSequence
from worker.kv.batch import BatchBuilder
from worker.kv.store import KVShape, KVStore
from worker.models.errors import ModelFormatError
from worker.runners.causal_net import CausalNet

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""A mask function of transformers.

Its arguments are broadcast indices of batch, head, query and key. It returns True where the query
sees the key.
"""

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
    """The calls of the layers to their attention.

    `slots` are the layers' numbers, call by call. `shapes` are (heads, head_dim) of keys and of
    values. `contexts` are windows and masks. `unknown` names mechanisms that our attention lacks.
    """

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
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Note the call. Return an output of the right shape without meaning."""
    calls = _calls.get()
    slot = getattr(module, "layer_idx", None)
    if slot is None or key.shape[2] != query.shape[2]:
        calls.unknown.add("attention to something other than its own tokens")
    calls.slots.append(-1 if slot is None else int(slot))
    calls.shapes.add((key.shape[1], key.shape[3]))
    calls.shapes.add((value.shape[1], value.shape[3]))
    calls.contexts.append((sliding_window, mask if callable(mask) else None))

    # Mechanisms that a layer switches off by None or False do not matter.
    for name, argument in others.items():
        if argument is None or argument is False or name in _HARMLESS:
            continue
        calls.unknown.add(_NAMES.get(name, f"`{name}`"))
    return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


ALL_ATTENTION_FUNCTIONS.register(_INTERFACE, _attention)
# In place of a mask our attention gets the function that computes masks.
ALL_MASK_ATTENTION_FUNCTIONS.register(_INTERFACE, lambda *_, mask_function, **__: mask_function)


def refuse_by_config(config: PretrainedConfig) -> None:
    """Raise ModelFormatError for a config that declares a mechanism that our attention lacks."""
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
    """Watch a forward. Return the shape of a token's keys and values.

    Raise ModelFormatError for a network that our attention does not cover within `longest` tokens.
    """
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
    return KVShape(len(calls.slots), num_heads=heads, head_dim=head_dim)


def _problem(calls: _Calls, longest: int) -> str | None:
    """Return why the network cannot be served from pages, None if it can."""
    if not calls.slots:
        return "its attention cannot be replaced"
    if calls.unknown:
        return f"its attention has {', '.join(sorted(calls.unknown))}"
    if len(calls.shapes) > 1:
        return f"its keys and values differ in size (heads x head size: {sorted(calls.shapes)})"
    if sorted(calls.slots) != list(range(len(calls.slots))):
        return "its layers do not attend once each"
    if not all(is_ours(window, rule, longest) for window, rule in set(calls.contexts)):
        return "its attention mask is neither causal nor a sliding window"
    return None


def is_ours(window: int | None, rule: Rule | None, longest: int) -> bool:
    """Return whether a mask is causal and, with a window, sliding.

    All pairs are compared of positions on a wide grid, and near the edges of windows.
    """
    if rule is None:
        return False

    candidates: list[int] = torch.linspace(0, longest - 1, _GRID).long().tolist()
    for factor in range(4):
        edge = factor * (window or 1)
        candidates += range(edge - 2, edge + 3)
    valid = {position for position in candidates if 0 <= position < longest}
    positions = torch.tensor(sorted(valid))

    query = positions[:, None]
    key = positions[None, :]
    distance = query - key
    ours = (distance >= 0) & (distance < (window or longest))
    zero = torch.zeros((), dtype=torch.long)
    return torch.equal(ours, rule(zero, zero, query, key).expand_as(ours))


@torch.inference_mode()
def check_against_own_forward(
    net: CausalNet, expected: list[Tensor], rows: list[list[int]]
) -> None:
    """Raise ModelFormatError for a network whose logits through our pages differ from its own.

    `expected` are its own logits [tokens, vocab] of each of the `rows`.
    """
    scale = 1.0
    for row_logits in expected:
        scale = max(scale, row_logits.abs().max().item())
    differences = []
    for row, position, logits in _paged_logits(net, rows):
        differences.append((logits - expected[row][position]).abs().max().item())
    largest = max(differences)
    # Not `>`: this way a NaN, for which no comparison is true, is a difference, too.
    if not largest <= _TOLERANCE[net.dtype] * scale:
        name = type(net.model).__name__
        problem = (
            f"{name} has an attention or logit rule not served yet: logits differ by {largest:.3g}"
        )
        raise ModelFormatError(f"{problem}; serve another model.")


@torch.inference_mode()
def own_logits(model: PreTrainedModel, rows: list[list[int]]) -> list[Tensor]:
    """Return the network's own logits [tokens, vocab] of each row, in float32."""
    model.set_attn_implementation("eager")
    logits = []
    for row in rows:
        ids = torch.tensor([row], device=model.device)
        logits.append(model(input_ids=ids, use_cache=False).logits[0].float())
    return logits


def check_rows(config: PretrainedConfig, longest: int) -> list[list[int]]:
    """Return two rows of token ids, longer than the sliding window where that is small."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    count = _CHECKED_TOKENS
    if window is not None and window <= _SMALL_WINDOW:
        count = max(count, window + 4)
    count = min(count, longest)

    rows = []
    for step in (3, 5):
        rows.append([step * number % text.vocab_size for number in range(1, count + 1)])
    return rows


def _paged_logits(net: CausalNet, rows: list[list[int]]) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (row, position, logits [vocab]) wherever a step samples.

    One row is computed in two parts, the other at once, then both token by token.
    """
    length = len(rows[0])
    num_prompt = length - 3
    pages_per_row = -(-length // _PAGE_SIZE)
    store = KVStore(
        net.kv_shape, 2 * pages_per_row, page_size=_PAGE_SIZE, dtype=net.dtype, device=net.device
    )
    sequences = []
    for row, ids in enumerate(rows):
        # Every second page, so that no row's pages are adjacent.
        pages = list(range(row, 2 * pages_per_row, 2))
        prompt = Encoded(tuple(ids[:num_prompt]))
        sampling = Sampling(max_tokens=1, seed=0)
        sequences.append(TokenSequence(str(row), prompt, sampling, pages=pages))

    num_first = num_prompt // 2
    for counts in ((num_first, num_prompt), (num_prompt - num_first, 1), (1, 1)):
        slices = [Slice(sequence, count) for sequence, count in zip(sequences, counts, strict=True)]
        batch = BatchBuilder(_PAGE_SIZE, net.device, is_prefix=False).build(slices)
        hidden = net.hidden(batch.ids, batch.plan, store)
        for row, state in zip(batch.samplers, batch.sampled.tolist(), strict=True):
            yield row, sequences[row].num_tokens - 1, net.logits(hidden[state])

        # Once all its tokens are computed, a sequence goes on with the row's own next token, not
        # with the sampled one.
        for sequence, count, ids in zip(sequences, counts, rows, strict=True):
            sequence.num_computed += count
            sequence.output_ids += ids[sequence.num_tokens : sequence.num_computed + 1]
