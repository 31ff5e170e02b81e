"""Settings as text: the words of a choice, the value in a child's environment, secrets masked."""

import errno
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo


def mask_secrets(text: str) -> str:
    """Return the text with every password inside a URL replaced by ***.

    A user without a password is masked too, as it may be a token.
    """
    # A password may hold spaces and @: it ends at the last @ of the line.
    text = re.sub(r"(://[^:@/\s]*:).*@", r"\1***@", text)
    text = re.sub(r"(://)[^:@/\s]+@", r"\1***@", text)
    return re.sub(r"([?&]password=)[^&\s]*", r"\1***", text)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Return the strings of a Literal, alone or inside a union; () for any other type."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return parts
    choices: list[str] = []
    for part in parts:
        choices += choices_of(part)
    return tuple(choices)


def plain(value: Any, field: FieldInfo) -> Any:
    """Return a value in the form that validation expects.

    `none` becomes the default of an optional field, and a choice may have any letter case. Raise
    ValueError for a boolean where a number or a text is expected.
    """
    if isinstance(value, bool) and field.annotation is not bool:
        raise ValueError(f"{value} is a boolean")
    if isinstance(value, str) and value.lower() in choices_of(field.annotation):
        return value.lower()
    if isinstance(value, str) and value.lower() == "none" and field.default in (None, ()):
        return field.default
    return value


def expectation(problem: Mapping[str, Any], *, is_secret: bool = False) -> str:
    """Return a problem of pydantic's in our words: the expectation, and the value if it is plain.

    One that `is_secret` is left out.
    """
    message: str = problem["msg"].removeprefix("Value error, ")
    message = re.sub(r"^\w+ should (be|have) ", "expected ", message)
    value = problem["input"]
    is_plain = isinstance(value, str | int | float)
    if is_plain and not is_secret and "got" not in message:
        message += f", got {value!r}"
    return message


def env_text(value: Any) -> str:
    """Return a setting's value for the environment of a child.

    `none` stands for None and for an empty list.
    """
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, tuple):
        return str(value)
    if isinstance(value[0], BaseModel):
        return json.dumps([entry.model_dump() for entry in value])
    texts = []
    for entry in value:
        if isinstance(entry, SecretStr):
            texts.append(entry.get_secret_value())
        else:
            texts.append(entry)
    return ",".join(texts)


def reason(error: OSError | ValueError) -> str:
    """Return why a file cannot be opened or read, without the file's name."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.ENOENT:
        return "it does not exist"
    if error.errno == errno.EISDIR:
        return "it is a directory"
    return str(error.strerror).lower()
