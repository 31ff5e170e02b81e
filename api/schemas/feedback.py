"""Bodies of `POST /v1/feedback`: what a caller says of an answer of an experiment."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from api.schemas.fields import AnyText, NonEmpty, RequestBody, shown

MOST_COMMENT = 2000


class FeedbackRequest(RequestBody):
    """Feedback on a request. It replaces what was said of the same request before."""

    model_config = shown(
        {"id": "cmpl-00cf843ff02a3ad39ce6240fd1e6d73494", "score": 1},
        {"id": "00cf843ff02a3ad39ce6240fd1e6d73494", "score": -0.5, "comment": "too long"},
    )

    id: Annotated[NonEmpty, Field(description="Of the answer, or from its header X-Job-Id.")]
    score: Annotated[
        float,
        Field(strict=True, ge=-1, le=1, allow_inf_nan=False, description="From bad to good."),
    ]
    comment: Annotated[AnyText, Field(max_length=MOST_COMMENT)] = ""


class Feedback(BaseModel):
    """Feedback as it was noted, with the experiment and the arm that it counts for."""

    object: Literal["feedback"] = "feedback"
    id: str
    experiment: str
    arm: str
    score: float
