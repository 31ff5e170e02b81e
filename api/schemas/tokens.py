"""Bodies of `/tokenize` and `/detokenize`, in the shape of vLLM's."""

from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from api.schemas.chat import Message
from api.schemas.fields import AnyText, RequestBody, TokenId, refuse, shown
from api.stream.request_events import Outcome
from shared.messages import Chat, Detokenize, Detokenized, Tokenize, Tokenized


class TokenizeRequest(RequestBody):
    """A text, or a dialogue as the model's chat template writes it."""

    model_config = shown({"prompt": "3 + 4"}, {"messages": [{"role": "user", "content": "3 + 4"}]})

    prompt: AnyText | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    model: str | None = None
    add_special_tokens: Annotated[bool, Field(strict=True)] = True
    return_token_strs: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise refuse("prompt", "expected either prompt or messages")
        return self

    def task(self) -> Tokenize:
        turns = tuple(message.turn() for message in self.messages or ())
        prompt = Chat(turns) if self.prompt is None else self.prompt
        return Tokenize(prompt, self.add_special_tokens, self.return_token_strs)


class TokenizeResponse(BaseModel):
    """`max_model_len` is the model's context window."""

    model_config = shown(
        {
            "count": 7,
            "max_model_len": 512,
            "tokens": [1, 4, 26, 266, 228, 27, 2],
            "token_strs": None,
        }
    )

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestBody):
    model_config = shown({"tokens": [26, 266, 228, 27]})

    tokens: list[TokenId]
    model: str | None = None


class DetokenizeResponse(BaseModel):
    model_config = shown({"prompt": "3 + 4"})

    prompt: str


def tokenize_response(outcome: Outcome, window: int, *, with_texts: bool) -> TokenizeResponse:
    tokenized = outcome.as_a(Tokenized)
    ids = list(tokenized.ids)
    texts = list(tokenized.texts) if with_texts else None
    return TokenizeResponse(count=len(ids), max_model_len=window, tokens=ids, token_strs=texts)


def detokenize_response(outcome: Outcome) -> DetokenizeResponse:
    return DetokenizeResponse(prompt=outcome.as_a(Detokenized).text)


def detokenize_task(body: DetokenizeRequest) -> Detokenize:
    return Detokenize(tuple(body.tokens))
