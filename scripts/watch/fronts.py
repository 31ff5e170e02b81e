"""What fronts saw of requests: scraped from their `/metrics`, summed, and told as quantiles and
rates."""

import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

from shared.probes import PROBES

TIMES = ("ttft", "inter_token", "queue", "job")
"""The histograms `aios_*_seconds`, by model."""
_BUCKETS = {f"aios_{name}_seconds_bucket": name for name in TIMES}
_COUNTERS = {
    "aios_http_requests_total": "requests",
    "aios_errors_total": "errors",
    "aios_rejections_total": "rejections",
}
_TIMEOUT_S = 2.0

Buckets = Mapping[float, float]
"""How many took at most so many seconds."""


@dataclass(frozen=True)
class FrontCounts:
    """What a front has counted since it started: by counter, probes left out, and by (time,
    model)."""

    counters: Mapping[str, float] = field(default_factory=dict)
    buckets: Mapping[tuple[str, str], Buckets] = field(default_factory=dict)


@dataclass(frozen=True)
class Fronts:
    """One look at some fronts: each one's counts by its URL, and why the others told nothing."""

    counts: Mapping[str, FrontCounts]
    problems: Mapping[str, str]


@dataclass(frozen=True)
class Latencies:
    """Of one model: (median, 95th percentile) in seconds by time, of what ended lately
    (`is_recent`) or, if nothing did, since the fronts started."""

    model: str
    is_recent: bool
    quantiles: Mapping[str, tuple[float, float]]


def scrape(urls: Sequence[str]) -> Fronts:
    """Ask all of them at once."""
    with ThreadPoolExecutor(max_workers=max(1, len(urls))) as pool:
        answers = dict(zip(urls, pool.map(_ask, urls), strict=True))
    counts = {url: answer for url, answer in answers.items() if isinstance(answer, FrontCounts)}
    return Fronts(
        counts, {url: answer for url, answer in answers.items() if isinstance(answer, str)}
    )


def _ask(url: str) -> FrontCounts | str:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/metrics", timeout=_TIMEOUT_S) as answer:
            return parse(answer.read().decode())
    except urllib.error.HTTPError as error:
        return f"answers {error.code} {error.reason}"
    except (OSError, HTTPException, ValueError) as error:
        return f"{getattr(error, 'reason', None) or error}" or type(error).__name__


def parse(text: str) -> FrontCounts:
    """Prometheus's text format. Raises ValueError if it is something else."""
    counters: dict[str, float] = defaultdict(float)
    buckets: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in _COUNTERS and sample.labels.get("route") not in PROBES:
                counters[_COUNTERS[sample.name]] += sample.value
            elif sample.name in _BUCKETS:
                series = buckets[_BUCKETS[sample.name], sample.labels["model"]]
                series[float(sample.labels["le"])] = sample.value
    return FrontCounts(dict(counters), dict(buckets))


def rates(before: Fronts, after: Fronts, elapsed_s: float) -> dict[str, float]:
    """Requests, errors and rejections a second, of the fronts that told both times."""
    found = dict.fromkeys(_COUNTERS.values(), 0.0)
    for old, new in _pairs(before, after):
        for name in found:
            found[name] += (
                max(0.0, new.counters.get(name, 0.0) - old.counters.get(name, 0.0)) / elapsed_s
            )
    return found


def latencies(before: Fronts | None, after: Fronts) -> list[Latencies]:
    """By model, of all fronts together."""
    everything = _sum([counts.buckets for counts in after.counts.values()])
    recent = (
        _sum([_since(old.buckets, new.buckets) for old, new in _pairs(before, after)])
        if before
        else {}
    )
    found = []
    for model in sorted({model for _, model in everything}):
        is_recent = any(_size(recent.get((name, model), {})) for name in TIMES)
        chosen = recent if is_recent else everything
        kept = {name: chosen.get((name, model), {}) for name in TIMES}
        quantiles = {
            name: (quantile(0.5, item), quantile(0.95, item))
            for name, item in kept.items()
            if _size(item)
        }
        found.append(Latencies(model, is_recent, quantiles))
    return found


def quantile(share: float, buckets: Buckets) -> float:
    """As Prometheus's histogram_quantile: even between a bucket's bounds, and the last finite bound
    above that."""
    rank, low_s, below = share * _size(buckets), 0.0, 0.0
    for bound_s, count in sorted(buckets.items()):
        if bound_s == float("inf"):
            break
        if count >= rank and count > below:
            return low_s + (bound_s - low_s) * (rank - below) / (count - below)
        low_s, below = bound_s, count
    return low_s


def _size(buckets: Buckets) -> float:
    return buckets.get(float("inf"), 0.0)


def _pairs(before: Fronts, after: Fronts) -> list[tuple[FrontCounts, FrontCounts]]:
    return [
        (before.counts[url], counts) for url, counts in after.counts.items() if url in before.counts
    ]


def _since(
    old: Mapping[tuple[str, str], Buckets], new: Mapping[tuple[str, str], Buckets]
) -> dict[tuple[str, str], Buckets]:
    """What came to `old`; all of a front's that has started anew."""
    found: dict[tuple[str, str], Buckets] = {}
    for key, buckets in new.items():
        earlier = old.get(key, {})
        is_same = _size(earlier) <= _size(buckets)
        found[key] = (
            {bound: count - earlier.get(bound, 0.0) for bound, count in buckets.items()}
            if is_same
            else buckets
        )
    return found


def _sum(parts: Sequence[Mapping[tuple[str, str], Buckets]]) -> dict[tuple[str, str], Buckets]:
    sums: dict[tuple[str, str], dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for part in parts:
        for key, buckets in part.items():
            for bound, count in buckets.items():
                sums[key][bound] += count
    return {key: dict(buckets) for key, buckets in sums.items()}
