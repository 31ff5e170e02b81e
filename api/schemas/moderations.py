"""Bodies of `/v1/moderations` as OpenAI documents them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from api.schemas.fields import NonEmpty, RequestBody, shown
from api.stream.request_events import Outcome
from shared.messages import Classify, Labelled

HARMLESS = frozenset(
    {
        "safe",
        "ok",
        "clean",
        "benign",
        "neutral",
        "normal",
        "none",
        "sfw",
        "legitimate",
        "not toxic",
        "non toxic",
        "not hate",
        "non hate",
        "not offensive",
        "non offensive",
        "not spam",
        "ham",
    }
)
"""Labels that say that there is nothing wrong, in small letters, with spaces for - and _."""
_FLAGGED = 0.5
"""The score from which a category counts."""


class TextPart(BaseModel):
    type: Literal["text"]
    text: NonEmpty


def _as_texts(value: Any) -> Any:
    """Return a text, texts, or parts of texts as a list of texts."""
    if not isinstance(value, list):
        return [value]
    texts = []
    for one in value:
        texts.append(TextPart.model_validate(one).text if isinstance(one, dict) else one)
    return texts


class ModerationRequest(RequestBody):
    """Texts to be judged by a classifier, whose labels are the categories."""

    model_config = shown({"input": "good film", "model": "reranker"})

    input: Annotated[
        list[NonEmpty],
        BeforeValidator(_as_texts, json_schema_input_type=NonEmpty | list[NonEmpty | TextPart]),
        Field(min_length=1),
    ]
    model: str | None = None

    def tasks(self) -> list[Classify]:
        return [Classify(text) for text in self.input]


class ModerationBody(BaseModel):
    """The judgement of a text. It is `flagged` if any category is true that is not harmless."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class Moderation(BaseModel):
    id: str
    model: str
    results: list[ModerationBody]


def moderation(id: str, model: str, outcomes: Sequence[Outcome]) -> Moderation:
    return Moderation(id=id, model=model, results=[_judged(outcome) for outcome in outcomes])


def _judged(outcome: Outcome) -> ModerationBody:
    scores = {label.name: label.score for label in outcome.as_a(Labelled).labels}
    categories = {name: score >= _FLAGGED for name, score in scores.items()}
    return ModerationBody(
        flagged=any(is_true and not is_harmless(name) for name, is_true in categories.items()),
        categories=categories,
        category_scores=scores,
        category_applied_input_types={name: ["text"] for name in scores},
    )


def is_harmless(label: str) -> bool:
    """Return whether a label says that there is nothing wrong with a text."""
    return label.lower().replace("-", " ").replace("_", " ") in HARMLESS
