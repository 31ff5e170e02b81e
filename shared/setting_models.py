"""One model of a fleet in its settings."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.setting_types import Count, Dtype, Quantize, Text


class ModelEntry(BaseModel):
    """One model to load; `None` means the fleet-wide setting of the same name (see `settings.model_entries`).

    One that is `gpu_required` is not loaded where there is no GPU, and requests for it are told so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$")]
    path: Text
    runner: Literal["auto", "hrm-text", "hrm-act", "hrm-puzzle", "causal", "encoder", "echo"] = "auto"
    dtype: Dtype | None = None
    quantize: Quantize | None = None
    context_window: Count | None = None
    tokenizer_path: Text | None = None
    condition: Text | None = None
    chat_template: Text | None = None
    gpu_required: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            name, equals, path = value.partition("=")
            if not (name and equals and path):
                raise ValueError(f"expected id=path, got {value!r}")
            value = {"id": name, "path": path}
        if isinstance(value, Mapping) and value.get("path") == "echo":
            value = {**value, "runner": "echo"}
        return value
