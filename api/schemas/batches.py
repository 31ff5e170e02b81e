"""Bodies of `/v1/batches`, in OpenAI's words."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from shared.queue.batches import Batch, BatchStatus

_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]


class OutputExpiresAfter(BaseModel):
    """The time for which the files of answers are kept."""

    anchor: Literal["created_at"]
    seconds: StrictInt = Field(ge=1, le=2_592_000)


class BatchRequest(BaseModel):
    """A batch to be made. `completion_window` is a time such as 24h, 30m or 90s."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "input_file_id": "file-0123456789abcdef0123456789abcdef",
                    "endpoint": "/v1/completions",
                    "completion_window": "24h",
                }
            ]
        }
    )

    input_file_id: StrictStr = Field(description="A file of requests, one a line.")
    endpoint: StrictStr = Field(description="The path of every line, such as /v1/completions.")
    completion_window: StrictStr = Field(default="24h", description="24h, 30m or 90s.")
    metadata: dict[_MetadataKey, _MetadataValue] | None = Field(default=None, max_length=16)
    output_expires_after: OutputExpiresAfter | None = None


class BatchErrorBody(BaseModel):
    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchErrorBody]


class RequestCounts(BaseModel):
    """Numbers of lines. Those that were not run are in `total` alone."""

    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    cached_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    """Tokens of the lines that are completed."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class BatchBody(BaseModel):
    """A batch. Times are in seconds since 1970, null for what has not happened."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


def batch_body(batch: Batch) -> BatchBody:
    errors = None
    if batch.errors:
        data = []
        for error in batch.errors:
            data.append(
                BatchErrorBody(
                    code=error.code, message=error.message, line=error.line, param=error.param
                )
            )
        errors = BatchErrors(data=data)
    tokens = batch.tokens
    return BatchBody(
        id=batch.id,
        endpoint=batch.spec.endpoint,
        errors=errors,
        input_file_id=batch.spec.input_file_id,
        completion_window=batch.spec.completion_window,
        status=batch.status,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=batch.created_at,
        in_progress_at=batch.entered_at.get("in_progress"),
        expires_at=batch.expires_at,
        finalizing_at=batch.entered_at.get("finalizing"),
        completed_at=batch.entered_at.get("completed"),
        failed_at=batch.entered_at.get("failed"),
        expired_at=batch.entered_at.get("expired"),
        cancelling_at=batch.entered_at.get("cancelling"),
        cancelled_at=batch.entered_at.get("cancelled"),
        request_counts=RequestCounts(
            total=batch.counts.total,
            completed=batch.counts.completed,
            failed=batch.counts.failed,
        ),
        usage=BatchUsage(
            input_tokens=tokens.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=tokens.cached_tokens),
            output_tokens=tokens.completion_tokens,
            total_tokens=tokens.prompt_tokens + tokens.completion_tokens,
        ),
        metadata=batch.spec.metadata,
    )
