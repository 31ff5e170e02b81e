"""Layers in one call of the kernels: the same bits as operator by operator."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PretrainedConfig,
    Qwen2Config,
)

from tests.fixtures.worker.kernels import computing_with
from worker.kv.attention import AttentionPlan, attend
from worker.kv.paged_native import NativeRows
from worker.kv.store import KVShape, KVStore
from worker.models import joined_layers
from worker.models.decoder_layers import decoder_layer, joined_decoder
from worker.models.fused_layers import fuse_layers
from worker.models.hrm_text import HrmTextModel, HrmTextShape, HrmTextState
from worker.models.joined_layers import JoinedLayers, layers_step
from worker.models.linear import Int8PanelLinear, pack_all_linears
from worker.native import library as native
from worker.native import operators
from worker.runners import causal_net as causal_net_module
from worker.runners.causal_net import CausalNet

CPU = torch.device("cpu")
SHAPE = HrmTextShape(
    vocab_size=32,
    hidden_size=96,
    intermediate_size=160,
    num_heads=2,
    head_dim=32,
    num_layers=3,
    h_cycles=2,
    l_cycles=2,
    embedding_scale=1.0,
    max_positions=64,
)
PAGE_SIZE = 4
# Of the network, of its weights, and of stored keys and values.
TYPES = [
    (torch.float32, "float32", torch.float32),
    (torch.bfloat16, "bfloat16", torch.bfloat16),
    (torch.float32, "float32", torch.int8),
    (torch.bfloat16, "bfloat16", torch.int8),
    (torch.float32, "float32", torch.bfloat16),
    (torch.float32, "int8", torch.float32),
    (torch.bfloat16, "int8", torch.bfloat16),
]
Row = tuple[int, int, int]
"""The first token of a row's step, the token behind its last one, and its open prompt's length."""

STEPS: dict[str, list[Row]] = {
    "one token": [(20, 21, 0)],
    "rows of one token": [(20, 21, 0), (7, 8, 0), (33, 34, 0)],
    "drafts": [(20, 24, 0), (7, 8, 0)],
    "a prompt that sees itself both ways": [(0, 30, 30)],
    "a prompt beside rows": [(20, 21, 0), (0, 9, 9), (13, 17, 0)],
}


@pytest.fixture(autouse=True, params=native.INSTRUCTIONS)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Compute with the kernels for one set of instructions.

    Return the most queries that they compute together.
    """
    with computing_with(request.param, monkeypatch) as kernels:
        yield kernels.queries_at_once


def network(dtype: torch.dtype, weights: str) -> HrmTextModel:
    """Return a network of random weights, whose layers are joined."""
    model = HrmTextModel(SHAPE)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model = model.to(dtype)
    if weights == "int8":
        for module in list(model.model.modules()):
            for name, layer in list(module.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(module, name, Int8PanelLinear(layer.weight, None))
    pack_all_linears(model)
    model.join_layers()
    assert model.model.L_module.joined is not None
    assert model.model.H_module.joined is not None
    return model


KV_SHAPE = KVShape(SHAPE.num_kv_slots, num_heads=SHAPE.num_heads, head_dim=SHAPE.head_dim)


def filled_store(kv_dtype: torch.dtype, num_pages: int, shape: KVShape = KV_SHAPE) -> KVStore:
    """Return a store of random keys and values, the same ones each time."""
    store = KVStore(shape, num_pages, PAGE_SIZE, dtype=kv_dtype, device=CPU)
    generator = torch.Generator().manual_seed(1)
    size = (num_pages * PAGE_SIZE, shape.num_heads, shape.head_dim)
    for slot in range(shape.num_slots):
        keys, values = torch.randn(2, *size, generator=generator)
        store.write(slot, torch.arange(num_pages * PAGE_SIZE), keys, values)
    return store


def plan_of(rows: Sequence[Row], at_once: int) -> tuple[AttentionPlan, int]:
    """Return the plan of a step, and the number of pages that it needs."""
    native_rows = NativeRows(at_once)
    positions: list[int] = []
    places: list[int] = []
    num_pages = 0
    for first, end, num_open in rows:
        count = -(-end // PAGE_SIZE)
        # Backwards, because pages lie in no order.
        pages = list(range(num_pages, num_pages + count))[::-1]
        num_pages += count
        native_rows.add(
            pages, range(first, end), [max(token + 1, num_open) for token in range(first, end)]
        )
        positions += range(first, end)
        places += [
            pages[token // PAGE_SIZE] * PAGE_SIZE + token % PAGE_SIZE for token in range(first, end)
        ]
    plan = AttentionPlan(
        positions=torch.tensor(positions),
        first_ids=torch.zeros(len(positions), dtype=torch.int64),
        spans=(native_rows.span(),),
        rows=torch.tensor(places),
    )
    return plan, num_pages


def advanced(
    model: HrmTextModel,
    plan: AttentionPlan,
    store: KVStore,
    *,
    is_joined: bool,
    at_once: int | None,
) -> HrmTextState:
    """Return the state behind all layers, of which `at_once` are advanced by, or all."""
    scale = SHAPE.head_dim**-0.5

    def attend_slot(slot: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert not is_joined, "a layer was computed operator by operator"
        return attend(plan, store, slot, query=query, key=key, value=value, scale=scale)

    state = model.begin(torch.arange(len(plan.positions)) % SHAPE.vocab_size, plan.positions)
    step = None
    if is_joined:
        step = layers_step(plan, store, state.rope, num_heads=SHAPE.num_heads, scale=scale)
        assert step is not None
    while state.num_layers < model.shape.num_kv_slots:
        before = state.hidden.clone()
        given = state
        state = model.advance(state, attend_slot, at_once, step=step)
        assert given.hidden.equal(before), "the given state has changed"
    return state


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(("dtype", "weights", "kv_dtype"), TYPES)
def test_joined_layers_compute_the_same_bits(
    name: str, dtype: torch.dtype, weights: str, kv_dtype: torch.dtype, at_once: int
) -> None:
    model = network(dtype, weights)
    plan, num_pages = plan_of(STEPS[name], at_once)
    stores = [filled_store(kv_dtype, num_pages) for _ in range(2)]
    apart = advanced(model, plan, stores[0], is_joined=False, at_once=1)
    together = advanced(model, plan, stores[1], is_joined=True, at_once=None)

    assert together.num_layers == apart.num_layers
    assert together.hidden.equal(apart.hidden)
    assert together.z_h.isfinite().all()
    assert together.z_h.dtype == dtype
    assert together.z_h.equal(apart.z_h)
    assert together.z_l.equal(apart.z_l)
    assert stores[1].keys.equal(stores[0].keys)
    assert stores[1].values.equal(stores[0].values)


def test_a_step_of_few_rows_is_one_call(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(torch.float32, "float32")
    plan, num_pages = plan_of(STEPS["drafts"], at_once)
    monkeypatch.delattr(JoinedLayers, "run")
    state = advanced(
        model, plan, filled_store(torch.float32, num_pages), is_joined=True, at_once=None
    )
    assert state.num_layers == SHAPE.num_kv_slots


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_a_prompt_may_be_cut_between_any_layers(
    num_threads: int, num_layers: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the cuts nor the number of layers in a call, or of threads, change a bit."""
    monkeypatch.setattr(joined_layers, "FEW_ROWS", 8)
    torch.set_num_threads(num_threads)
    model = network(torch.float32, "float32")
    for rows in STEPS.values():
        plan, num_pages = plan_of(rows, at_once)
        stores = [filled_store(torch.float32, num_pages) for _ in range(2)]
        apart = advanced(model, plan, stores[0], is_joined=False, at_once=SHAPE.num_kv_slots)
        cut = advanced(model, plan, stores[1], is_joined=True, at_once=num_layers)
        assert cut.z_h.equal(apart.z_h)
        assert stores[1].values.equal(stores[0].values)


def test_another_depth_has_the_same_layers(at_once: int) -> None:
    model = network(torch.float32, "float32").with_cycles(1, 1)
    plan, num_pages = plan_of(STEPS["drafts"], at_once)
    stores = [filled_store(torch.float32, num_pages) for _ in range(2)]
    states = []
    for store, is_joined in zip(stores, (False, True), strict=True):
        states.append(advanced(model, plan, store, is_joined=is_joined, at_once=2))
    assert states[0].z_h.equal(states[1].z_h)


def test_steps_that_do_not_store_all_their_tokens_are_computed_apart(at_once: int) -> None:
    """Continuations that are scored are not stored, and attend to one another."""
    rope = (torch.ones(2, 1, 1, 32), torch.zeros(2, 1, 1, 32))
    store = filled_store(torch.float32, 2)
    plan, _ = plan_of([(3, 5, 0)], at_once)
    assert layers_step(plan, store, rope, num_heads=2, scale=1.0) is not None
    kept = AttentionPlan(plan.positions, plan.first_ids, plan.spans, plan.rows, torch.tensor([0]))
    assert layers_step(kept, store, rope, num_heads=2, scale=1.0) is None
    assert layers_step(plan, None, rope, num_heads=2, scale=1.0) is None

    rows = NativeRows(at_once)
    rows.add([0], [3], [4], 3, 0)
    fresh = AttentionPlan(plan.positions, plan.first_ids, (rows.span(),), plan.rows)
    assert layers_step(fresh, store, rope, num_heads=2, scale=1.0) is None


@dataclass(frozen=True)
class Family:
    """A kind of transformers network, and how many of its two layers are joined."""

    config: type[PretrainedConfig]
    options: dict[str, Any] = field(default_factory=dict)
    num_joined: int = 2


FAMILIES = {
    "llama": Family(LlamaConfig),
    "one head of keys for all": Family(LlamaConfig, {"num_key_value_heads": 1}),
    "biases": Family(Qwen2Config),
    "a window": Family(MistralConfig, {"sliding_window": 5}),
    "a window in one layer": Family(
        Qwen2Config, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    ),
    "its own scale": Family(GraniteConfig, {"attention_multiplier": 0.3}),
    "scaled parts": Family(GraniteConfig, {"residual_multiplier": 0.5}, num_joined=0),
    "norms behind the parts": Family(Olmo2Config, num_joined=0),
}


def causal_net(
    kind: type[PretrainedConfig], dtype: torch.dtype, options: dict[str, Any]
) -> CausalNet:
    """Return a network of random weights, whose parts are fused and whose products are packed."""
    sizes = {"vocab_size": 32, "hidden_size": 96, "intermediate_size": 160}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = kind(**(sizes | {"head_dim": 32} | options))
    with torch.inference_mode(False):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype)
    for parameter in model.requires_grad_(False).eval().parameters():
        nn.init.normal_(parameter, std=0.2)
    fuse_layers(model)
    heads = config.num_key_value_heads
    net = CausalNet(model, KVShape(2, num_heads=heads, head_dim=32), CPU)
    pack_all_linears(model)
    return net


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_transformers_compute_the_same_bits(
    name: str, dtype: torch.dtype, at_once: int
) -> None:
    family = FAMILIES[name]
    net = causal_net(family.config, dtype, family.options)
    hidden = []
    for is_joined in (False, True):
        if is_joined:
            assert net.join_layers() == family.num_joined
        for rows in STEPS.values():
            plan, num_pages = plan_of([(first, end, 0) for first, end, _ in rows], at_once)
            store = filled_store(dtype, num_pages, net.kv_shape)
            ids = torch.arange(len(plan.positions)) % 32
            hidden += [net.hidden(ids, plan, store), store.keys, store.values]
    half = len(hidden) // 2
    for apart, together in zip(hidden[:half], hidden[half:], strict=True):
        assert together.isfinite().all()
        assert together.equal(apart)


def numbers_of_calls(net: CausalNet, at_once: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the first layer, in its run, of each call of a step."""
    numbers: list[int] = []

    def run(self: JoinedLayers, hidden: Tensor, first: int, *rest: Any) -> Tensor:
        numbers.append(first)
        return run_layers(self, hidden, first, *rest)

    run_layers = JoinedLayers.run
    monkeypatch.setattr(JoinedLayers, "run", run)
    plan, num_pages = plan_of(STEPS["drafts"], at_once)
    store = filled_store(torch.float32, num_pages, net.kv_shape)
    net.hidden(torch.arange(len(plan.positions)), plan, store)
    return numbers


@pytest.mark.parametrize(
    ("options", "num_calls"),
    [({}, 1), ({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, 2)],
)
def test_layers_that_are_alike_are_one_call(
    options: dict[str, Any], num_calls: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = causal_net(Qwen2Config, torch.float32, options)
    assert net.join_layers() == 2
    numbers = numbers_of_calls(net, at_once, monkeypatch)
    assert numbers == [0] * num_calls


@pytest.mark.parametrize("changed", ["layers.1", "norm"])
def test_a_network_that_changes_states_in_between_runs_itself(
    changed: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some networks add states of pictures between two layers."""
    net = causal_net(LlamaConfig, torch.float32, {})
    decoder = net.model.base_model
    layers = [layer for module in decoder.layers if (layer := decoder_layer(module)) is not None]
    assert joined_decoder(net.model, layers) is not None
    decoder.get_submodule(changed).register_forward_pre_hook(
        lambda module, args: (args[0] + 1, *args[1:])
    )
    assert joined_decoder(net.model, layers) is None

    net = causal_net(LlamaConfig, torch.float32, {})
    monkeypatch.setattr(causal_net_module, "joined_decoder", lambda model, layers: None)
    assert net.join_layers() == 2
    assert numbers_of_calls(net, at_once, monkeypatch) == [0, 0]


@pytest.mark.parametrize(
    ("kind", "options", "is_plain"),
    [
        (LlamaConfig, {}, True),
        (GraniteConfig, {"logits_scaling": 2.0}, False),
        (Gemma2Config, {"final_logit_softcapping": 5.0}, False),
    ],
)
def test_logits_are_those_of_the_networks_own_head(
    kind: type[PretrainedConfig],
    options: dict[str, Any],
    is_plain: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = causal_net(kind, torch.float32, options)
    states = torch.randn(5, 96)
    expected = net.logits(states)
    net.join_layers()
    if is_plain:
        monkeypatch.setattr(causal_net_module, "_logits_of_head", None)
    assert net.logits(states).equal(expected)


@pytest.mark.parametrize(
    "odd", [{"hidden_size": 88}, {"intermediate_size": 100}, {"num_heads": 4, "head_dim": 8}]
)
def test_layers_of_odd_sizes_stay_apart(odd: dict[str, int]) -> None:
    model = HrmTextModel(replace(SHAPE, **odd))
    model.join_layers()
    fits_eight = odd.get("hidden_size") == 88 and operators.kernels_for(torch.empty(0), 8)
    assert (model.model.L_module.joined is not None) == bool(fits_eight)
