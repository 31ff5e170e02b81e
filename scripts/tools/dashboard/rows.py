"""The rows of the dashboard and their panels.

Every front reports the same gauges of the fleet, so panels take their maximum over the fronts.
"""

from scripts.tools.dashboard.panel import (
    NOT_PROBES,
    OF_MODEL,
    OF_POOL,
    Panel,
    latency,
    maximum,
    mean,
    per_minute,
    percentile_95,
    quantiles,
    rate,
    share,
    total,
)

# The variables above the dashboard, and the queries of their values.
VARIABLES = {
    "model": "label_values(aios_queue_depth, model)",
    "pool": "label_values(aios_workers, pool)",
}

TRAFFIC = (
    Panel(
        "Requests",
        "reqps",
        "Requests answered, by route.",
        {"{{route}}": rate("aios_http_requests_total", "route")},
        is_stacked=True,
    ),
    Panel(
        "Statuses",
        "reqps",
        "Requests answered, by status.",
        {"{{status}}": rate("aios_http_requests_total", "status")},
        is_stacked=True,
    ),
    Panel(
        "Tokens",
        "short",
        "Tokens a second: of prompts, of the cached parts of prompts, and of completions.",
        {
            "read": rate("aios_prompt_tokens_total", "", OF_MODEL),
            "read, known": rate("aios_cached_prompt_tokens_total", "", OF_MODEL),
            "written": rate("aios_completion_tokens_total", "", OF_MODEL),
        },
    ),
    Panel(
        "In progress",
        "short",
        "Requests that are being answered, streams included, by front.",
        {"{{instance}}": total("aios_http_requests_in_progress", "instance")},
        is_stacked=True,
    ),
)

LATENCY = (
    latency(
        "Time to first token",
        "aios_ttft_seconds",
        "From a job's submission to its first token.",
    ),
    latency("Between tokens", "aios_inter_token_seconds", "A takeover shows as one long gap."),
    latency("Queue", "aios_queue_seconds", "From a job's submission to a worker's start."),
    latency("Prefill", "aios_prefill_seconds", "From a worker's start to the first token."),
    latency("Decode", "aios_decode_seconds", "From the first token to the end."),
    latency("Whole job", "aios_job_seconds", "From a job's submission to its end."),
    Panel(
        "Tasks",
        "s",
        "From a job's submission to its end: 95th percentile by task.",
        {"{{task}}": percentile_95("aios_task_seconds", "task")},
    ),
    Panel(
        "First output",
        "s",
        "From a job's submission to its first token or step, else its result: 95th percentile.",
        {"{{task}}": percentile_95("aios_first_output_seconds", "task")},
    ),
    Panel(
        "Over HTTP",
        "s",
        "Time that callers see, with that of sending bodies: 95th percentile by route.",
        {
            "{{route}}": percentile_95("aios_http_request_seconds", "route", NOT_PROBES),
        },
    ),
    Panel(
        "Loading a model",
        "s",
        "Time of the slowest worker to load, and of its first try, which compiles.",
        {
            "load {{model}}": maximum("aios_model_load_seconds", "model", OF_MODEL),
            "first try {{model}}": maximum("aios_model_warm_up_seconds", "model", OF_MODEL),
        },
    ),
)

QUEUE = (
    Panel(
        "Jobs",
        "short",
        "Jobs that are queued, and jobs that run.",
        {"{{state}} {{model}}": maximum("aios_queue_depth", "model, state", OF_MODEL)},
    ),
    Panel(
        "Oldest job",
        "s",
        "How long the oldest job of a class has waited.",
        {"{{class}} {{model}}": maximum("aios_queue_oldest_seconds", "model, class", OF_MODEL)},
    ),
    Panel(
        "Seconds of work",
        "s",
        "Time that the live workers need for the work that waits. Scale by this number.",
        {"{{class}} {{model}}": maximum("aios_queue_work_seconds", "model, class", OF_MODEL)},
        is_stacked=True,
    ),
    Panel(
        "Bytes",
        "bytes",
        "Size of the jobs that wait, which are in Redis's memory.",
        {"{{model}}": maximum("aios_queue_bytes", "model", OF_MODEL)},
    ),
)

_KNOWN_TOKENS = rate("aios_worker_prefix_tokens_total", "model", OF_MODEL)
_COMPUTED_TOKENS = rate("aios_worker_prompt_tokens_total", "model", OF_MODEL)


def _share_of_pages(name: str) -> str:
    """Return the ratio of a gauge of pages to all pages for each model."""
    pages = total("aios_worker_kv_pages", "model", OF_MODEL)
    return f"{total(name, 'model', OF_MODEL)} / {pages}"


WORKERS = (
    Panel(
        "Workers",
        "short",
        "Live workers, by state. Full workers have no memory for new jobs.",
        {"{{state}} {{pool}}": maximum("aios_workers", "pool, state", OF_POOL)},
        is_stacked=True,
    ),
    Panel(
        "Ready for a model",
        "short",
        "Workers that can take jobs of the model.",
        {
            "{{model}} {{pool}}": maximum(
                "aios_model_workers", "model, pool", f"{OF_MODEL},{OF_POOL}"
            )
        },
    ),
    Panel(
        "Tokens generated",
        "short",
        "Tokens a second, of all workers of a model and of each worker.",
        {
            "{{model}}": rate("aios_worker_tokens_total", "model", OF_MODEL),
            "{{instance}}": rate("aios_worker_tokens_total", "instance", OF_MODEL),
        },
    ),
    Panel(
        "Rows of a step",
        "short",
        "Rows in a step on average, and the rows that run and wait inside the workers.",
        {
            "rows {{model}}": mean("aios_worker_batch_rows"),
            "running {{model}}": total("aios_worker_running", "model", OF_MODEL),
            "waiting {{model}}": total("aios_worker_waiting", "model", OF_MODEL),
        },
    ),
    Panel(
        "Time of a step",
        "s",
        "Of all workers of a model together.",
        quantiles("aios_worker_step_seconds"),
    ),
    Panel(
        "ACT segments per token",
        "short",
        "Segments of reasoning for a token or a puzzle. HRM-Text has none.",
        {"{{model}}": share("aios_worker_act_segments_total", "aios_worker_act_rows_total")},
    ),
    Panel(
        "Drafts",
        "percentunit",
        "Share of drafted tokens that were right, and share of all tokens that were drafted.",
        {
            "right {{model}}": share(
                "aios_worker_accepted_tokens_total", "aios_worker_drafted_tokens_total"
            ),
            "of all {{model}}": share(
                "aios_worker_accepted_tokens_total", "aios_worker_tokens_total"
            ),
        },
    ),
    Panel(
        "KV pages in use",
        "percentunit",
        "Pages that running rows hold, and pages that only the prefix cache holds.",
        {
            "running {{model}}": _share_of_pages("aios_worker_kv_pages_used"),
            "cache {{model}}": _share_of_pages("aios_worker_kv_pages_cached"),
        },
    ),
    Panel(
        "Prefix cache",
        "percentunit",
        (
            "Share of rows whose prompt was cached in part, and share of prompt tokens that were "
            "cached."
        ),
        {
            "rows {{model}}": share(
                "aios_worker_prefix_hits_total", "aios_worker_prefix_lookups_total"
            ),
            "tokens {{model}}": f"{_KNOWN_TOKENS} / ({_KNOWN_TOKENS} + {_COMPUTED_TOKENS})",
        },
    ),
    Panel(
        "Memory in use",
        "percentunit",
        "Used share of the memory of a worker's group or machine. It should stay below 85 %.",
        {"{{instance}}": maximum("aios_worker_memory_share", "instance")},
    ),
    Panel(
        "Models in memory",
        "short",
        "Models that a worker holds. Those that make room for others often want more memory.",
        {
            "{{instance}}": maximum("aios_worker_models_loaded", "instance"),
            "evictions a minute": per_minute("aios_worker_evictions_total"),
            "loads a minute": per_minute("aios_worker_loads_total"),
        },
    ),
    Panel(
        "Memory held",
        "bytes",
        "Memory that fronts and workers hold, and that on the GPUs.",
        {
            "{{instance}}": maximum("aios_process_memory_bytes", "instance"),
            "GPU {{instance}}": maximum(
                "aios_worker_device_memory_bytes", "instance", 'kind="allocated"'
            ),
        },
    ),
    Panel(
        "Silence",
        "s",
        "Time since a busy worker made progress. Its jobs are taken over after its lease.",
        {"{{instance}}": maximum("aios_worker_silence_seconds", "instance")},
    ),
    Panel(
        "Event loops",
        "s",
        "Longest delay of an event loop in the last 15 seconds.",
        {"{{instance}}": maximum("aios_event_loop_lag_seconds", "instance")},
    ),
)

RELIABILITY = (
    Panel(
        "Error rate",
        "percentunit",
        (
            "Share of requests that ended in an error of the server. It should stay below 2 %. "
            "Errors of callers and cancelled requests do not count."
        ),
        {"errors": "aios:errors:ratio5m", "no room": "aios:rejections:ratio5m"},
    ),
    Panel(
        "Errors",
        "reqps",
        "Errors by code, with those of callers.",
        {"{{code}}": rate("aios_errors_total", "code")},
        is_stacked=True,
    ),
    Panel(
        "Rejections",
        "reqps",
        "Rejected requests, by reason.",
        {"{{reason}}": rate("aios_rejections_total", "reason")},
        is_stacked=True,
    ),
    Panel(
        "Ends of jobs",
        "short",
        "Jobs that ended a second, by outcome.",
        {"{{outcome}}": rate("aios_jobs_total", "outcome", OF_MODEL)},
        is_stacked=True,
    ),
    Panel(
        "Takeovers",
        "short",
        "A minute: jobs taken that another worker had begun, and appends that came too late.",
        {
            "takeovers {{model}}": per_minute("aios_worker_takeovers_total", "model", OF_MODEL),
            "stale appends": per_minute("aios_worker_stale_appends_total"),
        },
    ),
    Panel(
        "Preemptions and failures",
        "short",
        "A minute: rows that gave their pages back, and jobs that failed in the engine.",
        {
            "preemptions {{model}}": per_minute("aios_worker_preemptions_total", "model", OF_MODEL),
            "failures {{model}}": per_minute("aios_worker_failures_total", "model", OF_MODEL),
        },
    ),
    Panel(
        "Dead jobs",
        "short",
        "Jobs given up because workers crashed on them. `aios dead list` shows them.",
        {
            "kept": "max(aios_dead_jobs)",
            "given up in an hour": "sum(increase(aios_worker_convictions_total[1h]))",
        },
    ),
    Panel(
        "Replays",
        "reqps",
        "Answers repeated: by an idempotency key, from the cache, or as a stream's rest.",
        {"{{kind}}": rate("aios_replays_total", "kind")},
        is_stacked=True,
    ),
)

REDIS = (
    Panel(
        "Redis answers",
        "bool_yes_no",
        "Whether Redis answers each front.",
        {"{{instance}}": "min by (instance) (aios_redis_up)"},
    ),
    Panel(
        "Round trips",
        "ops",
        "Round trips a second, by script.",
        {"{{call}}": rate("aios_redis_call_seconds_count", "call")},
        is_stacked=True,
    ),
    Panel(
        "Time of a round trip",
        "s",
        "95th percentile, by script.",
        {"{{call}}": percentile_95("aios_redis_call_seconds", "call")},
    ),
)

JANITOR = (
    Panel(
        "Sweeps",
        "short",
        "Sweeps a minute, by kind.",
        {"{{sweep}}": per_minute("aios_janitor_sweeps_total", "sweep")},
    ),
    Panel(
        "Repairs",
        "short",
        "Repairs in an hour, by kind. A fleet without crashes needs none.",
        {"{{what}}": "sum by (what) (increase(aios_janitor_found_total[1h]))"},
    ),
    Panel(
        "Lines of batches",
        "short",
        "Lines answered in a minute, by outcome.",
        {"{{outcome}}": per_minute("aios_batch_lines_total", "outcome")},
    ),
    Panel(
        "Webhooks",
        "short",
        "Attempts to deliver in a minute, by outcome.",
        {"{{outcome}}": per_minute("aios_webhook_attempts_total", "outcome")},
    ),
    Panel(
        "Oldest event",
        "s",
        "Age of the oldest event that no webhook was told of.",
        {"oldest": "max(aios_webhook_oldest_seconds)"},
    ),
)

ROWS = {
    "Traffic": TRAFFIC,
    "Latency": LATENCY,
    "Queue": QUEUE,
    "Workers": WORKERS,
    "Reliability": RELIABILITY,
    "Redis": REDIS,
    "Janitor": JANITOR,
}
