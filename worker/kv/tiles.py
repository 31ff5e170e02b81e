"""Attention in calls whose shapes follow from a token's place, not from what is computed beside it.

SDPA's order of summation depends on the shape of its call, so the last bits of a token's state
depend on how its prompt was cut into steps. Rounded activations make whole tokens of that. Here a
prompt is cut into tiles of `TILE` queries by absolute position, and a tile that a step computes in
part leaves its other rows empty. The prompt's last token, which is computed again when the prompt
is known, and all that follow it are rows of one query, as in decoding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 32


@dataclass(frozen=True)
class Tile:
    """Flat tokens `start` to `stop`, `offset` rows into a block of `TILE` queries, or each a block
    of its own.

    They look at the first `num_keys` places: at those up to their own, and at any below `num_open`.
    """

    start: int
    stop: int
    first_position: int
    num_keys: int
    num_open: int = 0
    is_block: bool = True

    @property
    def offset(self) -> int:
        return self.first_position % TILE if self.is_block else 0

    @property
    def shape(self) -> tuple[int, int]:
        """[batch, queries] of the call."""
        return (1, TILE) if self.is_block else (self.stop - self.start, 1)

    def pad(self, query: Tensor) -> Tensor:
        """Rows [n, heads, head_dim] as [batch, queries, heads, head_dim]."""
        batch, queries = self.shape
        behind = batch * queries - self.offset - len(query)
        padded: Tensor = F.pad(query, (0, 0, 0, 0, self.offset, behind))
        return padded.view(batch, queries, *query.shape[1:])

    def seen(self, items: Tensor) -> Tensor:
        """Of keys or values [1, places, heads, head_dim] the [batch, heads, keys, head_dim] of the
        call."""
        return items[:, : self.num_keys].transpose(1, 2).expand(self.shape[0], -1, -1, -1)

    def bias(self, window: int | None, like: Tensor) -> Tensor:
        """What is added to the scores [batch, 1, queries, keys]: 0, or -inf where nothing is
        seen."""
        first = self.first_position - self.offset
        queries = torch.arange(first, first + self.shape[0] * self.shape[1], device=like.device)[
            :, None
        ]
        places = torch.arange(self.num_keys, device=like.device)
        is_seen = (places <= queries) | (places < self.num_open)
        if window is not None:
            is_seen &= queries - places < window
        bias = torch.zeros(is_seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
            ~is_seen, -torch.inf
        )
        return bias.view(*self.shape, -1)[:, None]


@dataclass(frozen=True)
class TiledSpan:
    """Flat tokens `start` to `stop` of one sequence, in tiles; their keys are in its `pages` [1,
    P], stored by now."""

    start: int
    stop: int
    pages: Tensor
    tiles: tuple[Tile, ...]
    _biases: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """[n, heads, head_dim] of the span's `query`, over keys and values [1, places, heads,
        head_dim]."""
        parts = [self._attend(tile, query, keys, values, scale, window) for tile in self.tiles]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend(
        self,
        tile: Tile,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        rows = query[tile.start - self.start : tile.stop - self.start]
        out = F.scaled_dot_product_attention(
            tile.pad(rows).transpose(1, 2),
            tile.seen(keys),
            tile.seen(values),
            attn_mask=self._bias(tile, window, query),
            scale=scale,
            enable_gqa=keys.shape[2] != query.shape[1],
        )
        return out.transpose(1, 2).flatten(0, 1)[tile.offset : tile.offset + len(rows)]

    def _bias(self, tile: Tile, window: int | None, like: Tensor) -> Tensor:
        """Made once, for all layers."""
        key = tile.start, window
        if key not in self._biases:
            self._biases[key] = tile.bias(window, like)
        return self._biases[key]


def tiles_of(
    start: int, first: int, end: int, num_prompt: int, *, is_prefix: bool
) -> Iterator[Tile]:
    """The tiles of positions `first` to `end` of a sequence, laid out from the flat token `start`
    on.

    With `is_prefix` the prompt of `num_prompt` tokens sees itself in both directions.
    """
    at = first
    while at < end:
        is_block = at < num_prompt - 1
        stop = min(end, at // TILE * TILE + TILE, num_prompt - 1 if is_block else end)
        sees = num_prompt if is_prefix and is_block else stop
        room = -(-sees // TILE) * TILE
        yield Tile(
            start + at - first, start + stop - first, at, room, num_prompt * is_prefix, is_block
        )
        at = stop
