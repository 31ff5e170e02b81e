"""Bodies of `/v1/webhook_endpoints`, in OpenAI's words."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from shared.queue.webhooks import (
    EVENT_TYPES,
    Attempt,
    EndpointStatus,
    EventType,
    Outcome,
    WebhookEndpoint,
)
from shared.webhooks.signing import hint_of

_MOST_NAMED = 256
_MOST_URL = 2048


class WebhookEndpointRequest(BaseModel):
    """An endpoint to be made. Without `event_types` it takes all."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "batches",
                    "url": "https://example.com/hooks",
                    "event_types": ["batch.completed"],
                }
            ]
        }
    )

    url: StrictStr = Field(max_length=_MOST_URL, description="Where events are sent.")
    name: StrictStr = Field(default="", max_length=_MOST_NAMED)
    event_types: list[EventType] = Field(
        default=list(EVENT_TYPES), min_length=1, max_length=len(EVENT_TYPES)
    )


class WebhookEndpointChange(BaseModel):
    """The fields that are to change. Any change, even none, enables the endpoint."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "batches"}]})

    url: StrictStr | None = Field(default=None, max_length=_MOST_URL)
    name: StrictStr | None = Field(default=None, max_length=_MOST_NAMED)
    event_types: list[EventType] | None = Field(
        default=None, min_length=1, max_length=len(EVENT_TYPES)
    )


class RotateSecretRequest(BaseModel):
    """The choice whether the present secret signs as well for a day."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"keep_old_secret_active_for_24_hours": True}]}
    )

    keep_old_secret_active_for_24_hours: StrictBool = False


class WebhookTestRequest(BaseModel):
    """The type of an event that is about nothing."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"event_type": "job.completed"}]})

    event_type: EventType


class WebhookEndpointBody(BaseModel):
    """An endpoint. `disabled_reason` is `gone` or `failing` for one that is disabled."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    status: EndpointStatus
    disabled_reason: str | None
    created_at: int
    updated_at: int
    signing_secret_hint: str


class WebhookEndpointWithSecret(WebhookEndpointBody):
    signing_secret: str


class WebhookEndpointList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WebhookEndpointBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedWebhookEndpoint(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: bool = True


class WebhookTestResult(BaseModel):
    """A test. Without a `status_code` there was no answer: the attempts of the endpoint say why."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_id: str
    event_type: str
    success: bool
    status_code: int | None


class WebhookAttempt(BaseModel):
    """An attempt to deliver an event. Times are in seconds since 1970."""

    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    event_id: str
    event_type: str
    attempt: int
    outcome: Outcome
    status_code: int | None
    error: str | None
    duration_ms: int
    created_at: float
    next_attempt_at: float | None


class WebhookAttempts(BaseModel):
    object: Literal["list"] = "list"
    data: list[WebhookAttempt]


class WebhookEventTypes(BaseModel):
    object: Literal["list"] = "list"
    data: list[str] = list(EVENT_TYPES)


def endpoint_body(endpoint: WebhookEndpoint) -> WebhookEndpointBody:
    return WebhookEndpointBody(
        id=endpoint.id,
        name=endpoint.name,
        url=endpoint.url,
        event_types=list(endpoint.event_types),
        status=endpoint.status,
        disabled_reason=endpoint.reason or None,
        created_at=endpoint.created_at,
        updated_at=endpoint.updated_at,
        signing_secret_hint=hint_of(endpoint.secret),
    )


def with_secret(endpoint: WebhookEndpoint) -> WebhookEndpointWithSecret:
    """Return an endpoint with its secret, which is told only when it is new."""
    body = endpoint_body(endpoint)
    return WebhookEndpointWithSecret(**body.model_dump(), signing_secret=endpoint.secret)


def attempt_body(attempt: Attempt) -> WebhookAttempt:
    return WebhookAttempt(
        event_id=attempt.event,
        event_type=attempt.type,
        attempt=attempt.attempt,
        outcome=attempt.outcome,
        status_code=attempt.status,
        error=attempt.error,
        duration_ms=attempt.took_ms,
        created_at=attempt.at,
        next_attempt_at=attempt.next_at,
    )
