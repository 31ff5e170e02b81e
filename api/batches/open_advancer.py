"""Open the part of the background role that advances batches: a front without a port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from api.batches.advance import Advancer
from api.batches.batch_files import BatchFiles
from api.batches.batch_posts import BATCH_POSTS, holds_files
from api.deps import build_front
from api.endpoints.dialects import POSTS
from api.endpoints.endpoint import Endpoints
from shared.artifacts.store import ArtifactStore
from shared.queue.broker import Broker
from shared.settings.settings import Settings
from shared.telemetry.metrics import BatchMetrics

_MOST_BYTES = 1 << 50
# The parts of a batch, and the keys of its lines, outlive it by so much.
_SPARE_S = 86_400.0


@asynccontextmanager
async def open_advancer(
    settings: Settings, broker: Broker, metrics: BatchMetrics
) -> AsyncIterator[Advancer]:
    """Return what advances batches under these settings. Raise SettingsError."""
    # A line waits in the queue for as long as its batch may take.
    window_s = settings.batch_max_window_s
    patient = settings.model_copy(
        update={
            "queue_timeout_s": max(window_s, settings.queue_timeout_s),
            "request_timeout_s": max(window_s, settings.request_timeout_s),
            "idempotency_ttl_s": max(window_s + _SPARE_S, settings.idempotency_ttl_s),
        }
    )
    front = build_front(patient, broker, Endpoints(POSTS))
    store = ArtifactStore(
        broker,
        settings.artifact_url,
        ttl_s=max(window_s + _SPARE_S, settings.artifact_ttl_s),
        max_bytes=_MOST_BYTES,
    )

    def max_line_bytes(path: str) -> int:
        if holds_files(path):
            return max(settings.max_body_bytes, settings.max_inline_bytes)
        return settings.max_body_bytes

    files = BatchFiles(store, ttl_s=settings.artifact_ttl_s, max_line_bytes=max_line_bytes)
    advancer = Advancer(
        front,
        front.batches,
        files,
        BATCH_POSTS,
        metrics,
        max_lines=settings.batch_max_lines,
        seed=settings.seed,
    )
    yield advancer
    await advancer.close()
    await front.close()
