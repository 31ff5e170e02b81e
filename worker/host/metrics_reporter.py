"""A worker's reports: its record in presence once a second, and its metrics when they are scraped.

They are read from counts that the parts of the worker keep. No step calls this module.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

from shared.messages import ModelInfo, ModelLoad, WorkerInfo, WorkerState
from shared.queue.broker import Broker
from shared.queue.leases import Claim
from shared.tasks.task_table import cost_of
from shared.telemetry.histogram import BucketHistogram
from shared.telemetry.memory import resident_bytes
from shared.telemetry.metric_kinds import Values
from shared.telemetry.metrics import WorkerMetrics
from shared.telemetry.model_load import NUMBERS
from shared.telemetry.process import LoopLag, measure_process
from worker.engine.engines import AnyEngine
from worker.hardware.device import device_memory
from worker.hardware.memory_guard import MemoryGuard
from worker.host.intake import Intake
from worker.host.ledger import Ledger
from worker.host.loading import LoadedModel
from worker.host.outbox import Outbox

STATES = (*get_args(WorkerState), "full")
_TOKEN_SAMPLES = 10
"""The number of announcements, and so of seconds, over which the rate of tokens is measured."""
_WORK_SAMPLES = 60
"""The number of announcements over which the rate of work is measured."""
_MIN_STEPPED_S = 0.2
"""The least time of stepping from which a rate of work is measured."""


@dataclass
class _ReportedModel:
    """One model. `num_jobs` were done here, and `work` is their cost in all.

    `tokens` and `works` hold samples of the last announcements: (clock in seconds, tokens), and
    (seconds of stepping, work).
    """

    model: LoadedModel
    engine: AnyEngine
    intake: Intake
    num_jobs: int = 0
    work: int = 0
    tokens: deque[tuple[float, int]] = field(
        default_factory=lambda: deque(maxlen=_TOKEN_SAMPLES + 1)
    )
    works: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_WORK_SAMPLES + 1))
    work_per_s: float = 0.0

    def sample(self, now_s: float) -> None:
        """Add a sample of tokens and of work, and measure the rate of work."""
        stats = self.engine.stats
        self.tokens.append((now_s, stats.num_tokens))
        self.works.append((stats.steps_s.total, self.work))
        first_s, first_work = self.works[0]
        last_s, last_work = self.works[-1]
        work_done = last_work - first_work
        stepped_s = last_s - first_s
        # Without work the last rate stays, because queued work is divided by it.
        if work_done > 0 and stepped_s > _MIN_STEPPED_S:
            self.work_per_s = work_done / stepped_s

    @property
    def tokens_per_s(self) -> float:
        """Return the rate of tokens over the samples, 0 before there are two."""
        first_s, first_count = self.tokens[0]
        last_s, last_count = self.tokens[-1]
        if last_s <= first_s:
            return 0.0
        return (last_count - first_count) / (last_s - first_s)

    def load(self) -> ModelLoad:
        """Return the model's numbers for presence."""
        values: dict[str, Any] = {}
        for name in NUMBERS:
            values[name] = MEASURES[name](self)
        return ModelLoad(self.model.info.id, **values)


class MetricsReporter:
    """The reports of one worker. `pool` is the operator's name for workers of this kind."""

    def __init__(
        self,
        ledger: Ledger,
        outbox: Outbox,
        silence_s: Callable[[], float],
        memory_guard: MemoryGuard,
        *,
        pool: str,
    ) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._silence_s = silence_s
        self._memory_guard = memory_guard
        self._pool = pool
        self._began_s = time.monotonic()
        self._reported: dict[str, _ReportedModel] = {}

    def add(self, model: LoadedModel, engine: AnyEngine, intake: Intake) -> None:
        """Report a model from now on."""
        self._reported[model.info.id] = _ReportedModel(model, engine, intake)

    def remove(self, model_id: str) -> None:
        """Forget a model that is no longer in memory.

        Its series end, and begin again at 0 with the next `add`.
        """
        del self._reported[model_id]

    def closed(self, claim: Claim) -> None:
        """Count a job that was done here."""
        reported = self._reported[claim.job.model]
        reported.num_jobs += 1
        # The expected cost, not the actual one, because waiting work is counted so, too.
        reported.work += cost_of(claim.job.task)

    def info(self, worker_id: str, state: WorkerState, models: tuple[ModelInfo, ...]) -> WorkerInfo:
        """Return the worker's record for presence.

        Call this about once a second, because rates are measured between calls.
        """
        now_s = time.monotonic()
        loads: list[ModelLoad] = []
        for reported in self._reported.values():
            reported.sample(now_s)
            loads.append(reported.load())
        return WorkerInfo(
            worker_id,
            state,
            models,
            in_flight=len(self._ledger.claims),
            memory_bytes=resident_bytes(),
            pool=self._pool,
            is_full=self._memory_guard.is_over,
            uptime_s=round(now_s - self._began_s, 1),
            device_bytes=device_memory()[0] if self._reported else 0,
            stale_appends=self._outbox.num_stale,
            loads=tuple(loads),
        )

    def tell(
        self,
        metrics: WorkerMetrics,
        broker: Broker,
        lag: LoopLag,
        state_of: Callable[[], WorkerState],
    ) -> None:
        """Connect the metrics to the worker's numbers, which are read at each scrape."""
        measure_process(metrics.process, broker, lag)
        metrics.state.read = lambda: self._states(state_of())
        metrics.silence.read = lambda: {(): self._silence_s()}
        metrics.memory_share.read = lambda: {(): self._memory_guard.share}
        metrics.stale_appends.read = lambda: {(): self._outbox.num_stale}
        metrics.device_memory.read = self._device_memory
        metrics.batch.read = self._batches
        metrics.step.read = self._steps
        for name, metric in metrics.by_model.items():
            metric.read = partial(self._each, MEASURES[name])

    def _each(self, measure: Callable[[_ReportedModel], float]) -> Values:
        """Return one measurement of each model."""
        values: dict[tuple[str, ...], float] = {}
        for name, reported in self._models():
            values[(name,)] = measure(reported)
        return values

    def _batches(self) -> dict[tuple[str, ...], BucketHistogram]:
        return {(name,): reported.engine.stats.rows for name, reported in self._models()}

    def _steps(self) -> dict[tuple[str, ...], BucketHistogram]:
        return {(name,): reported.engine.stats.steps_s for name, reported in self._models()}

    def _models(self) -> list[tuple[str, _ReportedModel]]:
        """Return a copy, because models may be added and removed during a scrape."""
        return list(self._reported.items())

    def _states(self, state: WorkerState) -> Values:
        """Return 1 for the present state, 0 for all others. A ready worker may be full."""
        shown: str = state
        if state == "ready" and self._memory_guard.is_over:
            shown = "full"
        values: dict[tuple[str, ...], float] = {}
        for name in STATES:
            values[(name,)] = name == shown
        return values

    def _device_memory(self) -> Values:
        if not self._reported:
            return {}
        allocated, total = device_memory()
        if not total:
            return {}
        return {("allocated",): allocated, ("total",): total}


MEASURES: dict[str, Callable[[_ReportedModel], float]] = {
    "running": lambda reported: reported.engine.load.running,
    "steps_done": lambda reported: reported.engine.load.steps_done,
    "steps_total": lambda reported: reported.engine.load.steps_total,
    "waiting": lambda reported: reported.engine.load.waiting,
    "kv_used": lambda reported: reported.engine.load.pages_held,
    "kv_pages": lambda reported: reported.engine.load.num_pages,
    "kv_cached": lambda reported: reported.engine.load.pages_cached,
    "prefix_lookups": lambda reported: reported.engine.load.num_started,
    "prefix_hits": lambda reported: reported.engine.load.num_hits,
    "prefix_tokens": lambda reported: reported.engine.load.num_hit_tokens,
    "preemptions": lambda reported: reported.engine.load.num_preempted,
    "tokens": lambda reported: reported.engine.stats.num_tokens,
    "prompt_tokens": lambda reported: reported.engine.stats.num_prompt_tokens,
    "errors": lambda reported: reported.engine.stats.num_failures,
    "segments": lambda reported: reported.engine.stats.num_segments,
    "settled": lambda reported: reported.engine.stats.num_settled,
    "drafted": lambda reported: reported.engine.stats.num_drafted,
    "accepted": lambda reported: reported.engine.stats.num_accepted,
    "step_s": lambda reported: round(reported.engine.stats.last_step_s, 6),
    "tokens_per_s": lambda reported: round(reported.tokens_per_s, 3),
    "work_per_s": lambda reported: round(reported.work_per_s, 3),
    "load_s": lambda reported: round(reported.model.load_s, 3),
    "warm_up_s": lambda reported: round(reported.model.warm_up_s, 3),
    "takeovers": lambda reported: reported.intake.num_taken_over,
    "convictions": lambda reported: reported.intake.num_convicted,
    "jobs": lambda reported: reported.num_jobs,
}
"""The function that measures each number of `ModelLoad`."""
