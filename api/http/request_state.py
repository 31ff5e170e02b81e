"""The state of one request, for its log line and the metrics: its id, its tokens, its error.

The outermost middleware creates it, routes and error handlers fill it in, and it is read once, when
the answer has ended.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from api.http.error_format import PLAIN, ErrorFormat
from api.stream.stopwatch import Stopwatch
from shared.messages import Depth
from shared.queue.experiment_log import Assignment
from shared.telemetry.tracing import NO_SPAN, Span


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens. `cached_prompt_tokens` of the `prompt_tokens` were computed before.

    `depth` is the one at which a request was computed, if it asked for one.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    depth: Depth | None = None

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_prompt_tokens + other.cached_prompt_tokens,
            # All jobs of a request have one depth.
            self.depth or other.depth,
        )

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass
class RequestState:
    """The state of one request, as far as it has got.

    `path` is that of a route, without a proxy's prefix. A request with `is_head` wants the headers
    alone, and must begin nothing. One with `is_probe` comes from a probe, and is not traced.

    `num_uploaded` bytes of an upload have come; its `body` is not kept. `key` is the id of the API
    key, "" without one. `x_job_id` is the id by which the caller knows its jobs, `job_ids` are those
    of the jobs themselves. `watch` times the jobs, if this front took them. `trace_id` is None where
    nothing is traced; `span` is the server's. `errors` is the format of errors for this caller.
    One with `is_admitted` has been counted by its caller's rates. `assignment` tells the experiment
    that the request is of, and its arm. The answer of one that `tells_secret` is never logged.
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
    x_job_id: str | None = None
    job_ids: tuple[str, ...] = ()
    watch: Stopwatch | None = None
    trace_id: str | None = None
    span: Span = NO_SPAN
    errors: ErrorFormat = PLAIN
    is_admitted: bool = False
    assignment: Assignment | None = None
    tells_secret: bool = False


def request_state_of(scope: MutableMapping[str, Any]) -> RequestState:
    """Return the state of the request behind this ASGI scope."""
    request_state: RequestState = scope["state"]["request_state"]
    return request_state
