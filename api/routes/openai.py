"""`/v1/models` and `/v1/completions` as the OpenAI clients expect them."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api import sse
from api.deps import Front, FrontDep, TrailDep
from api.dispatch import Receive
from api.errors import openai_body, problem_of
from api.routes.chunks import Chunks, Heading
from api.routes.headers import limit_headers
from api.run import total_usage
from api.schemas.openai import (
    DEFAULT_MAX_TOKENS,
    Completion,
    CompletionRequest,
    Model,
    ModelList,
    completion,
    model_body,
)
from api.trail import Trail
from shared.errors import FleetError
from shared.messages import Job, Started

router = APIRouter(prefix="/v1", tags=["openai"])


@router.get("/models")
async def models(front: FrontDep) -> ModelList:
    """The models that a ready worker serves."""
    fleet = await front.fleet.now()
    return ModelList(data=[model_body(fleet.models[name]) for name in sorted(fleet.models) if fleet.serves(name)])


@router.get("/models/{id:path}")
async def model(id: str, front: FrontDep) -> Model:
    return model_body(await front.admission.find(id))


@router.post("/completions", response_model=Completion)
async def completions(body: CompletionRequest, request: Request, front: FrontDep, trail: TrailDep) -> Response:
    """Complete each prompt; `stream` sends the text as it comes."""
    front.admission.check_count("prompt", len(body.prompt))
    front.admission.check_count("n", len(body.prompt) * body.n, "completions")
    model = await front.admission.resolve(body.model, "generate")
    budget = front.admission.budget(body.max_tokens, DEFAULT_MAX_TOKENS, model)
    tasks = [body.task(prompt, budget.max_tokens) for prompt in body.prompt]
    jobs = await front.admission.submit(model, tasks, trail.request_id)
    answer = Heading(f"cmpl-{uuid.uuid4().hex}", int(time.time()), model.id)
    if body.stream:
        chunks = Chunks(answer, body.n, with_usage=body.stream_options.include_usage)
        started: dict[int, Started] = {}
        frames = stream(front, jobs, request.receive, chunks, trail, started)
        return sse.EventStream(frames, last_words, lambda: limit_headers(budget, started.values()))
    outcomes = await front.dispatcher.gather(jobs, request.receive)
    trail.usage = total_usage(outcomes)
    whole = completion(answer.id, answer.created, answer.model, outcomes)
    return JSONResponse(whole.model_dump(), headers=limit_headers(budget, outcomes))


async def stream(
    front: Front, jobs: Sequence[Job], receive: Receive, chunks: Chunks, trail: Trail, started: dict[int, Started]
) -> AsyncGenerator[bytes, None]:
    """The frames of one streamed completion, all prompts interleaved as their tokens come. Notes in `started` which
    have begun: those that had when the first frame comes are what the headers can tell of."""
    async with front.dispatcher.run(jobs, receive) as run:
        async for item in run.progress(front.keepalive_s):
            if item is None:
                yield sse.KEEP_ALIVE
                continue
            index, event = item
            if isinstance(event, Started):
                started[index] = event
            for frame in chunks.of(index, event):
                yield frame
        trail.usage = run.usage
        if chunks.with_usage:
            yield chunks.usage(run.usage)
        yield sse.DONE


def last_words(error: FleetError) -> bytes:
    """An error that comes when the stream has begun."""
    return sse.data(openai_body(problem_of(error))) + sse.DONE
