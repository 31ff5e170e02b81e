"""The server's span of each request, which continues its caller's trace.

The middleware is there only where tracing is on.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.middleware import METHODS
from api.http.request_state import request_state_of
from shared.errors import ClientGone
from shared.telemetry.tracing import Span, Trace, Tracing


class TracingMiddleware:
    """Begins a span for each request, puts it into the request's state, and ends it.

    The query of the URL is left out: clients put keys there.
    """

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or request_state_of(scope).is_probe:
            await self._app(scope, receive, send)
            return
        span = self._begin(scope)
        status = ClientGone.status  # unless an answer begins

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            _end(span, scope, status)

    def _begin(self, scope: Scope) -> Span:
        headers = Headers(scope=scope)
        client = scope.get("client")
        request_state = request_state_of(scope)
        attributes = {
            "http.request.method": _method(scope),
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "client.address": client[0] if client else None,
            "user_agent.original": headers.get("user-agent"),
            "aios.request_id": request_state.request_id,
        }
        parent = Trace(headers.get("traceparent", ""), headers.get("tracestate", ""))
        request_state.span = self._tracing.span(_method(scope), parent, "server", attributes)
        request_state.trace_id = request_state.span.trace.id
        return request_state.span


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    if method not in METHODS:
        return "_OTHER"
    return method


def _end(span: Span, scope: Scope, status: int) -> None:
    request_state = request_state_of(scope)
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.rename(f"{_method(scope)} {route}")
    span.set(
        {
            "http.route": route,
            "http.response.status_code": status,
            "aios.tenant": request_state.tenant or None,
            "aios.model": request_state.model,
            "aios.job_id": request_state.job_ids[0] if request_state.job_ids else None,
            "aios.num_jobs": len(request_state.job_ids) or None,
            "gen_ai.usage.input_tokens": request_state.usage.prompt_tokens or None,
            "gen_ai.usage.output_tokens": request_state.usage.completion_tokens or None,
        }
    )
    # A request that is refused has not failed; one whose caller has left has.
    error = None
    is_refused = 400 <= status < ClientGone.status
    if not is_refused:
        error = request_state.error
        if not error and status >= ClientGone.status:
            error = str(status)
    span.end(error)
