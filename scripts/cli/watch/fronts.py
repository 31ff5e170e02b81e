"""The requests that fronts saw: scraped from their `/metrics`, as rates and quantiles."""

import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

from shared.telemetry.metrics import PROBES

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
"""The number of those that took at most so many seconds."""


@dataclass(frozen=True)
class FrontCounts:
    """The counts of a front since it started: by counter, without probes, and by (time, model)."""

    counters: Mapping[str, float] = field(default_factory=dict)
    buckets: Mapping[tuple[str, str], Buckets] = field(default_factory=dict)


@dataclass(frozen=True)
class Fronts:
    """One look at some fronts: the counts of each by its URL, and the problems of the others."""

    counts: Mapping[str, FrontCounts]
    problems: Mapping[str, str]


@dataclass(frozen=True)
class Latencies:
    """The median and the 95th percentile of each time of a model, in seconds.

    They are of what ended lately (`is_recent`) or, if nothing did, since the fronts started.
    """

    model: str
    is_recent: bool
    quantiles: Mapping[str, tuple[float, float]]


def scrape(urls: Sequence[str]) -> Fronts:
    """Ask all fronts at once."""
    counts: dict[str, FrontCounts] = {}
    problems: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=max(1, len(urls))) as pool:
        for url, answer in zip(urls, pool.map(_ask, urls), strict=True):
            if isinstance(answer, str):
                problems[url] = answer
            else:
                counts[url] = answer
    return Fronts(counts, problems)


def _ask(url: str) -> FrontCounts | str:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/metrics", timeout=_TIMEOUT_S) as answer:
            return parse(answer.read().decode())
    except urllib.error.HTTPError as error:
        return f"answers {error.code} {error.reason}"
    except (OSError, HTTPException, ValueError) as error:
        return f"{getattr(error, 'reason', None) or error}" or type(error).__name__


def parse(text: str) -> FrontCounts:
    """Read Prometheus's text format. Raise ValueError if it is something else."""
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
    """Return requests, errors and rejections a second, of the fronts that answered both times."""
    rates = dict.fromkeys(_COUNTERS.values(), 0.0)
    for old, new in _pairs(before, after):
        for name in rates:
            count = new.counters.get(name, 0.0) - old.counters.get(name, 0.0)
            rates[name] += max(0.0, count) / elapsed_s
    return rates


def latencies(before: Fronts | None, after: Fronts) -> list[Latencies]:
    """Return the latencies of each model, of all fronts together."""
    everything = _sum([counts.buckets for counts in after.counts.values()])
    recent: dict[tuple[str, str], Buckets] = {}
    if before:
        recent = _sum([_since(old.buckets, new.buckets) for old, new in _pairs(before, after)])
    found = []
    for model in sorted({model for _, model in everything}):
        is_recent = any(_size(recent.get((name, model), {})) for name in TIMES)
        chosen = recent if is_recent else everything
        quantiles = {}
        for name in TIMES:
            buckets = chosen.get((name, model), {})
            if _size(buckets):
                quantiles[name] = (quantile(0.5, buckets), quantile(0.95, buckets))
        found.append(Latencies(model, is_recent, quantiles))
    return found


def quantile(share: float, buckets: Buckets) -> float:
    """Return a quantile as Prometheus's histogram_quantile does.

    Values are taken to lie evenly between a bucket's bounds, and at the last finite bound above it.
    """
    rank = share * _size(buckets)
    low_s = 0.0
    below = 0.0
    for bound_s, count in sorted(buckets.items()):
        if bound_s == float("inf"):
            break
        if count >= rank and count > below:
            return low_s + (bound_s - low_s) * (rank - below) / (count - below)
        low_s = bound_s
        below = count
    return low_s


def _size(buckets: Buckets) -> float:
    return buckets.get(float("inf"), 0.0)


def _pairs(before: Fronts, after: Fronts) -> list[tuple[FrontCounts, FrontCounts]]:
    pairs = []
    for url, counts in after.counts.items():
        if url in before.counts:
            pairs.append((before.counts[url], counts))
    return pairs


def _since(
    old: Mapping[tuple[str, str], Buckets], new: Mapping[tuple[str, str], Buckets]
) -> dict[tuple[str, str], Buckets]:
    """Return what was added to `old`; all that a front has that was started again since."""
    added: dict[tuple[str, str], Buckets] = {}
    for key, buckets in new.items():
        earlier = old.get(key, {})
        added[key] = buckets
        if _size(earlier) <= _size(buckets):
            added[key] = {
                bound: count - earlier.get(bound, 0.0) for bound, count in buckets.items()
            }
    return added


def _sum(parts: Sequence[Mapping[tuple[str, str], Buckets]]) -> dict[tuple[str, str], Buckets]:
    sums: dict[tuple[str, str], dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for part in parts:
        for key, buckets in part.items():
            for bound, count in buckets.items():
                sums[key][bound] += count
    return {key: dict(buckets) for key, buckets in sums.items()}
