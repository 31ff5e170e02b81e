"""ACTv1: the network against a plain reference written from the formulas, and the bundle loader's refusals.

The reference takes one row and one query at a time from the raw state dict and shares no code with `worker.models`.
"""

import json
from dataclasses import replace
from math import cos, sin, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.act_fixtures import Dialect, Format, Net, brain_json, random_weights, shapes, write_bundle
from worker.models.act_bundle import ActBundle, load_act_bundle, looks_like_act_bundle
from worker.models.errors import ModelFormatError
from worker.models.hrm_act import ActModel, attention_mask

torch.set_num_threads(1)

NETS = {
    "dense": Net(),
    "moe": Net(experts=4),
    "learned": Net(learned=True),
    "causal": Net(causal=True),
    "window": Net(window=3),
    "window as long as the row": Net(window=7),
    "causal window of a moe": Net(causal=True, window=2, experts=3),
}
ROW = [5, 9, 22, 31, 0, 39, 7]
OTHERS = [[3], [17, 2, 2, 30]]
each_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)
Weights = dict[str, Tensor]


# The reference


def reference(
    weights: Weights, net: Net, ids: list[int], segments: int = 1, reset_l: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits [S, V] and (q_halt, q_continue) of one row after `segments` segments; `reset_l` false is a wrong net."""
    embedded = torch.stack([_embedded(weights, net, token, place) for place, token in enumerate(ids)])
    z_h = weights["inner.H_init"].repeat(len(ids), 1)
    z_l = weights["inner.L_init"].repeat(len(ids), 1)
    for _ in range(segments * net.h_cycles):
        if reset_l:
            z_l = weights["inner.L_init"].repeat(len(ids), 1)
        for _ in range(net.l_cycles):
            z_l = _level(weights, net, "L", net.l_layers, z_l + z_h + embedded)
        z_h = _level(weights, net, "H", net.h_layers, z_h + z_l)
    logits = (z_h @ weights["inner.lm_head.weight"].T).clamp(-20, 20)
    return logits, weights["inner.q_head.weight"] @ z_h[0] + weights["inner.q_head.bias"]


def _embedded(weights: Weights, net: Net, token: int, place: int) -> Tensor:
    vector = weights["inner.embed_tokens.embedding_weight"][token]
    if net.learned:
        vector = (vector + weights["inner.embed_pos.embedding_weight"][place]) * 0.707106781
    return (vector * (sqrt(net.hidden) if net.hidden >= 512 else 1)).clamp(-10, 10)


def _level(weights: Weights, net: Net, level: str, layers: int, x: Tensor) -> Tensor:
    for layer in range(layers):
        at = f"inner.{level}_level.layers.{layer}"
        x = _rms(x + _attended(weights, net, f"{at}.self_attn", x))
        mlp = _experts if net.experts else _swiglu
        x = _rms(x + torch.stack([mlp(weights, net, f"{at}.mlp", row) for row in x]))
    return x


def _rms(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def _attended(weights: Weights, net: Net, at: str, x: Tensor) -> Tensor:
    size, length = net.hidden // net.heads, len(x)
    q, k, v = (x @ part.T for part in weights[f"{at}.qkv_proj.weight"].chunk(3))
    out = torch.zeros_like(x)
    for head in range(net.heads):
        cut = slice(head * size, (head + 1) * size)
        queries = [_turned(net, q[place, cut], place) for place in range(length)]
        keys = [_turned(net, k[place, cut], place) for place in range(length)]
        for place in range(length):
            seen = [key for key in range(length) if _sees(net, place, key, length)]
            scores = torch.stack([queries[place] @ keys[key] for key in seen]) / sqrt(size)
            out[place, cut] = scores.softmax(0) @ v[seen, cut]
    return out @ weights[f"{at}.o_proj.weight"].T


def _sees(net: Net, query: int, key: int, length: int) -> bool:
    if net.window is not None and net.window < length and not query - net.window < key <= query:
        return False
    return key <= query or not net.causal


def _turned(net: Net, vector: Tensor, place: int) -> Tensor:
    if net.learned:
        return vector
    half = len(vector) // 2
    turned = vector.clone()
    for i in range(half):
        angle = place / 10000 ** (2 * i / len(vector))
        a, b = vector[i], vector[i + half]
        turned[i], turned[i + half] = a * cos(angle) - b * sin(angle), b * cos(angle) + a * sin(angle)
    return turned


def _swiglu(weights: Weights, net: Net, at: str, x: Tensor) -> Tensor:
    both = weights[f"{at}.gate_up_proj.weight"] @ x
    gate, up = both[: net.intermediate], both[net.intermediate :]
    return weights[f"{at}.down_proj.weight"] @ (gate / (1 + (-gate).exp()) * up)


def _experts(weights: Weights, net: Net, at: str, x: Tensor) -> Tensor:
    scores = (weights[f"{at}.moe.router.gate.weight"] @ x).tolist()
    best = sorted(range(net.experts), key=lambda expert: -scores[expert])[: net.experts_per_token]
    shares = torch.tensor([scores[expert] for expert in best]).softmax(0)
    out = torch.zeros_like(x)
    for expert, share in zip(best, shares, strict=True):
        inside = weights[f"{at}.moe.experts.{expert}.w1.weight"] @ x
        inside = inside * 0.5 * (1 + torch.erf(inside / sqrt(2)))
        out += share * (weights[f"{at}.moe.experts.{expert}.w2.weight"] @ inside)
    return out


# The network


def bundle_of(directory: Path, net: Net, **options: Any) -> tuple[ActBundle, Weights]:
    weights = write_bundle(directory, net, **options)
    return load_act_bundle(directory), weights


def run(model: ActModel, ids: list[list[int]], segments: int, pad: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Logits [length, V] and q [2] of each row, run as one batch."""
    lengths = torch.tensor([len(row) for row in ids])
    width = max(len(row) for row in ids)
    padded = torch.tensor([row + [pad] * (width - len(row)) for row in ids])
    carry = model.initial_carry(len(ids), width)
    for _ in range(segments):
        out = model.forward_segment(padded, lengths, carry)
        carry = out.carry
    q = torch.stack((out.q_halt, out.q_continue), dim=-1)
    return [(model.logits(out.hidden[row, : len(ids[row])]), q[row]) for row in range(len(ids))]


def close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], tolerance: float = 1e-5) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(one, other, strict=True))


@each_net
@pytest.mark.parametrize("segments", [1, 2])
def test_equals_the_reference(tmp_path: Path, net: Net, segments: int) -> None:
    """X16, format notes section 1: logits and q values follow the published formulas, for one and two segments."""
    bundle, weights = bundle_of(tmp_path, net)
    expected = reference(weights, net, ROW, segments)
    assert expected[0].std() > 0.3 and expected[0].abs().max() < 20
    assert close(run(bundle.model, [ROW], segments)[0], expected)


def test_reference_can_tell_networks_apart() -> None:
    """Guards the test above: each rule, when broken, moves the reference far beyond the tolerance."""
    net, moe = Net(), Net(experts=4)
    weights, moe_weights = random_weights(net), random_weights(moe)
    right, moe_right = reference(weights, net, ROW), reference(moe_weights, moe, ROW)
    wrong = [
        reference(weights, net, ROW, reset_l=False),
        reference(weights, net, ROW, segments=2),
        reference(weights, replace(net, h_cycles=2, l_cycles=3), ROW),
        reference(weights, replace(net, heads=4), ROW),
        reference(weights, replace(net, causal=True), ROW),
        reference(weights, replace(net, window=3), ROW),
    ]
    assert not any(close(other, right, 1e-2) for other in wrong)
    assert not close(reference(moe_weights, replace(moe, experts_per_token=1), ROW), moe_right, 1e-2)


def test_wide_networks_scale_and_clamp(tmp_path: Path) -> None:
    """Format notes section 1: from 512 wide, embeddings grow by sqrt(H) within +-10; logits stay within +-20."""
    net = Net(hidden=512, intermediate=16, heads=8, h_layers=1, h_cycles=1, l_cycles=1)
    weights = random_weights(net)
    weights["inner.lm_head.weight"] *= 20
    bundle, _ = bundle_of(tmp_path, net, weights=weights)
    expected = reference(weights, net, ROW)
    assert expected[0].max() == 20 and expected[0].min() == -20
    assert close(run(bundle.model, [ROW], 1)[0], expected, 1e-3)


@each_net
def test_batched_equals_single(tmp_path: Path, net: Net) -> None:
    """T3, X17: rows of unequal lengths, right-padded into a batch, each give what they give alone, whatever the pad."""
    model = bundle_of(tmp_path, net)[0].model
    rows = [ROW, *OTHERS]
    single = [run(model, [row], 2)[0] for row in rows]
    for pad in (1, 38):
        assert all(close(a, b) for a, b in zip(run(model, rows, 2, pad), single, strict=True))


def test_padding_taken_for_tokens_would_show(tmp_path: Path) -> None:
    """Guards T3: the same row with its padding counted as text gives other logits."""
    model = bundle_of(tmp_path, Net())[0].model
    short = OTHERS[1]
    logits, q = run(model, [[*short, 1, 1, 1]], 1)[0]
    assert not close((logits[: len(short)], q), run(model, [short], 1)[0], 1e-2)


def test_rows_at_different_segments_share_a_batch(tmp_path: Path) -> None:
    """T3: a row in its second segment and a fresh row, in one batch, each equal themselves alone."""
    model = bundle_of(tmp_path, Net(experts=4))[0].model
    old, new = torch.tensor([ROW]), torch.tensor([ROW[::-1]])
    length = torch.tensor([len(ROW)])
    first = model.forward_segment(old, length, model.initial_carry(1, len(ROW)))
    carry = torch.cat((first.carry, model.initial_carry(1, len(ROW))))
    out = model.forward_segment(torch.cat((old, new)), length.repeat(2), carry)
    q = torch.stack((out.q_halt, out.q_continue), dim=-1)
    assert close((model.logits(out.hidden[0]), q[0]), run(model, [ROW], 2)[0])
    assert close((model.logits(out.hidden[1]), q[1]), run(model, [ROW[::-1]], 1)[0])


def test_attention_sees_the_future_unless_causal(tmp_path: Path) -> None:
    """X18: changing the last token changes earlier logits in a bidirectional network and none in a causal one."""
    for causal in (False, True):
        model = bundle_of(tmp_path / str(causal), Net(causal=causal))[0].model
        before, after = (run(model, [[*ROW[:-1], last]], 1)[0][0][:-1] for last in (7, 8))
        assert torch.allclose(before, after, atol=1e-5) is causal


def test_padding_stays_finite(tmp_path: Path) -> None:
    """X17: a window that ends short of the padding, and an empty row, leave no NaN for later segments to spread."""
    model = bundle_of(tmp_path, Net(window=2))[0].model
    ids, lengths = torch.zeros(3, 7, dtype=torch.long), torch.tensor([7, 3, 0])
    assert attention_mask(lengths, 7, model.config).any(-1).all(), "a query without keys is NaN on some backends"
    assert model.forward_segment(ids, lengths, model.initial_carry(3, 7)).hidden.isfinite().all()


def test_refuses_more_tokens_than_the_network_knows(tmp_path: Path) -> None:
    """Format notes section 1: input longer than the position table is an error."""
    model = bundle_of(tmp_path, Net(max_seq_len=4))[0].model
    with pytest.raises(ValueError, match="7 tokens exceed the network's 4"):
        run(model, [ROW], 1)


# The bundle


@pytest.mark.parametrize("net", [Net(), Net(experts=4, learned=True)], ids=["dense", "moe with learned positions"])
def test_state_dict_names_and_shapes(tmp_path: Path, net: Net) -> None:
    """T1: the network's own state dict is the published list, no name more or less."""
    model = bundle_of(tmp_path, net)[0].model
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes(net)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("net", [Net(window=3), Net(experts=4, experts_per_token=3)], ids=["dense", "moe"])
@pytest.mark.parametrize("dialect", ["top", "session", "arch_over_wrong_top"])
def test_every_dialect_is_the_same_network(tmp_path: Path, net: Net, dialect: Dialect) -> None:
    """T2: brain.json with arch only, top level only, session only, and arch over wrong top-level keys agree."""
    bundle, weights = bundle_of(tmp_path, net, dialect=dialect)
    assert bundle.config == bundle_of(tmp_path / "arch", net)[0].config
    assert bundle.config.halt_max_steps == 2 and bundle.config.max_seq_len == 16
    assert close(run(bundle.model, [ROW], 1)[0], reference(weights, net, ROW))


def test_silent_brain_json_takes_the_documented_defaults(tmp_path: Path) -> None:
    """T2: with nothing declared, heads 8, cycles 2 and 2, one segment, rotary, bidirectional, no window."""
    write_bundle(tmp_path)
    (tmp_path / "brain.json").write_text("{}")
    config = load_act_bundle(tmp_path).config
    assert (config.num_heads, config.h_cycles, config.l_cycles, config.halt_max_steps) == (8, 2, 2, 1)
    assert (config.pos_encoding, config.attention, config.window_size) == ("rope", "bidirectional", None)


def test_dense_config_on_moe_weights_loads_the_moe(tmp_path: Path) -> None:
    """T6: brain.json saying use_moe false over MoE tensors loads those tensors, never random dense layers."""
    net = Net(experts=4)
    bundle, weights = bundle_of(tmp_path, net, brain={"use_moe": False, "num_experts": 0})
    assert bundle.config.num_experts == 4
    assert close(run(bundle.model, [ROW], 1)[0], reference(weights, net, ROW))


@pytest.mark.parametrize(
    "name",
    [
        "inner.H_init",
        "inner.L_init",
        "inner.embed_tokens.embedding_weight",
        "inner.q_head.bias",
        "inner.H_level.layers.0.mlp.down_proj.weight",
        "inner.H_level.layers.1.self_attn.o_proj.weight",
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    """T6: any absent tensor refuses the load by name."""
    weights = random_weights(Net())
    del weights[name]
    write_bundle(tmp_path, weights=weights)
    with pytest.raises(ModelFormatError, match=f"missing {name}"):
        load_act_bundle(tmp_path)


@pytest.mark.parametrize(
    "name", ["inner.puzzle_emb.weights", "inner.H_level.layers.7.self_attn.o_proj.weight", "lora.A", "embed_tokens"]
)
def test_an_unknown_tensor_is_named(tmp_path: Path, name: str) -> None:
    """T6: any tensor that the network has no place for refuses the load by name."""
    write_bundle(tmp_path, weights=random_weights(Net()) | {name: torch.zeros(2)})
    with pytest.raises(ModelFormatError, match=f"unexpected {name}"):
        load_act_bundle(tmp_path)


@pytest.mark.parametrize(
    "name", ["inner.lm_head.weight", "inner.q_head.bias", "inner.L_level.layers.0.mlp.down_proj.weight"]
)
def test_a_mis_shaped_tensor_is_named(tmp_path: Path, name: str) -> None:
    """T6: a tensor of another shape refuses the load by name, with both shapes."""
    weights = random_weights(Net())
    was = list(weights[name].shape)
    weights[name] = weights[name][:-1].clone()
    write_bundle(tmp_path, weights=weights)
    with pytest.raises(ModelFormatError, match=f"{name} has shape .* where ") as caught:
        load_act_bundle(tmp_path)
    assert str(was) in str(caught.value)


def test_a_level_without_layers_and_mixed_layers_are_refused(tmp_path: Path) -> None:
    """T6: no level may be empty, and no layer may be dense in a network of experts."""
    dense, moe = random_weights(Net()), random_weights(Net(experts=4))
    no_l = {name: tensor for name, tensor in dense.items() if "L_level" not in name}
    mixed = {name: tensor for name, tensor in moe.items() if "L_level" not in name}
    mixed |= {name: tensor for name, tensor in dense.items() if "L_level" in name}
    for weights, named in ((no_l, "missing inner.L_level.layers.0"), (mixed, "missing inner.L_level.layers.0.mlp.moe")):
        write_bundle(tmp_path, weights=weights)
        with pytest.raises(ModelFormatError, match=named):
            load_act_bundle(tmp_path)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    """T6: quantised tensors, which the network would read as huge numbers, are refused by name."""
    weights = random_weights(Net())
    weights["inner.q_head.bias"] = torch.zeros(2, dtype=torch.int8)
    write_bundle(tmp_path, weights=weights)
    with pytest.raises(ModelFormatError, match=r"inner.q_head.bias is torch.int8"):
        load_act_bundle(tmp_path)


@pytest.mark.parametrize(
    ("weights_format", "filename"),
    [
        ("safetensors", "actv1_student.safetensors"),
        ("safetensors", "actv1_student.pt"),
        ("safetensors", "final_model.safetensors"),
        ("pt", "actv1_student.pt"),
        ("pt", "actv1_student.safetensors"),
    ],
)
def test_bytes_not_suffixes_say_the_format(tmp_path: Path, weights_format: Format, filename: str) -> None:
    """X16, A41: safetensors and torch files load under either suffix, by directory and by file."""
    weights = write_bundle(tmp_path, weights_format=weights_format, filename=filename)
    for path in (tmp_path, tmp_path / filename):
        assert looks_like_act_bundle(path)
        assert torch.equal(load_act_bundle(path).model.inner.lm_head.weight, weights["inner.lm_head.weight"])


def test_checkpoint_file_is_preferred(tmp_path: Path) -> None:
    """Format notes section 1: `checkpoint_file` wins over the usual names, and is passed over where it is absent."""
    usual = write_bundle(tmp_path, weights=random_weights(Net(), seed=1))
    chosen = write_bundle(tmp_path, filename="mine.bin", brain={"checkpoint_file": "mine.bin"})
    assert torch.equal(load_act_bundle(tmp_path).model.inner.L_init, chosen["inner.L_init"])
    (tmp_path / "mine.bin").unlink()
    assert torch.equal(load_act_bundle(tmp_path).model.inner.L_init, usual["inner.L_init"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
def test_wrapper_prefixes_are_stripped(tmp_path: Path, prefix: str) -> None:
    """Format notes section 1: names saved through DDP, torch.compile or PEFT load as the bare names do."""
    bundle, weights = bundle_of(tmp_path, Net(), prefix=prefix)
    assert torch.equal(bundle.model.inner.H_init, weights["inner.H_init"])


def test_a_tensor_under_two_prefixes_is_refused(tmp_path: Path) -> None:
    """T6: two candidates for one place are not settled by chance."""
    write_bundle(tmp_path, weights=random_weights(Net()) | {"module.inner.H_init": torch.zeros(16)})
    with pytest.raises(ModelFormatError, match=r"holds inner\.H_init twice"):
        load_act_bundle(tmp_path)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"num_heads": 5}, "hidden size 16 does not divide into 5 heads"),
        ({"num_heads": 16}, "rotary positions need an even head size, not 1"),
        ({"h_cycles": 0}, "H_cycles is 0, not a whole number from 1 up"),
        ({"l_cycles": "two"}, "L_cycles is 'two'"),
        ({"attention": "sideways"}, "neither 'bidirectional' nor 'causal'"),
        ({"pos_encoding": "learned"}, r"missing inner\.embed_pos\.embedding_weight"),
    ],
)
def test_impossible_declarations_are_refused(tmp_path: Path, declared: dict[str, object], message: str) -> None:
    """T6: what brain.json says and the tensors cannot be is an error in words, not a guess."""
    write_bundle(tmp_path, dialect="top", brain=declared)
    with pytest.raises(ModelFormatError, match=message):
        load_act_bundle(tmp_path)


def test_more_experts_a_token_than_experts_is_refused(tmp_path: Path) -> None:
    """T6: the router cannot pick more experts than the tensors hold."""
    write_bundle(tmp_path, Net(experts=2, experts_per_token=3))
    with pytest.raises(ModelFormatError, match="3 experts per token, but only 2 experts"):
        load_act_bundle(tmp_path)


def test_unreadable_bundles_are_refused_in_words(tmp_path: Path) -> None:
    """T6, X16: absent path, absent or broken brain.json, no weights, and files that are not plain tensors."""

    def message(path: Path) -> str:
        with pytest.raises(ModelFormatError) as caught:
            load_act_bundle(path)
        return str(caught.value)

    weights_file = tmp_path / "actv1_student.safetensors"
    assert "does not exist" in message(tmp_path / "absent")
    assert "has no brain.json" in message(tmp_path)
    for text, complaint in (("{", "is not valid JSON"), ("[]", "is not a JSON object"), ("{}", "has no weights file")):
        (tmp_path / "brain.json").write_text(text)
        assert complaint in message(tmp_path)
    weights_file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "is neither a safetensors file nor a torch zip file" in message(tmp_path)
    for damage in (b"\xff\0\0\0\0\0\0\0{}", b"PK\x03\x04 cut short"):
        weights_file.write_bytes(damage)
        assert "cannot be read as weights" in message(tmp_path)
    torch.save({"model": {"inner.H_init": torch.zeros(2)}}, weights_file)
    assert "something other than a flat map of named tensors" in message(tmp_path)
    torch.save(Net(), weights_file)
    assert "cannot be read as weights" in message(tmp_path)


def test_looks_like_a_bundle_only_with_brain_json(tmp_path: Path) -> None:
    """Format notes section 1: brain.json beside the weights is the mark of a bundle."""
    assert not looks_like_act_bundle(tmp_path) and not looks_like_act_bundle(tmp_path / "absent")
    (tmp_path / "brain.json").write_text(json.dumps(brain_json(Net())))
    assert looks_like_act_bundle(tmp_path)


def test_tokenizer_is_found_beside_the_brain_then_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Format notes section 1: a relative tokenizer is the bundle's, else the working directory's; absent is None."""
    brain, here = tmp_path / "brain", tmp_path / "here"
    monkeypatch.chdir(tmp_path)
    (here / "tok").mkdir(parents=True)
    assert bundle_of(brain, Net())[0].tokenizer_path is None
    assert bundle_of(brain, Net(), tokenizer="tok")[0].tokenizer_path is None
    monkeypatch.chdir(here)
    found = load_act_bundle(brain).tokenizer_path
    assert found is not None and found.resolve() == here / "tok"
    (brain / "tok").mkdir()
    assert load_act_bundle(brain).tokenizer_path == brain / "tok"
    assert bundle_of(brain, Net(), tokenizer=here / "tok")[0].tokenizer_path == here / "tok"


def test_name_description_and_dtype(tmp_path: Path) -> None:
    """D91: a loaded brain can say in a line what it is; weights arrive in the dtype asked for, logits in fp32."""
    bundle, weights = bundle_of(tmp_path, Net())
    count = sum(tensor.numel() for tensor in weights.values()) - 2 * 16
    assert bundle.name == "demo"
    assert bundle.description == (
        f"AI-OS ACTv1 brain 'demo': dense, hidden 16, 2+1 layers, 3x2 cycles, 2 heads, rope positions, bidirectional, "
        f"{count:,} parameters"
    )
    half = load_act_bundle(tmp_path, torch.bfloat16).model
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}
    logits, q = run(half, [ROW], 1)[0]
    assert logits.dtype == q.dtype == torch.float32
    assert close((logits, q), run(bundle.model, [ROW], 1)[0], 0.5)
