"""The figures of a load, over all requests and for each class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.bench.loads.caller import Outcome

REFUSED = (429, 503)


@dataclass(frozen=True)
class Window:
    """The part of a load whose figures count, in `perf_counter` time.

    A request counts if it ends in the window.
    """

    started: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.started


@dataclass(frozen=True)
class Summary:
    """The figures of requests that ended in a window.

    Rates are per second. Quantiles (p50, p95, p99) are in milliseconds. `ttft_ms` is the time from
    when a request was due to its first token, `token_ms` the time between tokens, and `total_ms`
    and `refusal_ms` the time to the end. `failed` also counts requests outside of the window.
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


def summary(outcomes: Sequence[Outcome], window: Window) -> Summary:
    """Return the figures of the requests with these outcomes."""
    refused: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    num_asked = 0
    num_answered = 0
    num_tokens = 0
    ttft_s = []
    token_s = []
    total_s = []
    refusal_s = []
    for outcome in outcomes:
        reason = f"{outcome.status} {outcome.reason}"
        is_refused = outcome.status in REFUSED
        if not outcome.is_answered and not is_refused:
            failed[reason] += 1

        if not window.started <= outcome.ended_at <= window.ended:
            continue
        num_asked += 1
        if is_refused:
            refused[reason] += 1
            refusal_s.append(outcome.ended_s)
        if not outcome.is_answered:
            continue
        num_answered += 1
        num_tokens += outcome.tokens
        total_s.append(outcome.ended_s)
        if outcome.first_token_s is not None:
            ttft_s.append(outcome.first_token_s)
        # An answer of one token has no time between tokens.
        if outcome.tokens > len(outcome.request.prompts):
            token_s.append(_seconds_per_token(outcome))

    return Summary(
        asked=num_asked,
        answered_per_s=num_answered / window.seconds,
        tokens_per_s=num_tokens / window.seconds,
        refused=dict(refused),
        failed=dict(failed),
        ttft_ms=_quantiles(ttft_s),
        token_ms=_quantiles(token_s),
        total_ms=_quantiles(total_s),
        refusal_ms=_quantiles(refusal_s),
    )


def by_class(outcomes: Sequence[Outcome], window: Window) -> dict[str, Summary]:
    """Return the figures of each class that has requests, in the order of the classes' names."""
    outcomes_of: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        outcomes_of.setdefault(outcome.request.priority, []).append(outcome)
    return {name: summary(outcomes_of[name], window) for name in sorted(outcomes_of)}


HEADER = (
    f"{'load':<26}{'asked':>7}{'ok/s':>8}{'tokens/s':>10}{'refused':>9}{'failed':>8}   "
    f"{'TTFT ms p50/p95/p99':<22}{'token ms p50/p99':<18}{'total ms p50/p99':<18}refusal ms p50/p99"
)


def row(name: str, figures: Summary) -> str:
    """Return the figures as a line under `HEADER`."""
    ttft = "/".join(f"{value:.0f}" for value in figures.ttft_ms)
    token = _p50_and_p99(figures.token_ms)
    total = _p50_and_p99(figures.total_ms)
    refusal = _p50_and_p99(figures.refusal_ms)
    num_failed = sum(figures.failed.values())
    return (
        f"{name:<26}{figures.asked:>7}{figures.answered_per_s:>8.1f}{figures.tokens_per_s:>10.0f}"
        f"{figures.num_refused:>9}{num_failed:>8}   "
        f"{ttft:<22}{token:<18}{total:<18}{refusal}"
    )


def _p50_and_p99(quantiles: tuple[float, float, float]) -> str:
    p50, _, p99 = quantiles
    return f"{p50:.1f}/{p99:.1f}"


def _seconds_per_token(outcome: Outcome) -> float:
    """Return the mean seconds between two tokens of an answer."""
    tokens_per_answer = outcome.tokens / len(outcome.request.prompts)
    first_s = outcome.first_token_s or 0.0
    last_s = outcome.last_token_s or 0.0
    return (last_s - first_s) / (tokens_per_answer - 1)


def _quantiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return p50, p95 and p99 in milliseconds. All are nan if there are no values."""
    ordered = sorted(seconds)
    return _quantile(ordered, 0.5), _quantile(ordered, 0.95), _quantile(ordered, 0.99)


def _quantile(ordered: Sequence[float], share: float) -> float:
    if not ordered:
        return float("nan")
    index = min(len(ordered) - 1, int(len(ordered) * share))
    return 1000 * ordered[index]
