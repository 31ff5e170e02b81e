"""The spans of one take of a job in its trace: queue, encode, prefill, decode and publish.

Intake and outbox note the events. There is no span for a single token, and none for a job without a
trace.
"""

import time

from shared.messages import Chat, Done, Embed, Event, Failed, Generate, Job, Terminal, name_of
from shared.telemetry.tracing import NO_SPAN, NO_TRACE, Attributes, Span, Trace, Tracing
from worker.engine.request import Emission


class JobSpan:
    """The spans of one take. It ends once, by `published` or `dropped`.

    Without spans no call does anything.
    """

    def __init__(
        self, span: Span = NO_SPAN, phase: Span = NO_SPAN, *, is_generated: bool = False
    ) -> None:
        self._span = span
        self._phase = phase
        self._is_generated = is_generated
        self._num_tokens = 0
        self._error: str | None = None

    @property
    def trace(self) -> Trace:
        """Return the trace by which a later attempt finds this one."""
        return self._span.trace

    def follows(self, trace: Trace) -> None:
        """Link an earlier attempt at the job, by its trace."""
        self._span.link(trace)

    def encoded(self, num_prompt_tokens: int, num_replayed: int) -> None:
        """Note that the job goes to the engine, with `num_replayed` tokens from its log."""
        self._begin("prefill" if self._is_generated else "compute")
        self._phase.set(
            {
                "gen_ai.usage.input_tokens": num_prompt_tokens,
                "aios.replayed_tokens": num_replayed or None,
            }
        )

    def emitted(self, emission: Emission) -> None:
        """Note an emission of the job's engine."""
        if self._span is NO_SPAN:
            return
        if emission.ids and self._is_generated:
            if self._num_tokens == 0:
                self._begin("decode")
            self._num_tokens += len(emission.ids)
        if emission.ended is not None:
            self.ended(emission.ended)

    def ended(self, event: Event) -> None:
        """Note an event that goes to Redis. Only the job's end matters."""
        if self._span is NO_SPAN or not isinstance(event, Terminal):
            return
        if self._num_tokens:
            self._phase.set({"gen_ai.usage.output_tokens": self._num_tokens})
        if isinstance(event, Failed):
            self._error = event.code
        elif isinstance(event, Done):
            self._span.set(_answer_attributes(event))
        self._begin("publish", self._error)

    def published(self) -> None:
        """End the spans, because the job's end is in the log."""
        self._phase.end()
        self._span.end(self._error)

    def dropped(self, reason: str) -> None:
        """End the spans, because the job is no longer this worker's."""
        self._phase.end(reason)
        self._span.end(reason)

    def _begin(self, phase: str, error: str | None = None) -> None:
        self._phase.end(error)
        self._phase = self._span.child(phase)


UNTRACED = JobSpan()


def begin(tracing: Tracing, job: Job, epoch: int, waited_s: float, worker_id: str) -> JobSpan:
    """Begin the spans of a job that was taken just now.

    It is the job's take number `epoch`, `waited_s` after it was queued.
    """
    if not tracing.is_on or job.trace == NO_TRACE:
        return UNTRACED
    now_ns = time.time_ns()
    ids: Attributes = {"aios.job_id": job.id, "aios.model": job.model, "aios.attempt": epoch}
    # The wait in the queue has one span, at the first attempt.
    if epoch == 1:
        queued_ns = now_ns - int(waited_s * 1e9)
        waiting = tracing.span(
            "queue", job.trace, kind="consumer", attributes=ids, start_ns=queued_ns
        )
        waiting.end(at_ns=now_ns)

    attributes = {
        **ids,
        **_request_attributes(job),
        "aios.worker": worker_id,
        "aios.request_id": job.request_id,
    }
    name = f"{attributes['gen_ai.operation.name']} {job.model}"
    span = tracing.span(name, job.trace, attributes=attributes, start_ns=now_ns)
    encoding = span.child("encode", start_ns=now_ns)
    return JobSpan(span, encoding, is_generated=isinstance(job.task, Generate))


def _request_attributes(job: Job) -> Attributes:
    task = job.task
    if isinstance(task, Generate):
        sampling = task.sampling
        operation = "text_completion"
        if isinstance(task.prompt, Chat):
            operation = "chat"
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": job.model,
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.seed": sampling.seed,
            "gen_ai.request.choice.count": sampling.n if sampling.n > 1 else None,
            "gen_ai.request.stream": job.is_streamed,
        }
    operation = "embeddings" if isinstance(task, Embed) else name_of(task)
    return {"gen_ai.operation.name": operation, "gen_ai.request.model": job.model}


def _answer_attributes(done: Done) -> Attributes:
    return {
        "gen_ai.response.finish_reasons": done.generated.finish_reasons or (done.finish_reason,),
        "gen_ai.usage.input_tokens": done.num_prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": done.num_cached_tokens or None,
        "gen_ai.usage.output_tokens": done.num_completion_tokens,
    }
