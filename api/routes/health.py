"""Liveness, readiness and metrics, for probes and scrapers rather than callers."""

import asyncio
from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from api.deps import Front, FrontDep
from api.endpoints.dialect import Access, Dialect
from shared.errors import BrokerUnavailable
from shared.telemetry.metrics import CONTENT_TYPE

router = APIRouter(tags=["health"])

_PATIENCE_S = 1.0


class Liveness(BaseModel):
    status: Literal["ok", "not ready"]
    ready: bool


class Health(BaseModel):
    """The health of the fleet. `model` is the default one; `reason` says why none is served."""

    status: Literal["healthy", "unhealthy"]
    ready: bool
    model: str | None = None
    reason: str | None = None


class Readiness(BaseModel):
    """The readiness of the fleet. `reason` says why it is not ready."""

    status: Literal["ready", "not ready"]
    reason: str | None = None


@router.get("/healthz", response_model=Liveness, responses={503: {"model": Liveness}})
async def healthz(front: FrontDep) -> Response:
    """Tell that this process is up. In the mode `ready`, answer 503 until a worker is ready."""
    is_ready = await reason_not_ready(front) is None
    if front.healthz_mode == "ready" and not is_ready:
        return JSONResponse({"status": "not ready", "ready": False}, 503)
    return JSONResponse({"status": "ok", "ready": is_ready})


@router.get("/health", response_model=Health, responses={503: {"model": Health}})
async def health(front: FrontDep) -> Response:
    """Tell SimpleFoundation's clients whether new work would find a worker; 503 if not."""
    reason = await reason_not_ready(front)
    if reason is not None:
        return JSONResponse({"status": "unhealthy", "ready": False, "reason": reason}, 503)
    model = await front.admission.find(None)
    return JSONResponse({"status": "healthy", "ready": True, "model": model.id})


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(front: FrontDep) -> Response:
    """Tell whether new work would find a worker; 503 if not."""
    reason = await reason_not_ready(front)
    if reason is not None:
        return JSONResponse({"status": "not ready", "reason": reason}, 503)
    return JSONResponse({"status": "ready"})


@router.get("/metrics", include_in_schema=False)
async def metrics(front: FrontDep) -> Response:
    """Return the metrics as Prometheus reads them. Those of the fleet are read from Redis now."""
    return Response(await front.exporter.render(), media_type=CONTENT_TYPE)


async def reason_not_ready(front: Front) -> str | None:
    """Return why new work would find no worker.

    Return None when it would find one, or wait for one that may soon be back.
    """
    if front.draining.is_set():
        return "this server is shutting down"
    try:
        async with asyncio.timeout(_PATIENCE_S):
            fleet = await front.fleet.now()
    except (BrokerUnavailable, TimeoutError):
        return "Redis is not reachable"
    if fleet.may_serve_some(front.admission.limits.absent_grace_s):
        return None
    return "no worker is ready"


DIALECT = Dialect(router=router, access=Access.OPEN, are_probes=True)
