"""`/v1/batches` as the OpenAI clients expect it: files of requests, answered in idle time.

A front only keeps the books. `aios jobs` advances batches (`api/batches/advance.py`).
"""

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import WithJsonSchema

from api.access.caller import CallerDep
from api.batches.batch_posts import BATCH_POSTS
from api.deps import FrontDep, RequestStateDep
from api.endpoints.dialect import Dialect
from api.http.error_format import OPENAI
from api.redis_timeout import redis_answers
from api.schemas.batches import BatchBody, BatchList, BatchRequest, batch_body
from api.schemas.errors import OpenAIErrorBody, errors_of
from api.submit.request_options import KeyDep
from api.submit.uploads import admit
from shared.errors import InvalidRequest, PayloadTooLarge, StorageUnavailable
from shared.queue.batches import BatchCaller, BatchSpec

PATH = "/v1/batches"
_PURPOSE = "batch"
_WINDOW = re.compile(r"([0-9]{1,7})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_NUMBER = re.compile(r"[0-9]{1,3}")
_DEFAULT_LISTED = 20
# The input outlives the batch by so much.
_SPARE_S = 3600.0

router = APIRouter(prefix=PATH, tags=["batches"], responses=errors_of(OpenAIErrorBody))


@router.post("")
@redis_answers()
async def create_batch(
    body: BatchRequest,
    request: Request,
    front: FrontDep,
    caller: CallerDep,
    *,
    request_state: RequestStateDep,
    key: KeyDep,
) -> BatchBody:
    """Make a batch of the requests in a file, one a line.

    They are answered in idle time, each as its endpoint would, and the answers are kept in a file.
    """
    await admit(front, caller, request)
    front.prohibited.check(request_state.body)
    if front.artifacts.files is None:
        raise StorageUnavailable(
            "Batches need a place for their files: the operator of this fleet can name one by"
            " --artifact-url.",
            retry_after_s=60,
        )
    if body.endpoint not in BATCH_POSTS:
        known = ", ".join(BATCH_POSTS)
        raise InvalidRequest(f"endpoint: expected one of {known}.", field="endpoint")
    window_s = _window_s(body.completion_window, front.batch_limits.max_window_s)
    file = await front.artifacts.prolong(caller.tenant, body.input_file_id, window_s + _SPARE_S)
    if file.purpose != _PURPOSE:
        raise InvalidRequest(
            f"input_file_id: expected a file of the purpose {_PURPOSE}, got {file.purpose!r}.",
            field="input_file_id",
        )
    max_bytes = front.batch_limits.max_bytes
    if file.num_bytes > max_bytes:
        raise PayloadTooLarge(
            f"input_file_id: expected at most {max_bytes} bytes; this file has {file.num_bytes}.",
            field="input_file_id",
        )
    output_lives_s = None
    if body.output_expires_after is not None:
        output_lives_s = float(body.output_expires_after.seconds)
    spec = BatchSpec(
        endpoint=body.endpoint,
        input_file_id=file.id,
        completion_window=body.completion_window,
        caller=BatchCaller(
            id=caller.id,
            digest=caller.digest,
            models=tuple(sorted(caller.models)),
            best_priority=caller.best_priority,
            concurrency=caller.quota.concurrency,
        ),
        metadata=body.metadata,
        output_lives_s=output_lives_s,
    )
    batch = await front.batches.create(caller.tenant, spec, window_s=window_s, key=key)
    return batch_body(batch)


@router.get("")
@redis_answers()
async def batches(
    front: FrontDep,
    caller: CallerDep,
    *,
    limit: Annotated[
        str | None,
        Query(description="How many at most."),
        WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 100}),
    ] = None,
    after: Annotated[
        str | None,
        Query(description="The id behind which the list begins."),
        WithJsonSchema({"type": "string"}),
    ] = None,
) -> BatchList:
    """List the batches of the caller's tenant, the latest first."""
    page, has_more = await front.batches.page(
        caller.tenant, limit=_limit_of(limit), after=after or ""
    )
    return BatchList(
        data=[batch_body(batch) for batch in page],
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=has_more,
    )


@router.get("/{id}")
@redis_answers()
async def batch(id: str, front: FrontDep, caller: CallerDep) -> BatchBody:
    """Return a batch, with the counts of its lines as they are now."""
    return batch_body(await front.batches.find(caller.tenant, id))


@router.post("/{id}/cancel")
@redis_answers()
async def cancel_batch(id: str, front: FrontDep, caller: CallerDep) -> BatchBody:
    """End a batch. The answers of lines that are done are kept."""
    return batch_body(await front.batches.cancel(caller.tenant, id))


def _window_s(text: str, most_s: float) -> float:
    """Return the seconds of a completion window. Raise InvalidRequest."""
    match = _WINDOW.fullmatch(text)
    seconds = 0
    if match is not None:
        seconds = int(match[1]) * _SECONDS[match[2]]
    if not 0 < seconds <= most_s:
        raise InvalidRequest(
            f"completion_window: expected a time such as 24h, 30m or 90s, of at most {most_s:g}"
            " seconds.",
            field="completion_window",
        )
    return float(seconds)


def _limit_of(text: str | None) -> int:
    if text is None:
        return _DEFAULT_LISTED
    if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= 100:
        raise InvalidRequest("limit: expected a whole number from 1 to 100.", field="limit")
    return int(text)


DIALECT = Dialect(router=router, prefix=PATH, errors=OPENAI)
