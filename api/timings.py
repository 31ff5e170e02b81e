"""How long a request took, and where its time went: from times that Redis noted, so any front tells
the same."""

from collections.abc import Sequence

from pydantic import BaseModel

from shared.requests import JobTimes


class Timings(BaseModel):
    """Seconds; None for what has not come yet, or does not come. `queue_s` until a worker took the
    first of its jobs, `prefill_s` from there to the first token of any (answers that are no text
    have none), `decode_s` from there to the end of the last job, `total_s` from its coming to its
    end. `tokens_per_s` are generated while it ran."""

    queue_s: float | None
    prefill_s: float | None
    decode_s: float | None
    total_s: float | None
    tokens_per_s: float | None

    @property
    def first_token_s(self) -> float | None:
        """From the request's coming to its first token."""
        return (
            None
            if self.queue_s is None or self.prefill_s is None
            else self.queue_s + self.prefill_s
        )


def timings_of(times: Sequence[JobTimes], num_completion_tokens: int) -> Timings:
    """Of a request, by the times of its jobs."""
    queued_s = min(time.queued_s for time in times)
    taken_s = _first([time.taken_s for time in times])
    first_s = _first([time.first_s for time in times])
    ended_s = (
        None
        if any(time.ended_s is None for time in times)
        else max(time.ended_s or 0 for time in times)
    )
    run_s = _between(taken_s, ended_s)
    return Timings(
        queue_s=_between(queued_s, ended_s if taken_s is None else taken_s),
        prefill_s=_between(taken_s, first_s),
        decode_s=_between(first_s, ended_s),
        total_s=_between(queued_s, ended_s),
        tokens_per_s=round(num_completion_tokens / run_s, 3)
        if run_s and num_completion_tokens
        else None,
    )


def timing_headers(timings: Timings) -> dict[str, str]:
    """`Server-Timing` in milliseconds, as that header has it, and `X-Tokens-Per-Second`."""
    told = {name: getattr(timings, f"{name}_s") for name in ("queue", "prefill", "decode", "total")}
    metrics = ", ".join(
        f"{name};dur={value * 1000:.0f}" for name, value in told.items() if value is not None
    )
    rate = timings.tokens_per_s
    return {"Server-Timing": metrics} | (
        {} if rate is None else {"X-Tokens-Per-Second": f"{rate:.3f}"}
    )


def timing_comment(timings: Timings) -> bytes:
    """For the end of a stream, whose headers have gone out before."""
    return b": timings " + timings.model_dump_json().encode() + b"\n"


def _first(times: list[float | None]) -> float | None:
    return min((time for time in times if time is not None), default=None)


def _between(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else round(max(0.0, end_s - start_s), 3)
