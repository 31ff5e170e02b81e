"""The raw layers that settings are merged from: command line, environment, one section of YAML.

Each layer maps a field's name to its unvalidated value, and to its origin as text.
`shared/settings/settings.py` knows what the values mean, and which layer outranks which.
"""

import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from shared.settings.text import reason

ENV_ALIASES = {
    "model_path": ("MODEL_PATH",),
    "host": ("HOST",),
    "port": ("PORT",),
    "forwarded_allow_ips": ("FORWARDED_ALLOW_IPS",),
    "device": ("FORCE_DEVICE",),
    "max_gpu_memory_gb": ("MAX_GPU_MEM_GB",),
    "workers": ("TEXT_WORKERS",),
    "image_workers": ("IMAGE_WORKERS",),
    "audio_workers": ("AUDIO_WORKERS",),
    "otlp_endpoint": ("OTEL_EXPORTER_OTLP_ENDPOINT",),
    "api_keys": ("LEVANTER_API_KEY", "API_KEYS"),
}
ENV_SWITCHES = {"LOAD_IN_4BIT": ("quantize", "4bit"), "LOAD_IN_8BIT": ("quantize", "int8")}
"""Variables that are true or false: the setting that a true one sets, and the value."""
TRUE = ("true", "1", "yes", "on")
FALSE = ("false", "0", "no", "off")
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
    "MAX_LOADED_MODELS": ((), "each worker has a limit of its own; set it by --max-loaded-models"),
    "MEMORY_WATERMARK": (
        (),
        "a share of each worker's memory is the limit; set it by --memory-watermark",
    ),
}
"""Variables of the servers that this one replaces, and which it does not obey.

Each has the values that ask for what is done here anyway, and the reason why others are refused: a
variable that is ignored in silence would seem to be obeyed.
"""
# From 0 to 1. This much finds MAX_BATCH_SIZE for MAX_BATCH.
_MIN_SIMILARITY = 0.75
REPEATED = {"models": "model", "options": "option"}
"""Settings that are given one by one, and the name of one of them."""
SECTION = ("serve", "hrm")
ORIGINS_ENV = "AIOS_SETTING_ORIGINS"
"""The variable with the origins of settings, by name, as JSON, for children of `aios serve hrm`."""

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
    """A setting that cannot be used.

    The message names the field, what was expected and where the value came from.
    """


def env_names(field: str) -> tuple[str, ...]:
    """Return all variables that may hold a value of `field`, by rank."""
    return (env_name(field), *ENV_ALIASES.get(field, ()))


def switch_names(field: str) -> tuple[str, ...]:
    """Return the variables that set `field` by being true."""
    return tuple(name for name, (switched, _) in ENV_SWITCHES.items() if switched == field)


def general_names() -> set[str]:
    """Return all variables that set something and do not begin with AIOS_."""
    general = set(ENV_SWITCHES)
    for aliases in ENV_ALIASES.values():
        general.update(aliases)
    return general


def switch_flags(field: str) -> dict[str, str]:
    """Return the flags that give `field` a value by being there, with that value.

    `--load-in-8bit` is the flag for LOAD_IN_8BIT.
    """
    values_of_flags = {}
    for name, (switched, value) in ENV_SWITCHES.items():
        if switched == field:
            values_of_flags[_as_flag(name)] = value
    return values_of_flags


def env_name(field: str) -> str:
    """Return the variable that sets `field`: `AIOS_PORT` for `port`."""
    return "AIOS_" + field.upper()


def flag_name(field: str) -> str:
    """Return the flag that sets `field`: `--max-batch-size` for `max_batch_size`.

    Models and options are given one by one, as `--model`.
    """
    return _as_flag(REPEATED.get(field, field))


def _as_flag(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def cli_layer(argv_values: Mapping[str, Any], flags: Mapping[str, str] | None = None) -> Layer:
    """Return the layer of the flags that were given. A value of None means not given.

    `flags` has, for a field, the flag by which it was given, where that is not its usual one.
    """
    origins = flags or {}
    layer: Layer = {}
    for field, value in argv_values.items():
        if value is not None:
            layer[field] = (value, origins.get(field, flag_name(field)))
    return layer


def env_layer(env: Mapping[str, str], fields: Collection[str]) -> Layer:
    """Return the layer of the environment: AIOS_* variables, then their other names.

    An empty variable counts as not set. API keys are gathered from all their variables. Raise
    SettingsError when AIOS_DEVICE and FORCE_DEVICE differ, when both LOAD_IN_4BIT and LOAD_IN_8BIT
    are true, and for a variable that is not obeyed.
    """
    refuse_not_obeyed(env)
    layer: Layer = {}
    # A child gets all settings in AIOS_* variables. Its parent names where they came from first.
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
    """Raise SettingsError for a variable of `NOT_OBEYED`, unless its value is harmless."""
    for name, (harmless, explanation) in NOT_OBEYED.items():
        value = env.get(name, "")
        if value and value.lower() not in harmless:
            raise SettingsError(
                f"{name}: cannot be obeyed, got {value!r}: {explanation}, and leave the variable "
                "out"
            )


def _switched_on(env: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the value that a true switch gives `quantize`, with its variable; [] without one.

    Raise SettingsError for a switch that is neither true nor false, and if both are true.
    """
    switched: list[tuple[str, str]] = []
    for name, (_, value) in ENV_SWITCHES.items():
        text = env.get(name, "").lower()
        if text and text not in (*TRUE, *FALSE):
            raise SettingsError(f"{name}: expected true or false, got {env[name]!r}")
        if text in TRUE:
            switched.append((value, name))
    if len(switched) > 1:
        raise SettingsError(
            "quantize: LOAD_IN_4BIT and LOAD_IN_8BIT exclude each other; expected one of them"
        )
    return switched


def general_variables(origin: str) -> list[str]:
    """Return the variables in an origin that do not begin with AIOS_.

    These may have been meant for other programs.
    """
    known = general_names()
    return [word for word in origin.split(" and ") if word in known]


def misspelt_variables(env: Mapping[str, str], fields: Collection[str]) -> dict[str, str]:
    """Return the AIOS_* variables that set nothing, with the names that they resemble."""
    # The parent of a child has logged them.
    if ORIGINS_ENV in env:
        return {}

    known = [env_name(field) for field in fields]
    resembled = {}
    for name in env:
        if not name.startswith("AIOS_") or name in known:
            continue
        field = name.removeprefix("AIOS_").lower()
        close = difflib.get_close_matches(field, fields, n=1, cutoff=_MIN_SIMILARITY)
        if close:
            resembled[name] = env_name(close[0])
    return resembled


def _gathered(given: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join the lists of several variables to one; `none` adds nothing."""
    values = []
    names = []
    for value, name in given:
        if value.lower() != "none":
            values.append(value)
            names.append(name)
    if not values:
        return given[:1]
    return [(",".join(values), " and ".join(names))]


def yaml_layer(path: Path | None, fields: Collection[str]) -> Layer:
    """Return the layer of section `serve.hrm` of a YAML file.

    Dashes and underscores are equal in keys, and null means not given. Raise SettingsError for a
    file that cannot be read and for a key that is not a field.
    """
    if path is None:
        return {}
    section = ".".join(SECTION)
    layer: Layer = {}
    for key, value in _section(path).items():
        field = str(key).replace("-", "_")
        if field not in fields:
            close = difflib.get_close_matches(field, fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SettingsError(f"{key}: unknown key in section {section} of {path}{hint}")
        if value is not None:
            layer[field] = (value, f"{path}: {section}.{field}")
    return layer


def _section(path: Path) -> dict[Any, Any]:
    """Return section `serve.hrm` of the file; {} if it is not there. Raise SettingsError."""
    try:
        section: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"config: expected a readable YAML file: {path}: {reason(error)}"
        ) from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise SettingsError(f"config: expected a readable YAML file: {path}: {problem}") from error
    for key in SECTION:
        section = _mapping(section, path, f"around `{key}`").get(key)
    return _mapping(section, path, f"under `{'.'.join(SECTION)}`")


def _mapping(value: Any, path: Path, where: str) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SettingsError(f"config: expected a mapping {where} in {path}")
    return value
