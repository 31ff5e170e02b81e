"""`/v1/chat/completions` as the OpenAI clients expect it."""

from collections.abc import Sequence

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.http.error_format import OPENAI
from api.routes.chunks import ChatChunks
from api.schemas.chat import ChatCompletion, ChatRequest, chat_completion
from api.schemas.openai import Heading
from api.stream.request_events import Outcome
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo


def _plan(body: ChatRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    limits.check_count("n", body.n, "completions")
    budget = limits.budget(body.max_tokens, model.max_new_tokens, model)
    notes = {"with_usage": body.stream_options.include_usage}
    return TaskPlan([body.chat_task(budget.max_tokens)], budget, body.n, notes)


def _whole(work: SubmittedWork, outcomes: Sequence[Outcome]) -> ChatCompletion:
    [outcome] = outcomes
    return chat_completion(_heading(work), outcome)


def _chunks(work: SubmittedWork) -> ChatChunks:
    return ChatChunks(_heading(work), work.record.n, with_usage=work.record.notes["with_usage"])


def _heading(work: SubmittedWork) -> Heading:
    return Heading(f"chatcmpl-{work.id}", work.record.created, work.record.model)


CHAT = Endpoint(
    name="chat",
    task="generate",
    body=ChatRequest,
    answer=ChatCompletion,
    plan=_plan,
    render=_whole,
    stream=_chunks,
    errors=OPENAI,
)
DIALECT = Dialect(
    (
        Post(
            "/v1/chat/completions",
            "chat_completions",
            "Answer a dialogue; `stream` sends the text as it comes.",
            (CHAT,),
            tag="openai",
            job_task="chat",
        ),
    )
)
