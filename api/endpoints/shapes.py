"""Bodies of several shapes at one path.

The keys of a body tell its shape. Its errors are those of that shape alone.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import or_
from typing import Any

from pydantic import PlainValidator
from pydantic_core import PydanticKnownError

from api.schemas.fields import RequestBody, refuse


def one_of(shapes: Mapping[str, type[RequestBody]]) -> PlainValidator:
    """Return a validator for a body with exactly one of these keys, which has that key's shape."""
    first = next(iter(shapes))

    def choose(body: dict[str, Any]) -> type[RequestBody]:
        given = [name for name in shapes if body.get(name) is not None]
        if len(given) != 1:
            names = " and ".join(given) or "none"
            raise refuse(first, f"expected exactly one of {', '.join(shapes)}, got {names}")
        return shapes[given[0]]

    return chosen(choose, shapes.values())


def chosen(
    choose: Callable[[dict[str, Any]], type[RequestBody]], shapes: Iterable[type[RequestBody]]
) -> PlainValidator:
    """Return a validator for a body that has one of `shapes`.

    `choose` returns the shape of a body, or raises the error that refuses it.
    """

    def parse(value: Any) -> Any:
        if not isinstance(value, dict):
            raise PydanticKnownError("dict_type")
        return choose(value).model_validate(value)

    return PlainValidator(parse, json_schema_input_type=reduce(or_, shapes))
