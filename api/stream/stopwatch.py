"""Times of a request's jobs, by the clock of the front that took it, without asking Redis.

They are for the histograms and for the request's log line. A front that follows a job again sees
its events again, all at once. Only the first sight of each event counts.
"""

import time
from collections.abc import Sequence

from api.stream.timings import Timings, timings_of
from shared.messages import Done, Event, Progress, Started, TaskName, Terminal, Tokens
from shared.queue.requests import JobTimes
from shared.telemetry.metrics import Metrics


class Stopwatch:
    """Measures from its creation on, which is when the request was queued.

    `tasks` are the names of the tasks of its jobs.
    `worker` is the worker that started a job last. `attempts` is how often the job with the most
    starts was started. The first token of an answer that is not streamed is seen up to half a
    second late, together with those that the worker gathered behind it.
    """

    def __init__(self, metrics: Metrics, model: str, tasks: Sequence[TaskName]) -> None:
        num_jobs = len(tasks)
        self.worker: str | None = None
        self.attempts = 0
        self._metrics = metrics
        self._model = model
        self._tasks = tasks
        self._has_output = [False] * num_jobs
        self._gaps = metrics.token_gaps(model)
        self._queued_s = time.monotonic()
        self._seen = [0] * num_jobs
        self._started_s: list[float | None] = [None] * num_jobs
        self._first_s: list[float | None] = [None] * num_jobs
        self._last_s = [0.0] * num_jobs
        self._ended_s: list[float | None] = [None] * num_jobs

    def note(self, job: int, index: int, event: Event) -> None:
        """Note an event of the job with this number in its request.

        `index` is that of the event in the job's log.
        """
        if index <= self._seen[job]:
            return
        self._seen[job] = index
        now_s = time.monotonic()
        if isinstance(event, Tokens | Progress | Done) and not self._has_output[job]:
            self._has_output[job] = True
            taken_s = now_s - self._queued_s
            self._metrics.first_output.labels(self._tasks[job]).observe(taken_s)
        if isinstance(event, Tokens):
            self._tokens(job, now_s, len(event.ids))
        elif isinstance(event, Started):
            self.worker = event.worker
            self.attempts = max(self.attempts, event.epoch)
            self._start(job, now_s)
        elif isinstance(event, Terminal):
            self._end(job, now_s, is_done=isinstance(event, Done))

    def timings(self, num_completion_tokens: int) -> Timings:
        """Return the timings of the request, as far as it has got."""
        times = []
        for started_s, first_s, ended_s in zip(
            self._started_s, self._first_s, self._ended_s, strict=True
        ):
            times.append(JobTimes(self._queued_s, started_s, first_s, ended_s))
        return timings_of(times, num_completion_tokens)

    def _start(self, job: int, now_s: float) -> None:
        """Note the first start. A worker that takes the job over starts in the middle of it."""
        if self._started_s[job] is None:
            self._started_s[job] = now_s
            self._metrics.queue_wait.labels(self._model).observe(now_s - self._queued_s)

    def _tokens(self, job: int, now_s: float, count: int) -> None:
        if self._first_s[job] is None:
            self._first_s[job] = now_s
            self._metrics.first_token.labels(self._model).observe(now_s - self._queued_s)
            started_s = self._started_s[job]
            if started_s is not None:
                self._metrics.prefill.labels(self._model).observe(now_s - started_s)
        elif count:
            self._gaps.add((now_s - self._last_s[job]) / count)
        self._last_s[job] = now_s

    def _end(self, job: int, now_s: float, *, is_done: bool) -> None:
        self._ended_s[job] = now_s
        if not is_done:
            return
        self._metrics.job_time.labels(self._model).observe(now_s - self._queued_s)
        self._metrics.task_time.labels(self._tasks[job]).observe(now_s - self._queued_s)
        first_s = self._first_s[job]
        if first_s is not None:
            self._metrics.decode.labels(self._model).observe(now_s - first_s)
