"""Bodies of `/v1/embeddings` as OpenAI documents them."""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from api.schemas.fields import RequestBody, User, shown
from api.schemas.openai import PROMPT_SCHEMA, as_texts
from api.stream.request_events import Outcome
from shared.messages import Embed, Embedded, Text
from shared.tasks.vectors import unpack


class EmbeddingsRequest(RequestBody):
    model_config = shown(
        {"model": "local", "input": ["two and two", "four"]}, {"input": [26, 228, 18, 228, 27]}
    )

    input: Annotated[tuple[Text, ...], BeforeValidator(as_texts), WithJsonSchema(PROMPT_SCHEMA)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: (
        Annotated[int, Field(strict=True, ge=1, description="Those of the model, if it is given.")]
        | None
    ) = None
    user: User | None = None

    def tasks(self) -> list[Embed]:
        """Return a task for each text.

        A text that does not fit the context window is refused, as OpenAI has it.
        """
        return [Embed(text, overflow="refuse") for text in self.input]


class Embedding(BaseModel):
    """The vector of a text, which has length 1. As base64 it is little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


def embeddings(model: str, outcomes: Sequence[Outcome], encoding_format: str) -> Embeddings:
    """Return the vectors in the order of the texts."""
    data = []
    for index, outcome in enumerate(outcomes):
        vector = outcome.as_a(Embedded).vector
        data.append(Embedding(index=index, embedding=_body(vector, encoding_format)))
    count = sum(outcome.usage.prompt_tokens for outcome in outcomes)
    usage = EmbeddingsUsage(prompt_tokens=count, total_tokens=count)
    return Embeddings(data=data, model=model, usage=usage)


def _body(vector: bytes, encoding_format: str) -> Any:
    if encoding_format == "base64":
        return base64.b64encode(vector).decode()
    return unpack(vector)
