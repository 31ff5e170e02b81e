"""A plain reference of ACTv1 for tests, written from the formulas, and the rows and nets it is
tried on.

It takes one row and one query at a time from the raw state dict and shares no code with
`worker.models`.
"""

from math import cos, sin, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.act_fixtures import Net, write_bundle
from worker.models.act_bundle import ActBundle, load_act_bundle
from worker.models.hrm_act import ActModel

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


def reference(
    weights: Weights, net: Net, ids: list[int], segments: int = 1, reset_l: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits [S, V] and (q_halt, q_continue) of one row after `segments` segments; `reset_l` false
    is a wrong net."""
    embedded = torch.stack(
        [_embedded(weights, net, token, place) for place, token in enumerate(ids)]
    )
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
        turned[i], turned[i + half] = (
            a * cos(angle) - b * sin(angle),
            b * cos(angle) + a * sin(angle),
        )
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


def bundle_of(directory: Path, net: Net, **options: Any) -> tuple[ActBundle, Weights]:
    weights = write_bundle(directory, net, **options)
    return load_act_bundle(directory), weights


def run(
    model: ActModel, ids: list[list[int]], segments: int, pad: int = 1
) -> list[tuple[Tensor, Tensor]]:
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


def close(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], tolerance: float = 1e-5
) -> bool:
    return all(
        torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(one, other, strict=True)
    )
