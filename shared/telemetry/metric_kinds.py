"""The kinds of metrics that `shared/telemetry/metrics.py` lists.

A metric is counted as things happen, collected when it is scraped, or another name of one of these.
Each process has its own registry; nothing registers globally.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shared.telemetry.histogram import BucketHistogram

# Otherwise every counter and histogram would have one more series, `_created`, which is not used.
disable_created_metrics()  # type: ignore[no-untyped-call]

Kind = Literal["counter", "gauge", "histogram"]
Values = Mapping[tuple[str, ...], float]
BucketHistograms = Mapping[tuple[str, ...], BucketHistogram]
_C = TypeVar("_C", bound=Collector)
Source = Counter | Gauge | Histogram | Collector


@dataclass(frozen=True)
class MetricInfo:
    """A metric as it is exported. The name of a counter ends in `_total`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


class MetricSheet:
    """The metrics of one process, as a list and as a registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.listed: list[MetricInfo] = []

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        self._list(name, "counter", labels, meaning)
        return Counter(name, meaning, labels, registry=self.registry)

    def gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        self._list(name, "gauge", labels, meaning)
        return Gauge(name, meaning, labels, registry=self.registry)

    def histogram(
        self, name: str, meaning: str, *labels: str, bounds: tuple[float, ...]
    ) -> Histogram:
        self._list(name, "histogram", labels, meaning)
        return Histogram(name, meaning, labels, buckets=bounds, registry=self.registry)

    def collected(
        self, name: str, kind: Literal["counter", "gauge"], meaning: str, *labels: str
    ) -> "CollectedMetric":
        return self._add(CollectedMetric(self._list(name, kind, labels, meaning)))

    def collected_histogram(self, name: str, meaning: str, *labels: str) -> "CollectedHistogram":
        return self._add(CollectedHistogram(self._list(name, "histogram", labels, meaning)))

    def alias(
        self,
        name: str,
        source: Source,
        meaning: str,
        labels: Mapping[str, str] | None = None,
        where: Callable[[Mapping[str, str]], bool] = lambda labels: True,
    ) -> None:
        """Add another name of `source`, for the series for which `where` holds.

        `labels` are the labels of the source that stay, with their new names. The values are summed
        over all other labels.
        """
        new_names = labels or {}
        [family] = source.collect()
        listed = self._list(name, _kind(family), tuple(new_names.values()), meaning)
        self._add(_Alias(listed, source, new_names, where))

    def render(self) -> bytes:
        """Return the exposition text, of type `CONTENT_TYPE` in `shared.telemetry.metrics`."""
        return generate_latest(self.registry)

    def _list(self, name: str, kind: Kind, labels: tuple[str, ...], meaning: str) -> MetricInfo:
        listed = MetricInfo(name, kind, labels, meaning)
        self.listed.append(listed)
        return listed

    def _add(self, collector: _C) -> _C:
        self.registry.register(collector)
        return collector


class CollectedMetric(Collector):
    """A counter or gauge whose values are read when it is scraped.

    `read` returns a number for each set of label values.
    """

    def __init__(self, listed: MetricInfo) -> None:
        self._listed = listed
        self.read: Callable[[], Values] = dict

    def show(self, values: Values) -> None:
        """Show these values from now on."""
        self.read = lambda: values

    def collect(self) -> Iterable[Metric]:
        listed = self._listed
        kind = CounterMetricFamily if listed.kind == "counter" else GaugeMetricFamily
        family = kind(listed.name, listed.meaning, labels=listed.labels)
        for labels, value in self.read().items():
            family.add_metric(labels, value)
        yield family


class CollectedHistogram(Collector):
    """A histogram that is read when it is scraped.

    `read` returns a `BucketHistogram` for each set of label values.
    """

    def __init__(self, listed: MetricInfo) -> None:
        self._listed = listed
        self.read: Callable[[], BucketHistograms] = dict

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(
            self._listed.name, self._listed.meaning, labels=self._listed.labels
        )
        for labels, histogram in self.read().items():
            family.add_metric(labels, histogram.cumulative(), histogram.total)
        yield family


class _Alias(Collector):
    """Another name of a metric, computed from its series when it is scraped."""

    def __init__(
        self,
        listed: MetricInfo,
        source: Source,
        labels: Mapping[str, str],
        where: Callable[[Mapping[str, str]], bool],
    ) -> None:
        self._listed = listed
        self._source = source
        self._labels = labels
        self._where = where

    def collect(self) -> Iterable[Metric]:
        name = self._listed.name.removesuffix("_total")
        for family in self._source.collect():
            sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
            for sample in family.samples:
                if not self._where(sample.labels):
                    continue
                labels = [(new, sample.labels[old]) for old, new in self._labels.items()]
                # The buckets of a histogram stay apart by their bound.
                if "le" in sample.labels:
                    labels.append(("le", sample.labels["le"]))
                # A counter's samples end in _total, a histogram's in _bucket, _count and _sum.
                suffix = sample.name.removeprefix(family.name)
                sums[suffix, tuple(labels)] += sample.value

            metric = Metric(name, self._listed.meaning, family.type)
            for (suffix, summed_labels), value in sums.items():
                metric.add_sample(name + suffix, dict(summed_labels), value)
            yield metric


def _kind(family: Metric) -> Kind:
    kinds: dict[str, Kind] = {"counter": "counter", "gauge": "gauge", "histogram": "histogram"}
    return kinds[family.type]
