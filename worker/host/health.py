"""The routes of a worker's own port, for probes and scrapers: `/healthz`, `/readyz`, `/metrics`."""

import json
from collections.abc import Callable

from shared.listener import Answer, Routes
from shared.telemetry.metrics import CONTENT_TYPE, WorkerMetrics

Trouble = Callable[[], str | None]
"""Returns a sentence on what is wrong, None when nothing is."""


def routes(metrics: WorkerMetrics, hangs: Trouble, not_ready: Trouble) -> Routes:
    """Return the routes. `/healthz` is 503 when the worker does not get on, `/readyz` unless it
    takes work."""

    async def healthz() -> Answer:
        return _answer("ok", hangs())

    async def readyz() -> Answer:
        return _answer("ready", not_ready())

    async def rendered() -> Answer:
        return 200, CONTENT_TYPE, metrics.render()

    return {"/healthz": healthz, "/readyz": readyz, "/metrics": rendered}


def _answer(fine: str, trouble: str | None) -> Answer:
    status = 200
    body = {"status": fine}
    if trouble is not None:
        status = 503
        body = {"status": f"not {fine}", "reason": trouble}
    return status, "application/json", json.dumps(body).encode()
