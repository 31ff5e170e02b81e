"""Options of runners are declared once, given in four ways, and refused by name."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from scripts.cli import models
from scripts.cli.fleet_tool import ToolError
from scripts.tools.settings_files import options_schema, options_table
from shared import plugins
from shared.plugins import PluginError
from shared.settings.command_line import render_config, run_role
from shared.settings.settings import ModelEntry, Settings, SettingsError, model_entries, resolve
from shared.tasks import runner_table
from shared.tasks.model_options import options_of
from shared.tasks.runner_options import (
    HrmActOptions,
    HrmTextOptions,
    Options,
    PagedOptions,
    PuzzleOptions,
)
from shared.tasks.runner_table import RUNNERS, RunnerInfo

BRAIN = {"id": "brain", "path": "b", "runner": "hrm-act"}
MATHS = {"id": "maths", "path": "m", "runner": "hrm-text"}


def resolved(
    tmp_path: Path, models: list[dict[str, Any]], *given: str, **settings: Any
) -> Settings:
    """Return the settings of a fleet with these models, settings and `--option` flags."""
    path = tmp_path / "fleet.yaml"
    section = {"models": models, **settings}
    path.write_text(yaml.safe_dump({"serve": {"hrm": section}}))
    flags = {"options": list(given) or None}
    return resolve(flags, {}, path).settings


def options(settings: Settings, number: int = 0) -> Options:
    entry = model_entries(settings)[number]
    return options_of(entry, dict(settings), entry.runner)


def test_what_nobody_gives_is_as_declared(tmp_path: Path) -> None:
    assert options(resolved(tmp_path, [BRAIN])) == HrmActOptions()
    assert options(Settings(model_path="echo")) == Options()


def test_a_setting_is_for_all_models_whose_runner_declares_it(tmp_path: Path) -> None:
    """A setting applies to each model whose runner declares it, as its flag always did."""
    sudoku = {"id": "sudoku", "path": "s", "runner": "hrm-puzzle"}
    settings = resolved(
        tmp_path,
        [BRAIN, MATHS, sudoku],
        segments="q_halt",
        condition="cot",
        use_ema=False,
        cuda_graphs=False,
    )
    assert options(settings, 0) == HrmActOptions(segments="q_halt", cuda_graphs=False)
    assert options(settings, 1) == HrmTextOptions(condition="cot", use_ema=False, cuda_graphs=False)
    assert options(settings, 2) == PuzzleOptions(segments="q_halt")


def test_what_is_nearer_to_the_model_outranks_the_rest(tmp_path: Path) -> None:
    """`--option` outranks an entry's options, these its fields, and these the settings."""
    maths = {**MATHS, "condition": "synth", "options": {"use_ema": "false"}}
    settings = resolved(tmp_path, [maths], condition="cot")
    assert options(settings) == HrmTextOptions(condition="synth", use_ema=False)

    direct = {**maths, "options": {"condition": "direct"}}
    settings = resolved(tmp_path, [direct], condition="cot")
    assert options(settings) == HrmTextOptions(condition="direct")

    settings = resolved(
        tmp_path,
        [maths, BRAIN],
        "maths:condition=synth,cot",
        "brain:segments=MAX",
        segments="q_halt",
    )
    assert options(settings, 0) == HrmTextOptions(condition="synth,cot", use_ema=False)
    assert options(settings, 1) == HrmActOptions(segments="max")


def test_the_only_model_needs_no_name(tmp_path: Path) -> None:
    settings = resolved(tmp_path, [BRAIN], "flash-attention=false", "scoring=aios_compat")
    assert options(settings) == HrmActOptions(flash_attention=False, scoring="aios_compat")
    environment = {"AIOS_MODEL_PATH": "b", "AIOS_OPTIONS": "segments=max"}
    [entry] = model_entries(resolve({}, environment, None).settings)
    assert entry.options == {"segments": "max"}


@pytest.mark.parametrize(
    ("models", "given", "sentences"),
    [
        (
            [BRAIN],
            ["segmens=max"],
            ["model 'brain': option 'segmens'", "segments", "hrm-act", "(from --option"],
        ),
        (
            [BRAIN],
            ["segments=fast"],
            ["model 'brain': option 'segments'", "'compat', 'max' or 'q_halt'", "'fast'"],
        ),
        (
            [BRAIN],
            ["use_ema=false"],
            ["model 'brain': option 'use_ema'", "there is none of that name"],
        ),
        (
            [BRAIN],
            ["cuda_graphs=perhaps"],
            ["model 'brain': option 'cuda_graphs'", "boolean", "'perhaps'"],
        ),
        (
            [{**BRAIN, "options": {"segments": True}}],
            [],
            ["option 'segments'", "True is a boolean", "fleet.yaml"],
        ),
        ([{**BRAIN, "options": {"segments": ["max"]}}], [], ["models.0.options.segments"]),
        (
            [BRAIN, MATHS],
            ["segments=max"],
            ["options: which model", "brain:segments=max", "(from --option"],
        ),
        (
            [BRAIN, MATHS],
            ["brian:segments=max"],
            ["options: no model is called 'brian'", "brain, maths"],
        ),
        ([BRAIN], ["segments"], ["options.0", "name=value or model:name=value", "'segments'"]),
        (
            [{"id": "any", "path": "x"}],
            ["segmens=max"],
            ["model 'any'", "no runner has it", "did you mean segments?"],
        ),
        ([{"id": "e", "path": "echo"}], ["segments=max"], ["model 'e'", "expected none at all"]),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    tmp_path: Path, models: list[dict[str, Any]], given: list[str], sentences: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        resolved(tmp_path, models, *given)
    for sentence in sentences:
        assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_children_get_the_same_options(tmp_path: Path) -> None:
    models = [{**BRAIN, "options": {"cuda_graphs": False}}, MATHS]
    settings = resolved(tmp_path, models, "maths:condition=synth,cot", "brain:segments=max")
    again = resolve({}, settings.to_env(), None).settings
    assert again == settings
    assert hash(again) == hash(settings)
    assert model_entries(again) == model_entries(settings)


def test_they_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def never(_: Settings) -> int:
        raise AssertionError

    models = '[{"id": "brain", "path": "b", "runner": "hrm-act"}, {"id": "any", "path": "x"}]'
    flags = ["--option", "brain:segments=max", "--option=any:scoring=aios_compat", "--print-config"]
    config = tmp_path / "empty.yaml"
    config.write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOS_MODELS", models)
        assert run_role("aios worker", never, ["--config", str(config), *flags]) == 0

    printed = capsys.readouterr().out
    assert "[brain:segments=max, any:scoring=aios_compat]" in printed
    assert "# options of model brain, runner hrm-act: " in printed
    assert "segments=max, efforts=none, attention=none" in printed
    assert "# options of model any, runner auto: scoring=aios_compat" in printed
    assert "options of model" not in render_config(resolve({}, {}, None))


def test_the_catalogues_command_judges_them_too() -> None:
    def entry_with(option: str) -> ModelEntry:
        path = "/models/brain"
        return models.entry_of(path, (option,), id="brain", runner="hrm-act")

    assert entry_with("segments=max").options == {"segments": "max"}
    with pytest.raises(ToolError, match="'compat', 'max' or 'q_halt'"):
        entry_with("segments=fast")
    with pytest.raises(ToolError, match="name=value"):
        entry_with("segments")


class _Wide(PagedOptions):
    width: int = Field(default=3, ge=1, description="how wide")


def test_a_new_option_is_one_field(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings, `--option`, docs and the chart's schema follow from the declaration."""
    monkeypatch.setitem(RUNNERS, "wide", RunnerInfo("nowhere:load", _Wide))
    model = {"id": "w", "path": "w", "runner": "wide"}
    settings = resolved(tmp_path, [model], "width=7", cuda_graphs=False)
    assert options(settings) == _Wide(width=7, cuda_graphs=False)
    with pytest.raises(SettingsError, match=r"option 'width': expected greater than"):
        resolved(tmp_path, [model], "width=0")
    assert "| `width` | `wide` | `3` | how wide |" in options_table()
    assert options_schema()["properties"]["width"] == {"type": "integer", "minimum": 1}


FOREIGN_OPTIONS = """
from shared.tasks.runner_options import Options

class Declared(Options):
    ends: str = ""
    seed: str = "own"

number = 3
"""
FOREIGN_ENTRY_POINTS = """
[aios.runners]
foreign = nowhere:load
wrong = nowhere:load
plain = nowhere:load

[aios.runner_options]
foreign = foreign_options:Declared
wrong = foreign_options:number
"""


def test_a_plugins_runner_declares_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "foreign_options.py").write_text(FOREIGN_OPTIONS)
    folder = tmp_path / "foreign-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(FOREIGN_ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    plugins.plugins.cache_clear()
    plugins.entries.cache_clear()

    try:
        assert {"foreign", "plain", "causal"} < set(runner_table.names())

        entry = {"id": "f", "path": "f", "runner": "foreign", "options": {"ends": "!"}}
        declared = options(resolved(tmp_path, [entry], seed=3))
        assert declared.model_dump() == {"ends": "!", "seed": "own"}, (
            "a setting that is none of our options stays out"
        )

        message = r"model 'f': option 'end': .*expected one of ends, seed"
        with pytest.raises(SettingsError, match=message):
            resolved(tmp_path, [{**entry, "options": {"end": "!"}}])

        assert runner_table.info_of("plain").options is Options
        with pytest.raises(PluginError, match=r"aios.runner_options: 'wrong': expected a subclass"):
            runner_table.info_of("wrong")
    finally:
        plugins.plugins.cache_clear()
        plugins.entries.cache_clear()


def test_an_entry_made_in_code_is_validated_too() -> None:
    entry = ModelEntry(id="b", path="b", runner="hrm-act", options={"segments": "slow"})
    settings = Settings(models=(entry,))
    with pytest.raises(SettingsError, match="model 'b': option 'segments'"):
        options(settings)
