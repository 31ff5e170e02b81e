"""What came of a load, for each class and in all."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.loads.caller import Heard

REFUSED = (429, 503)


@dataclass(frozen=True)
class Window:
    """The part of a load that counts, by `perf_counter`: what ended in it."""

    begun: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


@dataclass(frozen=True)
class Summary:
    """Rates by second; quantiles in milliseconds, since each request was due. TTFT is the time to
    the first token.

    What failed is told of all the load, the rest of what ended in the window.
    """

    asked: int
    answered_per_s: float
    tokens_per_s: float
    refused: dict[str, int]
    failed: dict[str, int]
    ttft_ms: tuple[float, float, float]
    token_ms: tuple[float, float, float]
    total_ms: tuple[float, float, float]
    refusal_ms: tuple[float, float, float]

    @property
    def num_refused(self) -> int:
        return sum(self.refused.values())


def summary(heard: Sequence[Heard], window: Window) -> Summary:
    inside = [item for item in heard if window.begun <= item.ended_at <= window.ended]
    answered = [item for item in inside if item.is_answered]
    refused = [item for item in inside if item.status in REFUSED]
    failed = [item for item in heard if not item.is_answered and item.status not in REFUSED]
    return Summary(
        asked=len(inside),
        answered_per_s=len(answered) / window.seconds,
        tokens_per_s=sum(item.tokens for item in answered) / window.seconds,
        refused=dict(Counter(f"{item.status} {item.reason}" for item in refused)),
        failed=dict(Counter(f"{item.status} {item.reason}" for item in failed)),
        ttft_ms=_quantiles(
            [item.first_token_s for item in answered if item.first_token_s is not None]
        ),
        token_ms=_quantiles(
            [_between(item) for item in answered if item.tokens > len(item.ask.prompts)]
        ),
        total_ms=_quantiles([item.ended_s for item in answered]),
        refusal_ms=_quantiles([item.ended_s for item in refused]),
    )


def by_class(heard: Sequence[Heard], window: Window) -> dict[str, Summary]:
    """Where there are several."""
    names = sorted({item.ask.priority for item in heard})
    return {
        name: summary([item for item in heard if item.ask.priority == name], window)
        for name in names
    }


HEADER = (
    f"{'load':<26}{'asked':>7}{'ok/s':>8}{'tokens/s':>10}{'refused':>9}{'failed':>8}   "
    f"{'TTFT ms p50/p95/p99':<22}{'token ms p50/p99':<18}{'total ms p50/p99':<18}refusal ms p50/p99"
)


def row(name: str, told: Summary) -> str:
    def pair(quantiles: tuple[float, float, float]) -> str:
        return f"{quantiles[0]:.1f}/{quantiles[2]:.1f}"

    ttft = "/".join(f"{value:.0f}" for value in told.ttft_ms)
    return (
        f"{name:<26}{told.asked:>7}{told.answered_per_s:>8.1f}{told.tokens_per_s:>10.0f}{told.num_refused:>9}"
        f"{sum(told.failed.values()):>8}   "
        f"{ttft:<22}{pair(told.token_ms):<18}{pair(told.total_ms):<18}{pair(told.refusal_ms)}"
    )


def _between(item: Heard) -> float:
    """Seconds from one token of an answer to its next, on average."""
    tokens = item.tokens / len(item.ask.prompts)
    return ((item.last_token_s or 0.0) - (item.first_token_s or 0.0)) / (tokens - 1)


def _quantiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """p50, p95 and p99; nan where there is nothing."""
    ordered = sorted(seconds)
    if not ordered:
        return (float("nan"),) * 3
    p50, p95, p99 = (
        1000 * ordered[min(len(ordered) - 1, int(len(ordered) * part))]
        for part in (0.5, 0.95, 0.99)
    )
    return p50, p95, p99
