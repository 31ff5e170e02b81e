"""The types of settings: their ranges, and numbers that may be left to the machine as `auto`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Gigabytes = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["none", "int8"]

_count = TypeAdapter(Count)


def _count_unless_auto(value: Any) -> Any:
    """Judge a number here, so that a bad one is one problem and not one for each half of the union."""
    return value if value == "auto" else _count.validate_python(value)


CountOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_count_unless_auto)]
