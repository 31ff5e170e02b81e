"""`/v1/fleet`: the state of the whole fleet, for operators."""

from typing import Any

import msgspec
from fastapi import APIRouter, Response
from pydantic import RootModel

from api.deps import FrontDep
from api.endpoints.dialect import Access, Dialect
from shared.errors import BrokerUnavailable
from shared.fleet.snapshot import look

router = APIRouter(tags=["fleet"])

_PATIENCE_S = 2.0


class FleetNow(RootModel[dict[str, Any]]):
    """The fleet, as `aios status --json` tells it: workers, models, queues, servers of Redis."""


@router.get("/v1/fleet", response_model=FleetNow)
async def fleet(front: FrontDep) -> Response:
    """Return the fleet at this moment. 503 if Redis does not answer."""
    now = await look(front.broker, _PATIENCE_S)
    if now.problem is not None:
        raise BrokerUnavailable(now.problem, retry_after_s=1)
    return Response(msgspec.json.encode(now), media_type="application/json")


DIALECT = Dialect(router=router, access=Access.ADMIN, prefix="/v1/fleet")
