"""The one list of metric names. A process makes its own `Metrics` and passes it down; nothing registers globally.

Labels are bounded: route templates, announced models, error codes; never paths, prompts or ids of requests.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_BUCKETS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """What a front counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "aios_http_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "aios_http_request_seconds",
            "Time from a request's first byte to the end of its answer.",
            ["route"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.prompt_tokens = Counter("aios_prompt_tokens", "Tokens read.", ["model"], registry=self.registry)
        self.cached_prompt_tokens = Counter(
            "aios_cached_prompt_tokens", "Of the tokens read, those computed before.", ["model"], registry=self.registry
        )
        self.completion_tokens = Counter("aios_completion_tokens", "Tokens written.", ["model"], registry=self.registry)
        self.jobs = Counter("aios_jobs", "Jobs ended, as seen here.", ["model", "outcome"], registry=self.registry)
        self.queue_depth = Gauge(
            "aios_queue_depth", "Jobs in the whole fleet: queued, running.", ["model", "state"], registry=self.registry
        )

    def render(self) -> bytes:
        """The exposition text, of type `CONTENT_TYPE`."""
        return generate_latest(self.registry)


class JanitorMetrics:
    """What the background role counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.found = Counter(
            "aios_janitor_found", "Things the janitor put right, by what they were.", ["what"], registry=self.registry
        )
        self.sweeps = Counter("aios_janitor_sweeps", "Sweeps done.", ["sweep"], registry=self.registry)
