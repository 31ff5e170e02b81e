"""What the code exports, as PromQL sees it: every series with its labels, and the values of labels
that are few."""

from dataclasses import dataclass
from typing import Literal

from redis.asyncio import Redis

from api.app import TABLE
from shared.broker import Broker
from shared.errors import FleetError, codes_below
from shared.janitor import Janitor
from shared.messages import PRIORITIES
from shared.metric_kinds import MetricInfo
from shared.metrics import JanitorMetrics, Metrics, WorkerMetrics
from shared.settings import REPO_ROOT
from worker.metrics_reporter import STATES

TARGET = frozenset({"job", "instance"})
"""Labels that Prometheus adds to whatever it scrapes."""
FREE = TARGET | {"model", "pool", "status", "le", "proxy", "server"}
"""Labels whose values nobody can list."""


@dataclass(frozen=True)
class Series:
    kind: Literal["counter", "gauge"]
    labels: frozenset[str]


def exported() -> dict[str, Series]:
    """By the names that are scraped: of a histogram the three that it is told as."""
    sheets = (Metrics().sheet, WorkerMetrics().sheet, JanitorMetrics().sheet)
    return {
        name: series
        for sheet in sheets
        for item in sheet.listed
        for name, series in _told(item).items()
    }


def _told(item: MetricInfo) -> dict[str, Series]:
    labels = TARGET | set(item.labels)
    if item.kind != "histogram":
        return {item.name: Series(item.kind, labels)}
    suffixes = {"_bucket": labels | {"le"}, "_sum": labels, "_count": labels}
    return {item.name + suffix: Series("counter", kept) for suffix, kept in suffixes.items()}


OTHERS = {
    "up": Series("gauge", TARGET),
    "ALERTS": Series("gauge", TARGET | {"alertname", "alertstate", "severity", "model"}),
    "haproxy_server_status": Series("gauge", TARGET | {"proxy", "server", "state"}),
    "haproxy_backend_redispatch_warnings_total": Series("counter", TARGET | {"proxy"}),
}
"""What Prometheus itself and the balancer tell."""

_BROKER = Broker(Redis(port=1))  # asked for nothing
_CODES = codes_below(600) | {FleetError.code}
_ROUTES = {entry.route.path for entry in TABLE.entries}
_VALUES: dict[str, set[str]] = {
    "class": set(PRIORITIES),
    "code": set(_CODES),
    "reason": set(_CODES),
    "outcome": {"done", *_CODES},
    "call": {path.stem for path in (REPO_ROOT / "shared" / "lua").glob("*.lua")} - {"common"},
    "sweep": set(Janitor(_BROKER).sweeps),
    "route": {*_ROUTES, "unmatched"},
    "endpoint": {*_ROUTES, "unmatched"},
    "alertstate": {"pending", "firing"},
}
_VALUES_OF: dict[tuple[str, str], set[str]] = {
    ("aios_queue_depth", "state"): {"queued", "running"},
    ("aios:queue_depth:max", "state"): {"queued", "running"},
    ("aios_workers", "state"): set(STATES),
    ("aios_worker_state", "state"): set(STATES),
    ("aios_workers_memory_bytes", "kind"): {"host", "device"},
    ("aios_worker_device_memory_bytes", "kind"): {"allocated", "total"},
    ("aios_replays_total", "kind"): {"key", "cache", "resume"},
    ("haproxy_server_status", "state"): {"UP", "DOWN", "MAINT", "DRAIN", "NOLB"},
}


def values(series: str, label: str) -> set[str] | None:
    """Those that a label can have; None if nobody knows, or if the label is not listed here."""
    return _VALUES_OF.get((series, label), _VALUES.get(label))
