"""`GET /`: a small page for a browser, the same as JSON for anything else.

`POST /` belongs to text-generation-inference's dialect.
"""

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from api.deps import Front, FrontDep
from api.endpoints.dialect import Access, Dialect
from api.http.home import NAME, POLICY, Home, HomeModel, example_of, links_below, page, wants_html
from api.routes.health import reason_not_ready
from shared.errors import BrokerUnavailable
from shared.messages import ModelInfo

router = APIRouter(tags=["health"])

_HEADERS = {"Vary": "Accept", "Cache-Control": "no-store"}


@router.get("/", include_in_schema=False)
async def home(
    request: Request, front: FrontDep, accept: Annotated[str, Header()] = ""
) -> Response:
    """Show anybody what this is. Models are shown only where anybody may call."""
    content = await _home(front, str(request.base_url).rstrip("/"), request.scope["root_path"])
    if wants_html(accept):
        headers = {
            **_HEADERS,
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
        }
        html = page(content, request.scope["root_path"])
        return Response(html, media_type="text/html; charset=utf-8", headers=headers)
    return Response(content.model_dump_json(), media_type="application/json", headers=_HEADERS)


async def _home(front: Front, base_url: str, root_path: str) -> Home:
    reason = await reason_not_ready(front)
    try:
        needs_key = await front.auth.requires_key()
        models = None if needs_key else await _models(front)
    except BrokerUnavailable:
        needs_key = False
        models = None
    return Home(
        name=NAME,
        status="ready" if reason is None else f"not ready: {reason}",
        needs_key=needs_key,
        models=models,
        links=links_below(root_path),
        example=example_of(base_url, models, needs_key=needs_key),
    )


async def _models(front: Front) -> list[HomeModel]:
    fleet = await front.fleet.now()
    names = [name for name in sorted(fleet.models) if fleet.serves(name)]
    return [_model(fleet.models[name], is_default=name == fleet.default_model) for name in names]


def _model(info: ModelInfo, *, is_default: bool) -> HomeModel:
    return HomeModel(
        id=info.id, description=info.found, tasks=list(info.tasks), is_default=is_default
    )


DIALECT = Dialect(router=router, access=Access.OPEN)
