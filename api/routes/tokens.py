"""`/tokenize` and `/detokenize`: a model's token ids, without running it."""

from collections.abc import Sequence

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.schemas.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    detokenize_response,
    detokenize_task,
    tokenize_response,
)
from api.stream.request_events import Outcome
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo


def _plan_tokenize(body: TokenizeRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    return TaskPlan(
        [body.task()], notes={"window": model.context_window, "with_texts": body.return_token_strs}
    )


def _plan_detokenize(body: DetokenizeRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    return TaskPlan([detokenize_task(body)])


def _tokens(work: SubmittedWork, outcomes: Sequence[Outcome]) -> TokenizeResponse:
    notes = work.record.notes
    return tokenize_response(outcomes[0], notes["window"], with_texts=notes["with_texts"])


def _text(work: SubmittedWork, outcomes: Sequence[Outcome]) -> DetokenizeResponse:
    return detokenize_response(outcomes[0])


TOKENIZE = Endpoint(
    name="tokenize",
    task="tokenize",
    body=TokenizeRequest,
    answer=TokenizeResponse,
    plan=_plan_tokenize,
    render=_tokens,
)
DETOKENIZE = Endpoint(
    name="detokenize",
    task="detokenize",
    body=DetokenizeRequest,
    answer=DetokenizeResponse,
    plan=_plan_detokenize,
    render=_text,
)
DIALECT = Dialect(
    (
        Post(
            "/tokenize",
            "tokenize",
            "The ids that the model would read for a prompt or a dialogue.",
            (TOKENIZE,),
            tag="tokens",
            job_task="tokenize",
        ),
        Post(
            "/detokenize",
            "detokenize",
            "The text of token ids.",
            (DETOKENIZE,),
            tag="tokens",
            job_task="detokenize",
        ),
    )
)
