"""One path, several shapes of body, told apart by what is in them; errors are those of the one
shape."""

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import or_
from typing import Any

from pydantic import PlainValidator
from pydantic_core import PydanticKnownError

from api.schemas.fields import RequestBody, refuse


def one_of(shapes: Mapping[str, type[RequestBody]]) -> PlainValidator:
    """For a body that has exactly one of these keys; it is validated as that key's shape alone."""

    def choose(body: dict[str, Any]) -> type[RequestBody]:
        given = [name for name in shapes if body.get(name) is not None]
        if len(given) != 1:
            told = " and ".join(given) or "none"
            raise refuse(
                next(iter(shapes)), f"expected exactly one of {', '.join(shapes)}, got {told}"
            )
        return shapes[given[0]]

    return chosen(choose, shapes.values())


def chosen(
    choose: Callable[[dict[str, Any]], type[RequestBody]], shapes: Iterable[type[RequestBody]]
) -> PlainValidator:
    """For a body that is one of `shapes`, as `choose` sees from it or refuses to."""

    def parse(value: Any) -> Any:
        if not isinstance(value, dict):
            raise PydanticKnownError("dict_type")
        return choose(value).model_validate(value)

    return PlainValidator(parse, json_schema_input_type=reduce(or_, shapes))
