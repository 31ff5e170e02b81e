"""Timings of a request, from times that Redis has noted, so that all fronts tell the same."""

from collections.abc import Sequence

from pydantic import BaseModel

from shared.queue.requests import JobTimes


class Timings(BaseModel):
    """Times of a request in seconds. One is None until its end has come, and if it never comes.

    `queue_s` is the time until a worker took the first job, `prefill_s` from there to the first
    token of any job, `decode_s` from there to the end of the last job. Answers that are no text
    have no first token. `total_s` is the time from the request's coming to its end. `tokens_per_s`
    counts the generated tokens from when a worker took the first job to the end.
    """

    queue_s: float | None
    prefill_s: float | None
    decode_s: float | None
    total_s: float | None
    tokens_per_s: float | None

    @property
    def first_token_s(self) -> float | None:
        """Seconds from the request's coming to its first token."""
        if self.queue_s is None or self.prefill_s is None:
            return None
        return self.queue_s + self.prefill_s


def timings_of(times: Sequence[JobTimes], num_completion_tokens: int) -> Timings:
    """Return the timings of a request, from the times of its jobs."""
    queued_s = min(job.queued_s for job in times)
    taken_s = _first([job.taken_s for job in times])
    first_s = _first([job.first_s for job in times])

    ended_s: float | None = 0.0
    for job in times:
        if job.ended_s is None or ended_s is None:
            ended_s = None  # the request has ended only when all of its jobs have
        else:
            ended_s = max(ended_s, job.ended_s)

    # A job that was called off while it waited was never taken: it waited to its end.
    queue_end_s = taken_s
    if taken_s is None:
        queue_end_s = ended_s
    run_s = _between(taken_s, ended_s)
    tokens_per_s = None
    if run_s and num_completion_tokens:
        tokens_per_s = round(num_completion_tokens / run_s, 3)
    return Timings(
        queue_s=_between(queued_s, queue_end_s),
        prefill_s=_between(taken_s, first_s),
        decode_s=_between(first_s, ended_s),
        total_s=_between(queued_s, ended_s),
        tokens_per_s=tokens_per_s,
    )


def timing_headers(timings: Timings) -> dict[str, str]:
    """Return `Server-Timing` in milliseconds, as that header has it, and `X-Tokens-Per-Second`."""
    metrics = []
    for name in ("queue", "prefill", "decode", "total"):
        seconds = getattr(timings, f"{name}_s")
        if seconds is not None:
            metrics.append(f"{name};dur={seconds * 1000:.0f}")
    headers = {"Server-Timing": ", ".join(metrics)}
    if timings.tokens_per_s is not None:
        headers["X-Tokens-Per-Second"] = f"{timings.tokens_per_s:.3f}"
    return headers


def timing_comment(timings: Timings) -> bytes:
    """Return a comment for the end of a stream, whose headers have gone out before."""
    return b": timings " + timings.model_dump_json().encode() + b"\n"


def _first(times: list[float | None]) -> float | None:
    known = [time for time in times if time is not None]
    return min(known, default=None)


def _between(start_s: float | None, end_s: float | None) -> float | None:
    if start_s is None or end_s is None:
        return None
    return round(max(0.0, end_s - start_s), 3)
