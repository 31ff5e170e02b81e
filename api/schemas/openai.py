"""Bodies of the OpenAI dialect: models, completions, and the chunks of a streamed completion."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)

from api.schemas.fields import (
    MAX_TOKEN_ID,
    Refused,
    RequestBody,
    SampledRequest,
    User,
    refuse,
    refuse_unsupported,
    shown,
)
from api.schemas.logprobs import Logprobs, logprobs_body
from api.schemas.q_values import QValues, is_absent, q_values_body
from api.schemas.usage import USAGE, DetailedUsageBody, detailed_usage_body
from api.stream.request_events import Choice, Outcome, total_usage
from shared.messages import Generate, ModelInfo, Prompt, Sampling, Text
from shared.settings.experiments import Experiment

DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 5
_EXPECTED_PROMPT = (
    "expected a non-empty string, a list of strings, a list of token ids, or a list of lists "
    "of token ids"
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _is_text(value: Any) -> bool:
    """Return whether this is a text that an encoding can carry: not empty, no lone surrogates."""
    return isinstance(value, str) and len(value) > 0 and _SURROGATE.search(value) is None


def _is_ids(value: Any) -> bool:
    """Return whether this is a list of token ids, not empty."""
    if not isinstance(value, list) or not value:
        return False
    return all(type(token) is int and 0 <= token <= MAX_TOKEN_ID for token in value)


def as_texts(value: Any) -> Any:
    """Return a prompt, or a list of prompts, as a tuple of texts and tuples of token ids.

    Raise ValueError for anything else.
    """
    prompts = [value]
    if isinstance(value, list) and not _is_ids(value):
        prompts = value
    texts: list[Any] = []
    for prompt in prompts:
        if _is_text(prompt):
            texts.append(prompt)
        elif _is_ids(prompt):
            texts.append(tuple(prompt))
        else:
            raise ValueError(_EXPECTED_PROMPT)
    if not texts:
        raise ValueError(_EXPECTED_PROMPT)
    return tuple(texts)


_TEXT_SCHEMA = {"type": "string", "minLength": 1}
_IDS_SCHEMA = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
    "minItems": 1,
}
PROMPT_SCHEMA = {
    "anyOf": [
        _TEXT_SCHEMA,
        {"type": "array", "items": _TEXT_SCHEMA, "minItems": 1},
        _IDS_SCHEMA,
        {"type": "array", "items": _IDS_SCHEMA, "minItems": 1},
    ]
}


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("expected -1 (as many as fit) or a number of tokens, at least 1")
    return value


TruncateTo = Annotated[
    int,
    Field(
        strict=True,
        ge=-1,
        le=MAX_TOKEN_ID,
        description="Keep that many tokens of the prompt's end; -1: what fits.",
    ),
    AfterValidator(_not_zero),
]


class StreamOptions(RequestBody):
    refused: ClassVar[Refused] = {"include_obfuscation": (False,)}
    include_usage: bool = False

    @model_validator(mode="before")
    @classmethod
    def _only_supported(cls, value: Any) -> Any:
        return refuse_unsupported(value, cls.refused)


class CompletionRequest(SampledRequest):
    model_config = shown(
        {"model": "local", "prompt": "Compute: 347 + 285", "max_tokens": 100, "temperature": 0},
        {
            "prompt": "Compute: 3 + 4",
            "max_tokens": 2,
            "echo": True,
            "logprobs": 1,
            "temperature": 0,
        },
        {"prompt": ["Hello", "Once upon a time"], "n": 2, "seed": 7, "stop": "\n"},
    )

    refused: ClassVar[Refused] = {"suffix": ()}
    prompt: Annotated[tuple[Text, ...], BeforeValidator(as_texts), WithJsonSchema(PROMPT_SCHEMA)]
    max_tokens: Annotated[int, Field(strict=True, ge=0)] | None = Field(
        None, description="Default 16; 0 with `echo`."
    )
    echo: Annotated[
        bool, Field(strict=True, description="Say the prompt first; its tokens have logprobs too.")
    ] = False
    best_of: Annotated[int, Field(strict=True, description="Like n, if it is given.")] | None = None
    logprobs: Annotated[int, Field(strict=True, ge=0, le=MAX_LOGPROBS)] | None = None
    truncate_prompt_tokens: TruncateTo | None = None
    user: User | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    def task(self, prompt: Prompt, max_tokens: int) -> Generate:
        """Return the work for one prompt.

        As OpenAI has it, a request that does not fit the context window is refused, unless the
        caller wants the prompt cut. One that does not fit for its default `max_tokens` alone gets
        fewer tokens.
        """
        task = super().task(prompt, max_tokens)
        keep = self.truncate_prompt_tokens
        if keep == -1:
            return msgspec.structs.replace(task, overflow="truncate", max_prompt_tokens=None)
        if keep is not None:
            return msgspec.structs.replace(task, overflow="truncate", max_prompt_tokens=keep)
        if self.max_tokens is None:
            return msgspec.structs.replace(task, overflow="clamp")
        return msgspec.structs.replace(task, overflow="refuse")

    @model_validator(mode="before")
    @classmethod
    def _only_supported(cls, value: Any) -> Any:
        return refuse_unsupported(value, cls.refused)

    @model_validator(mode="after")
    def _echo_is_whole(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise refuse("max_tokens", "expected at least 1; 0 is for echo alone")
        if self.echo and (self.stream or self.n > 1):
            raise refuse("echo", "expected neither stream nor n above 1 beside it")
        return self

    @model_validator(mode="after")
    def _all_are_returned(self) -> Self:
        if self.best_of not in (None, self.n):
            raise refuse("best_of", f"expected to be absent or equal to n, which is {self.n}")
        return self

    def sampling(self, max_tokens: int) -> Sampling:
        return msgspec.structs.replace(super().sampling(max_tokens), logprobs=self.logprobs)


@dataclass(frozen=True)
class Heading:
    """The fields that all chunks of one answer share."""

    id: str
    created: int
    model: str


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: str | None
    q_values: QValues | None = Field(None, exclude_if=is_absent)


class Completion(BaseModel):
    model_config = shown(
        {
            "id": "cmpl-00cf843ff02a3ad39ce6240fd1e6d73494",
            "object": "text_completion",
            "created": 1795252550,
            "model": "hrm-text-math",
            "choices": [
                {
                    "index": 0,
                    "text": (
                        "ones: 7 + 5 = 12, write 2, carry 1\ntens: 4 + 8 + 1 = 13, write 3, carry 1\n"
                        "hundreds: 3 + 2 + 1 = 6\n347 + 285 = 632\n\\boxed{632}"
                    ),
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": USAGE,
        }
    )

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: DetailedUsageBody | None = None


class Model(BaseModel):
    """An OpenAI model object.

    `description` says what was loaded, and `max_model_len`, as at vLLM, is the context window.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "aios"
    description: str
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def model_body(model: ModelInfo) -> Model:
    return Model(id=model.id, description=model.found, max_model_len=model.context_window)


def experiment_body(experiment: Experiment, models: Sequence[ModelInfo]) -> Model:
    """Return an experiment as a model, which clients ask as any other.

    `models` are those of its arms. What fits the smallest context window fits all of them.
    """
    arms = ", ".join(map(str, experiment.arms))
    return Model(
        id=experiment.name,
        description=f"an experiment with {arms}",
        max_model_len=min(model.context_window for model in models),
    )


def completion(heading: Heading, outcomes: Sequence[Outcome]) -> Completion:
    """Return the whole answer of a completion. The choices of each prompt stand together."""
    choices: list[Choice] = []
    for outcome in outcomes:
        choices += outcome.choices
    bodies = [_choice_body(index, choice) for index, choice in enumerate(choices)]
    usage = detailed_usage_body(total_usage(outcomes))
    return Completion(
        id=heading.id, created=heading.created, model=heading.model, choices=bodies, usage=usage
    )


def _choice_body(index: int, choice: Choice) -> CompletionChoice:
    logprobs = logprobs_body(choice.ids, choice.logprobs)
    return CompletionChoice(
        index=index,
        text=choice.text,
        logprobs=logprobs,
        finish_reason=choice.finish_reason,
        q_values=q_values_body(choice.q_values),
    )
