"""The types of settings: their ranges, and numbers that may be `auto`."""

import ipaddress
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, TypeAdapter

from shared.accelerators import ACCELERATORS

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ModelId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
AppPort = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=0, le=60_000)]
Gigabytes = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

RateText = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}/[1-9][0-9]{0,5}$")]
EndpointRate = Annotated[str, Field(pattern=r"^/[^=,\s]*=[1-9][0-9]{0,5}/[1-9][0-9]{0,5}$")]
MOST_ABSENT_S = 30 * 86_400
"""The time for which Redis knows when a model was last served."""
SECRETS = frozenset({"api_keys", "admin_keys"})
"""Settings whose values are never shown."""

if TYPE_CHECKING:
    Quantize = str
else:
    # The choices are those of the table, for pydantic and for --help.
    Quantize = Literal[tuple(ACCELERATORS)]

_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_KEY = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,63}:)?[!-+\--9;-~]{1,255}")
_count = TypeAdapter(Count)


def _count_unless_auto(value: Any) -> Any:
    """Return the value if it is `auto` or a count. Raise ValidationError."""
    if value == "auto":
        return value
    # Validated here, a bad number is one problem, and not one for each half of the union.
    return _count.validate_python(value)


def _is_key(value: SecretStr) -> SecretStr:
    """Return an API key, with its name or without. Raise ValueError for another text."""
    if not _KEY.fullmatch(value.get_secret_value()):
        raise ValueError(
            "expected key or name:key, printable and without spaces, colons and commas"
        )
    return value


def _as_prefix(value: str) -> str:
    """Return a path without slashes at its end. Raise ValueError for another text."""
    prefix = value.rstrip("/")
    if not _PREFIX.fullmatch(prefix):
        raise ValueError("expected a path, as /hrm or /teams/hrm")
    return prefix


def _is_proxy(value: str) -> str:
    """Return an address or a network, or `*` for everybody. Raise ValueError."""
    if value == "*":
        return value
    try:
        ipaddress.ip_network(value)
    except ValueError:
        raise ValueError("expected addresses, networks as 10.0.0.0/8, or *") from None
    return value


def _is_network(value: str) -> str:
    """Return an address or a network. Raise ValueError."""
    try:
        ipaddress.ip_network(value)
    except ValueError:
        raise ValueError("expected addresses, or networks as 10.0.0.0/8") from None
    return value


PathPrefix = Annotated[str, AfterValidator(_as_prefix)]
Proxy = Annotated[str, AfterValidator(_is_proxy)]
Network = Annotated[str, AfterValidator(_is_network)]
ApiKey = Annotated[SecretStr, AfterValidator(_is_key)]

CountOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_count_unless_auto)]
