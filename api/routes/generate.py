"""`/generate` and `/generate_stream`, which three dialects share: a body is of the dialect whose key it has, and so are
its answer and its errors."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from api.ask import AskDep
from api.deps import TrailDep
from api.errors import tgi_body
from api.kinds import Dialect
from api.routes import hrm, simple_foundation, tgi
from api.schemas.errors import GENERATE_ERRORS, LATER, STREAM_ALONE, STREAM_OR_TEXT
from api.schemas.fields import RequestBody
from api.schemas.hrm import GenerateRequest, GenerateResponse
from api.schemas.simple_foundation import PromptRequest, PromptResponse
from api.schemas.tgi import TgiRequest, TgiResponse
from api.shapes import one_of


async def _speaks_its_dialect(request: Request, trail: TrailDep) -> None:
    with suppress(ValueError):  # no JSON: the route refuses it
        body = await request.json()
        if isinstance(body, dict) and "inputs" in body:
            trail.error_body = tgi_body


Answer = Callable[..., Awaitable[Response]]
_SHAPES: dict[str, type[RequestBody]] = {"prompts": GenerateRequest, "prompt": PromptRequest, "inputs": TgiRequest}
_ANSWERS: dict[type[RequestBody], Answer] = {
    GenerateRequest: hrm.generate,
    PromptRequest: simple_foundation.generate,
    TgiRequest: tgi.generate,
}
Answers = GenerateResponse | PromptResponse | TgiResponse
Body = Annotated[GenerateRequest | PromptRequest | TgiRequest, one_of(_SHAPES)]

router = APIRouter(tags=["generate"], dependencies=[Depends(_speaks_its_dialect)])


@router.post(
    "/generate",
    response_model=GenerateResponse | PromptResponse | TgiResponse,
    responses=GENERATE_ERRORS | LATER | STREAM_OR_TEXT,
)
async def generate(body: Body, ask: AskDep) -> Response:
    """Completions of prompts."""
    return await _ANSWERS[type(body)](body, ask, is_streamed=False)


@router.post("/generate_stream", response_class=Response, responses=GENERATE_ERRORS | LATER | STREAM_ALONE)
async def generate_stream(body: Body, ask: AskDep) -> Response:
    """The same as it comes, as server-sent events."""
    return await _ANSWERS[type(body)](body, ask, is_streamed=True)


DIALECT = Dialect(router)
