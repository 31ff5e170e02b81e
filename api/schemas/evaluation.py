"""Bodies of `/api/evaluation`: what is to be asked, and how far that has come."""

from typing import Annotated, Literal

import msgspec
from pydantic import BaseModel, Field

from api.evaluation.report import Report
from api.schemas.fields import NonEmpty, RequestBody, shown
from shared.queue.evaluation_runs import EvaluationRun


class EvaluationRequest(RequestBody):
    """The sets to ask, by default all, and the model, by default all that can do a task.

    A report that is accepted is the next baseline in spite of its regressions.
    """

    model_config = shown({"tasks": ["mathematics"], "model": "hrm-text-math"})

    tasks: Annotated[list[NonEmpty], Field(min_length=1)] | None = None
    model: NonEmpty | None = None
    accept: Annotated[bool, Field(strict=True)] = False


class EvaluationBody(BaseModel):
    """An evaluation. `done` of its `total` requests have answers; warm-ups are among them.

    Items of a set that a model refuses are not asked. Times are in seconds since 1970. The report
    is there once it is done.
    """

    id: str
    state: Literal["queued", "running", "done", "failed"]
    created_at: int
    ended_at: int | None
    done: int
    total: int
    error: str | None
    report: Report | None


class EvaluationEntry(BaseModel):
    """An evaluation in a list. Its report is at `/api/evaluation/runs/{id}`."""

    id: str
    state: Literal["queued", "running", "done", "failed"]
    tasks: list[str] | None
    model: str | None
    created_at: int
    ended_at: int | None


class EvaluationListing(BaseModel):
    runs: list[EvaluationEntry]


def evaluation_entry(run: EvaluationRun) -> EvaluationEntry:
    return EvaluationEntry(
        id=run.id,
        state=run.state,
        tasks=None if run.spec.tasks is None else list(run.spec.tasks),
        model=run.spec.model,
        created_at=run.created_at,
        ended_at=run.ended_at,
    )


def evaluation_body(run: EvaluationRun) -> EvaluationBody:
    report = None
    if run.report:
        report = msgspec.json.decode(run.report, type=Report)
    return EvaluationBody(
        id=run.id,
        state=run.state,
        created_at=run.created_at,
        ended_at=run.ended_at,
        done=run.num_done,
        total=run.total,
        error=run.error or None,
        report=report,
    )
