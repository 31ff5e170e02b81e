"""Scrape the `/metrics` of fronts, and compute the rates and quantiles of their requests."""

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
"""The names of the histograms `aios_*_seconds`, which have a label `model`."""
_BUCKETS = {f"aios_{name}_seconds_bucket": name for name in TIMES}
_COUNTERS = {
    "aios_http_requests_total": "requests",
    "aios_errors_total": "errors",
    "aios_rejections_total": "rejections",
}
_TIMEOUT_S = 2.0

Buckets = Mapping[float, float]
"""The cumulative buckets of a histogram: for each upper bound in seconds, the count up to it."""


@dataclass(frozen=True)
class FrontCounts:
    """The counts of a front since it started.

    `counters` are by name and leave out the probes (`/healthz` and the like). `buckets` are by the
    name of a time, as in `TIMES`, and by model.
    """

    counters: Mapping[str, float] = field(default_factory=dict)
    buckets: Mapping[tuple[str, str], Buckets] = field(default_factory=dict)


@dataclass(frozen=True)
class Fronts:
    """One scrape of several fronts.

    `counts` are those of the fronts that answered, and `problems` those of the others, by URL.
    """

    counts: Mapping[str, FrontCounts]
    problems: Mapping[str, str]


@dataclass(frozen=True)
class Latencies:
    """The median and the 95th percentile of each time of a model, in seconds.

    They cover the requests since the scrape before (`is_recent`) or, if there were none, those
    since the fronts started.
    """

    model: str
    is_recent: bool
    quantiles: Mapping[str, tuple[float, float]]


def scrape(urls: Sequence[str]) -> Fronts:
    """Scrape all fronts at the same time, each with a timeout of two seconds."""
    counts: dict[str, FrontCounts] = {}
    problems: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=max(1, len(urls))) as pool:
        for url, result in zip(urls, pool.map(_scrape, urls), strict=True):
            if isinstance(result, str):
                problems[url] = result
            else:
                counts[url] = result
    return Fronts(counts, problems)


def _scrape(url: str) -> FrontCounts | str:
    """Return the counts of one front, or its problem."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/metrics", timeout=_TIMEOUT_S) as response:
            return parse(response.read().decode())
    except urllib.error.HTTPError as error:
        return f"answers {error.code} {error.reason}"
    except (OSError, HTTPException, ValueError) as error:
        # A URLError holds what happened in `reason`, and some errors have no text at all.
        reason = getattr(error, "reason", None) or error
        return str(reason) or type(error).__name__


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
    """Return the requests, errors and rejections a second of the fronts in both scrapes.

    `elapsed_s` are the seconds between the scrapes.
    """
    rates: dict[str, float] = {}
    for name in _COUNTERS.values():
        rates[name] = 0.0
    for old, new in _pairs(before, after):
        for name in rates:
            count = new.counters.get(name, 0.0) - old.counters.get(name, 0.0)
            # The counters of a front that was started again begin at 0.
            rates[name] += max(0.0, count) / elapsed_s
    return rates


def latencies(before: Fronts | None, after: Fronts) -> list[Latencies]:
    """Return the latencies of each model over all fronts, in the order of the models' names."""
    everything = _sum([counts.buckets for counts in after.counts.values()])
    recent: dict[tuple[str, str], Buckets] = {}
    if before:
        recent = _sum([_since(old.buckets, new.buckets) for old, new in _pairs(before, after)])

    by_model = []
    for model in sorted({model for _, model in everything}):
        quantiles = _quantiles(model, recent)
        is_recent = bool(quantiles)
        if not is_recent:
            quantiles = _quantiles(model, everything)
        by_model.append(Latencies(model, is_recent, quantiles))
    return by_model


def _quantiles(
    model: str, histograms: Mapping[tuple[str, str], Buckets]
) -> dict[str, tuple[float, float]]:
    """Return the median and the 95th percentile of those times of a model that have a count."""
    quantiles = {}
    for name in TIMES:
        buckets = histograms.get((name, model), {})
        if _size(buckets):
            quantiles[name] = (quantile(0.5, buckets), quantile(0.95, buckets))
    return quantiles


def quantile(share: float, buckets: Buckets) -> float:
    """Return a quantile in seconds, as histogram_quantile of Prometheus does.

    The values of a bucket are taken to lie evenly between its bounds. Those above the last finite
    bound are taken to lie at that bound.
    """
    rank = share * _size(buckets)
    lower_bound_s = 0.0
    count_below = 0.0
    for bound_s, count in sorted(buckets.items()):
        if bound_s == float("inf"):
            break
        if count >= rank and count > count_below:
            part = (rank - count_below) / (count - count_below)
            return lower_bound_s + (bound_s - lower_bound_s) * part
        lower_bound_s = bound_s
        count_below = count
    return lower_bound_s


def _size(buckets: Buckets) -> float:
    """Return the count of all values of a histogram."""
    return buckets.get(float("inf"), 0.0)


def _pairs(before: Fronts, after: Fronts) -> list[tuple[FrontCounts, FrontCounts]]:
    """Return the counts before and after of each front that is in both scrapes."""
    pairs = []
    for url, counts in after.counts.items():
        if url in before.counts:
            pairs.append((before.counts[url], counts))
    return pairs


def _since(
    old: Mapping[tuple[str, str], Buckets], new: Mapping[tuple[str, str], Buckets]
) -> dict[tuple[str, str], Buckets]:
    """Return the counts that were added to `old`.

    A histogram that has shrunk is that of a front that was started again: all of it is new.
    """
    added: dict[tuple[str, str], Buckets] = {}
    for key, buckets in new.items():
        earlier = old.get(key, {})
        if _size(earlier) > _size(buckets):
            added[key] = buckets
            continue
        difference = {}
        for bound_s, count in buckets.items():
            difference[bound_s] = count - earlier.get(bound_s, 0.0)
        added[key] = difference
    return added


def _sum(fronts: Sequence[Mapping[tuple[str, str], Buckets]]) -> dict[tuple[str, str], Buckets]:
    """Return the histograms of several fronts as one: equal buckets are added."""
    sums: dict[tuple[str, str], dict[float, float]] = {}
    for histograms in fronts:
        for key, buckets in histograms.items():
            total = sums.setdefault(key, {})
            for bound_s, count in buckets.items():
                total[bound_s] = total.get(bound_s, 0.0) + count
    return dict(sums)
