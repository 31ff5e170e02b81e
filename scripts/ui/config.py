"""The file with which people make the app their own: title, pages, examples, colours."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from shared.settings.layers import SettingsError
from shared.settings.text import expectation, reason

CONFIG_ENV = "AIOS_UI_CONFIG"

_COLOR = re.compile(r"#([0-9A-Fa-f]{3}){1,2}|[a-z]+")
_SIZE = re.compile(r"[0-9]+(\.[0-9]+)?(px|rem)|none|small|medium|large|full")


def _is_color(value: str) -> str:
    """Return a colour. Raise ValueError for any other text."""
    if not _COLOR.fullmatch(value):
        raise ValueError("expected a colour, as #2f5d8a or navy")
    return value


def _is_size(value: str) -> str:
    """Return a radius. Raise ValueError for any other text."""
    if not _SIZE.fullmatch(value):
        raise ValueError(
            "expected none, small, medium, large or full, or a length as 8px or 0.5rem"
        )
    return value


_Text = Annotated[str, Field(min_length=1)]
_Color = Annotated[str, AfterValidator(_is_color)]
_Size = Annotated[str, AfterValidator(_is_size)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Colors(_Part):
    """Colours of the app, by Streamlit's names. None leaves the app's own."""

    primary_color: _Color | None = Field(default=None, alias="primaryColor")
    background_color: _Color | None = Field(default=None, alias="backgroundColor")
    secondary_background_color: _Color | None = Field(
        default=None, alias="secondaryBackgroundColor"
    )
    text_color: _Color | None = Field(default=None, alias="textColor")
    link_color: _Color | None = Field(default=None, alias="linkColor")
    border_color: _Color | None = Field(default=None, alias="borderColor")


class Theme(Colors):
    """The look of the app. A colour is for both modes, unless `light` or `dark` has one."""

    base_radius: _Size | None = Field(default=None, alias="baseRadius")
    button_radius: _Size | None = Field(default=None, alias="buttonRadius")
    font: Literal["sans-serif", "serif", "monospace"] | None = None
    light: Colors = Colors()
    dark: Colors = Colors()


class AppConfig(_Part):
    """The changes that a person has made to the app.

    `pages` are those that are shown, by their paths, in their order; none means all. `solve` has
    examples by subject, and `puzzles` by kind and name; they take the place of the app's own.
    """

    title: _Text | None = None
    pages: list[_Text] = []
    solve: dict[str, list[_Text]] = {}
    puzzles: dict[str, dict[_Text, _Text]] = {}
    theme: Theme = Theme()


def app_config() -> AppConfig:
    """Return the configuration of this process. Raise SettingsError."""
    return _kept(os.environ.get(CONFIG_ENV, ""))


@cache
def _kept(path: str) -> AppConfig:
    return load_config(path) if path else AppConfig()


def load_config(path: str) -> AppConfig:
    """Return the configuration in a file. Raise SettingsError, which names the file and the key."""
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: expected a readable YAML file: {reason(error)}") from None
    return parse_config(text, path)


def parse_config(text: str, path: str) -> AppConfig:
    """Return the configuration in the text of a file. Raise SettingsError."""
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise SettingsError(f"{path}: expected a readable YAML file: {problem}") from None
    if content is None:
        return AppConfig()
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected a mapping")
    try:
        return AppConfig.model_validate(content)
    except ValidationError as error:
        raise SettingsError(_explained(error, path)) from None


def _explained(error: ValidationError, path: str) -> str:
    """Return the first problem of a file as one sentence."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{path}: {key}: unknown key"
    return f"{path}: {key}: {expectation(problem)}"


def theme_flags(theme: Theme) -> list[str]:
    """Return the flags of Streamlit for a theme. They outrank the file with the app's own."""
    values = theme.model_dump(exclude={"light", "dark"}, exclude_none=True, by_alias=True)
    colors = theme.model_dump(include=set(Colors.model_fields), exclude_none=True, by_alias=True)
    flags = []
    for name, value in values.items():
        if name not in colors:
            flags.append(f"--theme.{name}={value}")
    flags += _color_flags("light", {**colors, **_given(theme.light)})
    flags += _color_flags("dark", {**colors, **_given(theme.dark)})
    return flags


def _given(colors: Colors) -> dict[str, str]:
    return colors.model_dump(exclude_none=True, by_alias=True)


def _color_flags(mode: str, colors: Mapping[str, str]) -> list[str]:
    return [f"--theme.{mode}.{name}={value}" for name, value in colors.items()]
