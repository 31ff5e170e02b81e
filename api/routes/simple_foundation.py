"""SimpleFoundation's way to ask: `/generate` with one `prompt`, problems to solve, and what there is to ask."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api.ask import Ask, AskDep, Plan, text_plan
from api.deps import FrontDep
from api.extraction import answer_in, code_in
from api.framing import TEXT, Framing
from api.kinds import Dialect, Kind
from api.record import Work
from api.routes.texts import Texts
from api.run import Outcome, total_usage
from api.schemas.errors import LATER, STREAM_OR_TEXT
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
from api.timings import Timings
from shared.messages import ModelInfo, Prompting
from shared.setting_models import PLACE

router = APIRouter(tags=["simplefoundation"])


async def generate(body: PromptRequest, ask: Ask, *, is_streamed: bool) -> Response:
    """`is_streamed`: as events, whatever the caller accepts."""
    notes = {"prompt": body.prompt}
    plan = text_plan(ask.front.admission, body, [body.prompt], PROMPT_MAX_TOKENS, notes)
    framing = None if is_streamed else _framing(ask)
    return await ask.answer(PROMPT, body.model, plan, is_streamed=is_streamed or body.stream, framing=framing)


@router.post("/solve/math", response_model=MathResponse, responses=LATER | STREAM_OR_TEXT)
async def solve_math(body: MathRequest, ask: AskDep) -> Response:
    """A solution in words, and the answer that it states."""
    return await _solve(MATH, body, ask, lambda prompting: prompting.math or MATH_TEMPLATE, MATH_MAX_TOKENS)


@router.post("/solve/coding", response_model=CodingResponse, responses=LATER | STREAM_OR_TEXT)
async def solve_coding(body: CodingRequest, ask: AskDep) -> Response:
    """A solution in words, and the code that it shows."""
    return await _solve(CODING, body, ask, lambda prompting: prompting.coding or CODING_TEMPLATE, CODING_MAX_TOKENS)


@router.get("/model/info")
async def model_info(front: FrontDep, model: str | None = None) -> ModelDescription:
    """What the model is and takes; of the default model, if none is named."""
    return model_description(await front.admission.find(model))


async def _solve(
    kind: Kind, body: ProblemRequest, ask: Ask, template_of: Callable[[Prompting], str], max_tokens: int
) -> Response:
    """`template_of` what the model declares, for a caller who brings no template."""
    notes = {"problem": body.problem}

    def plan(model: ModelInfo) -> Plan:
        template = body.template or template_of(model.prompting)
        prompt = template.replace(PLACE, body.problem)
        return text_plan(ask.front.admission, body, [prompt], max_tokens, notes)(model)

    return await ask.answer(kind, body.model, plan, is_streamed=body.stream, framing=_framing(ask))


def _framing(ask: Ask) -> Framing | None:
    """X11: bare text, unless the caller accepts events."""
    return None if "text/event-stream" in ask.wishes.accept else TEXT


def _prompt_response(work: Work, outcomes: Sequence[Outcome]) -> PromptResponse:
    texts, made = [choice.text for choice in outcomes[0].choices], _made(work, outcomes)
    return PromptResponse(
        prompt=work.record.notes["prompt"],
        generated_text=texts[0],
        generated_texts=texts if len(texts) > 1 else None,
        tokens_generated=made["output_tokens"],
        **made,
    )


def _math_response(work: Work, outcomes: Sequence[Outcome]) -> MathResponse:
    solution = outcomes[0].choices[0].text
    problem = work.record.notes["problem"]
    return MathResponse(problem=problem, solution=solution, answer=answer_in(solution), **_made(work, outcomes))


def _coding_response(work: Work, outcomes: Sequence[Outcome]) -> CodingResponse:
    solution = outcomes[0].choices[0].text
    problem = work.record.notes["problem"]
    return CodingResponse(problem=problem, solution=solution, code=code_in(solution), **_made(work, outcomes))


def _made(work: Work, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The time is that from the request's coming to its end; null where Redis does not tell."""
    usage = total_usage(outcomes)
    return {
        "generation_time": work.timings.total_s if work.timings else None,
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _kind(name: str, render: Callable[[Work, Sequence[Outcome]], BaseModel]) -> Kind:
    """A stream ends with what the whole answer would have been."""

    def tell(work: Work) -> Texts:
        def end(outcomes: Sequence[Outcome], timings: Timings | None) -> dict[str, Any]:
            return {"text": "", "result": render(replace(work, timings=timings), outcomes).model_dump()}

        return Texts(work.record.n, 1, end)

    return Kind(name, "generate", render, tell, is_timed=True)


PROMPT = _kind("prompt", _prompt_response)
MATH = _kind("solve_math", _math_response)
CODING = _kind("solve_coding", _coding_response)
DIALECT = Dialect(router, (PROMPT, MATH, CODING))
