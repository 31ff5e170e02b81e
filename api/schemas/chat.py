"""Bodies of `/v1/chat/completions` as OpenAI documents them.

A field that is not served is refused by its name, never ignored.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    model_validator,
)

from api.schemas.fields import (
    AnyText,
    ByteInput,
    MaxTokens,
    Refused,
    RequestBody,
    SampledRequest,
    User,
    is_unicode,
    refuse,
    refuse_unsupported,
    shown,
)
from api.schemas.logprobs import token_name
from api.schemas.openai import Heading, StreamOptions
from api.schemas.q_values import QValues, is_absent, q_values_body, q_values_of, segments_of
from api.schemas.usage import USAGE, DetailedUsageBody, detailed_usage_body
from api.stream.request_events import Choice, Outcome, total_usage
from shared.messages import (
    Chat,
    Effort,
    Generate,
    ImagePart,
    Sampling,
    SoundPart,
    TextPart,
    TokenLogprob,
    Turn,
)

MAX_TOP_LOGPROBS = 20
_REFUSED: Refused = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "moderation": (),
    "web_search_options": (),
    "verbosity": ("medium",),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "prompt_cache_options": (),
}
"""Fields that are not served, each with the values that ask for nothing."""
_REFUSED_IN_MESSAGES: Refused = {
    "name": (),
    "tool_calls": ([],),
    "function_call": (),
    "audio": (),
    "refusal": (),
}
_QUESTION = {"role": "user", "content": "Compute: 347 + 285"}
_ANSWER = {
    "role": "assistant",
    "content": (
        "ones: 7 + 5 = 12, write 2, carry 1\ntens: 4 + 8 + 1 = 13, write 3, carry 1\n"
        "hundreds: 3 + 2 + 1 = 6\n347 + 285 = 632\n\\boxed{632}"
    ),
    "refusal": None,
}


class TextPartBody(BaseModel):
    type: Literal["text"]
    text: AnyText


class ImageUrl(BaseModel):
    """A picture: its bytes, since no URL is fetched."""

    url: ByteInput


class ImagePartBody(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(BaseModel):
    """A sound. Its own bytes tell its format."""

    data: ByteInput
    format: str = ""


class AudioPartBody(BaseModel):
    type: Literal["input_audio"]
    input_audio: InputAudio


PartBody = TextPartBody | ImagePartBody | AudioPartBody
_Parts = Annotated[list[PartBody], Field(min_length=1)]


def _as_content(value: Any) -> str | list[PartBody]:
    """Return the content of a message. One in parts that are all text is one text.

    Raise ValueError. By hand, because the errors of a union would name the field several times.
    """
    if isinstance(value, str):
        return is_unicode(value)
    if not isinstance(value, list):
        raise ValueError("expected a valid string, or a list of parts")
    if not value:
        raise ValueError("expected a text, or at least one part of type 'text'")
    parts = [_as_part(part) for part in value]
    texts = [part.text for part in parts if isinstance(part, TextPartBody)]
    return "".join(texts) if len(texts) == len(parts) else parts


def _as_part(part: Any) -> PartBody:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return TextPartBody(type="text", text=is_unicode(part["text"]))
    if kind == "image_url":
        return ImagePartBody(type=kind, image_url=ImageUrl(url=_bytes_of(part, kind, "url")))
    if kind == "input_audio":
        return AudioPartBody(type=kind, input_audio=InputAudio(data=_bytes_of(part, kind, "data")))
    raise ValueError(
        "expected parts of type 'text', each with a text, 'image_url' or 'input_audio'; got "
        f"{kind or type(part).__name__!r}"
    )


def _bytes_of(part: dict[str, Any], kind: str, name: str) -> str:
    """Return what stands for the bytes of a part."""
    holder = part.get(kind)
    if isinstance(holder, dict) and isinstance(holder.get(name), str) and holder[name]:
        return str(holder[name])
    raise ValueError(f"expected a part of type {kind!r} to have {kind}.{name}, a text")


def _as_effort(value: Any) -> Any:
    """Return an effort, None for OpenAI's `none`, which asks for nothing."""
    return None if value == "none" else value


Content = Annotated[
    str | list[PartBody],
    PlainValidator(_as_content, json_schema_input_type=str | _Parts),
]


class Message(RequestBody):
    refused: ClassVar[Refused] = _REFUSED_IN_MESSAGES
    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, value: Any) -> Any:
        return refuse_unsupported(value, cls.refused)

    def turn(self) -> Turn:
        role: Literal["system", "user", "assistant"]
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return Turn(role, self.content)
        parts: list[TextPart | ImagePart | SoundPart] = []
        for part in self.content:
            if isinstance(part, TextPartBody):
                parts.append(TextPart(part.text))
            elif isinstance(part, ImagePartBody):
                parts.append(ImagePart(part.image_url.url))
            else:
                parts.append(SoundPart(part.input_audio.data))
        return Turn(role, tuple(parts))


class ChatRequest(SampledRequest):
    model_config = shown(
        {"model": "local", "messages": [_QUESTION], "max_tokens": 100, "temperature": 0},
        {
            "messages": [_QUESTION],
            "max_completion_tokens": 2,
            "logprobs": True,
            "top_logprobs": 2,
            "n": 2,
        },
    )

    refused: ClassVar[Refused] = _REFUSED
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: MaxTokens | None = Field(
        None,
        validation_alias=AliasChoices("max_completion_tokens", "max_tokens"),
        description="Default: as many as the server allows and the context window has room for.",
    )
    effort: Annotated[Effort | None, BeforeValidator(_as_effort)] = Field(
        None,
        validation_alias=AliasChoices("effort", "reasoning_effort"),
        description="A depth that the model's entry names.",
    )
    logprobs: Annotated[bool, Field(strict=True)] = False
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    user: User | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, value: Any) -> Any:
        return refuse_unsupported(value, cls.refused)

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise refuse("top_logprobs", "expected logprobs to be true beside it")
        return self

    def chat_task(self, max_tokens: int) -> Generate:
        """Return the task of a dialogue.

        One that does not fit the context window is refused, unless only the default `max_tokens` is
        too much.
        """
        chat = Chat(tuple(message.turn() for message in self.messages))
        overflow: Literal["clamp", "refuse"] = "clamp" if self.max_tokens is None else "refuse"
        return Generate(chat, self.sampling(max_tokens), self.condition, overflow, depth=self.depth)

    def sampling(self, max_tokens: int) -> Sampling:
        logprobs = None
        if self.logprobs:
            logprobs = self.top_logprobs or 0
        return msgspec.structs.replace(super().sampling(max_tokens), n=self.n, logprobs=logprobs)


class TopLogprob(BaseModel):
    """`bytes` is the UTF-8 of `token`; a token without text of its own has no bytes."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    """A token of the answer. A model with a q head tells where it stopped for it."""

    top_logprobs: list[TopLogprob]
    q_values: QValues | None = Field(None, exclude_if=is_absent)
    act_segments: int | None = Field(None, exclude_if=is_absent)


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob]
    refusal: None = None


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None
    q_values: QValues | None = Field(None, exclude_if=is_absent)


class ChatCompletion(BaseModel):
    model_config = shown(
        {
            "id": "chatcmpl-00cf843ff02a3ad39ce6240fd1e6d73494",
            "object": "chat.completion",
            "created": 1795252550,
            "model": "hrm-text-math",
            "choices": [
                {"index": 0, "message": _ANSWER, "logprobs": None, "finish_reason": "stop"}
            ],
            "usage": USAGE,
        }
    )

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: DetailedUsageBody


def chat_completion(heading: Heading, outcome: Outcome) -> ChatCompletion:
    choices = [_choice_body(index, choice) for index, choice in enumerate(outcome.choices)]
    usage = detailed_usage_body(total_usage([outcome]))
    return ChatCompletion(
        id=heading.id, created=heading.created, model=heading.model, choices=choices, usage=usage
    )


def _choice_body(index: int, choice: Choice) -> ChatChoice:
    return ChatChoice(
        index=index,
        message=ChatMessage(content=choice.text),
        logprobs=chat_logprobs(choice.ids, choice.logprobs),
        finish_reason=choice.finish_reason,
        q_values=q_values_body(choice.q_values),
    )


def chat_logprobs(ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> ChatLogprobs | None:
    """Return the object for some tokens of a choice; None if they have no log-probabilities."""
    if not logprobs or len(logprobs) != len(ids):
        return None
    content = []
    for token, logprob in zip(ids, logprobs, strict=True):
        content.append(_token_body(token, logprob))
    return ChatLogprobs(content=content)


def _token_body(token: int, logprob: TokenLogprob) -> ChatTokenLogprob:
    value = 0.0
    if logprob.logprob is not None:
        value = logprob.logprob
    chosen = _named(token, logprob.token, value)
    top = [_named(other, text, value) for other, text, value in logprob.top]
    return ChatTokenLogprob(
        **chosen.model_dump(),
        top_logprobs=top,
        q_values=q_values_of(logprob.halt),
        act_segments=segments_of(logprob.halt),
    )


def _named(token: int, text: str, logprob: float) -> TopLogprob:
    return TopLogprob(
        token=token_name(token, text),
        logprob=logprob,
        bytes=list(text.encode()) if text else None,
    )
