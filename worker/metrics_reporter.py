"""What a worker tells of itself: its record in presence once a second, and its metrics when
somebody asks.

Reads what the parts of the worker count anyway; nothing here is called by a step.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

from shared.broker import Broker
from shared.memory import resident_bytes
from shared.messages import ModelInfo, ModelLoad, WorkerInfo, WorkerState
from shared.metric_kinds import Values
from shared.metrics import WorkerMetrics
from shared.model_load import NUMBERS
from shared.process import LoopLag, tell
from shared.queue import Claim
from shared.task_table import cost_of
from worker.device import device_memory
from worker.engines import AnyEngine
from worker.intake import Intake
from worker.ledger import Ledger
from worker.loading import LoadedModel
from worker.memory_guard import MemoryGuard
from worker.outbox import Outbox

STATES = (*get_args(WorkerState), "full")
_LATELY = 10
_WORK_LATELY = 60
_ENOUGH_S = 0.2
"""Announcements, and so seconds, over which tokens and work are measured; and the stepping that
tells of the latter."""


@dataclass
class _ReportedModel:
    """One model. `num_jobs` were done, and `work` is what they cost; `tokens` and `works` are
    (clock or seconds of stepping, count) at the last announcements."""

    model: LoadedModel
    engine: AnyEngine
    intake: Intake
    num_jobs: int = 0
    work: int = 0
    tokens: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_LATELY + 1))
    works: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_WORK_LATELY + 1))
    work_per_s: float = 0.0

    def sample(self, now_s: float) -> None:
        stats = self.engine.stats
        self.tokens.append((now_s, stats.num_tokens))
        self.works.append((stats.steps_s.total, self.work))
        stepped_s, done = (
            last - first for first, last in zip(self.works[0], self.works[-1], strict=True)
        )
        if done > 0 and stepped_s > _ENOUGH_S:
            self.work_per_s = done / stepped_s

    @property
    def tokens_per_s(self) -> float:
        (first_s, first), (last_s, last) = self.tokens[0], self.tokens[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0

    def told(self) -> ModelLoad:
        values: dict[str, Any] = {}
        for name in NUMBERS:
            values[name] = _MEASURES[name](self)
        return ModelLoad(self.model.info.id, **values)


class MetricsReporter:
    """`pool` is what the operator calls workers of this kind."""

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
        self._reported[model.info.id] = _ReportedModel(model, engine, intake)

    def remove(self, model_id: str) -> None:
        """It is no longer in memory; its series end, and begin again at 0 with the next `add`."""
        del self._reported[model_id]

    def closed(self, claim: Claim) -> None:
        """A job was done here; what it was expected to cost is how waiting work is counted, too."""
        item = self._reported[claim.job.model]
        item.num_jobs += 1
        item.work += cost_of(claim.job.task)

    def info(self, worker_id: str, state: WorkerState, models: tuple[ModelInfo, ...]) -> WorkerInfo:
        """The record in presence; asked for about once a second, and rates are measured from one
        time to another."""
        now_s = time.monotonic()
        for item in self._reported.values():
            item.sample(now_s)
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
            loads=tuple(item.told() for item in self._reported.values()),
        )

    def tell(
        self,
        metrics: WorkerMetrics,
        broker: Broker,
        lag: LoopLag,
        state_of: Callable[[], WorkerState],
    ) -> None:
        """Let the metrics of the worker be read."""
        tell(metrics.process, broker, lag)
        metrics.state.read = lambda: {(name,): name == self._shown(state_of()) for name in STATES}
        metrics.silence.read = lambda: {(): self._silence_s()}
        metrics.memory_share.read = lambda: {(): self._memory_guard.share}
        metrics.stale_appends.read = lambda: {(): self._outbox.num_stale}
        metrics.device_memory.read = self._device_memory
        metrics.batch.read = lambda: {
            (name,): item.engine.stats.rows for name, item in self._items()
        }
        metrics.step.read = lambda: {
            (name,): item.engine.stats.steps_s for name, item in self._items()
        }
        for name, metric in metrics.by_model.items():
            metric.read = partial(self._each, _MEASURES[name])

    def _each(self, value: Callable[[_ReportedModel], float]) -> Values:
        return {(name,): value(item) for name, item in self._items()}

    def _items(self) -> list[tuple[str, _ReportedModel]]:
        return list(self._reported.items())

    def _shown(self, state: WorkerState) -> str:
        return "full" if state == "ready" and self._memory_guard.is_over else state

    def _device_memory(self) -> Values:
        allocated, total = device_memory() if self._reported else (0, 0)
        return {("allocated",): allocated, ("total",): total} if total else {}


_MEASURES: dict[str, Callable[[_ReportedModel], float]] = {
    "running": lambda item: item.engine.load.running,
    "steps_done": lambda item: item.engine.load.steps_done,
    "steps_total": lambda item: item.engine.load.steps_total,
    "waiting": lambda item: item.engine.load.waiting,
    "kv_used": lambda item: item.engine.load.pages_held,
    "kv_pages": lambda item: item.engine.load.num_pages,
    "kv_cached": lambda item: item.engine.load.pages_cached,
    "prefix_lookups": lambda item: item.engine.load.num_started,
    "prefix_hits": lambda item: item.engine.load.num_hits,
    "prefix_tokens": lambda item: item.engine.load.num_hit_tokens,
    "preemptions": lambda item: item.engine.load.num_preempted,
    "tokens": lambda item: item.engine.stats.num_tokens,
    "prompt_tokens": lambda item: item.engine.stats.num_prompt_tokens,
    "errors": lambda item: item.engine.stats.num_failures,
    "segments": lambda item: item.engine.stats.num_segments,
    "settled": lambda item: item.engine.stats.num_settled,
    "step_s": lambda item: round(item.engine.stats.last_step_s, 6),
    "tokens_per_s": lambda item: round(item.tokens_per_s, 3),
    "work_per_s": lambda item: round(item.work_per_s, 3),
    "load_s": lambda item: round(item.model.load_s, 3),
    "warm_up_s": lambda item: round(item.model.warm_up_s, 3),
    "takeovers": lambda item: item.intake.num_taken_over,
    "convictions": lambda item: item.intake.num_convicted,
    "jobs": lambda item: item.num_jobs,
}
"""How each number of `ModelLoad` is measured."""
