"""SimpleFoundation's dialect: `/generate` with one `prompt`, problems to solve, and its models."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from api.deps import FrontDep
from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.endpoints.plans import text_plan
from api.routes.extraction import answer_in, code_in
from api.routes.texts import Texts
from api.schemas.simple_foundation import (
    CODING_MAX_TOKENS,
    CODING_TEMPLATE,
    MATH_MAX_TOKENS,
    MATH_TEMPLATE,
    PROMPT_MAX_TOKENS,
    CodingRequest,
    CodingResponse,
    MathRequest,
    MathResponse,
    ModelDescription,
    ProblemRequest,
    PromptRequest,
    PromptResponse,
    model_description,
)
from api.stream.request_events import Outcome, total_usage
from api.stream.stream_format import TEXT
from api.stream.timings import Timings
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo, ProblemKind, Score, Scored
from shared.settings.models import PLACEHOLDER

router = APIRouter(tags=["simplefoundation"])


@router.get("/model/info")
async def model_info(front: FrontDep, model: str | None = None) -> ModelDescription:
    """Describe a model and what it takes; the default model, if none is named."""
    return model_description(await front.admission.find(model))


def _plan_prompt(body: PromptRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    return text_plan(
        body, [body.prompt], PROMPT_MAX_TOKENS, model, limits, notes={"prompt": body.prompt}
    )


def _plan_math(body: MathRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    template = body.template or model.prompting.math or MATH_TEMPLATE
    return _plan_problem(body, template, MATH_MAX_TOKENS, model, limits)


def _plan_coding(body: CodingRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    template = body.template or model.prompting.coding or CODING_TEMPLATE
    return _plan_problem(body, template, CODING_MAX_TOKENS, model, limits)


def _plan_problem(
    body: ProblemRequest, template: str, max_tokens: int, model: ModelInfo, limits: Limits
) -> TaskPlan:
    """Plan a solution, and the score of the text by which the model would decline the problem."""
    prompt = template.replace(PLACEHOLDER, body.problem)
    notes: dict[str, Any] = {"problem": body.problem}
    plan = text_plan(body, [prompt], max_tokens, model, limits, notes=notes)
    refusal = model.prompting.refusal
    if refusal is None or "score" not in model.tasks:
        return plan
    notes["most_refusal"] = model.prompting.most_refusal
    return replace(plan, tasks=[*plan.tasks, Score(prompt, (refusal,), body.condition)])


def _prompt_response(work: SubmittedWork, outcomes: Sequence[Outcome]) -> PromptResponse:
    texts = [choice.text for choice in outcomes[0].choices]
    counts = _counts(work, outcomes)
    return PromptResponse(
        prompt=work.record.notes["prompt"],
        generated_text=texts[0],
        generated_texts=texts if len(texts) > 1 else None,
        tokens_generated=counts["output_tokens"],
        **counts,
    )


def _math_response(work: SubmittedWork, outcomes: Sequence[Outcome]) -> MathResponse:
    solution = outcomes[0].choices[0].text
    return MathResponse(
        problem=work.record.notes["problem"],
        solution=solution,
        answer=answer_in(solution),
        **_counts(work, outcomes[:1]),
        **_domain(work, outcomes),
    )


def _coding_response(work: SubmittedWork, outcomes: Sequence[Outcome]) -> CodingResponse:
    solution = outcomes[0].choices[0].text
    return CodingResponse(
        problem=work.record.notes["problem"],
        solution=solution,
        code=code_in(solution),
        **_counts(work, outcomes[:1]),
        **_domain(work, outcomes),
    )


def _domain(work: SubmittedWork, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return whether the problem is of the model's domain, where the model can tell.

    A request that was cut short may have no score.
    """
    most_refusal = work.record.notes.get("most_refusal")
    if most_refusal is None or outcomes[1].result is None:
        return {}
    [score] = outcomes[1].as_a(Scored).scores
    refusal = exp(min(0.0, score.log_likelihood))
    return {"in_domain": refusal <= most_refusal, "domain_score": 1.0 - refusal}


def _counts(work: SubmittedWork, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the time and the tokens that an answer took.

    The time is in seconds from the request's coming to its end, None where Redis does not tell it.
    """
    usage = total_usage(outcomes)
    return {
        "generation_time": work.timings.total_s if work.timings else None,
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _endpoint(
    name: str,
    body: type[BaseModel],
    answer: type[BaseModel],
    plan: Callable[[Any, ModelInfo, Limits], TaskPlan],
    render: Callable[[SubmittedWork, Sequence[Outcome]], BaseModel],
    *,
    problems: ProblemKind | None = None,
) -> Endpoint:
    """Return an endpoint whose streams end with the whole answer."""

    def stream(work: SubmittedWork) -> Texts:
        def end(outcomes: Sequence[Outcome], timings: Timings | None) -> dict[str, Any]:
            return {
                "text": "",
                "result": render(replace(work, timings=timings), outcomes).model_dump(),
            }

        return Texts(work.record.n, 1, end, num_others=len(work.request.job_ids) - 1)

    return Endpoint(
        name=name,
        task="generate",
        body=body,
        answer=answer,
        plan=plan,
        render=render,
        stream=stream,
        bare_stream_format=TEXT,
        is_timed=True,
        problems=problems,
    )


PROMPT = _endpoint("prompt", PromptRequest, PromptResponse, _plan_prompt, _prompt_response)
MATH = _endpoint(
    "solve_math", MathRequest, MathResponse, _plan_math, _math_response, problems="math"
)
CODING = _endpoint(
    "solve_coding", CodingRequest, CodingResponse, _plan_coding, _coding_response, problems="coding"
)
DIALECT = Dialect(
    (
        Post(
            "/solve/math",
            "solve_math",
            "A solution in words, and the answer that it states.",
            (MATH,),
            tag="simplefoundation",
            job_task="solve_math",
        ),
        Post(
            "/solve/coding",
            "solve_coding",
            "A solution in words, and the code that it shows.",
            (CODING,),
            tag="simplefoundation",
            job_task="solve_coding",
        ),
    ),
    router,
)
