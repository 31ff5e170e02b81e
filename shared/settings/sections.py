"""The sections in which the help of a command lists the settings."""

SECTIONS = {
    "host": "Address",
    "model_path": "Models",
    "device": "Device, dtype and sizes",
    "enable_cors": "Access",
    "metrics_port": "Metrics and the web app",
    "prohibited_terms": "Filter, logs and traces",
    "redis_url": "Redis and processes",
    "max_queue_depth": "Limits of callers and requests",
    "artifact_url": "Artifacts, batches and webhooks",
    "queue_timeout_s": "Times, seed and health",
    "scoring": "Answers of models",
    "kv_memory_mib": "Memory",
    "page_size": "Speed",
}
"""The first setting of each section, and its heading. Settings stand in the order of their table."""


def sections_of(names: list[str]) -> dict[str, str]:
    """Return the section of each of these settings, which are all in the order of their table."""
    section = ""
    sections = {}
    for name in names:
        section = SECTIONS.get(name, section)
        sections[name] = section
    return sections
