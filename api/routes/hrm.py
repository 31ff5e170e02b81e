"""The HRM contract: `/loglikelihood`, `/loglikelihood_rolling`, and `/generate` with `prompts`.

Many go in, and all answers come out in the same order.
"""

from collections.abc import Sequence
from typing import Any

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.endpoints.plans import text_plan
from api.routes.texts import Texts
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
from api.stream.request_events import Outcome
from api.stream.timings import Timings
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ContinuationScore, ModelInfo, Score, Scored


def _plan_generate(body: GenerateRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    limits.check_count("prompts", len(body.prompts))
    return text_plan(body, body.prompts, DEFAULT_MAX_TOKENS, model, limits)


def _plan_score(body: LoglikelihoodRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    limits.check_count("prompts", len(body.prompts))
    indices_of = group_by_prompt(body.prompts)
    return TaskPlan(score_tasks(body, indices_of), notes={"places": list(indices_of.values())})


def _plan_rolling(body: RollingRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    limits.check_count("prompts", len(body.prompts))
    tasks = []
    for text in body.prompts:
        tasks.append(
            Score("", (text,), body.condition, body.scoring, rolling=True, depth=body.depth)
        )
    return TaskPlan(tasks)


def group_by_prompt(prompts: list[str]) -> dict[str, list[int]]:
    """Return the indices of each distinct prompt.

    So a context is read once, however many continuations follow it.
    """
    indices_of: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        indices_of.setdefault(prompt, []).append(index)
    return indices_of


def score_tasks(body: LoglikelihoodRequest, indices_of: dict[str, list[int]]) -> list[Score]:
    """Return one task for each distinct prompt, with all continuations that follow it."""
    tasks = []
    for prompt, indices in indices_of.items():
        continuations = tuple(body.continuations[index] for index in indices)
        tasks.append(Score(prompt, continuations, body.condition, body.scoring, depth=body.depth))
    return tasks


def _completions(work: SubmittedWork, outcomes: Sequence[Outcome]) -> GenerateResponse:
    return generate_response(outcomes)


def _stream(work: SubmittedWork) -> Texts:
    return Texts(work.record.n, len(work.request.job_ids), _end)


def _end(outcomes: Sequence[Outcome], timings: Timings | None) -> dict[str, Any]:
    return generate_response(outcomes).model_dump(mode="json", exclude={"completions"})


def _scores(work: SubmittedWork, outcomes: Sequence[Outcome]) -> LoglikelihoodResponse:
    scores: dict[int, ContinuationScore] = {}
    for group, outcome in zip(work.record.notes["places"], outcomes, strict=True):
        scores.update(zip(group, outcome.as_a(Scored).scores, strict=True))
    return loglikelihood_response([scores[index] for index in sorted(scores)])


def _rolling(work: SubmittedWork, outcomes: Sequence[Outcome]) -> RollingResponse:
    scores: list[ContinuationScore] = []
    for outcome in outcomes:
        scores += outcome.as_a(Scored).scores
    return rolling_response(scores)


GENERATE = Endpoint(
    name="generate",
    task="generate",
    body=GenerateRequest,
    answer=GenerateResponse,
    plan=_plan_generate,
    render=_completions,
    stream=_stream,
)
SCORE = Endpoint(
    name="loglikelihood",
    task="score",
    body=LoglikelihoodRequest,
    answer=LoglikelihoodResponse,
    plan=_plan_score,
    render=_scores,
)
ROLLING = Endpoint(
    name="loglikelihood_rolling",
    task="score",
    body=RollingRequest,
    answer=RollingResponse,
    plan=_plan_rolling,
    render=_rolling,
)
DIALECT = Dialect(
    (
        Post(
            "/loglikelihood",
            "loglikelihood",
            "The log-likelihood (nats) of each continuation, given the prompt at the same index.",
            (SCORE,),
            tag="hrm",
            job_task="score",
        ),
        Post(
            "/loglikelihood_rolling",
            "loglikelihood_rolling",
            "The log-likelihood (nats) of each whole text, of any length.",
            (ROLLING,),
            tag="hrm",
            job_task="score_rolling",
        ),
    )
)
