"""A panel of the dashboard, and functions that write PromQL for its queries."""

from dataclasses import dataclass

from shared.telemetry.metrics import PROBES

OF_MODEL = 'model=~"$model"'
"""The label matcher for the models that are chosen above the dashboard."""
OF_POOL = 'pool=~"$pool"'
"""The label matcher for the pools that are chosen above the dashboard."""
NOT_PROBES = f'route!~"{"|".join(PROBES)}"'
_INTERVAL = "$__rate_interval"
_PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Panel:
    """A graph of several queries.

    `unit` is a unit's name in Grafana. `queries` are PromQL by legend.
    """

    title: str
    unit: str
    description: str
    queries: dict[str, str]
    is_stacked: bool = False


def rate(name: str, by: str = "", labels: str = "") -> str:
    """Return the rate of a counter a second, summed by the labels `by`.

    `labels` are the label matchers of the counter.
    """
    per_second = f"rate({_selector(name, labels)}[{_INTERVAL}])"
    if by:
        return f"sum by ({by}) ({per_second})"
    return f"sum({per_second})"


def per_minute(name: str, by: str = "", labels: str = "") -> str:
    """Return the rate of a counter a minute, summed by the labels `by`."""
    return f"60 * {rate(name, by, labels)}"


def total(name: str, by: str, labels: str = "") -> str:
    """Return the sum of a gauge by the labels `by`."""
    return f"sum by ({by}) ({_selector(name, labels)})"


def maximum(name: str, by: str, labels: str = "") -> str:
    """Return the maximum of a gauge by the labels `by`."""
    return f"max by ({by}) ({_selector(name, labels)})"


def quantiles(name: str, by: str = "model", labels: str = OF_MODEL) -> dict[str, str]:
    """Return the median and the 95th and 99th percentile of a histogram, by legend."""
    buckets = rate(f"{name}_bucket", f"le, {by}", labels)
    queries = {}
    for percentile in _PERCENTILES:
        legend = f"p{percentile} {{{{{by}}}}}"
        queries[legend] = f"histogram_quantile(0.{percentile}, {buckets})"
    return queries


def percentile_95(name: str, by: str, labels: str = "") -> str:
    """Return the 95th percentile of a histogram by the label `by`."""
    return f"histogram_quantile(0.95, {rate(f'{name}_bucket', f'le, {by}', labels)})"


def mean(name: str, labels: str = OF_MODEL) -> str:
    """Return the mean of a histogram's values for each model."""
    total = rate(f"{name}_sum", "model", labels)
    count = rate(f"{name}_count", "model", labels)
    return f"{total} / {count}"


def share(part: str, whole: str) -> str:
    """Return the ratio of two counters' rates for each model."""
    return f"{rate(part, 'model', OF_MODEL)} / {rate(whole, 'model', OF_MODEL)}"


def latency(title: str, name: str, description: str) -> Panel:
    """Return a panel with the quantiles of a histogram of seconds."""
    return Panel(title, "s", description, quantiles(name))


def _selector(name: str, labels: str) -> str:
    if labels:
        return f"{name}{{{labels}}}"
    return name
