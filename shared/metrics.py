"""The one list of metric names. A process makes its own and passes them down; nothing registers globally.

Labels are bounded: route templates, announced models and pools, classes, error codes, names of scripts; never paths,
prompts, tenants or ids. `docs/metrics.md` is the same list for people; a test compares them.
"""

from shared.errors import codes_from
from shared.metric_kinds import Sheet
from shared.spread import Spread

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_BOUNDS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ProcessMetrics:
    """What fronts and workers tell of themselves."""

    def __init__(self, sheet: Sheet) -> None:
        self.redis_calls = sheet.told_spread("aios_redis_call_seconds", "Round trips of scripts to Redis.", "call")
        self.memory = sheet.told("aios_process_memory_bytes", "gauge", "Memory of the machine that the process holds.")
        self.started = sheet.told("aios_process_start_time_seconds", "gauge", "When the process began, in Unix time.")
        self.lag = sheet.told("aios_event_loop_lag_seconds", "gauge", "How late the event loop's last turn came.")


class FleetMetrics:
    """What every front tells of the whole fleet, read from Redis as it is asked for."""

    def __init__(self, sheet: Sheet) -> None:
        self.queue_depth = sheet.told("aios_queue_depth", "gauge", "Jobs, queued and running.", "model", "state")
        self.waiting = sheet.told("aios_queue_waiting", "gauge", "Jobs that wait.", "model", "class")
        self.oldest = sheet.told(
            "aios_queue_oldest_seconds", "gauge", "How long the oldest job has waited.", "model", "class"
        )
        self.work_seconds = sheet.told(
            "aios_queue_work_seconds",
            "gauge",
            "Cost of the jobs that wait, divided by what the live workers get done in a second.",
            "model",
            "class",
        )
        self.queue_bytes = sheet.told("aios_queue_bytes", "gauge", "Bytes of the jobs that wait.", "model")
        self.work_rate = sheet.told(
            "aios_work_per_second", "gauge", "Cost that the live workers get done in a second when busy.", "model"
        )
        self.dead_jobs = sheet.told("aios_dead_jobs", "gauge", "Jobs given up because their workers crashed.")
        self.workers = sheet.told("aios_workers", "gauge", "Workers alive.", "pool", "state")
        self.model_workers = sheet.told(
            "aios_model_workers", "gauge", "Workers that are ready for the model.", "model", "pool"
        )
        self.active_models = sheet.told("aios_active_models", "gauge", "Models that some worker is ready for.")
        self.memory = sheet.told(
            "aios_workers_memory_bytes", "gauge", "Memory of all workers: `host` or `device`.", "kind"
        )
        self.tokens_per_s = sheet.told(
            "aios_tokens_per_second", "gauge", "Tokens generated a second, lately, by all workers.", "model"
        )
        self.load_s = sheet.told(
            "aios_model_load_seconds", "gauge", "Time the slowest worker took to load the model.", "model"
        )
        self.warm_up_s = sheet.told(
            "aios_model_warm_up_seconds", "gauge", "Time of the slowest worker's first try, which compiles.", "model"
        )
        self.redis_up = sheet.told("aios_redis_up", "gauge", "1 when Redis answered this front just now, 0 when not.")
        sheet.alias("active_models", self.active_models, "D60: aios_active_models.")
        sheet.alias("memory_bytes_used", self.memory, "D60: aios_workers_memory_bytes, both kinds.")
        sheet.alias("tokens_per_second", self.tokens_per_s, "B39: aios_tokens_per_second.", {"model": "model"})
        sheet.alias("compile_seconds", self.warm_up_s, "B39: aios_model_warm_up_seconds.", {"model": "model"})


class Metrics:
    """What a front counts and tells."""

    def __init__(self) -> None:
        self.sheet = sheet = Sheet()
        self.registry = sheet.registry
        self.render = sheet.render
        self.process, self.fleet = ProcessMetrics(sheet), FleetMetrics(sheet)
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
            "aios_errors_total", "Answers and streams that ended in an error, probes left out.", "code"
        )
        self.admissions = sheet.counter("aios_admissions_total", "Requests that became work.", "model", "class")
        self.rejections = sheet.counter(
            "aios_rejections_total", "Requests for work that were refused before they became any.", "reason"
        )
        self.replays = sheet.counter(
            "aios_replays_total", "Answers told again: found by `key`, by `cache`, or a stream's `resume`.", "kind"
        )
        self.prompt_tokens = sheet.counter("aios_prompt_tokens_total", "Tokens read for jobs that were done.", "model")
        self.cached_prompt_tokens = sheet.counter(
            "aios_cached_prompt_tokens_total", "Of the tokens read, those computed before.", "model"
        )
        self.completion_tokens = sheet.counter(
            "aios_completion_tokens_total", "Tokens written by jobs that were done.", "model"
        )
        self.jobs = sheet.counter("aios_jobs_total", "Jobs ended, of those that this front took.", "model", "outcome")
        self.first_token = sheet.histogram(
            "aios_ttft_seconds", "From a job's submission to its first token.", "model", bounds=_LATENCY_BOUNDS_S
        )
        self._gaps: dict[tuple[str, ...], Spread] = {}
        inter_token = sheet.told_spread(
            "aios_inter_token_seconds",
            "Between a job's events, divided by the tokens that came; once an event.",
            "model",
        )
        inter_token.read = lambda: self._gaps
        self.queue_wait = sheet.histogram(
            "aios_queue_seconds", "From a job's submission to a worker's start.", "model", bounds=_LATENCY_BOUNDS_S
        )
        self.prefill = sheet.histogram(
            "aios_prefill_seconds", "From a worker's start to the first token.", "model", bounds=_LATENCY_BOUNDS_S
        )
        self.decode = sheet.histogram(
            "aios_decode_seconds", "From a job's first token to its end.", "model", bounds=_LATENCY_BOUNDS_S
        )
        self.job_time = sheet.histogram(
            "aios_job_seconds", "From a job's submission to its end.", "model", bounds=_LATENCY_BOUNDS_S
        )
        self._add_aliases(sheet)

    def token_gaps(self, model: str) -> Spread:
        """To be added to with each event of a stream, so it is cheaper than the others."""
        return self._gaps.setdefault((model,), Spread(_TOKEN_BOUNDS_S))

    def _add_aliases(self, sheet: Sheet) -> None:
        """Names that others know these by (X10)."""
        endpoint, ours = {"route": "endpoint"}, codes_from(500)
        sheet.alias("model_requests_total", self.requests, "C48: aios_http_requests_total.", endpoint)
        sheet.alias("model_latency_seconds", self.latency, "C48: aios_http_request_seconds.", endpoint)
        sheet.alias("requests_total", self.requests, "D60: aios_http_requests_total, all together.")
        sheet.alias("latency_seconds", self.latency, "D60: aios_http_request_seconds, all together.")
        sheet.alias(
            "errors_total",
            self.errors,
            "D60: aios_errors_total of the fleet's own making (status 500 and above).",
            where=lambda labels: labels.get("code") in ours,
        )


class WorkerMetrics:
    """What a worker tells; `worker/meter.py` reads it."""

    def __init__(self) -> None:
        self.sheet = sheet = Sheet()
        self.render = sheet.render
        self.process = ProcessMetrics(sheet)
        told = sheet.told
        self.state = told("aios_worker_state", "gauge", "1 for the worker's state, 0 for all others.", "state")
        self.silence = told(
            "aios_worker_silence_seconds", "gauge", "Since the engine last got on, if it has work to do."
        )
        self.batch = sheet.told_spread("aios_worker_batch_rows", "Rows that a step computed together.", "model")
        self.step = sheet.told_spread("aios_worker_step_seconds", "Time of a step.", "model")
        self.running = told("aios_worker_running", "gauge", "Rows that take part in steps.", "model")
        self.waiting = told("aios_worker_waiting", "gauge", "Rows that wait for a place or for pages.", "model")
        self.tokens = told("aios_worker_tokens_total", "counter", "Tokens generated.", "model")
        self.prompt_tokens = told("aios_worker_prompt_tokens_total", "counter", "Tokens of prompts computed.", "model")
        self.failures = told("aios_worker_failures_total", "counter", "Jobs that failed in the engine.", "model")
        self.preemptions = told(
            "aios_worker_preemptions_total", "counter", "Rows that gave their pages back for others.", "model"
        )
        self.kv_pages = told("aios_worker_kv_pages", "gauge", "Pages for keys and values.", "model")
        self.kv_used = told("aios_worker_kv_pages_used", "gauge", "Pages that running rows hold.", "model")
        self.kv_cached = told(
            "aios_worker_kv_pages_cached", "gauge", "Pages that only the prefix cache holds.", "model"
        )
        self.prefix_lookups = told("aios_worker_prefix_lookups_total", "counter", "Rows that started.", "model")
        self.prefix_hits = told(
            "aios_worker_prefix_hits_total", "counter", "Rows whose prompt had been computed in part.", "model"
        )
        self.prefix_tokens = told(
            "aios_worker_prefix_tokens_total", "counter", "Tokens of prompts that had been computed before.", "model"
        )
        self.segments = told("aios_worker_act_segments_total", "counter", "ACT segments, one a row.", "model")
        self.settled = told(
            "aios_worker_act_rows_total", "counter", "Rows (a token's, or a puzzle's) that segments ended.", "model"
        )
        self.load_s = told("aios_worker_load_seconds", "gauge", "Time it took to load the model.", "model")
        self.warm_up_s = told(
            "aios_worker_warm_up_seconds", "gauge", "Time of the model's first try, which compiles.", "model"
        )
        self.takeovers = told(
            "aios_worker_takeovers_total", "counter", "Jobs taken that another take had begun or held.", "model"
        )
        self.convictions = told(
            "aios_worker_convictions_total", "counter", "Jobs given up here because workers crashed on them.", "model"
        )
        self.stale_appends = told(
            "aios_worker_stale_appends_total", "counter", "Appends refused: the job had ended, or was another's."
        )
        self.memory_share = told(
            "aios_worker_memory_share", "gauge", "Of the memory that the worker's group or machine has, what is used."
        )
        self.device_memory = told(
            "aios_worker_device_memory_bytes", "gauge", "Memory of the device: `allocated` here, `total`.", "kind"
        )


class JanitorMetrics:
    """What the background role counts."""

    def __init__(self) -> None:
        self.sheet = sheet = Sheet()
        self.registry = sheet.registry
        self.found = sheet.counter(
            "aios_janitor_found_total", "Things the janitor put right, by what they were.", "what"
        )
        self.sweeps = sheet.counter("aios_janitor_sweeps_total", "Sweeps done.", "sweep")
        self.render = sheet.render
