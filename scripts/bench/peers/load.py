"""The load that every side gets: clients that stream answers in a closed loop.

Each client sends its next request when its last one is answered. Prompts are new for each request,
and the same ones for every side.
"""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter as now
from typing import Any

from scripts.bench.client import Stream, stream_completion

RequestBody = Callable[[Sequence[int], int], dict[str, Any]]
"""The JSON of `/v1/completions` for a prompt's token ids and a number of new tokens."""


@dataclass(frozen=True)
class Figures:
    """The outcome of one load. Percentiles are over all requests, or over all gaps between tokens.

    A side that tells nothing of its tokens has no gaps.
    """

    tokens_per_s: float
    ttft_p50_ms: float | None
    gap_p50_ms: float | None
    gap_p95_ms: float | None


def closed_loop(
    url: str,
    body_of: RequestBody,
    prompts: Sequence[Sequence[int]],
    *,
    num_clients: int,
    num_tokens: int,
) -> Figures:
    """Stream an answer of `num_tokens` tokens to each prompt, with `num_clients` clients.

    Raise RuntimeError with the server's words if an answer is not whole.
    """
    begun_s = now()
    streams = asyncio.run(_stream_all(url, body_of, prompts, num_clients, num_tokens))
    seconds = now() - begun_s

    ttfts_ms = []
    gaps_ms = []
    for stream in streams:
        ttfts_ms.append(1000 * (stream.first_at - stream.started_at))
        for earlier, later in pairwise(stream.moments):
            gaps_ms.append(1000 * (later - earlier))
    return Figures(
        tokens_per_s=len(streams) * num_tokens / seconds,
        ttft_p50_ms=statistics.median(ttfts_ms),
        gap_p50_ms=_quantile(gaps_ms, 0.5),
        gap_p95_ms=_quantile(gaps_ms, 0.95),
    )


async def _stream_all(
    url: str,
    body_of: RequestBody,
    prompts: Sequence[Sequence[int]],
    num_clients: int,
    num_tokens: int,
) -> list[Stream]:
    waiting = list(prompts)
    streams = []

    async def client() -> None:
        while waiting:
            body = body_of(waiting.pop(), num_tokens)
            streams.append(await stream_completion(url, body, num_tokens))

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return streams


def _quantile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which this share of the values is, None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
