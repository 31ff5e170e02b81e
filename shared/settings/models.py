"""The entry of one model in the settings of a fleet."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from shared.settings.types import Count, Dtype, ModelId, Quantize, Text
from shared.tasks import runner_table
from shared.tasks.runner_table import AUTO, PROXY, WITHOUT_FILES, is_url

PLACEHOLDER = "{problem}"
"""The text that stands for the problem in a template."""
MOST_TEMPLATE = 4096
"""The most characters of a template."""
_OPTION_NAME = re.compile(r"[a-z][a-z0-9_-]*")


def with_placeholder(value: str) -> str:
    """Return a template. Raise ValueError for one without the placeholder of the problem."""
    if PLACEHOLDER not in value:
        raise ValueError(f"expected a text with {PLACEHOLDER} where the problem is to stand")
    return value


def _is_runner(value: str) -> str:
    """Return the name of a runner. Raise ValueError if there is no runner of that name."""
    known = (AUTO, *runner_table.names())
    if value not in known:
        raise ValueError(f"expected one of {', '.join(known)}")
    return value


def _is_plain(value: Any) -> Any:
    """Return a plain value. Raise ValueError for a list or a mapping."""
    # The declaration of the runner checks the value itself, later.
    if value is not None and not isinstance(value, str | bool | int | float):
        raise ValueError("expected a text, a number, true or false")
    return value


OptionValue = Annotated[Any, AfterValidator(_is_plain)]
RunnerName = Annotated[str, AfterValidator(_is_runner)]
Template = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MOST_TEMPLATE,
        json_schema_extra={"pattern": re.escape(PLACEHOLDER)},
    ),
    AfterValidator(with_placeholder),
]


class PromptingEntry(BaseModel):
    """Defaults for asking a model, where a request leaves them open. None: the endpoint's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    math: Template | None = None
    coding: Template | None = None
    refusal: Text | None = None
    most_refusal: Annotated[float, Field(ge=0, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None


class ModelEntry(BaseModel):
    """One model to load. None means the fleet-wide setting of the same name.

    A model that is `gpu_required` is not loaded where there is no GPU, and requests for it are
    refused with that reason. `prompting` outranks the declaration in the model's own directory,
    field by field. `options` are those of its runner, by name, as they were given: for the runner
    `auto` only the model's files tell which options there are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    id: ModelId
    path: Text
    runner: RunnerName = AUTO
    dtype: Dtype | None = None
    quantize: Quantize | None = None
    context_window: Count | None = None
    tokenizer_path: Text | None = None
    condition: Text | None = None
    chat_template: Text | None = None
    gpu_required: bool = False
    prompting: PromptingEntry | None = None
    options: dict[str, OptionValue] = {}

    def __hash__(self) -> int:
        return hash((self.id, self.path))

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            name, equals, path = value.partition("=")
            if not (name and equals and path):
                raise ValueError(f"expected id=path, got {value!r}")
            value = {"id": name, "path": path}
        # A runner that needs no model is named in place of the path.
        if isinstance(value, Mapping) and value.get("path") in WITHOUT_FILES:
            value = {**value, "runner": value["path"]}
        # So that nobody looks for files there.
        if (
            isinstance(value, Mapping)
            and value.get("runner", AUTO) == AUTO
            and is_url(str(value.get("path")))
        ):
            value = {**value, "runner": PROXY}
        return value


class GivenOption(BaseModel):
    """An `--option`: `name=value` for the only model, or `model:name=value`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None
    name: str
    value: str

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        named, equals, given = value.partition("=")
        model, _, name = named.rpartition(":")
        if not (equals and _OPTION_NAME.fullmatch(name)):
            raise ValueError(f"expected name=value or model:name=value, got {value!r}")
        return {"model": model or None, "name": name.replace("-", "_"), "value": given}

    def __str__(self) -> str:
        if self.model is None:
            return f"{self.name}={self.value}"
        return f"{self.model}:{self.name}={self.value}"
