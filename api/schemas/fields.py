"""Request fields that several dialects share, with the ranges they have everywhere.

JSON null stands for "not given" in all of them.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from shared.messages import Depth, Effort, Generate, Prompt, Prompting, Sampling
from shared.tasks.runner_options import CYCLES

MAX_STOPS = 16
MAX_STOP_IDS = 64
MAX_BIASES = 1024
MAX_TOKEN_ID = 2**31 - 1
MAX_CHOICES = 16
SEED_BITS = 63
fleets_seed: ContextVar[int | None] = ContextVar("fleets_seed", default=None)
"""The seed of requests that name none, where the fleet has one."""
_DEPTHS = ("cycles", "max_steps", "effort")
_EXPECTED_BIAS = (
    f"expected an object of at most {MAX_BIASES} token ids, each with a number from -100 to 100"
)


def draw_seed() -> int:
    """Return the seed for a request that names none: the fleet's, else a new one each time."""
    seed = fleets_seed.get()
    if seed is None:
        seed = secrets.randbits(SEED_BITS)
    return seed


def is_unicode(value: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("expected Unicode text, got half a surrogate pair")
    return value


AnyText = Annotated[str, AfterValidator(is_unicode)]
NonEmpty = Annotated[str, Field(min_length=1), AfterValidator(is_unicode)]
SpokenText = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(is_unicode)]
BYTES = object()
"""The mark of a field whose text stands for bytes (`api/submit/stored_inputs.py`)."""
ByteInput = Annotated[
    str,
    Field(
        min_length=1,
        description="Base64, a data URL, or the id of an artifact.",
        json_schema_extra={"contentEncoding": "base64"},
    ),
    BYTES,
]
User = Annotated[
    str, Field(description="With an experiment as the model: equal users get the same arm.")
]
Condition = Annotated[
    str, Field(min_length=1, max_length=64, description="HRM-Text: names joined by commas.")
]
Cycles = Annotated[
    str,
    Field(pattern=f"^{CYCLES}$", description="HRM-Text: H and L cycles for each token, as 2x1."),
]
MaxSteps = Annotated[
    int,
    Field(
        strict=True, ge=1, le=2**31 - 1, description="Most ACT segments (none: the model's own)."
    ),
]
MaxTokens = Annotated[
    int, Field(strict=True, ge=1, description="Most tokens to generate; subject to the cap.")
]
Choices = Annotated[
    int, Field(strict=True, ge=1, le=MAX_CHOICES, description="Completions of each prompt.")
]
Temperature = Annotated[float, Field(strict=True, ge=0, le=2, description="0 is greedy.")]
TopP = Annotated[float, Field(strict=True, gt=0, le=1)]
Seed = Annotated[
    int, Field(strict=True, ge=-(2**63), lt=2**64, description="Equal seeds, equal answers.")
]
TokenId = Annotated[int, Field(strict=True, ge=0, le=MAX_TOKEN_ID)]
StopIds = Annotated[
    list[TokenId], Field(max_length=MAX_STOP_IDS, description="Tokens that end the completion.")
]
TopK = Annotated[
    int,
    Field(strict=True, ge=-1, le=MAX_TOKEN_ID, description="Likeliest tokens kept; 0 or -1: all."),
]
MinP = Annotated[
    float,
    Field(strict=True, ge=0, le=1, description="Least share of the likeliest token's probability."),
]
MinTokens = Annotated[
    int,
    Field(
        strict=True,
        ge=0,
        le=MAX_TOKEN_ID,
        description="Before so many tokens nothing but the cap ends it.",
    ),
]
Penalty = Annotated[float, Field(strict=True, ge=-2, le=2)]
RepetitionPenalty = Annotated[
    float, Field(strict=True, ge=0.01, le=100, description="1 is none; above 1 it deters.")
]


def _check_bias(value: Any) -> Any:
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise ValueError(_EXPECTED_BIAS)
    for name, bias in value.items():
        if not _is_token_id(name) or not _is_bias(bias):
            raise ValueError(_EXPECTED_BIAS)
    return value


def _is_token_id(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= 10 and int(name) <= MAX_TOKEN_ID


def _is_bias(value: Any) -> bool:
    return type(value) in (int, float) and -100 <= value <= 100


LogitBias = Annotated[
    dict[int, float],
    BeforeValidator(_check_bias),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_BIASES,
        }
    ),
    Field(description="Added to the logits of tokens, by their ids."),
]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[NonEmpty],
    BeforeValidator(_as_list, json_schema_input_type=NonEmpty | list[NonEmpty]),
    Field(max_length=MAX_STOPS, description="Text that ends the completion and is left out of it."),
]


def shown(*examples: Any) -> ConfigDict:
    """Return the `model_config` of a body that the OpenAPI document shows by examples.

    The examples are of the default model, unless they name another. The test
    `tests/e2e/test_openapi_examples.py` sends all of them, and compares the answers.
    """
    return ConfigDict(json_schema_extra={"examples": list(examples)})


class RequestBody(BaseModel):
    """Ignores unknown fields and fields that are null."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: field for name, field in value.items() if field is not None}


class DepthRequest(RequestBody):
    """The fields of every request that may run a recurrent model at another depth."""

    cycles: Cycles | None = None
    max_steps: MaxSteps | None = None
    effort: Effort | None = Field(None, description="A depth that the model's entry names.")

    @model_validator(mode="after")
    def _one_depth(self) -> Self:
        check_one_of(self, _DEPTHS)
        return self

    @property
    def depth(self) -> Depth | None:
        """The depth that the request asks for, None for the model's own."""
        if self.cycles is None and self.max_steps is None and self.effort is None:
            return None
        return Depth(self.cycles, self.max_steps, self.effort)


class SampledRequest(DepthRequest):
    """The fields of every request for text: the model, and how to choose tokens."""

    max_tokens: MaxTokens | None = None
    n: Choices = 1
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: LogitBias = Field(default_factory=dict)
    seed: Seed | None = None
    stop: Stops = Field(default_factory=list)
    stop_token_ids: StopIds = Field(default_factory=list)
    ignore_eos: Annotated[bool, Field(strict=True)] = False
    min_tokens: MinTokens = 0
    model: str | None = None
    condition: Condition | None = None

    @model_validator(mode="after")
    def _min_within_max(self) -> Self:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise refuse("min_tokens", f"expected at most max_tokens, which is {self.max_tokens}")
        return self

    def suited(self, prompting: Prompting) -> Self:
        """Return the request with a model's defaults for fields that the caller leaves open.

        Most dialects keep their own defaults, as here.
        """
        return self

    def task(self, prompt: Prompt, max_tokens: int) -> Generate:
        """Return the work for one prompt. Without a seed from the caller each task gets its own."""
        return Generate(prompt, self.sampling(max_tokens), self.condition, depth=self.depth)

    def sampling(self, max_tokens: int) -> Sampling:
        return Sampling(
            max_tokens=max_tokens,
            seed=seed_of(self.seed),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            stop=tuple(self.stop),
            n=self.n,
            min_p=self.min_p,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            stop_ids=tuple(self.stop_token_ids),
            logit_bias=tuple(self.logit_bias.items()),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
        )


def seed_of(seed: int | None) -> int:
    """Return the seed of a task: the caller's, or a new one."""
    if seed is None:
        return draw_seed()
    return seed & ((1 << SEED_BITS) - 1)


def check_one_of(body: BaseModel, names: Sequence[str]) -> None:
    """Raise an error for a body in which several of these fields are given."""
    given = [name for name in names if getattr(body, name) is not None]
    if len(given) > 1:
        raise refuse(given[0], f"expected at most one of {', '.join(names)}")


Refused = Mapping[str, Sequence[Any]]
"""Fields that are not served, each with the values that ask for nothing.

A body that has some declares them as `refused`: `docs/not-supported.md` lists them.
"""


def refuse_unsupported(value: Any, refused: Refused) -> Any:
    """Return the body. Raise an error for a field that is not served and asks for something."""
    if not isinstance(value, dict):
        return value
    for name, harmless in refused.items():
        if value.get(name) is not None and value[name] not in harmless:
            allowed = " or ".join(["absent", *map(json.dumps, harmless)])
            raise refuse(name, f"this is not supported; it must be {allowed}")
    return value


def refuse(field: str, expected: str) -> PydanticCustomError:
    """Return the error for a rule about a whole body. It names `field` as the one at fault."""
    return PydanticCustomError(
        "rule", "{field}: {expected}", {"field": field, "expected": expected}
    )
