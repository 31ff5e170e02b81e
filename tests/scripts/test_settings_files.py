"""docs/settings.md and config/default.yaml name every setting as it is."""

import pytest

from scripts.tools.generated_pages import page_with
from scripts.tools.settings_files import (
    PAGE,
    SCHEMA,
    YAML,
    chart_schema,
    default_yaml,
    options_schema,
    options_table,
    page,
    schema_with,
    table,
)
from shared.settings.settings import Settings
from shared.tasks.runner_table import RUNNERS


def test_they_are_those_of_today() -> None:
    """The files are up to date; `python -m scripts.tools.settings_files` writes them."""
    assert PAGE.read_text(encoding="utf-8") == page()
    assert YAML.read_text(encoding="utf-8") == default_yaml()
    assert SCHEMA.read_text(encoding="utf-8") == chart_schema()


def row_with(flag: str, rows: list[str]) -> str:
    [row] = [row for row in rows if f"`{flag}`" in row]
    return row


def test_every_setting_is_a_row() -> None:
    rows = table().splitlines()[2:]
    assert len(rows) == len(Settings.model_fields)
    for name, row in zip(Settings.model_fields, rows, strict=True):
        assert f"`AIOS_{name.upper()}`" in row
    assert row_with("--port", rows) == (
        "| `--port` | `AIOS_PORT` `PORT` | `8000` | port the api listens on; 0 picks a free one |"
    )
    assert "`--no-access-log`" in row_with("--access-log", rows)
    assert "`LOAD_IN_8BIT`" in row_with("--quantize", rows)


def test_every_option_of_a_runner_is_a_row_and_in_the_charts_schema() -> None:
    rows = options_table().splitlines()[2:]
    names = set[str]()
    for info in RUNNERS.values():
        names.update(info.options.model_fields)
    assert {row.split("`")[1] for row in rows} == names
    efforts = [row for row in rows if row.startswith("| `efforts`")]
    assert [row.split(" | ")[1] for row in efforts] == ["`hrm-text`", "`hrm-act` `hrm-puzzle`"]
    assert (
        "| `segments` | `hrm-act` `hrm-puzzle` | `compat` | how ACT segments halt: "
        "compat, max, q_halt |"
    ) in rows
    properties = options_schema()["properties"]
    assert properties.keys() == names
    assert properties["segments"] == {"enum": ["compat", "max", "q_halt"]}
    assert properties["use_ema"] == {"type": "boolean"}


def test_a_page_without_a_place_for_it_is_not_touched() -> None:
    with pytest.raises(ValueError, match="expected a table between <!-- mark -->"):
        page_with(table(), "# Settings\n", "mark")
    with pytest.raises(ValueError, match="expected the definition of a model"):
        schema_with({}, "{}")
