"""One path, several shapes of body, told apart by the key that only one of them has."""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any

from pydantic import PlainValidator
from pydantic_core import PydanticKnownError

from api.schemas.fields import RequestBody, refuse


def one_of(shapes: Mapping[str, type[RequestBody]]) -> PlainValidator:
    """For a body that has exactly one of these keys; it is validated as that key's shape alone."""

    def parse(value: Any) -> Any:
        if not isinstance(value, dict):
            raise PydanticKnownError("dict_type")
        given = [name for name in shapes if value.get(name) is not None]
        if len(given) != 1:
            told = " and ".join(given) or "none"
            raise refuse(next(iter(shapes)), f"expected exactly one of {', '.join(shapes)}, got {told}")
        return shapes[given[0]].model_validate(value)

    return PlainValidator(parse, json_schema_input_type=reduce(or_, shapes.values()))
