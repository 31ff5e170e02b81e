"""What the log line of a request says of it, from the trail that it left."""

from typing import Any

from api.timings import Timings
from api.trail import Trail


def said_of(trail: Trail) -> dict[str, Any]:
    """The fields of the line, without those of HTTP; None for what there is not. Times are in milliseconds."""
    said: dict[str, Any] = {
        "request_id": trail.request_id,
        "trace_id": trail.trace_id,
        "tenant": trail.tenant or None,
        "key": trail.key or None,
        "model": trail.model,
        "x_job_id": trail.told_id,
        "job_id": trail.job_ids[0] if trail.job_ids else None,
        "num_jobs": len(trail.job_ids) or None,
        "prompt_tokens": trail.usage.prompt_tokens,
        "completion_tokens": trail.usage.completion_tokens,
        "upload_bytes": trail.num_uploaded,
        "error": trail.error,
    }
    if trail.watch is not None:
        said |= {"worker": trail.watch.worker, "attempts": trail.watch.attempts or None}
        said |= _times(trail.watch.timings(trail.usage.completion_tokens))
    return said


def _times(timings: Timings) -> dict[str, float | None]:
    seconds = {name: getattr(timings, f"{name}_s") for name in ("queue", "prefill", "decode")}
    times = {f"{name}_ms": None if value is None else round(value * 1000, 1) for name, value in seconds.items()}
    return times | {"tokens_per_s": timings.tokens_per_s}
