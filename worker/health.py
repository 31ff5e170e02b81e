"""What a worker answers to probes and scrapers at its own port: `/healthz`, `/readyz`,
`/metrics`."""

import json
from collections.abc import Callable

from shared.listener import Answer, Routes
from shared.metrics import CONTENT_TYPE, WorkerMetrics

Trouble = Callable[[], str | None]
"""Says what is wrong, None when nothing is."""


def routes(metrics: WorkerMetrics, hangs: Trouble, not_ready: Trouble) -> Routes:
    """`/healthz` is 503 when the worker does not get on, `/readyz` unless it is there for work."""

    async def healthz() -> Answer:
        return _told("ok", hangs())

    async def readyz() -> Answer:
        return _told("ready", not_ready())

    async def rendered() -> Answer:
        return 200, CONTENT_TYPE, metrics.render()

    return {"/healthz": healthz, "/readyz": readyz, "/metrics": rendered}


def _told(fine: str, trouble: str | None) -> Answer:
    body = {"status": fine} if trouble is None else {"status": f"not {fine}", "reason": trouble}
    return (200 if trouble is None else 503), "application/json", json.dumps(body).encode()
