"""Request fields that several dialects share, with the ranges they have everywhere.

JSON null stands for "not given" in all of them.
"""

import secrets
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from shared.messages import Generate, Sampling, Text

MAX_STOPS = 16
SEED_BITS = 63


def _is_unicode(value: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("expected Unicode text, got half a surrogate pair")
    return value


AnyText = Annotated[str, AfterValidator(_is_unicode)]
NonEmpty = Annotated[str, Field(min_length=1), AfterValidator(_is_unicode)]
Condition = Annotated[str, Field(min_length=1, max_length=64, description="HRM-Text: names joined by commas.")]
MaxTokens = Annotated[int, Field(strict=True, ge=1, description="Most tokens to generate; subject to the cap.")]
Temperature = Annotated[float, Field(strict=True, ge=0, le=2, description="0 is greedy.")]
TopP = Annotated[float, Field(strict=True, gt=0, le=1)]
Seed = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**64, description="Equal seeds, equal answers.")]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[NonEmpty],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    Field(max_length=MAX_STOPS, description="Text that ends the completion and is left out of it."),
]


class RequestBody(BaseModel):
    """Ignores unknown fields and fields that are null."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value


class SampledRequest(RequestBody):
    """What every request for text has: which model, and how to choose tokens."""

    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    seed: Seed | None = None
    stop: Stops = Field(default_factory=list)
    model: str | None = None
    condition: Condition | None = None

    def task(self, prompt: Text, max_tokens: int) -> Generate:
        """The work for one prompt; without a seed from the caller each task gets a fresh one."""
        sampling = Sampling(
            max_tokens=max_tokens,
            seed=secrets.randbits(SEED_BITS) if self.seed is None else self.seed & ((1 << SEED_BITS) - 1),
            temperature=self.temperature,
            top_p=self.top_p,
            stop=tuple(self.stop),
        )
        return Generate(prompt, sampling, self.condition)


def refuse(field: str, expected: str) -> PydanticCustomError:
    """The error for a rule that concerns a whole body; it names `field` as the one at fault."""
    return PydanticCustomError("rule", "{field}: {expected}", {"field": field, "expected": expected})
