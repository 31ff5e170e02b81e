"""The fields of a request's line in the access log."""

from typing import Any

from api.http.request_state import RequestState
from api.stream.timings import Timings


def log_fields_of(request_state: RequestState) -> dict[str, Any]:
    """The fields of the line, without those of HTTP; None for what there is not. Times are in
    milliseconds."""
    said: dict[str, Any] = {
        "request_id": request_state.request_id,
        "trace_id": request_state.trace_id,
        "tenant": request_state.tenant or None,
        "key": request_state.key or None,
        "model": request_state.model,
        "x_job_id": request_state.told_id,
        "job_id": request_state.job_ids[0] if request_state.job_ids else None,
        "num_jobs": len(request_state.job_ids) or None,
        "prompt_tokens": request_state.usage.prompt_tokens,
        "completion_tokens": request_state.usage.completion_tokens,
        "upload_bytes": request_state.num_uploaded,
        "error": request_state.error,
    }
    if request_state.watch is not None:
        said |= {
            "worker": request_state.watch.worker,
            "attempts": request_state.watch.attempts or None,
        }
        said |= _times(request_state.watch.timings(request_state.usage.completion_tokens))
    return said


def _times(timings: Timings) -> dict[str, float | None]:
    times: dict[str, float | None] = {}
    for name in ("queue", "prefill", "decode"):
        seconds = getattr(timings, f"{name}_s")
        times[f"{name}_ms"] = None
        if seconds is not None:
            times[f"{name}_ms"] = round(seconds * 1000, 1)
    times["tokens_per_s"] = timings.tokens_per_s
    return times
