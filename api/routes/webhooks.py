"""`/v1/webhook_endpoints` as OpenAI's clients expect it: URLs that are told how work has ended.

A front only keeps the books: `aios jobs` sends, so that no front calls what a caller names.
"""

import asyncio

from fastapi import APIRouter, Request

from api.access.caller import CallerDep
from api.deps import FrontDep, RequestStateDep
from api.endpoints.dialect import Dialect
from api.http.error_format import OPENAI
from api.redis_timeout import redis_answers
from api.schemas.errors import OpenAIErrorBody, errors_of
from api.schemas.webhooks import (
    DeletedWebhookEndpoint,
    RotateSecretRequest,
    WebhookAttempts,
    WebhookEndpointBody,
    WebhookEndpointChange,
    WebhookEndpointList,
    WebhookEndpointRequest,
    WebhookEndpointWithSecret,
    WebhookEventTypes,
    WebhookTestRequest,
    WebhookTestResult,
    attempt_body,
    endpoint_body,
    with_secret,
)
from api.submit.uploads import admit
from shared.errors import InvalidRequest
from shared.queue.webhooks import Attempt
from shared.webhooks.targets import Network, TargetRefused, check_url

PATH = "/v1/webhook_endpoints"
_MOST_LISTED = 100
# Longer than an attempt may take, with the second after which events are taken.
_TEST_S = 20.0
_LOOK_S = 0.2

router = APIRouter(tags=["webhooks"], responses=errors_of(OpenAIErrorBody))


@router.post(PATH)
@redis_answers()
async def create_webhook_endpoint(
    body: WebhookEndpointRequest,
    request: Request,
    front: FrontDep,
    caller: CallerDep,
    request_state: RequestStateDep,
) -> WebhookEndpointWithSecret:
    """Have events of the caller's tenant sent to a URL. The secret is told only now."""
    request_state.tells_secret = True
    await admit(front, caller, request)
    _check(body.url, front.webhook_allow)
    endpoint = await front.webhooks.create(
        caller.tenant, name=body.name, url=body.url, event_types=body.event_types
    )
    return with_secret(endpoint)


@router.get(PATH)
@redis_answers()
async def webhook_endpoints(front: FrontDep, caller: CallerDep) -> WebhookEndpointList:
    """List all endpoints of the caller's tenant, the latest first."""
    endpoints = await front.webhooks.all_of(caller.tenant)
    return WebhookEndpointList(
        data=[endpoint_body(endpoint) for endpoint in endpoints],
        first_id=endpoints[0].id if endpoints else None,
        last_id=endpoints[-1].id if endpoints else None,
        has_more=False,
    )


@router.get(f"{PATH}/{{id}}")
@redis_answers()
async def webhook_endpoint(id: str, front: FrontDep, caller: CallerDep) -> WebhookEndpointBody:
    """Return an endpoint, without its secret."""
    return endpoint_body(await front.webhooks.find(caller.tenant, id))


@router.post(f"{PATH}/{{id}}")
@redis_answers()
async def update_webhook_endpoint(
    id: str, body: WebhookEndpointChange, front: FrontDep, caller: CallerDep
) -> WebhookEndpointBody:
    """Change an endpoint. That enables one that was disabled."""
    fields = {}
    if body.url is not None:
        _check(body.url, front.webhook_allow)
        fields["url"] = body.url
    if body.name is not None:
        fields["name"] = body.name
    if body.event_types is not None:
        fields["types"] = " ".join(body.event_types)
    return endpoint_body(await front.webhooks.update(caller.tenant, id, fields))


@router.delete(f"{PATH}/{{id}}")
@redis_answers()
async def delete_webhook_endpoint(
    id: str, front: FrontDep, caller: CallerDep
) -> DeletedWebhookEndpoint:
    """Delete an endpoint. What was not delivered to it never is."""
    await front.webhooks.delete(caller.tenant, id)
    return DeletedWebhookEndpoint(id=id)


@router.post(f"{PATH}/{{id}}/rotate_secret")
@redis_answers()
async def rotate_webhook_secret(
    id: str,
    body: RotateSecretRequest,
    front: FrontDep,
    caller: CallerDep,
    request_state: RequestStateDep,
) -> WebhookEndpointWithSecret:
    """Give an endpoint a new secret, which is told only now."""
    request_state.tells_secret = True
    keeps_old = body.keep_old_secret_active_for_24_hours
    endpoint = await front.webhooks.rotate(caller.tenant, id, keeps_old=keeps_old)
    return with_secret(endpoint)


@router.post(f"{PATH}/{{id}}/test")
async def test_webhook_endpoint(
    id: str, body: WebhookTestRequest, request: Request, front: FrontDep, caller: CallerDep
) -> WebhookTestResult:
    """Send an event of nothing to an endpoint, once, and return what it answers."""
    async with redis_answers():
        await admit(front, caller, request)
        endpoint = await front.webhooks.find(caller.tenant, id)
        event_id = await front.webhooks.test(endpoint, body.event_type)

    loop = asyncio.get_running_loop()
    until_s = loop.time() + _TEST_S
    attempt: Attempt | None = None
    while attempt is None and loop.time() < until_s and not front.draining.is_set():
        await asyncio.sleep(_LOOK_S)
        async with redis_answers():
            attempts = await front.webhooks.attempts(caller.tenant, id, _MOST_LISTED)
        for listed in attempts:
            if listed.event == event_id:
                attempt = listed
    return WebhookTestResult(
        webhook_endpoint_id=id,
        event_id=event_id,
        event_type=body.event_type,
        success=attempt is not None and attempt.status is not None,
        status_code=attempt.status if attempt is not None else None,
    )


@router.get(f"{PATH}/{{id}}/deliveries")
@redis_answers()
async def webhook_deliveries(id: str, front: FrontDep, caller: CallerDep) -> WebhookAttempts:
    """List the last 100 attempts to deliver to an endpoint, the latest first."""
    attempts = await front.webhooks.attempts(caller.tenant, id, _MOST_LISTED)
    return WebhookAttempts(data=[attempt_body(attempt) for attempt in attempts])


@router.get("/v1/webhook_event_types")
async def webhook_event_types(caller: CallerDep) -> WebhookEventTypes:
    """List the types of events."""
    return WebhookEventTypes()


def _check(url: str, allowed: tuple[Network, ...]) -> None:
    """Raise InvalidRequest for a URL that is refused wherever its name leads to."""
    try:
        check_url(url, allowed)
    except TargetRefused as error:
        raise InvalidRequest(str(error), field="url") from None


DIALECT = Dialect(router=router, prefix="/v1/webhook_", errors=OPENAI)
