"""The state of one request, for its log line and the metrics: its id, its tokens, its error.

Created by the outermost middleware, filled in by routes and error handlers, read once when the
answer has ended.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from api.http.error_format import PLAIN, ErrorFormat
from api.stream.stopwatch import Stopwatch
from shared.telemetry.tracing import NO_SPAN, Span


@dataclass(frozen=True)
class Usage:
    """Tokens read and written; of those read some were computed before."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_prompt_tokens + other.cached_prompt_tokens,
        )

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass
class RequestState:
    """`key` is the id of the key that came, "" where none did.

    `path` is that of a route, without a proxy's prefix, and `errors` the form in which this caller
    is told of them. A request with `is_head` wants the headers alone, and must begin nothing; one
    with `is_probe` is a machine's, of which nothing is told. `told_id` is what the caller knows its
    jobs by. `watch` timed its jobs, where this front took them; `trace_id` is that of its trace, if
    it has one, and `span` the server's. `num_uploaded` are the bytes of an upload that have come;
    its `body` is not kept.
    """

    request_id: str
    path: str = ""
    is_head: bool = False
    is_probe: bool = False
    usage: Usage = Usage()
    error: str | None = None
    body: bytes = b""
    num_uploaded: int | None = None
    tenant: str = ""
    key: str = ""
    model: str | None = None
    told_id: str | None = None
    job_ids: tuple[str, ...] = ()
    watch: Stopwatch | None = None
    trace_id: str | None = None
    span: Span = NO_SPAN
    errors: ErrorFormat = PLAIN


def request_state_of(scope: MutableMapping[str, Any]) -> RequestState:
    """Return the state of the request behind this ASGI scope."""
    request_state: RequestState = scope["state"]["request_state"]
    return request_state
