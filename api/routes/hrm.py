"""The HRM contract: `/loglikelihood`, `/loglikelihood_rolling`, and `/generate` with `prompts`: many in, all answers
out, in order."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response

from api.ask import Ask, AskDep, Plan, text_plan
from api.kinds import Dialect, Kind
from api.record import Work
from api.routes.texts import Texts
from api.run import Outcome
from api.schemas.errors import LATER
from api.schemas.hrm import (
    DEFAULT_MAX_TOKENS,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    RollingRequest,
    RollingResponse,
    generate_response,
    loglikelihood_response,
    rolling_response,
)
from api.timings import Timings
from shared.messages import Score

router = APIRouter(tags=["hrm"], responses=LATER)


async def generate(body: GenerateRequest, ask: Ask, *, is_streamed: bool) -> Response:
    """Completions of each prompt."""
    ask.front.admission.check_count("prompts", len(body.prompts))
    plan = text_plan(ask.front.admission, body, body.prompts, DEFAULT_MAX_TOKENS)
    return await ask.answer(GENERATE, body.model, plan, is_streamed=is_streamed)


@router.post("/loglikelihood", response_model=LoglikelihoodResponse)
async def loglikelihood(body: LoglikelihoodRequest, ask: AskDep) -> Response:
    """The log-likelihood (nats) of each continuation given the prompt of the same place."""
    ask.front.admission.check_count("prompts", len(body.prompts))
    places = group_by_prompt(body.prompts)
    plan = Plan(score_tasks(body, places), notes={"places": list(places.values())})
    return await ask.answer(SCORE, body.model, lambda _: plan)


@router.post("/loglikelihood_rolling", response_model=RollingResponse)
async def loglikelihood_rolling(body: RollingRequest, ask: AskDep) -> Response:
    """The log-likelihood (nats) of each whole text, of any length."""
    ask.front.admission.check_count("prompts", len(body.prompts))
    plan = Plan([Score("", (text,), body.condition, body.scoring, rolling=True) for text in body.prompts])
    return await ask.answer(ROLLING, body.model, lambda _: plan)


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


def _completions(work: Work, outcomes: Sequence[Outcome]) -> GenerateResponse:
    return generate_response(outcomes)


def _stream(work: Work) -> Texts:
    return Texts(work.record.n, len(work.request.job_ids), _end)


def _end(outcomes: Sequence[Outcome], timings: Timings | None) -> dict[str, Any]:
    return generate_response(outcomes).model_dump(mode="json", exclude={"completions"})


def _scores(work: Work, outcomes: Sequence[Outcome]) -> LoglikelihoodResponse:
    groups = zip(work.record.notes["places"], outcomes, strict=True)
    scores = {place: score for group, outcome in groups for place, score in zip(group, outcome.scores, strict=True)}
    return loglikelihood_response([scores[place] for place in sorted(scores)])


def _rolling(work: Work, outcomes: Sequence[Outcome]) -> RollingResponse:
    return rolling_response([score for outcome in outcomes for score in outcome.scores])


GENERATE = Kind("generate", "generate", _completions, _stream)
SCORE = Kind("loglikelihood", "score", _scores)
ROLLING = Kind("loglikelihood_rolling", "score", _rolling)
DIALECT = Dialect(router, (GENERATE, SCORE, ROLLING))
