"""The one list of metric names.

A process makes its own metrics and passes them down; nothing registers globally. Labels are
bounded: route templates, announced models and pools, classes, error codes, names of scripts; never
paths, prompts, tenants or ids. Tasks are those of the table. The numbers of a model in a worker are listed in
`shared/telemetry/model_load.py`. `python -m scripts.tools.metrics_page` makes docs/metrics.md from
both lists.
"""

from shared.errors import codes_from
from shared.telemetry.histogram import BucketHistogram
from shared.telemetry.metric_kinds import CollectedMetric, MetricInfo, MetricSheet
from shared.telemetry.model_load import NUMBERS

PROBES = ("/healthz", "/health", "/api/health", "/readyz", "/metrics")
"""Paths of probes and scrapers. Logs, traces, rates and dashboards leave them out."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_BOUNDS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ProcessMetrics:
    """The metrics of any process, a front or a worker."""

    def __init__(self, sheet: MetricSheet) -> None:
        self.redis_calls = sheet.collected_histogram(
            "aios_redis_call_seconds", "Round trips of scripts to Redis.", "call"
        )
        self.memory = sheet.collected(
            "aios_process_memory_bytes", "gauge", "Memory of the machine that the process holds."
        )
        self.started = sheet.collected(
            "aios_process_start_time_seconds", "gauge", "When the process began, in Unix time."
        )
        self.lag = sheet.collected(
            "aios_event_loop_lag_seconds", "gauge", "How late the event loop's last turn came."
        )


_FLEET = {
    "queue_depth": MetricInfo(
        "aios_queue_depth", "gauge", ("model", "state"), "Jobs, queued and running."
    ),
    "waiting": MetricInfo("aios_queue_waiting", "gauge", ("model", "class"), "Jobs that wait."),
    "oldest": MetricInfo(
        "aios_queue_oldest_seconds",
        "gauge",
        ("model", "class"),
        "How long the oldest job has waited.",
    ),
    "work_seconds": MetricInfo(
        "aios_queue_work_seconds",
        "gauge",
        ("model", "class"),
        "Cost of the jobs that wait, divided by what the live workers get done in a second.",
    ),
    "queue_bytes": MetricInfo(
        "aios_queue_bytes", "gauge", ("model",), "Bytes of the jobs that wait."
    ),
    "work_rate": MetricInfo(
        "aios_work_per_second",
        "gauge",
        ("model",),
        "Cost that the live workers get done in a second when busy.",
    ),
    "dead_jobs": MetricInfo(
        "aios_dead_jobs", "gauge", (), "Jobs given up because their workers crashed."
    ),
    "workers": MetricInfo("aios_workers", "gauge", ("pool", "state"), "Workers alive."),
    "model_workers": MetricInfo(
        "aios_model_workers", "gauge", ("model", "pool"), "Workers that are ready for the model."
    ),
    "active_models": MetricInfo(
        "aios_active_models", "gauge", (), "Models that some worker is ready for."
    ),
    "popularity": MetricInfo(
        "aios_model_popularity", "gauge", ("model",), "Jobs a minute, an average that decays."
    ),
    "memory": MetricInfo(
        "aios_workers_memory_bytes",
        "gauge",
        ("kind",),
        "Memory of all workers: `host` or `device`.",
    ),
    "redis_up": MetricInfo(
        "aios_redis_up", "gauge", (), "1 when Redis answered this front just now, 0 when not."
    ),
}
"""Gauges of the whole fleet.

Their keys are those of their values in `shared/fleet/sums.py` and `api/exporter.py`.
"""


class FleetMetrics:
    """The metrics of the whole fleet, which every front reads from Redis when it is scraped.

    All are in `by_name`, by the names of their values.
    """

    def __init__(self, sheet: MetricSheet) -> None:
        self.by_name: dict[str, CollectedMetric] = {}
        for key, gauge in _FLEET.items():
            self.by_name[key] = sheet.collected(gauge.name, "gauge", gauge.meaning, *gauge.labels)
        for key, number in NUMBERS.items():
            total = number.total
            if total is not None:
                self.by_name[key] = sheet.collected(total.metric, "gauge", total.meaning, "model")
        self._add_aliases(sheet)

    def _add_aliases(self, sheet: MetricSheet) -> None:
        """Add the names that these metrics have in older documents."""
        by_name = self.by_name
        by_model = {"model": "model"}
        sheet.alias(
            "active_models", by_name["active_models"], "Another name of aios_active_models."
        )
        sheet.alias(
            "memory_bytes_used",
            by_name["memory"],
            "Another name of aios_workers_memory_bytes, both kinds.",
        )
        sheet.alias(
            "tokens_per_second",
            by_name["tokens_per_s"],
            "Another name of aios_tokens_per_second.",
            by_model,
        )
        sheet.alias(
            "compile_seconds",
            by_name["warm_up_s"],
            "Another name of aios_model_warm_up_seconds.",
            by_model,
        )


class Metrics:
    """The metrics of a front."""

    def __init__(self) -> None:
        self.sheet = sheet = MetricSheet()
        self.registry = sheet.registry
        self.render = sheet.render
        self.process = ProcessMetrics(sheet)
        self.fleet = FleetMetrics(sheet)
        self.requests = sheet.counter(
            "aios_http_requests_total",
            "Requests ended; 499 are callers who left before an answer.",
            "route",
            "method",
            "status",
        )
        self.latency = sheet.histogram(
            "aios_http_request_seconds",
            "Time from a request's first byte to the end of its answer.",
            "route",
            bounds=_LATENCY_BOUNDS_S,
        )
        self.in_progress = sheet.gauge("aios_http_requests_in_progress", "Requests being answered.")
        self.errors = sheet.counter(
            "aios_errors_total",
            "Answers and streams that ended in an error, probes left out.",
            "code",
        )
        self.admissions = sheet.counter(
            "aios_admissions_total", "Requests that became work.", "model", "class"
        )
        self.ab_requests = sheet.counter(
            "aios_ab_requests_total",
            "Requests of experiments that became work.",
            "experiment",
            "arm",
        )
        self.rejections = sheet.counter(
            "aios_rejections_total",
            "Requests for work that were refused before they became any.",
            "reason",
        )
        self.replays = sheet.counter(
            "aios_replays_total",
            "Answers told again: found by `key`, by `cache`, or a stream's `resume`.",
            "kind",
        )
        self.prompt_tokens = sheet.counter(
            "aios_prompt_tokens_total", "Tokens read for jobs that were done.", "model"
        )
        self.cached_prompt_tokens = sheet.counter(
            "aios_cached_prompt_tokens_total", "Of the tokens read, those computed before.", "model"
        )
        self.completion_tokens = sheet.counter(
            "aios_completion_tokens_total", "Tokens written by jobs that were done.", "model"
        )
        self.jobs = sheet.counter(
            "aios_jobs_total", "Jobs ended, of those that this front took.", "model", "outcome"
        )
        self.first_token = sheet.histogram(
            "aios_ttft_seconds",
            "From a job's submission to its first token.",
            "model",
            bounds=_LATENCY_BOUNDS_S,
        )
        self._gaps: dict[tuple[str, ...], BucketHistogram] = {}
        inter_token = sheet.collected_histogram(
            "aios_inter_token_seconds",
            "Between a job's events, divided by the tokens that came; once an event.",
            "model",
        )
        inter_token.read = lambda: self._gaps
        self.queue_wait = sheet.histogram(
            "aios_queue_seconds",
            "From a job's submission to a worker's start.",
            "model",
            bounds=_LATENCY_BOUNDS_S,
        )
        self.prefill = sheet.histogram(
            "aios_prefill_seconds",
            "From a worker's start to the first token.",
            "model",
            bounds=_LATENCY_BOUNDS_S,
        )
        self.decode = sheet.histogram(
            "aios_decode_seconds",
            "From a job's first token to its end.",
            "model",
            bounds=_LATENCY_BOUNDS_S,
        )
        self.job_time = sheet.histogram(
            "aios_job_seconds",
            "From a job's submission to its end.",
            "model",
            bounds=_LATENCY_BOUNDS_S,
        )
        self.task_time = sheet.histogram(
            "aios_task_seconds",
            "From a job's submission to its end, by its task.",
            "task",
            bounds=_LATENCY_BOUNDS_S,
        )
        self.first_output = sheet.histogram(
            "aios_first_output_seconds",
            "From a job's submission to its first token or progress, else to its result.",
            "task",
            bounds=_LATENCY_BOUNDS_S,
        )
        self._add_aliases(sheet)

    def token_gaps(self, model: str) -> BucketHistogram:
        """Return the histogram of the gaps between a model's tokens, for streams to add to."""
        # Adding to it is cheaper than to a histogram of prometheus_client.
        return self._gaps.setdefault((model,), BucketHistogram(_TOKEN_BOUNDS_S))

    def _add_aliases(self, sheet: MetricSheet) -> None:
        """Add the names that these metrics have in older documents."""
        endpoint = {"route": "endpoint"}
        ours = codes_from(500)
        sheet.alias(
            "model_requests_total",
            self.requests,
            "Another name of aios_http_requests_total.",
            endpoint,
        )
        sheet.alias(
            "model_latency_seconds",
            self.latency,
            "Another name of aios_http_request_seconds.",
            endpoint,
        )
        sheet.alias(
            "requests_total",
            self.requests,
            "Another name of aios_http_requests_total, all together.",
        )
        sheet.alias(
            "latency_seconds",
            self.latency,
            "Another name of aios_http_request_seconds, all together.",
        )
        sheet.alias(
            "ab_requests_total",
            self.ab_requests,
            "Another name of aios_ab_requests_total.",
            {"experiment": "experiment", "arm": "arm"},
        )
        sheet.alias(
            "errors_total",
            self.errors,
            "Another name of aios_errors_total of the fleet's own making (status 500 and above).",
            where=lambda labels: labels.get("code") in ours,
        )


class WorkerMetrics:
    """The metrics of a worker, which `worker/host/metrics_reporter.py` reads."""

    def __init__(self) -> None:
        self.sheet = sheet = MetricSheet()
        self.render = sheet.render
        self.process = ProcessMetrics(sheet)
        self.state = sheet.collected(
            "aios_worker_state", "gauge", "1 for the worker's state, 0 for all others.", "state"
        )
        self.silence = sheet.collected(
            "aios_worker_silence_seconds",
            "gauge",
            "Since the engine last got on, if it has work to do.",
        )
        self.batch = sheet.collected_histogram(
            "aios_worker_batch_rows", "Rows that a step computed together.", "model"
        )
        self.step = sheet.collected_histogram(
            "aios_worker_step_seconds", "Time of a step.", "model"
        )
        self.by_model: dict[str, CollectedMetric] = {}
        for name, number in NUMBERS.items():
            if number.metric is not None:
                self.by_model[name] = sheet.collected(
                    number.metric, number.kind, number.meaning, "model"
                )
        self.stale_appends = sheet.collected(
            "aios_worker_stale_appends_total",
            "counter",
            "Appends refused: the job had ended, or was another's.",
        )
        self.evictions = sheet.collected(
            "aios_worker_evictions_total", "counter", "Models that made room for others."
        )
        self.loads = sheet.collected(
            "aios_worker_loads_total",
            "counter",
            "Models loaded since the start of the worker, for work, by order or ahead.",
        )
        self.models_loaded = sheet.collected(
            "aios_worker_models_loaded", "gauge", "Models in memory."
        )
        self.weight_bytes = sheet.collected(
            "aios_worker_weight_bytes",
            "gauge",
            "Memory of the weights of a model, packed and rounded ones among them.",
            "model",
        )
        self.weight_saving = sheet.collected(
            "aios_worker_weight_saving_ratio",
            "gauge",
            "Of the memory of these weights in fp16, what they save; below 0 they take more.",
            "model",
        )
        self.memory_watermark = sheet.collected(
            "aios_worker_memory_watermark",
            "gauge",
            "Of the memory, what may be used when a model is loaded for work that waits.",
        )
        self.memory_share = sheet.collected(
            "aios_worker_memory_share",
            "gauge",
            "Of the memory that the worker's group or machine has, what is used.",
        )
        self.device_memory = sheet.collected(
            "aios_worker_device_memory_bytes",
            "gauge",
            "Memory of the device: `allocated` here, `total`.",
            "kind",
        )


class BatchMetrics:
    """Counters of batches and their lines, in the process that advances them."""

    def __init__(self, sheet: MetricSheet) -> None:
        self.open = sheet.gauge(
            "aios_batches_open", "Batches of the fleet that have not ended.", "status"
        )
        self.ended = sheet.counter("aios_batches_total", "Batches ended, by how.", "status")
        self.lines = sheet.counter(
            "aios_batch_lines_total", "Lines of batches that were answered.", "outcome"
        )
        # Shown from the start, so that the first one is an increase.
        for outcome in ("completed", "failed"):
            self.lines.labels(outcome)


class EvaluationMetrics:
    """The figures of the last evaluation that the fleet has run, and its regressions."""

    def __init__(self, sheet: MetricSheet) -> None:
        self.accuracy = sheet.gauge(
            "aios_evaluation_accuracy",
            "Mean score of a model at a task in the last evaluation, from 0 to 1.",
            "task",
            "model",
        )
        self.latency = sheet.gauge(
            "aios_evaluation_p95_seconds",
            "95th percentile of the latency of a model at a task in the last evaluation.",
            "task",
            "model",
        )
        self.regressions = sheet.counter(
            "aios_evaluation_regressions_total",
            "Figures of evaluations that were worse than their baseline allows.",
            "task",
            "model",
            "kind",
        )


class WebhookMetrics:
    """Metrics of webhooks, in the process that sends them."""

    def __init__(self, sheet: MetricSheet) -> None:
        self.attempts = sheet.counter(
            "aios_webhook_attempts_total", "Attempts to deliver events to webhooks.", "outcome"
        )
        self.oldest = sheet.gauge(
            "aios_webhook_oldest_seconds", "Age of the oldest event that is not delivered."
        )
        # Shown from the start, so that the first one is an increase.
        for outcome in ("delivered", "retried", "failed", "gone"):
            self.attempts.labels(outcome)


class JanitorMetrics:
    """The metrics of the background role."""

    def __init__(self) -> None:
        self.sheet = sheet = MetricSheet()
        self.registry = sheet.registry
        self.found = sheet.counter(
            "aios_janitor_found_total", "Things the janitor put right, by what they were.", "what"
        )
        self.sweeps = sheet.counter("aios_janitor_sweeps_total", "Sweeps done.", "sweep")
        self.last_sweep = sheet.gauge(
            "aios_janitor_last_sweep_timestamp_seconds",
            "When a sweep was last done here, or else this process began, in Unix time.",
            "sweep",
        )
        self.batches = BatchMetrics(sheet)
        self.evaluations = EvaluationMetrics(sheet)
        self.webhooks = WebhookMetrics(sheet)
        self.render = sheet.render
