"""docs/not-supported.md lists every refused field and variable, and paths that are really absent."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from api.http.app import TABLE
from api.schemas.fields import RequestBody
from scripts.tools.not_supported_page import (
    PAGE,
    fields_table,
    page,
    refused_fields,
    variables_table,
)
from shared.settings.layers import NOT_OBEYED

SCHEMAS = Path(__file__).parents[2] / "api" / "schemas"


def bodies() -> list[type[RequestBody]]:
    """Return all bodies that refuse some fields."""
    found: list[type[RequestBody]] = []
    waiting: list[type[RequestBody]] = [RequestBody]
    while waiting:
        body = waiting.pop()
        waiting += body.__subclasses__()
        if hasattr(body, "refused"):
            found.append(body)
    return found


def test_it_is_that_of_today() -> None:
    """The page is up to date; `python -m scripts.tools.not_supported_page` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("body", bodies(), ids=lambda body: body.__name__)
def test_a_listed_field_is_refused_by_its_name(body: type[RequestBody]) -> None:
    for field in refused_fields()[body.__name__]:
        with pytest.raises(ValidationError, match=f"{field}: this is not supported"):
            body.model_validate({field: {"something": "else"}})


def test_no_schema_refuses_what_it_does_not_declare() -> None:
    source = ""
    for file in sorted(SCHEMAS.glob("*.py")):
        source += file.read_text(encoding="utf-8")
    calls = re.findall(r"return refuse_unsupported\(value, (\S+)\)\n", source)
    assert len(calls) >= 8
    assert set(calls) == {"cls.refused"}


def test_fields_within_others_are_named_with_them() -> None:
    table = fields_table()
    assert "`parameters.grammar`" in table
    assert "`messages.name`" in table
    assert "| `/v1/completions` | `suffix` | - |" in table
    assert "/v1/jobs" not in table


def test_every_variable_is_a_row() -> None:
    rows = variables_table().splitlines()[2:]
    assert len(rows) == len(NOT_OBEYED)


def test_paths_that_are_said_to_be_absent_are() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Paths\n")[2].partition("\n## ")[0]
    paths = re.findall(r"`(/v1/[\w/]+)`", section)
    assert len(paths) >= 5
    for path in paths:
        assert TABLE.at(path) == [], path
