"""Every error a client can see, with its wire code and HTTP status.

A dialect only chooses the shape of the body.

FleetError
├── InvalidRequest    400   ├── QueueFull          429   ├── BrokerUnavailable 503
├── ContextExceeded   400   ├── NoWorker           503   ├── NoMemory          503
├── ModelNotFound     404   ├── OverQuota          429   ├── DeadlineExceeded  504
├── JobNotFound       404   ├── QueueTimeout       503   ├── ClientGone        499
├── IdempotencyConflict 409 ├── TooSlow            503   ├── WorkerFailed      500
├── PayloadTooLarge   413   ├── Draining           503   ├── WorkerCrashed     500
├── Unauthorized      401   ├── Forbidden          403   ├── ProhibitedContent 400
├── DeviceUnavailable 400   ├── ShutDown           503   ├── UnsupportedEncoding 415
├── ArtifactNotFound  404   ├── StorageUnavailable 503   ├── OverStorageQuota  413
├── ModelFailed       503   ├── UpstreamFailed     503   ├── BudgetExceeded    429
├── BatchNotFound     404   ├── BatchEnded         409
└── EvaluationNotFound 404  ├── WebhookNotFound    404  └── KeyNotFound       404
"""

from shared.messages import Failed


class FleetError(Exception):
    """An error that a client sees, with `message` for people.

    `field` names the input at fault. `retry_after_s` is set where trying again can help. `job_id`
    is set where the work goes on and its result can be read later.
    """

    code = "internal_error"
    status = 500

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: int | None = None,
        job_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.job_id = job_id

    def as_event(self) -> Failed:
        """Return the terminal event that tells of this error."""
        return Failed(self.code, self.message, self.field)


class InvalidRequest(FleetError):
    """The request is not as it should be; `field` names the input at fault."""

    code = "invalid_request"
    status = 400


class ContextExceeded(FleetError):
    """Prompt and answer do not fit the context window.

    The code is OpenAI's, which clients look for.
    """

    code = "context_length_exceeded"
    status = 400


class ProhibitedContent(FleetError):
    """Some text of the request has a term that this fleet's operator prohibits."""

    code = "content_filter"
    status = 400


class DeviceUnavailable(FleetError):
    """The model is to run on a device that no worker has."""

    code = "device_unavailable"
    status = 400


class Unauthorized(FleetError):
    """No key came where one is needed, or one that is unknown, revoked or expired."""

    code = "invalid_api_key"
    status = 401


class Forbidden(FleetError):
    """The key is good, but not for this."""

    code = "permission_denied"
    status = 403


class ModelNotFound(FleetError):
    """No model of this name is served, or known."""

    code = "model_not_found"
    status = 404


class JobNotFound(FleetError):
    """No such request, or it has expired, or is another tenant's."""

    code = "job_not_found"
    status = 404


class ArtifactNotFound(FleetError):
    """No such file, or it has expired, or is another tenant's."""

    code = "artifact_not_found"
    status = 404


class BatchNotFound(FleetError):
    """No such batch, or it is another tenant's."""

    code = "batch_not_found"
    status = 404


class EvaluationNotFound(FleetError):
    """No such evaluation, or none has ended yet."""

    code = "evaluation_not_found"
    status = 404


class WebhookNotFound(FleetError):
    """No such webhook endpoint, or it is another tenant's."""

    code = "webhook_not_found"
    status = 404


class KeyNotFound(FleetError):
    """No such API key, or it was revoked, or has expired."""

    code = "key_not_found"
    status = 404


class BatchEnded(FleetError):
    """The batch has ended, or is about to, and cannot be cancelled any more."""

    code = "batch_ended"
    status = 409


class IdempotencyConflict(FleetError):
    """The key came with another body before, or its result has expired."""

    code = "idempotency_conflict"
    status = 409


class PayloadTooLarge(FleetError):
    """The body has more bytes than this fleet accepts."""

    code = "payload_too_large"
    status = 413


class OverStorageQuota(FleetError):
    """The tenant's artifacts take as much room as they may.

    Some have to be deleted; trying again does not help.
    """

    code = "storage_quota_exceeded"
    status = 413


class UnsupportedEncoding(FleetError):
    """A body is compressed in a way that is not understood."""

    code = "unsupported_encoding"
    status = 415


class QueueFull(FleetError):
    """As many jobs, or bytes of jobs, wait as may."""

    code = "queue_full"
    status = 429


class OverQuota(FleetError):
    """The tenant has as much open, or asks as often, as it may."""

    code = "rate_limited"
    status = 429


class BudgetExceeded(FleetError):
    """The request might use more tokens than the budget of its key has left for this period."""

    code = "budget_exceeded"
    status = 429


class ClientGone(FleetError):
    """The caller hung up, or the job was called off; 499 appears in logs only."""

    code = "cancelled"
    status = 499


class NoWorker(FleetError):
    """No worker serves the model, and none has for a while."""

    code = "no_worker"
    status = 503


class ModelFailed(FleetError):
    """Every worker that serves the model failed to load it again; they go on trying."""

    code = "model_failed"
    status = 503


class UpstreamFailed(FleetError):
    """The engine elsewhere that serves the model did not answer, or broke off its answer.

    Asking again may help.
    """

    code = "upstream_failed"
    status = 503


class QueueTimeout(FleetError):
    """No worker took the request in time."""

    code = "queue_timeout"
    status = 503


class TooSlow(FleetError):
    """The queue is so long that the request could not begin before its deadline."""

    code = "deadline_infeasible"
    status = 503


class Draining(FleetError):
    """This front shuts down. Work that had begun goes on, and can be asked for by its id."""

    code = "draining"
    status = 503


class ShutDown(FleetError):
    """The fleet ended, with its Redis, before the work was done.

    Unlike while a front drains, nothing goes on.
    """

    code = "shut_down"
    status = 503


class BrokerUnavailable(FleetError):
    """Redis does not answer."""

    code = "broker_unavailable"
    status = 503


class StorageUnavailable(FleetError):
    """The storage of artifacts does not answer, or has no room."""

    code = "storage_unavailable"
    status = 503


class NoMemory(FleetError):
    """The worker lives, but has no memory for this request, even if it runs alone.

    Another worker may have it, or the same one at another time.
    """

    code = "out_of_memory"
    status = 503


class DeadlineExceeded(FleetError):
    """The deadline passed while the request waited or ran."""

    code = "deadline_exceeded"
    status = 504


class WorkerFailed(FleetError):
    """The worker could not do the request, though it lives."""

    code = "worker_failed"
    status = 500


class WorkerCrashed(FleetError):
    """Every worker that ran the request alone died of it."""

    code = "worker_crashed"
    status = 500


_BY_CODE: dict[str, type[FleetError]] = {kind.code: kind for kind in FleetError.__subclasses__()}


def from_event(failed: Failed) -> FleetError:
    """Return the error behind a `Failed` event.

    A code that this version does not know is an internal error.
    """
    kind = _BY_CODE.get(failed.code, FleetError)
    return kind(failed.message, field=failed.field)


def codes_below(status: int) -> frozenset[str]:
    """Return the codes of errors with a lower status. Those below 500 are the caller's fault."""
    return frozenset(code for code, kind in _BY_CODE.items() if kind.status < status)


def codes_from(status: int) -> frozenset[str]:
    """Return the codes of errors with this status or a higher one.

    Those from 500 on are our own fault. A code that is not known is not among them.
    """
    kinds: list[type[FleetError]] = [FleetError, *_BY_CODE.values()]
    return frozenset(kind.code for kind in kinds if kind.status >= status)
