"""Bodies of `/v1/rerank` as Jina documents them."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field

from api.schemas.fields import NonEmpty, RequestBody, shown
from api.stream.request_events import Outcome, total_usage
from shared.messages import Labelled
from shared.tasks.words import RankText


class TextDocument(BaseModel):
    text: NonEmpty


class RerankRequest(RequestBody):
    """A query, and the texts that may answer it."""

    model_config = shown(
        {
            "query": "Is the engine loud?",
            "documents": ["The engine is too loud.", "Paris is in France."],
            "top_n": 1,
            "model": "reranker",
        }
    )

    query: NonEmpty
    documents: Annotated[list[NonEmpty | TextDocument], Field(min_length=1)]
    model: str | None = None
    top_n: Annotated[int, Field(strict=True, ge=1)] | None = None
    return_documents: Annotated[bool, Field(strict=True)] = True

    @property
    def texts(self) -> list[str]:
        """The texts of the documents."""
        return [one if isinstance(one, str) else one.text for one in self.documents]

    def tasks(self) -> list[RankText]:
        """Return a task for each text."""
        return [RankText(self.query, text) for text in self.texts]

    def notes(self) -> dict[str, Any]:
        """Return what the answer will need of the body."""
        return {"top_n": self.top_n, "texts": self.texts if self.return_documents else None}


class RankedDocument(BaseModel):
    """A document by its place in the request, from 0, and its score from 0 to 1."""

    index: int
    relevance_score: float
    document: TextDocument | None = None


class RerankUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Ranking(BaseModel):
    """The documents, the best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: RerankUsage


def ranking(id: str, model: str, outcomes: Sequence[Outcome], notes: dict[str, Any]) -> Ranking:
    texts = notes["texts"]
    results = []
    for index, outcome in enumerate(outcomes):
        [label] = outcome.as_a(Labelled).labels
        document = None if texts is None else TextDocument(text=texts[index])
        results.append(RankedDocument(index=index, relevance_score=label.score, document=document))
    # Equal scores stay in the order of the request.
    results.sort(key=lambda result: -result.relevance_score)
    count = total_usage(outcomes).prompt_tokens
    usage = RerankUsage(prompt_tokens=count, total_tokens=count)
    return Ranking(id=id, model=model, results=results[: notes["top_n"]], usage=usage)
