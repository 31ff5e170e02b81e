"""The report of an evaluation: for each model and task how many answers were right, and how soon.

All of it is plain data, which is kept and answered as JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from api.evaluation.scorers import score_of
from api.evaluation.sets import EvalSet, Item
from shared.figures import percentile, wilson_interval
from shared.fleet.presence import Fleet
from shared.messages import ModelInfo

_SHOWN = 300

Way = Literal["http", "fleet"]
"""The way in which models were asked: over HTTP by the tool, or by the fleet's background role.

Times of the first are those of a client, times of the second those between Redis's own notes.
"""


@dataclass(frozen=True)
class Timing:
    """Percentiles in milliseconds."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Accuracy:
    """The mean score of `count` items, with Wilson's interval of 95 %."""

    count: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a model as its workers announce them. Those that are not known are None.

    `load_ms` is the time that the slowest worker took to load it. `memory_bytes` is the memory of
    all workers together, that of their devices among it.
    """

    id: str
    runner: str = ""
    device: str = ""
    dtype: str = ""
    tasks: tuple[str, ...] = ()
    load_ms: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class ItemResult:
    """The answer to an item, and its score. A failed request has an `error` and is wrong.

    A request was `refused` if the model cannot take it at all.
    """

    id: str
    score: float
    latency_ms: float = 0.0
    first_token_ms: float | None = None
    tokens: int = 0
    answered: str = ""
    error: str | None = None
    is_refused: bool = False


@dataclass(frozen=True)
class Regression:
    """A figure that is worse than the baseline allows: it was `before`, and `limit` was the limit."""

    kind: Literal["latency", "accuracy"]
    before: float
    limit: float
    now: float
    baseline: str


@dataclass(frozen=True)
class TaskReport:
    """The figures of a model at a task. Those without a basis are None.

    Times are of the requests that did not fail. `token_interval_ms` is the median over items of
    the mean time between tokens. `baseline` is the id of the report that this one was compared with.
    """

    task: str
    model: ModelFacts
    set_digest: str
    accuracy: Accuracy
    errors: int
    latency_ms: Timing | None
    first_token_ms: Timing | None
    token_interval_ms: float | None
    tokens: int
    tokens_per_s: float | None
    items: tuple[ItemResult, ...]
    baseline: str | None = None
    regressions: tuple[Regression, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A set that was not asked, of a model or (None) of any, and why.

    `baseline` is the id of an earlier report in which that model has answered it.
    """

    task: str
    model: str | None
    reason: str
    baseline: str | None = None


@dataclass(frozen=True)
class Report:
    """An evaluation, with `concurrency` items under way at a time.

    One that `is_accepted` is a baseline for later ones in spite of its regressions.
    """

    id: str
    made_at: str
    way: Way
    results: tuple[TaskReport, ...]
    skipped: tuple[Skipped, ...] = ()
    concurrency: int = 1
    is_accepted: bool = False

    @property
    def regressions(self) -> list[tuple[TaskReport, Regression]]:
        found = []
        for result in self.results:
            found += [(result, regression) for regression in result.regressions]
        return found

    @property
    def refused(self) -> list[Skipped]:
        """The sets that a model refuses now and has answered before."""
        return [skipped for skipped in self.skipped if skipped.baseline is not None]


@dataclass(frozen=True)
class Assignment:
    """A set that a model is asked."""

    task: str
    model: ModelFacts


@dataclass(frozen=True)
class Answer:
    """The answer to a request: its JSON and its times, or an error.

    `is_refused` tells that the model cannot take such a request at all.
    """

    body: Any = None
    latency_ms: float = 0.0
    first_token_ms: float | None = None
    tokens: int = 0
    error: str | None = None
    is_refused: bool = False


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def facts_of(fleet: Fleet, model: ModelInfo) -> ModelFacts:
    """Return the facts of a model in a fleet."""
    load_s = 0.0
    memory_bytes = 0
    for worker in fleet.workers:
        memory_bytes += worker.memory_bytes + worker.device_bytes
        for load in worker.loads:
            if load.id == model.id:
                load_s = max(load_s, load.load_s)
    return ModelFacts(
        id=model.id,
        runner=model.runner,
        device=model.device,
        dtype=model.dtype,
        tasks=model.tasks,
        load_ms=round(1000 * load_s, 1) or None,
        memory_bytes=memory_bytes or None,
    )


def assignments_of(
    sets: Sequence[EvalSet], models: Sequence[ModelFacts], named: str | None
) -> tuple[list[Assignment], list[Skipped]]:
    """Return what is to be asked of the `models` that are served, and the sets that are left out.

    `named` is the only model to ask; without one each set is asked of all that do its task.
    """
    assignments = []
    skipped = []
    for one in sets:
        able = [model for model in models if one.needs in model.tasks]
        if named is not None:
            able = [model for model in able if model.id == named]
        assignments += [Assignment(one.task, model) for model in able]
        if not able:
            skipped.append(Skipped(one.task, named, f"no model is served that does {one.needs!r}"))
    return assignments, skipped


def result_of(one: EvalSet, item: Item, answer: Answer) -> ItemResult:
    """Return the result of an item, with the beginning of its answer."""
    score = 0.0
    shown = ""
    if answer.error is None:
        score = score_of(one.scorer, answer.body, item.expected)
        shown = _shown(answer.body)
    return ItemResult(
        id=item.id,
        score=score,
        latency_ms=round(answer.latency_ms, 3),
        first_token_ms=_rounded(answer.first_token_ms),
        tokens=answer.tokens,
        answered=shown,
        error=answer.error,
        is_refused=answer.is_refused,
    )


def _rounded(time_ms: float | None) -> float | None:
    return None if time_ms is None else round(time_ms, 3)


def _shown(body: Any) -> str:
    """Return the beginning of what an answer says: its result, without ids and times."""
    if not isinstance(body, Mapping):
        return ""
    told = body.get("result", body.get("solutions", ""))
    if isinstance(told, Mapping) and isinstance(told.get("text"), str):
        told = told["text"]
    text = told if isinstance(told, str) else msgspec.json.encode(told).decode()
    return text[:_SHOWN]


def task_report(one: EvalSet, model: ModelFacts, items: Sequence[ItemResult]) -> TaskReport:
    """Return the figures of a model at a task, from the results of all items."""
    done = [item for item in items if item.error is None]
    tokens = sum(item.tokens for item in done)
    seconds = sum(item.latency_ms for item in done) / 1000
    intervals = []
    first_ms = []
    for item in done:
        if item.first_token_ms is None:
            continue
        first_ms.append(item.first_token_ms)
        if item.tokens > 1:
            intervals.append((item.latency_ms - item.first_token_ms) / (item.tokens - 1))
    return TaskReport(
        task=one.task,
        model=model,
        set_digest=one.digest,
        accuracy=_accuracy([item.score for item in items]),
        errors=len(items) - len(done),
        latency_ms=_timing([item.latency_ms for item in done]),
        first_token_ms=_timing(first_ms),
        token_interval_ms=round(percentile(sorted(intervals), 50), 3) if intervals else None,
        tokens=tokens,
        tokens_per_s=round(tokens / seconds, 3) if tokens and seconds else None,
        items=tuple(items),
    )


def _accuracy(scores: Sequence[float]) -> Accuracy:
    # Rounding may carry a mean of ones above 1.
    mean = min(1.0, sum(scores) / len(scores))
    low, high = wilson_interval(mean, len(scores))
    return Accuracy(len(scores), mean, low, high)


def _timing(times_ms: Sequence[float]) -> Timing | None:
    if not times_ms:
        return None
    ordered = sorted(times_ms)
    return Timing(p50=round(percentile(ordered, 50), 3), p95=round(percentile(ordered, 95), 3))
