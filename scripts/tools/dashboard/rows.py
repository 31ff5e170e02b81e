"""The rows of the dashboard and their panels.

Every front reports the same fleet gauges, so panels take the maximum over fronts.
"""

from scripts.tools.dashboard.panel import (
    NOT_PROBES,
    OF_MODEL,
    Panel,
    latency,
    mean,
    quantiles,
    rate,
    share,
)

VARIABLES = {
    "model": "label_values(aios_queue_depth, model)",
    "pool": "label_values(aios_workers, pool)",
}

TRAFFIC = (
    Panel(
        "Requests",
        "reqps",
        "Answered, by route.",
        {"{{route}}": rate("aios_http_requests_total", "route")},
        True,
    ),
    Panel(
        "Statuses",
        "reqps",
        "Answered, by status.",
        {"{{status}}": rate("aios_http_requests_total", "status")},
        True,
    ),
    Panel(
        "Tokens",
        "short",
        "Tokens a second that answers had: read, read but computed before, and written.",
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
        {"{{instance}}": "sum by (instance) (aios_http_requests_in_progress)"},
        True,
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
        "Over HTTP",
        "s",
        "What callers see, waits for bodies included; 95th percentile by route.",
        {
            "{{route}}": "histogram_quantile(0.95, "
            + rate("aios_http_request_seconds_bucket", "le, route", NOT_PROBES)
            + ")"
        },
    ),
    Panel(
        "Loading a model",
        "s",
        "The slowest worker's time to load, and its first try, which compiles.",
        {
            "load {{model}}": f"max by (model) (aios_model_load_seconds{{{OF_MODEL}}})",
            "first try {{model}}": f"max by (model) (aios_model_warm_up_seconds{{{OF_MODEL}}})",
        },
    ),
)

QUEUE = (
    Panel(
        "Jobs",
        "short",
        "Queued and running.",
        {"{{state}} {{model}}": f"max by (model, state) (aios_queue_depth{{{OF_MODEL}}})"},
    ),
    Panel(
        "Oldest job",
        "s",
        "How long the oldest job of a class has waited.",
        {"{{class}} {{model}}": f"max by (model, class) (aios_queue_oldest_seconds{{{OF_MODEL}}})"},
    ),
    Panel(
        "Seconds of work",
        "s",
        "What waits, by what the live workers get done in a second: what to scale by.",
        {"{{class}} {{model}}": f"max by (model, class) (aios_queue_work_seconds{{{OF_MODEL}}})"},
        True,
    ),
    Panel(
        "Bytes",
        "bytes",
        "Of the jobs that wait; they are in Redis's memory.",
        {"{{model}}": f"max by (model) (aios_queue_bytes{{{OF_MODEL}}})"},
    ),
)

WORKERS = (
    Panel(
        "Workers",
        "short",
        "Alive, by state; full ones take nothing new for want of memory.",
        {"{{state}} {{pool}}": 'max by (pool, state) (aios_workers{pool=~"$pool"})'},
        True,
    ),
    Panel(
        "Ready for a model",
        "short",
        "Workers that can take its jobs.",
        {
            "{{model}} {{pool}}": f'max by (model, pool) (aios_model_workers{{{OF_MODEL},pool=~"$pool"}})'
        },
    ),
    Panel(
        "Tokens generated",
        "short",
        "A second, by all workers, and what one worker does.",
        {
            "{{model}}": rate("aios_worker_tokens_total", "model", OF_MODEL),
            "{{instance}}": rate("aios_worker_tokens_total", "instance", OF_MODEL),
        },
    ),
    Panel(
        "Rows of a step",
        "short",
        "Computed together on average, and rows that wait inside the workers.",
        {
            "rows {{model}}": mean("aios_worker_batch_rows"),
            "running {{model}}": f"sum by (model) (aios_worker_running{{{OF_MODEL}}})",
            "waiting {{model}}": f"sum by (model) (aios_worker_waiting{{{OF_MODEL}}})",
        },
    ),
    Panel(
        "Time of a step", "s", "Of all workers of a model.", quantiles("aios_worker_step_seconds")
    ),
    Panel(
        "ACT segments per token",
        "short",
        "Steps of reasoning for a token or a puzzle; HRM-Text has none.",
        {"{{model}}": share("aios_worker_act_segments_total", "aios_worker_act_rows_total")},
    ),
    Panel(
        "KV pages in use",
        "percentunit",
        "Held by running rows, and by the prefix cache alone.",
        {
            f"{legend} {{{{model}}}}": f"sum by (model) (aios_worker_kv_pages_{part}{{{OF_MODEL}}}) / sum by (model) "
            f"(aios_worker_kv_pages{{{OF_MODEL}}})"
            for legend, part in (("running", "used"), ("cache", "cached"))
        },
    ),
    Panel(
        "Prefix cache",
        "percentunit",
        (
            "Rows whose prompt was known in part, and the share of prompt tokens that was not "
            "computed again."
        ),
        {
            "rows {{model}}": share(
                "aios_worker_prefix_hits_total", "aios_worker_prefix_lookups_total"
            ),
            "tokens {{model}}": f"{rate('aios_worker_prefix_tokens_total', 'model', OF_MODEL)} "
            f"/ ({rate('aios_worker_prefix_tokens_total', 'model', OF_MODEL)} "
            f"+ {rate('aios_worker_prompt_tokens_total', 'model', OF_MODEL)})",
        },
    ),
    Panel(
        "Memory in use",
        "percentunit",
        "Of the worker's control group or machine; it should stay below 85 %.",
        {"{{instance}}": "max by (instance) (aios_worker_memory_share)"},
    ),
    Panel(
        "Memory held",
        "bytes",
        "By fronts and workers, and on the GPUs.",
        {
            "{{instance}}": "max by (instance) (aios_process_memory_bytes)",
            "GPU {{instance}}": 'max by (instance) (aios_worker_device_memory_bytes{kind="allocated"})',
        },
    ),
    Panel(
        "Silence",
        "s",
        "Since a worker with work to do last got on; its jobs are taken over after its lease.",
        {"{{instance}}": "max by (instance) (aios_worker_silence_seconds)"},
    ),
    Panel(
        "Event loops",
        "s",
        "How late they were at their worst in the last 15 seconds.",
        {"{{instance}}": "max by (instance) (aios_event_loop_lag_seconds)"},
    ),
)

RELIABILITY = (
    Panel(
        "Error rate",
        "percentunit",
        (
            "Requests that ended in an error of ours, of all; below 2 %. Callers' own "
            "and cancelled are left out."
        ),
        {"errors": "aios:errors:ratio5m", "no room": "aios:rejections:ratio5m"},
    ),
    Panel(
        "Errors",
        "reqps",
        "By code, callers' own included.",
        {"{{code}}": rate("aios_errors_total", "code")},
        True,
    ),
    Panel(
        "Rejections",
        "reqps",
        "By reason.",
        {"{{reason}}": rate("aios_rejections_total", "reason")},
        True,
    ),
    Panel(
        "Ends of jobs",
        "short",
        "A second, by outcome.",
        {"{{outcome}}": rate("aios_jobs_total", "outcome", OF_MODEL)},
        True,
    ),
    Panel(
        "Takeovers",
        "short",
        "In a minute: jobs taken that were in other hands, and appends that came too late.",
        {
            "takeovers {{model}}": f"60 * {rate('aios_worker_takeovers_total', 'model', OF_MODEL)}",
            "stale appends": f"60 * {rate('aios_worker_stale_appends_total')}",
        },
    ),
    Panel(
        "Preemptions and failures",
        "short",
        "In a minute: rows that gave their pages back, jobs that failed in the engine.",
        {
            "preemptions {{model}}": f"60 * {rate('aios_worker_preemptions_total', 'model', OF_MODEL)}",
            "failures {{model}}": f"60 * {rate('aios_worker_failures_total', 'model', OF_MODEL)}",
        },
    ),
    Panel(
        "Dead jobs",
        "short",
        "Given up because workers crashed on them; aios dead list shows them.",
        {
            "kept": "max(aios_dead_jobs)",
            "given up in an hour": "sum(increase(aios_worker_convictions_total[1h]))",
        },
    ),
    Panel(
        "Replays",
        "reqps",
        "Answers told again: by a key, by the cache, or a stream's rest.",
        {"{{kind}}": rate("aios_replays_total", "kind")},
        True,
    ),
)

REDIS = (
    Panel(
        "Redis answers",
        "bool_yes_no",
        "What each front says.",
        {"{{instance}}": "min by (instance) (aios_redis_up)"},
    ),
    Panel(
        "Round trips",
        "ops",
        "A second, by script.",
        {"{{call}}": rate("aios_redis_call_seconds_count", "call")},
        True,
    ),
    Panel(
        "Time of a round trip",
        "s",
        "95th percentile by script.",
        {
            "{{call}}": (
                f"histogram_quantile(0.95, {rate('aios_redis_call_seconds_bucket', 'le, call')})"
            )
        },
    ),
)

JANITOR = (
    Panel(
        "Sweeps",
        "short",
        "In a minute.",
        {"{{sweep}}": f"60 * {rate('aios_janitor_sweeps_total', 'sweep')}"},
    ),
    Panel(
        "What was put right",
        "short",
        "In an hour; a fleet without crashes shows none.",
        {"{{what}}": "sum by (what) (increase(aios_janitor_found_total[1h]))"},
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
