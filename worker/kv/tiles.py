"""Attention in calls whose shapes follow from a token's position, not from the rest of the step.

SDPA's order of summation depends on the shape of its call, so the last bits of a token's state
depend on how its prompt was cut into steps. Where activations are rounded, such a difference can
grow until another token is sampled.

Here a prompt is cut into tiles of `TILE` queries by absolute position. A step that computes a part
of a tile leaves the other rows of the tile empty. The prompt's last token and all tokens behind it
are rows of one query, as in decoding, because the last token is computed again when the prompt's
pages are shared.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 32


@dataclass(frozen=True)
class Tile:
    """Flat tokens `start` to `stop`, which one call to SDPA computes.

    With `is_block` they are a part of a block of `TILE` queries, and begin `offset` rows into it.
    Otherwise each token is a row of one query. `first_position` is the position of the first token.
    Of the first `num_keys` keys a token sees those up to its own position, and all below
    `num_open`.
    """

    start: int
    stop: int
    first_position: int
    num_keys: int
    num_open: int = 0
    is_block: bool = True

    @property
    def offset(self) -> int:
        """Return the number of rows of the block before the first token's."""
        if not self.is_block:
            return 0
        return self.first_position % TILE

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape (batch, queries) of the call to SDPA."""
        if self.is_block:
            return 1, TILE
        return self.stop - self.start, 1

    def pad(self, query: Tensor) -> Tensor:
        """Return rows [n, heads, head_dim] padded to [batch, queries, heads, head_dim]."""
        batch, queries = self.shape
        behind = batch * queries - self.offset - len(query)
        padded: Tensor = F.pad(query, (0, 0, 0, 0, self.offset, behind))
        return padded.view(batch, queries, *query.shape[1:])

    def seen(self, stored: Tensor) -> Tensor:
        """Return the keys or values [batch, heads, num_keys, head_dim] of the call.

        `stored` are all keys or values [1, tokens, heads, head_dim] of the sequence.
        """
        return stored[:, : self.num_keys].transpose(1, 2).expand(self.shape[0], -1, -1, -1)

    def bias(self, window: int | None, like: Tensor) -> Tensor:
        """Return the bias [batch, 1, queries, num_keys] that is added to the attention scores.

        It is 0 where a query sees a key, else -inf. It has the dtype and the device of `like`.
        """
        batch, queries = self.shape
        first = self.first_position - self.offset
        query_positions = torch.arange(first, first + batch * queries, device=like.device)[:, None]
        key_positions = torch.arange(self.num_keys, device=like.device)

        is_seen = (key_positions <= query_positions) | (key_positions < self.num_open)
        if window is not None:
            is_seen &= query_positions - key_positions < window

        bias = torch.zeros(is_seen.shape, dtype=like.dtype, device=like.device)
        bias.masked_fill_(~is_seen, -torch.inf)
        return bias.view(batch, queries, -1)[:, None]


@dataclass(frozen=True)
class TiledSpan:
    """Flat tokens `start` to `stop` of one sequence, in tiles.

    All keys are in the sequence's `pages` [1, P]. The keys of these tokens are there, too, because
    they are stored before attention begins.
    """

    start: int
    stop: int
    pages: Tensor
    tiles: tuple[Tile, ...]
    _biases: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """Return the output [n, heads, head_dim] of the span's n queries.

        `query` has the output's shape; `keys` and `values` are [1, tokens, heads, head_dim].
        """
        parts = []
        for tile in self.tiles:
            rows = query[tile.start - self.start : tile.stop - self.start]
            out = F.scaled_dot_product_attention(
                tile.pad(rows).transpose(1, 2),
                tile.seen(keys),
                tile.seen(values),
                attn_mask=self._bias(tile, window, query),
                scale=scale,
                enable_gqa=keys.shape[2] != query.shape[1],
            )
            flat = out.transpose(1, 2).flatten(0, 1)
            parts.append(flat[tile.offset : tile.offset + len(rows)])
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts)

    def _bias(self, tile: Tile, window: int | None, like: Tensor) -> Tensor:
        """Return the tile's bias, which is computed once for all layers."""
        key = tile.start, window
        if key not in self._biases:
            self._biases[key] = tile.bias(window, like)
        return self._biases[key]


def tiles_of(
    start: int, first: int, end: int, num_prompt: int, *, is_prefix: bool
) -> Iterator[Tile]:
    """Yield the tiles of positions `first` to `end` of a sequence.

    The first tile begins at the flat token `start`. With `is_prefix` the tokens of the prompt,
    which has `num_prompt` tokens, attend to each other in both directions.
    """
    num_open = num_prompt if is_prefix else 0
    position = first
    while position < end:
        stop = min(end, position // TILE * TILE + TILE)
        num_seen = stop

        # The prompt's last token is a row of one query, so no block reaches it.
        is_block = position < num_prompt - 1
        if is_block:
            stop = min(stop, num_prompt - 1)
            num_seen = num_prompt if is_prefix else stop

        yield Tile(
            start=start + position - first,
            stop=start + stop - first,
            first_position=position,
            num_keys=-(-num_seen // TILE) * TILE,
            num_open=num_open,
            is_block=is_block,
        )
        position = stop
