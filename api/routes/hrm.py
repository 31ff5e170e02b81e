"""`/generate`, `/loglikelihood` and `/loglikelihood_rolling`: many prompts in, all answers out, in order."""

from fastapi import APIRouter, Request, Response

from api.deps import Front, FrontDep, TrailDep
from api.routes.headers import limit_headers
from api.run import Outcome, total_usage
from api.schemas.hrm import (
    DEFAULT_MAX_TOKENS,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    RollingRequest,
    RollingResponse,
    ScoringRequest,
    generate_response,
    loglikelihood_response,
    rolling_response,
)
from api.trail import Trail
from shared.messages import Score

router = APIRouter(tags=["hrm"])


@router.post("/generate")
async def generate(
    body: GenerateRequest, request: Request, response: Response, front: FrontDep, trail: TrailDep
) -> GenerateResponse:
    """One completion for each prompt."""
    front.admission.check_count("prompts", len(body.prompts))
    model = await front.admission.resolve(body.model, "generate")
    budget = front.admission.budget(body.max_tokens, DEFAULT_MAX_TOKENS, model)
    tasks = [body.task(prompt, budget.max_tokens) for prompt in body.prompts]
    jobs = await front.admission.submit(model, tasks, trail.request_id)
    outcomes = await front.dispatcher.gather(jobs, request.receive)
    trail.usage = total_usage(outcomes)
    response.headers.update(limit_headers(budget, outcomes))
    return generate_response(outcomes)


@router.post("/loglikelihood")
async def loglikelihood(
    body: LoglikelihoodRequest, request: Request, response: Response, front: FrontDep, trail: TrailDep
) -> LoglikelihoodResponse:
    """The log-likelihood (nats) of each continuation given the prompt of the same place."""
    front.admission.check_count("prompts", len(body.prompts))
    places = group_by_prompt(body.prompts)
    outcomes = await scored(body, score_tasks(body, places), request, response, front, trail)
    groups = zip(places.values(), outcomes, strict=True)
    scores = {place: score for group, outcome in groups for place, score in zip(group, outcome.scores, strict=True)}
    return loglikelihood_response([scores[place] for place in range(len(body.prompts))])


@router.post("/loglikelihood_rolling")
async def loglikelihood_rolling(
    body: RollingRequest, request: Request, response: Response, front: FrontDep, trail: TrailDep
) -> RollingResponse:
    """The log-likelihood (nats) of each whole text, of any length."""
    front.admission.check_count("prompts", len(body.prompts))
    tasks = [Score("", (text,), body.condition, body.scoring, rolling=True) for text in body.prompts]
    outcomes = await scored(body, tasks, request, response, front, trail)
    return rolling_response([score for outcome in outcomes for score in outcome.scores])


async def scored(
    body: ScoringRequest, tasks: list[Score], request: Request, response: Response, front: Front, trail: Trail
) -> list[Outcome]:
    """How each task ended; what the server changed goes to the response's headers."""
    model = await front.admission.resolve(body.model, "score")
    jobs = await front.admission.submit(model, tasks, trail.request_id)
    outcomes = await front.dispatcher.gather(jobs, request.receive)
    trail.usage = total_usage(outcomes)
    response.headers.update(limit_headers(None, outcomes))
    return outcomes


def group_by_prompt(prompts: list[str]) -> dict[str, list[int]]:
    """The places at which each distinct prompt stands: one context is read once, whatever follows it."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    return places


def score_tasks(body: LoglikelihoodRequest, places: dict[str, list[int]]) -> list[Score]:
    return [
        Score(prompt, tuple(body.continuations[place] for place in group), body.condition, body.scoring)
        for prompt, group in places.items()
    ]
