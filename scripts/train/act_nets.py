"""A trainable ACTv1 network that predicts the next token, and its directory as a brain.

It is written from the published equations, apart from the worker's own, so that a brain made here
is a test of its loader. Upstream trains such a network on its own input, so that it learns to copy;
here attention is causal, and the targets are the tokens that follow. One segment is:

    x = clamp(E[ids], -10, 10)
    repeat H_cycles: { z_L = L_init; repeat L_cycles: z_L = L(z_L + z_H + x);  z_H = H(z_H + z_L) }

It starts from z_H = H_init. Gradients flow through the last H cycle alone.
"""

import json
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

_NORM_EPS = 1e-5
_ROPE_THETA = 1e4
_MOST_EMBEDDING = 10.0
_MOST_LOGIT = 20.0


@dataclass(frozen=True)
class ActSizes:
    """Sizes of a network. `layers` are those of each of the levels H and L."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    layers: int
    h_cycles: int
    l_cycles: int
    max_positions: int


class _Table(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_weight = nn.Parameter(torch.randn(rows, width))


class _Attention(nn.Module):
    """Causal attention with rotary positions."""

    cos: Tensor
    sin: Tensor

    def __init__(self, sizes: ActSizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.num_heads = sizes.num_heads
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        head_size = width // sizes.num_heads
        frequency = _ROPE_THETA ** (-torch.arange(0, head_size, 2) / head_size)
        angle = torch.outer(torch.arange(sizes.max_positions), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        width = x.shape[1]
        query = self._rotate(query, width) / sqrt(query.shape[-1])
        scores = query @ self._rotate(key, width).transpose(-1, -2)
        later = torch.ones(width, width, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        out: Tensor = self.o_proj((weights.to(value.dtype) @ value).transpose(1, 2).flatten(-2))
        return out

    def _rotate(self, x: Tensor, width: int) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return x * self.cos[:width] + turned * self.sin[:width]


class _SwiGlu(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(width, 2 * inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class _Block(nn.Module):
    def __init__(self, sizes: ActSizes) -> None:
        super().__init__()
        self.self_attn = _Attention(sizes)
        self.mlp = _SwiGlu(sizes.hidden_size, sizes.intermediate_size)

    def forward(self, h: Tensor) -> Tensor:
        h = _norm(h + self.self_attn(h))
        return _norm(h + self.mlp(h))


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=_NORM_EPS)


class _Level(nn.Module):
    def __init__(self, sizes: ActSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(sizes) for _ in range(sizes.layers))

    def forward(self, h: Tensor, injection: Tensor) -> Tensor:
        h = h + injection
        for layer in self.layers:
            h = layer(h)
        return h


class _Inner(nn.Module):
    H_init: Tensor
    L_init: Tensor

    def __init__(self, sizes: ActSizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.register_buffer("H_init", torch.randn(width))
        self.register_buffer("L_init", torch.randn(width))
        self.embed_tokens = _Table(sizes.vocab_size, width)
        self.lm_head = nn.Linear(width, sizes.vocab_size, bias=False)
        self.q_head = nn.Linear(width, 2)
        self.H_level = _Level(sizes)
        self.L_level = _Level(sizes)


class ActNet(nn.Module):
    """The network, called as transformers' causal networks are."""

    def __init__(self, sizes: ActSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.inner = _Inner(sizes)

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> SimpleNamespace:
        """Return `logits` [rows, tokens, V] in fp32, and the mean `loss` of the labels.

        Labels of -100 do not count.
        """
        logits = self.inner.lm_head(self._hidden(input_ids)).clamp(-_MOST_LOGIT, _MOST_LOGIT)
        logits = logits.float()
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(logits=logits, loss=loss)

    def _hidden(self, ids: Tensor) -> Tensor:
        inner = self.inner
        table = inner.embed_tokens.embedding_weight
        x = F.embedding(ids, table).clamp(-_MOST_EMBEDDING, _MOST_EMBEDDING)
        z_h = inner.H_init.expand_as(x)
        for cycle in range(self.sizes.h_cycles):
            with torch.set_grad_enabled(
                torch.is_grad_enabled() and cycle == self.sizes.h_cycles - 1
            ):
                z_l = inner.L_init.expand_as(x)
                for _ in range(self.sizes.l_cycles):
                    z_l = inner.L_level(z_l, z_h + x)
                z_h = inner.H_level(z_h, z_l)
        return z_h

    def save_pretrained(self, directory: Path) -> None:
        """Write `brain.json` and the weights in float32, for a tokenizer in the same directory."""
        directory.mkdir(parents=True, exist_ok=True)
        sizes = self.sizes
        arch = {
            "num_heads": sizes.num_heads,
            "H_cycles": sizes.h_cycles,
            "L_cycles": sizes.l_cycles,
            "max_seq_len": sizes.max_positions,
            "halt_max_steps": 1,
            "pos_encodings": "rope",
            "attention": "causal",
        }
        brain = {"name": directory.name, "type": "actv1", "tokenizer_model": ".", "arch": arch}
        (directory / "brain.json").write_text(json.dumps(brain, indent=2) + "\n")
        weights = {name: tensor.float().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, directory / "actv1_student.safetensors", metadata={"format": "pt"})
