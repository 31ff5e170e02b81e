"""Reading of a recipe, a YAML file with the fields of a dataclass."""

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec

Recipe = TypeVar("Recipe")


def read_recipe_file(file: Path, recipe_type: type[Recipe]) -> Recipe:
    """Return the recipe in a file.

    Raise msgspec.ValidationError, which names the file, for an unknown key, a missing one or a
    value of another type.
    """
    values = msgspec.yaml.decode(file.read_bytes(), type=dict[str, Any])
    names = {field.name for field in fields(recipe_type)}  # type: ignore[arg-type]
    unknown = sorted(values.keys() - names)
    if unknown:
        raise msgspec.ValidationError(f"{file.name}: a recipe has no {', '.join(unknown)}")
    try:
        return msgspec.convert(values, recipe_type)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{file.name}: {error}") from error
