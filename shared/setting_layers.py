"""The raw layers that settings are merged from: command line, environment and one section of a YAML
file.

Each layer maps a field's name to its unvalidated value and its origin in words. What the values
mean, and which layer outranks which, is said in `shared/settings.py`.
"""

import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from shared.setting_text import reason

ENV_ALIASES = {
    "model_path": ("MODEL_PATH",),
    "host": ("HOST",),
    "port": ("PORT",),
    "forwarded_allow_ips": ("FORWARDED_ALLOW_IPS",),
    "device": ("FORCE_DEVICE",),
    "max_gpu_memory_gb": ("MAX_GPU_MEM_GB",),
    "workers": ("TEXT_WORKERS",),
    "otlp_endpoint": ("OTEL_EXPORTER_OTLP_ENDPOINT",),
    "api_keys": ("LEVANTER_API_KEY", "API_KEYS"),
}
ENV_SWITCHES = {"LOAD_IN_4BIT": ("quantize", "4bit"), "LOAD_IN_8BIT": ("quantize", "int8")}
"""Variables that are true or false, and the setting that a true one gives a value."""
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
NOT_OBEYED = {
    "TRUST_REMOTE_CODE": (
        ("auto", "never"),
        "code that comes with a model is never run here; convert the model first",
    ),
    "ALLOW_UNSANDBOXED": (
        FALSE,
        "code that comes with a model is never run here, with a sandbox or without",
    ),
    "ENABLE_LARGE_MODELS": (
        TRUE,
        "large models are not told apart; --max-gpu-memory-gb bounds what a worker takes",
    ),
    "MAX_LOADED_MODELS": ((), "every model that is named is loaded; name fewer"),
    "MEMORY_WATERMARK": (
        (),
        "no model is unloaded for want of memory; --memory-high-water lets a worker take no more",
    ),
}
"""Variables of the servers that this one replaces: the values that ask for what is so anyway, and
why others are refused. To pass over them in silence would promise what is not done."""
_ALIKE = 0.75  # of 1: finds MAX_BATCH for MAX_BATCH_SIZE
REPEATED = {"models": "model", "options": "option"}
"""Settings that are given one by one, and what one of them is called."""
SECTION = ("serve", "hrm")
ORIGINS_ENV = "AIOS_SETTING_ORIGINS"
"""Tells a child of `aios serve hrm` where its parent had each setting from: names and origins, as
JSON."""

Layer = dict[str, tuple[Any, str]]


class LayerSource(PydanticBaseSettingsSource):
    """One layer as a source of pydantic-settings, which merges the sources by rank."""

    def __init__(self, settings_cls: type[BaseSettings], layer: Layer) -> None:
        super().__init__(settings_cls)
        self._layer = layer

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._layer.get(field_name, (None,))[0], field_name, False

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, (value, _) in self._layer.items()}


class SettingsError(ValueError):
    """A setting that cannot be used; the message names the field, what was expected and where the
    value came from."""


def env_names(field: str) -> tuple[str, ...]:
    """All variables that hold a value of `field`, the first that is set before the others."""
    return (env_name(field), *ENV_ALIASES.get(field, ()))


def switch_names(field: str) -> tuple[str, ...]:
    """The variables that set `field` by being true."""
    return tuple(name for name, (switched, _) in ENV_SWITCHES.items() if switched == field)


def general_names() -> set[str]:
    """All variables that set something and do not begin with AIOS_."""
    return {name for names in ENV_ALIASES.values() for name in names} | set(ENV_SWITCHES)


def switch_flags(field: str) -> dict[str, str]:
    """The flags that give `field` a value by being there, and that value: `--load-in-8bit` for
    LOAD_IN_8BIT."""
    return {
        _as_flag(name): value
        for name, (switched, value) in ENV_SWITCHES.items()
        if switched == field
    }


def env_name(field: str) -> str:
    """The variable that sets `field`: `AIOS_PORT` for `port`."""
    return "AIOS_" + field.upper()


def flag_name(field: str) -> str:
    """The flag that sets `field`: `--max-batch-size`; models and options are given one by one, as
    `--model`."""
    return _as_flag(REPEATED.get(field, field))


def _as_flag(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def cli_layer(argv_values: Mapping[str, Any], flags: Mapping[str, str] | None = None) -> Layer:
    """The flags given, by field name; None means not given. `flags`: by which of its names a field
    was given."""
    named = flags or {}
    return {
        field: (value, named.get(field, flag_name(field)))
        for field, value in argv_values.items()
        if value is not None
    }


def env_layer(env: Mapping[str, str], fields: Collection[str]) -> Layer:
    """AIOS_* variables, then their other names; an empty variable is one that is not set. Keys are
    all that any of their variables has.

    Raises SettingsError when AIOS_DEVICE and FORCE_DEVICE differ, both claiming to force the
    device, when both 4 and 8 bits are asked for, and for what is not obeyed.
    """
    refuse_not_obeyed(env)
    layer: Layer = {}
    first_origins = json.loads(env.get(ORIGINS_ENV) or "{}")
    for field in fields:
        given = [(env[name], name) for name in env_names(field) if env.get(name)]
        if field == "device" and len({value.lower() for value, _ in given}) > 1:
            both = " and ".join(f"{name}={value}" for value, name in given)
            raise SettingsError(f"device: {both} disagree; expected one of them, or both equal")
        if field == "api_keys":
            given = _gathered(given)
        if field == "quantize":
            given += _switched_on(env)
        if given:
            value, origin = given[0]
            layer[field] = (value, first_origins.get(field, origin))
    return layer


def refuse_not_obeyed(env: Mapping[str, str]) -> None:
    """Raise SettingsError for a variable that asks for what is not done here."""
    for name, (harmless, why) in NOT_OBEYED.items():
        value = env.get(name, "")
        if value and value.lower() not in harmless:
            raise SettingsError(
                f"{name}: cannot be obeyed, got {value!r}: {why}, and leave the variable out"
            )


def _switched_on(env: Mapping[str, str]) -> list[tuple[str, str]]:
    """What the switches for fewer bits ask for: the value, and the variable that says so."""
    found = []
    for name, (_, value) in ENV_SWITCHES.items():
        text = env.get(name, "").lower()
        if text and text not in (*TRUE, *FALSE):
            raise SettingsError(f"{name}: expected true or false, got {env[name]!r}")
        if text in TRUE:
            found.append((value, name))
    if len(found) > 1:
        raise SettingsError(
            "quantize: LOAD_IN_4BIT and LOAD_IN_8BIT exclude each other; expected one of them"
        )
    return found


def general_variables(origin: str) -> list[str]:
    """The variables among an origin's words that do not begin with AIOS_, and so may have been
    meant for others."""
    known = general_names()
    return [word for word in origin.split(" and ") if word in known]


def misspelt_variables(env: Mapping[str, str], fields: Collection[str]) -> dict[str, str]:
    """The AIOS_* variables that set nothing, and what they were nearly called. None of a child,
    whose parent told."""
    if ORIGINS_ENV in env:
        return {}
    known = [env_name(field) for field in fields]
    found = {}
    for name in env:
        if name.startswith("AIOS_") and name not in known:
            close = difflib.get_close_matches(
                name.removeprefix("AIOS_").lower(), fields, n=1, cutoff=_ALIKE
            )
            if close:
                found[name] = env_name(close[0])
    return found


def _gathered(given: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The lists of several variables as one; `none` adds nothing."""
    some = [(value, name) for value, name in given if value.lower() != "none"]
    return (
        [(",".join(value for value, _ in some), " and ".join(name for _, name in some))]
        if some
        else given[:1]
    )


def yaml_layer(path: Path | None, fields: Collection[str]) -> Layer:
    """Section `serve.hrm` of the file; dashes and underscores are equal in keys, and null means not
    given.

    Raises SettingsError for a file that cannot be read and for a key that is not a field.
    """
    if path is None:
        return {}
    layer: Layer = {}
    for key, value in _section(path).items():
        field = str(key).replace("-", "_")
        if field not in fields:
            close = difflib.get_close_matches(field, fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SettingsError(
                f"{key}: unknown key in section {'.'.join(SECTION)} of {path}{hint}"
            )
        if value is not None:
            layer[field] = (value, f"{path}: {'.'.join(SECTION)}.{field}")
    return layer


def _section(path: Path) -> dict[Any, Any]:
    try:
        section: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"config: expected a readable YAML file: {path}: {reason(error)}"
        ) from error
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise SettingsError(f"config: expected a readable YAML file: {path}: {words}") from error
    for key in SECTION:
        section = _mapping(section, path, f"around `{key}`").get(key)
    return _mapping(section, path, f"under `{'.'.join(SECTION)}`")


def _mapping(value: Any, path: Path, where: str) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SettingsError(f"config: expected a mapping {where} in {path}")
    return value
