"""Settings as text: what their types allow, what a child's environment says of them, why a file
cannot be read, and secrets left out."""

import errno
import json
import re
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo


def mask_secrets(text: str) -> str:
    """`text` with every password inside a URL replaced by ***, and a user without one, which may be
    a password.

    A password may hold spaces and @ itself: all is taken for it up to the last @ of the line.
    """
    text = re.sub(r"(://[^:@/\s]*:).*@", r"\1***@", text)
    text = re.sub(r"(://)[^:@/\s]+@", r"\1***@", text)
    return re.sub(r"([?&]password=)[^&\s]*", r"\1***", text)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The strings of a Literal, alone or inside a union; () for any other type."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return parts
    return tuple(choice for part in parts for choice in choices_of(part))


def plain(value: Any, field: FieldInfo) -> Any:
    """Return a value as it is validated: `none` for an optional field, and any letter case in a
    choice.

    Raise ValueError for a boolean where a number or a text goes.
    """
    if isinstance(value, bool) and field.annotation is not bool:
        raise ValueError(f"{value} is a boolean")
    if isinstance(value, str) and value.lower() in choices_of(field.annotation):
        return value.lower()
    if isinstance(value, str) and value.lower() == "none" and field.default in (None, ()):
        return field.default
    return value


def env_text(value: Any) -> str:
    """What a child's environment says of a setting; `none` stands for None, and for nothing in a
    list."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, tuple):
        return str(value)
    if isinstance(value[0], BaseModel):
        return json.dumps([entry.model_dump() for entry in value])
    return ",".join(
        item.get_secret_value() if isinstance(item, SecretStr) else item for item in value
    )


def reason(error: OSError | ValueError) -> str:
    """The words of an error of opening or reading a file, without the file's name."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if not isinstance(error, OSError):
        return str(error)
    words = {errno.ENOENT: "it does not exist", errno.EISDIR: "it is a directory"}
    return words.get(error.errno or 0) or str(error.strerror).lower()
