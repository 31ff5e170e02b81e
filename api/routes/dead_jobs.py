"""`/v1/dead-jobs`: jobs that were given up because their workers crashed, for operators."""

from datetime import UTC, datetime

from fastapi import APIRouter
from pydantic import BaseModel

from api.deps import Front, FrontDep
from api.endpoints.dialect import Access, Dialect
from api.redis_timeout import redis_answers
from api.schemas.errors import PlainErrorBody, errors_of
from shared.queue.dead_letters import DeadLetter, DeadLetters

PATH = "/v1/dead-jobs"

router = APIRouter(prefix=PATH, tags=["fleet"], responses=errors_of(PlainErrorBody))


class DeadJob(BaseModel):
    """A job that was taken `takes` times and whose workers died, the last of which is `worker`."""

    id: str
    model: str
    tenant: str
    worker: str
    takes: int
    at: datetime


class DeadJobListing(BaseModel):
    jobs: list[DeadJob]


class DeadJobChange(BaseModel):
    """The id of a dead job that is forgotten, and that of the new job with its task, if any."""

    id: str
    retried_as: str | None


@router.get("")
@redis_answers()
async def dead_jobs(front: FrontDep) -> DeadJobListing:
    """List the dead jobs of all tenants, the latest first. What was asked is not told."""
    letters = await _letters(front).all_letters()
    return DeadJobListing(jobs=[_body(letter) for letter in letters])


@router.post("/{id}/retry")
@redis_answers()
async def retry_dead_job(id: str, front: FrontDep) -> DeadJobChange:
    """Queue the task of a dead job as a new job of its tenant, and forget the dead one."""
    times = front.admission.limits.times(None)
    new_id = await _letters(front).retry(
        id, queue_timeout_s=times.queue_s, deadline_s=times.deadline_s
    )
    return DeadJobChange(id=id, retried_as=new_id)


@router.delete("/{id}")
@redis_answers()
async def drop_dead_job(id: str, front: FrontDep) -> DeadJobChange:
    """Forget a dead job, with its task."""
    await _letters(front).drop(id)
    return DeadJobChange(id=id, retried_as=None)


def _letters(front: Front) -> DeadLetters:
    return DeadLetters(front.broker)


def _body(letter: DeadLetter) -> DeadJob:
    return DeadJob(
        id=letter.id,
        model=letter.model,
        tenant=letter.tenant,
        worker=letter.worker,
        takes=letter.epochs,
        at=datetime.fromtimestamp(letter.at_ms / 1000, UTC),
    )


DIALECT = Dialect(router=router, access=Access.ADMIN, prefix=PATH)
