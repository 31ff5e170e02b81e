"""`/v1/models` and `/v1/completions` as the OpenAI clients expect them."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from api import sse
from api.deps import Front, FrontDep, TrailDep
from api.dispatch import Receive
from api.errors import openai_body, problem_of
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
from api.schemas.usage import usage_body
from api.trail import Trail, Usage
from shared.errors import FleetError
from shared.messages import Done, Job, Started, Tokens

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
    model = await front.admission.resolve(body.model, "generate")
    budget = front.admission.budget(body.max_tokens, DEFAULT_MAX_TOKENS, model)
    tasks = [body.task(prompt, budget.max_tokens) for prompt in body.prompt]
    jobs = await front.admission.submit(model, tasks, trail.request_id)
    answer = Heading(f"cmpl-{uuid.uuid4().hex}", int(time.time()), model.id)
    if body.stream:
        chunks = Chunks(answer, body.stream_options.include_usage)
        started: dict[int, Started] = {}
        frames = stream(front, jobs, request.receive, chunks, trail, started)
        return sse.EventStream(frames, last_words, lambda: limit_headers(budget, started.values()))
    outcomes = await front.dispatcher.gather(jobs, request.receive)
    trail.usage = total_usage(outcomes)
    whole = completion(answer.id, answer.created, answer.model, outcomes)
    return JSONResponse(whole.model_dump(), headers=limit_headers(budget, outcomes))


@dataclass(frozen=True)
class Heading:
    """What all chunks of one answer have in common."""

    id: str
    created: int
    model: str


@dataclass(frozen=True)
class Chunks:
    """Renders the chunks of one streamed completion."""

    heading: Heading
    include_usage: bool

    def text(self, index: int, text: str, finish_reason: str | None = None) -> bytes:
        return self._chunk([{"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}], None)

    def usage(self, usage: Usage) -> bytes:
        return self._chunk([], usage_body(usage).model_dump())

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        heading = self.heading
        chunk: dict[str, Any] = {
            "id": heading.id,
            "object": "text_completion",
            "created": heading.created,
            "model": heading.model,
            "choices": choices,
        }
        return sse.data(chunk | {"usage": usage} if self.include_usage else chunk)


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
            elif isinstance(event, Tokens) and event.text:
                yield chunks.text(index, event.text)
            elif isinstance(event, Done):
                yield chunks.text(index, "", event.finish_reason)
        trail.usage = run.usage
        if chunks.include_usage:
            yield chunks.usage(run.usage)
        yield sse.DONE


def last_words(error: FleetError) -> bytes:
    """An error that comes when the stream has begun."""
    return sse.data(openai_body(problem_of(error))) + sse.DONE
