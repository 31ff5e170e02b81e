"""`POST /v1/feedback`: callers say what they think of the answers of an experiment.

A caller rates requests of its own tenant. To it, all others do not exist.
"""

from fastapi import APIRouter

from api.access.caller import CallerDep
from api.deps import FrontDep, RequestStateDep
from api.endpoints.dialect import Dialect
from api.redis_timeout import redis_answers
from api.schemas.feedback import Feedback, FeedbackRequest
from shared.errors import InvalidRequest
from shared.queue import keys

PATH = "/v1/feedback"

router = APIRouter(tags=["jobs"])


@router.post(PATH)
@redis_answers()
async def feedback(
    body: FeedbackRequest,
    front: FrontDep,
    caller: CallerDep,
    request_state: RequestStateDep,
) -> Feedback:
    """Note feedback on a request of an experiment, for a day after it came."""
    await front.rate_limiter.keep(caller.id or caller.tenant, caller.rates_of(PATH))
    # Some dialects put a word before the id: `cmpl-` or `chatcmpl-`.
    request_id = body.id.rpartition("-")[2]
    assignment = None
    if keys.is_id(request_id):
        assignment = await front.experiment_log.rate(
            request_id, caller.tenant, score=body.score, comment=body.comment
        )
    if assignment is None:
        await front.requests.find(request_id, caller.tenant)
        raise InvalidRequest("id: this request is of no experiment.", field="id")
    request_state.assignment = assignment
    return Feedback(
        id=body.id, experiment=assignment.experiment, arm=assignment.arm, score=body.score
    )


DIALECT = Dialect(router=router, prefix=PATH)
