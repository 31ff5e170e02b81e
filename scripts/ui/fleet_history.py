"""The figures of a fleet over the last minutes, as the page *Fleet* has asked for them."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from scripts.cli.watch.fronts import FrontCounts, Fronts, Latencies, latencies, parse
from scripts.ui.client import Body

_KEPT_S = 600.0
_MOST_SAMPLES = 400
# Latencies are those of so many seconds.
_RECENT_S = 15.0
_SHOWN_TIMES = {"ttft": "First token, p95, s", "job": "Job, p95, s"}
_GAUGES = {
    ("aios_queue_depth", "queued"): "Waiting",
    ("aios_queue_depth", "running"): "Running",
    ("aios_tokens_per_second", ""): "Tokens/s",
}
"""The figures of a front, by the names of its metrics and their states."""
KEYS_AND_VALUES = "Keys and values, %"

Curves = Mapping[str, list[float | None]]


@dataclass(frozen=True)
class Sample:
    """The figures at one time, by their names and models; and the counts of the front by then."""

    at: float
    figures: Mapping[tuple[str, str], float]
    counts: FrontCounts


class FleetHistory:
    """The samples of the last ten minutes. `times` are the latest latencies, by model."""

    def __init__(self) -> None:
        self.times: list[Latencies] = []
        self._samples: deque[Sample] = deque(maxlen=_MOST_SAMPLES)

    def is_due(self, every_s: float) -> bool:
        """Return whether the last sample is older than that: several people may look at once."""
        return not self._samples or time.monotonic() - self._samples[-1].at >= every_s

    def add(self, metrics: str, fleet: Body | None) -> None:
        """Take a sample of a front's `/metrics` and, where the key opens it, of `/v1/fleet`."""
        now = time.monotonic()
        while self._samples and now - self._samples[0].at > _KEPT_S:
            self._samples.popleft()
        counts = parse(metrics)
        self.times = latencies(self._before(now), _fronts(counts))
        figures = _gauges_in(metrics)
        for one in self.times:
            for name, title in _SHOWN_TIMES.items():
                if one.is_recent and name in one.quantiles:
                    figures[title, one.model] = one.quantiles[name][1]
        if fleet is not None:
            figures.update(_keys_and_values_of(fleet))
        self._samples.append(Sample(now, figures, counts))

    def _before(self, now: float) -> Fronts | None:
        """Return the counts of some seconds ago, of the first sample if all are younger."""
        before = None
        for sample in self._samples:
            if before is None or now - sample.at >= _RECENT_S:
                before = sample.counts
        return None if before is None else _fronts(before)

    def names(self) -> list[str]:
        """Return the names of the figures that there are, in the order in which they are shown."""
        known: set[str] = set()
        for sample in self._samples:
            known.update(name for name, _ in sample.figures)
        ordered = [*_GAUGES.values(), *_SHOWN_TIMES.values(), KEYS_AND_VALUES]
        return [name for name in ordered if name in known]

    def curves(self, name: str) -> Curves:
        """Return a figure over time: for each model its values, None where it is not known.

        The curve "s" has the seconds from the last sample, 0 and below. Models of which the figure
        was 0 all the time are left out.
        """
        models = set()
        for sample in self._samples:
            for figure, model in sample.figures:
                if figure == name and sample.figures[figure, model] > 0:
                    models.add(model)
        curves: dict[str, list[float | None]] = {"s": []}
        for sample in self._samples:
            curves["s"].append(round(sample.at - self._samples[-1].at, 1))
            for model in sorted(models):
                curves.setdefault(model, []).append(sample.figures.get((name, model)))
        return curves

    def latest(self, name: str) -> float:
        """Return the latest sum of a figure over all models."""
        if not self._samples:
            return 0.0
        figures = self._samples[-1].figures
        return sum(value for (figure, _), value in figures.items() if figure == name)


def _fronts(counts: FrontCounts) -> Fronts:
    return Fronts({"front": counts}, {})


def _gauges_in(metrics: str) -> dict[tuple[str, str], float]:
    figures = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            title = _GAUGES.get((sample.name, sample.labels.get("state", "")))
            if title is not None:
                figures[title, sample.labels["model"]] = sample.value
    return figures


def _keys_and_values_of(fleet: Body) -> dict[tuple[str, str], float]:
    """Return how much of the memory for keys and values is used, by model, over all workers."""
    used: dict[str, int] = {}
    pages: dict[str, int] = {}
    for worker in fleet["workers"]:
        for model in worker["models"]:
            used[model["id"]] = used.get(model["id"], 0) + model["kv_used"]
            pages[model["id"]] = pages.get(model["id"], 0) + model["kv_pages"]
    figures = {}
    for name, total in pages.items():
        if total:
            figures[KEYS_AND_VALUES, name] = 100 * used[name] / total
    return figures
