"""The settings of the fleet, read once when a process starts, and frozen.

A command-line flag outranks the environment, which outranks YAML (`serve.hrm`) and the default.

This module knows names, defaults, ranges and ranks, and remembers where each value came from. It
does not check whether a model's directory or a device exists: the worker does.
"""

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared.settings.experiments import FORM, check_names, entries_of
from shared.settings.experiments import Experiment as Experiment
from shared.settings.hub_names import WEIGHT_SUFFIXES, hub_name
from shared.settings.layers import Layer, LayerSource, cli_layer, env_layer, env_name, yaml_layer
from shared.settings.layers import SettingsError as SettingsError
from shared.settings.models import GivenOption
from shared.settings.models import ModelEntry as ModelEntry
from shared.settings.text import env_text, expectation, mask_secrets, plain
from shared.settings.types import (
    MOST_ABSENT_S,
    SECRETS,
    ApiKey,
    AppPort,
    Count,
    CountOrAuto,
    Dtype,
    EndpointRate,
    Gigabytes,
    Milliseconds,
    Name,
    Network,
    PathPrefix,
    Port,
    Proxy,
    Quantize,
    RateText,
    Seconds,
    Share,
    Text,
)
from shared.shipped import shipped
from shared.tasks.model_options import check_options, with_options
from shared.tasks.runner_options import (
    Attention,
    HrmActOptions,
    HrmTextOptions,
    KVDtype,
    PagedOptions,
    Scoring,
    Segments,
    TextOptions,
    setting_of,
)
from shared.tasks.runner_table import WITHOUT_FILES, is_url
from shared.tasks.specs import Modality

DEFAULT_MODEL = shipped("models/hrm-text-math")
_SHIPPED_MODELS = (
    DEFAULT_MODEL,
    shipped("models/hrm-text-code"),
    shipped("models/sample-trm-sudoku-9x9"),
)
"""The models that are served where none is named. The first is the default model."""

# How long a process that stops waits for work in flight, where other processes go on with it.
HAND_OVER_S = 1.0
# How long it waits where no other process would go on with that work.
FINISH_S = 20.0

_FOUR_BITS = ("4bit", "int4", "nf4", "fp4")
_layers: ContextVar[Sequence[Layer]] = ContextVar("aios_settings_layers", default=())


class Settings(BaseSettings):
    """Frozen settings of one process.

    The fields have the order of `--help`, `--print-config` and config/default.yaml. Two objects are
    equal when their values are, wherever these come from.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    _origins: Mapping[str, str] = PrivateAttr(default_factory=dict)

    host: Text = Field(default="0.0.0.0", description="address the api listens on")
    port: Port = Field(default=8000, description="port the api listens on; 0 picks a free one")
    root_path: PathPrefix | None = Field(
        default=None, description="path under which a proxy shows the api, as /hrm"
    )
    forwarded_allow_ips: tuple[Proxy, ...] = Field(
        default=("127.0.0.1", "::1"),
        description="proxies whose X-Forwarded headers are believed, comma-separated",
    )
    keep_alive_s: Seconds = Field(
        default=100.0, description="seconds before the api closes an idle connection"
    )
    model_path: Text | None = Field(
        default=None,
        description="model directory or file, org/name of a hub, or 'echo' (none: those that ship)",
    )
    tokenizer_path: Text | None = Field(
        default=None, description="tokenizer directory or file (none: the model's own)"
    )
    models: tuple[ModelEntry, ...] = Field(
        default=(), description="model to serve as id=path, repeatable"
    )
    hub: bool = Field(
        default=True, description="fetch models that are named as org/name from the hub"
    )
    default_model: Text | None = Field(
        default=None, description="id used when a request names no model"
    )
    ab: tuple[Experiment, ...] = Field(
        default=(),
        description="names that split their requests among models, as {name: {model: weight}}",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="device; cuda also means ROCm"
    )
    dtype: Dtype = Field(default="auto", description="dtype of weights and activations")
    quantize: Quantize = Field(
        default="none", description="round the weights of linear layers, on a CPU"
    )
    max_batch_size: Count = Field(
        default=16, description="sequences decoded together by one worker"
    )
    max_new_tokens: Count = Field(default=256, description="most tokens one answer may have")
    cap_policy: Literal["clamp", "reject"] = Field(
        default="clamp", description="what to do with a request over a cap"
    )
    context_window: Count = Field(
        default=2048, description="most tokens of prompt and answer together"
    )
    enable_cors: bool = Field(default=False, description="answer CORS requests")
    cors_origins: tuple[Text, ...] = Field(
        default=("*",), min_length=1, description="allowed origins, comma-separated"
    )
    api_keys: tuple[ApiKey, ...] = Field(
        default=(), description="keys that may call, comma-separated: key or name:key"
    )
    admin_keys: tuple[ApiKey, ...] = Field(
        default=(), description="keys for admin routes too, like api_keys"
    )
    require_key: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="whether callers need a key (auto: once there is one, here or of `aios keys`)",
    )
    key_style: Literal["bearer", "x-api-key"] = Field(
        default="bearer",
        description="a key missing or wrong is 401, or in the style x-api-key 403 Invalid API Key",
    )
    protect_metrics: bool = Field(default=False, description="/metrics only with a key")
    metrics_port: Port | None = Field(
        default=None, description="second port for the metrics of a front, or of jobs"
    )
    worker_port: Port | None = Field(
        default=None, description="port for a worker's metrics and health"
    )
    ui: bool = Field(default=False, description="run the web app, too")
    ui_host: Text = Field(
        default="127.0.0.1", description="address of the web app of --ui (0.0.0.0: for others, too)"
    )
    ui_port: AppPort = Field(default=8501, description="port of the web app of --ui")
    ui_config: Text | None = Field(
        default=None, description="file with your own title, pages, examples and colours for --ui"
    )
    prohibited_terms: Text | None = Field(
        default=None, description="file of terms, one a line, to refuse in requests"
    )
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        default="info", description="log level"
    )
    log_format: Literal["auto", "json", "console", "classic"] = Field(
        default="auto",
        description="log lines for machines or people (auto: console on a terminal, else json)",
    )
    access_log: bool = Field(default=True, description="log a line for each request")
    log_bodies: bool = Field(
        default=False, description="log the beginnings of requests and answers (debug does, too)"
    )
    otlp_endpoint: Text | None = Field(
        default=None, description="OTLP collector to send traces to (none: no tracing)"
    )
    redis_url: Text | None = Field(
        default=None, description="Redis URL (none: `aios serve hrm` embeds one)"
    )
    redis_shards: int = Field(
        default=1, ge=1, le=256, description="parts of the queues, to spread over a Redis Cluster"
    )
    workers: CountOrAuto | None = Field(
        default=None,
        description="worker processes of `aios serve hrm` (none: auto on CPUs, 1 on GPUs)",
    )
    image_workers: Count | None = Field(
        default=None,
        description=(
            "worker processes of `aios serve hrm` for models of images, videos and meshes alone "
            "(none: the workers of all models)"
        ),
    )
    audio_workers: Count | None = Field(
        default=None,
        description="the same for models of sounds",
    )
    modalities: tuple[Modality, ...] = Field(
        default=(),
        description="what models that a worker serves read or make, comma-separated (none: anything)",
    )
    pool: Name = Field(
        default="default", description="what workers of this kind are called, in metrics"
    )
    threads: CountOrAuto = Field(default="auto", description="torch threads of one worker")
    pin_cores: bool = Field(
        default=True, description="give each of several workers cores of its own"
    )
    max_queue_depth: int = Field(default=256, ge=0, description="waiting requests before 429")
    max_queue_bytes: int = Field(
        default=0, ge=0, description="bytes of waiting requests before 429 (0: any number)"
    )
    tenant_concurrency: int = Field(
        default=0, ge=0, description="open jobs of one tenant before 429 (0: any number)"
    )
    tenant_rate_per_s: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="requests a second of one tenant before 429 (0: any number)",
    )
    tenant_burst: Count = Field(
        default=20, description="requests a tenant may send at once after a rest"
    )
    rate_limit: RateText | None = Field(
        default=None, description="requests of one key before 429, as times/seconds"
    )
    endpoint_rate_limits: tuple[EndpointRate, ...] = Field(
        default=(), description="the same on one endpoint, as /path=times/seconds, comma-separated"
    )
    idempotency_ttl_s: Seconds = Field(
        default=86_400.0, description="how long an Idempotency-Key is remembered"
    )
    response_cache_ttl_s: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="how long answers are given again (0: never)",
    )
    max_prompts_per_request: Count = Field(default=64, description="most prompts in one request")
    max_body_bytes: Count = Field(
        default=1 << 20, description="largest request body, but for uploads"
    )
    max_inline_bytes: Count = Field(
        default=1 << 24, description="largest request body where bodies may hold files in base64"
    )
    max_upload_bytes: Count = Field(
        default=1 << 28, description="largest upload, and largest artifact"
    )
    artifact_url: Text | None = Field(
        default=None,
        description=(
            "directory, or URL as s3://bucket/folder, for artifacts above 256 KiB (none: `aios "
            "serve hrm` with its own Redis makes one, other fleets keep none)"
        ),
    )
    artifact_ttl_s: Seconds = Field(default=86_400.0, description="how long artifacts are kept")
    remove_unknown_files: bool = Field(
        default=False,
        description=(
            "remove files at artifact_url that Redis has no record of (not where other fleets "
            "keep theirs there)"
        ),
    )
    artifact_quota_bytes: int = Field(
        default=1 << 30,
        ge=0,
        description="bytes of artifacts that one tenant may keep (0: any number)",
    )
    batch_max_lines: Count = Field(default=50_000, description="most lines of a batch")
    batch_max_bytes: Count = Field(
        default=200 * 1000**2, description="largest file of requests for a batch"
    )
    batch_max_window_s: Seconds = Field(
        default=86_400.0, description="longest completion window of a batch"
    )
    batch_max_open: Count = Field(
        default=100, description="batches of one tenant that may be under way at once"
    )
    webhook_max_endpoints: Count = Field(
        default=10, description="webhook endpoints that one tenant may have"
    )
    webhook_allow: tuple[Network, ...] = Field(
        default=(),
        description="private networks that webhooks may be sent to, and over http, comma-separated",
    )
    queue_timeout_s: Seconds = Field(default=60.0, description="longest wait in the queue")
    request_timeout_s: Seconds = Field(default=300.0, description="longest life of a request")
    absent_grace_s: float = Field(
        default=30.0,
        ge=0,
        le=MOST_ABSENT_S,
        description=(
            "how long work is queued for a model that no worker serves any more, before 503"
        ),
    )
    drain_timeout_s: Seconds | None = Field(
        default=None,
        description=(
            "longest wait at shutdown for what is in flight (none: 20 in a fleet with its own "
            "Redis, else 1)"
        ),
    )
    on_disconnect: Literal["cancel", "continue", "grace"] = Field(
        default="cancel", description="what becomes of work whose caller has left"
    )
    disconnect_grace_s: Seconds = Field(
        default=10.0, description="time to come back in, before `grace` cancels"
    )
    lease_s: Seconds = Field(
        default=3.0, description="silence after which a worker's jobs are taken over"
    )
    ageing_s: Seconds = Field(
        default=10.0, ge=0.01, description="time in the queue that lifts a job by one class"
    )
    result_ttl_s: Seconds = Field(default=600.0, description="how long finished results are kept")
    usage_days: int = Field(
        default=400,
        ge=0,
        le=36_500,
        description="days for which the usage of keys can be read (0: it is not counted)",
    )
    keepalive_s: Seconds = Field(
        default=10.0, description="seconds between SSE keep-alive comments"
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="seed of requests that name none (none: another one for each)",
    )
    healthz_mode: Literal["live", "ready"] = Field(
        default="live", description="/healthz: process up, or also warm"
    )
    scoring: Scoring = setting_of(HrmActOptions, "scoring")
    segments: Segments = setting_of(HrmActOptions, "segments")
    attention: Attention | None = setting_of(HrmActOptions, "attention")
    condition: Text | None = setting_of(HrmTextOptions, "condition")
    chat_template: Text | None = setting_of(TextOptions, "chat_template")
    use_ema: bool = setting_of(HrmTextOptions, "use_ema")
    options: tuple[GivenOption, ...] = Field(
        default=(),
        description="option of a model's runner as name=value or model:name=value, repeatable",
    )
    kv_memory_mib: CountOrAuto = Field(
        default="auto", description="memory for KV pages of one model (auto: 512)"
    )
    kv_memory_fraction: Share | None = Field(
        default=None, description="share of free GPU memory for KV (none: 0.9)"
    )
    max_gpu_memory_gb: Gigabytes | None = Field(
        default=None, description="most GPU memory of one worker (none: all)"
    )
    memory_high_water: Share | None = Field(
        default=None,
        description="share of memory in use above which a worker takes nothing new (none: any)",
    )
    max_loaded_models: Count | None = Field(
        default=None,
        description="models that one worker holds in memory at once (none: as many as fit)",
    )
    memory_watermark: Share = Field(
        default=0.85,
        description=(
            "share of the memory that may be in use when a model is loaded for work that waits"
        ),
    )
    preload_models: int = Field(
        default=0,
        ge=0,
        description=(
            "models, of those asked for most, that an idle worker loads ahead where there is room"
        ),
    )
    popularity_half_life_s: Seconds = Field(
        default=600.0, description="time after which a job counts half for how popular a model is"
    )
    popularity_bonus_s: float = Field(
        default=2.0,
        ge=0,
        le=60,
        description=(
            "seconds by which work of the model asked for most seems to have waited longer, where "
            "several models are to be loaded (0: only the wait counts)"
        ),
    )
    page_size: Count | None = Field(
        default=None,
        description=(
            "tokens in a KV page (none: 16; on cuda in half precision 256, as flash attention asks)"
        ),
    )
    kv_dtype: KVDtype = setting_of(PagedOptions, "kv_dtype")
    flash_attention: bool = setting_of(PagedOptions, "flash_attention")
    cuda_graphs: bool = setting_of(PagedOptions, "cuda_graphs")
    compile_layers: bool = setting_of(HrmTextOptions, "compile_layers")
    prefix_cache: bool = Field(
        default=True, description="let requests of one tenant share what was computed"
    )
    step_tokens: Count | None = Field(
        default=None, description="tokens of one step (none: 256 on cpu, else 4096)"
    )
    batch_wait_ms: Milliseconds = Field(
        default=5.0,
        description="how long a batch of tasks that are done whole waits for more of them",
    )
    task_niceness: int = Field(
        default=19,
        ge=0,
        le=19,
        description="how far tasks that are done whole give way to tokens (0: not at all)",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        return plain(value, cls.model_fields[info.field_name or ""])

    @field_validator("forwarded_allow_ips", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        """Return an empty list of proxies for `none`."""
        if isinstance(value, str) and value.lower() == "none":
            return ()
        return value

    @field_validator(
        "cors_origins",
        "api_keys",
        "admin_keys",
        "endpoint_rate_limits",
        "forwarded_allow_ips",
        "webhook_allow",
        "modalities",
        mode="before",
    )
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if not isinstance(value, str) or value.lower() == "none":
            return value
        if re.fullmatch(r"\s*\[.*\]\s*", value):
            raise ValueError("expected values with commas between them, not a JSON list")
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("quantize", mode="before")
    @classmethod
    def _no_four_bits(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lower() in _FOUR_BITS:
            raise ValueError(
                "weights of 4 bits are not served yet; expected int8 (--quantize int8, "
                "LOAD_IN_8BIT=true), which takes a quarter of float32's memory on a CPU, or "
                "bfloat16 on a GPU (--dtype bfloat16), which takes half"
            )
        return value

    @field_validator("require_key", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        # YAML reads a bare yes as true.
        if value is True:
            return "yes"
        if value is False:
            return "no"
        return value

    @field_validator("models", "options", mode="before")
    @classmethod
    def _split_entries(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str) or value.lower() == "none":
            return value
        if not value.lstrip().startswith("["):
            return value.split(",")
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            form = "id=path" if info.field_name == "models" else "name=value"
            raise ValueError(f"expected a JSON list or {form},{form} ({error})") from error

    @field_validator("ab", mode="before")
    @classmethod
    def _read_experiments(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lower() != "none":
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(f"expected {FORM} as JSON ({error})") from error
        if isinstance(value, Mapping):
            return entries_of(value)
        return value

    @field_validator("ab")
    @classmethod
    def _distinct_experiments(cls, value: tuple[Experiment, ...]) -> tuple[Experiment, ...]:
        check_names(value)
        return value

    @field_validator("models")
    @classmethod
    def _distinct(cls, value: tuple[ModelEntry, ...]) -> tuple[ModelEntry, ...]:
        counts = Counter(entry.id for entry in value)
        repeated = sorted(name for name, count in counts.items() if count > 1)
        if repeated:
            raise ValueError(f"expected distinct ids, got {', '.join(repeated)} more than once")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("expected http:// or https://")
        return value

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("expected redis://, rediss:// or unix://")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the arguments, then the layers that `resolve` is merging. Nothing else is read."""
        layers = [LayerSource(settings_cls, layer) for layer in _layers.get()]
        return (init_settings, *layers)

    @property
    def drain_s(self) -> float:
        """Seconds for which a process that is told to stop waits for work in flight."""
        if self.drain_timeout_s is None:
            return HAND_OVER_S
        return self.drain_timeout_s

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(tuple(dict(self).items()))

    def origin(self, name: str) -> str:
        """Return where a setting comes from.

        It is `--port`, `AIOS_PORT`, `FILE: serve.hrm.port` or `default`.
        """
        return self._origins.get(name, "default")

    def refusal(self, name: str, problem: str, remedy: str) -> SettingsError:
        """Return the error for a setting that only turns out to be unusable when it is used."""
        return SettingsError(f"{name}: {problem} (from {self.origin(name)}); {remedy}")

    def to_env(self) -> dict[str, str]:
        """Return the AIOS_* variables from which `resolve` builds these same settings.

        `none` stands for None.
        """
        return {env_name(name): env_text(getattr(self, name)) for name in type(self).model_fields}


@dataclass(frozen=True)
class Resolved:
    """Settings, and the origin of each field as `Settings.origin` tells it."""

    settings: Settings
    origins: Mapping[str, str]


def resolve(
    argv_values: Mapping[str, Any],
    env: Mapping[str, str],
    yaml_path: Path | None,
    *,
    flags: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Resolved:
    """Merge the layers of command line, environment and YAML, and validate the result.

    `argv_values` are by field name; None means not given. `flags` are the flags by which values
    were given, where these are not the usual ones. `defaults` are those of one command. Raise
    SettingsError, whose message has one line for each bad field.
    """
    known = tuple(Settings.model_fields)
    layers = _without_outranked_models(
        [cli_layer(argv_values, flags), env_layer(env, known), yaml_layer(yaml_path, known)]
    )
    layers.append({name: (value, "default") for name, value in (defaults or {}).items()})

    origins = {name: "default" for name in known}
    for layer in reversed(layers):
        for name, (_, origin) in layer.items():
            origins[name] = origin
    token = _layers.set(layers)
    try:
        settings = Settings()
    except ValidationError as error:
        raise SettingsError(_explain_all(error, origins)) from None
    finally:
        _layers.reset(token)
    settings._origins = origins
    _check_models(settings, origins)
    return Resolved(settings, origins)


def settings_of(values: Mapping[str, Any]) -> Settings:
    """Return settings from values by name, and defaults. No file or variable is read.

    Raise SettingsError.
    """
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError(_explain_all(error, {})) from None


def _without_outranked_models(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers without lists of models that a model path outranks."""
    kept = []
    has_path = False
    for layer in layers:
        if has_path:
            kept.append({name: value for name, value in layer.items() if name != "models"})
        else:
            kept.append(layer)
        has_path = has_path or "model_path" in layer
    return kept


def names_models(settings: Settings) -> bool:
    """Return whether the settings name a model. Without one those that ship are served."""
    return bool(settings.models) or settings.model_path is not None


def given_entries(settings: Settings) -> tuple[ModelEntry, ...]:
    """Return the models to load, as they are given.

    Without `models` it is one entry for `model_path`, named after its directory, and without that
    the models that ship. Raise SettingsError if the name of that directory cannot serve as a model
    id.
    """
    if settings.models:
        return settings.models
    if settings.model_path is not None:
        return (_entry_of_path(settings, settings.model_path),)
    return tuple(ModelEntry(id=path.name, path=str(path)) for path in _SHIPPED_MODELS)


def model_entries(settings: Settings) -> tuple[ModelEntry, ...]:
    """Return the models to load, completed from fleet-wide settings.

    Raise SettingsError as `given_entries` does, and for an option that is for no model.
    """
    entries = with_options(given_entries(settings), settings.options)
    return tuple(completed(entry, settings) for entry in entries)


def completed(entry: ModelEntry, settings: Settings) -> ModelEntry:
    """Return the entry, with fleet-wide settings where it leaves a field of that name open.

    A `~` in its paths becomes the home folder of this process's user.
    """
    fleet_wide = (
        "dtype",
        "quantize",
        "context_window",
        "tokenizer_path",
        "condition",
        "chat_template",
    )
    update = {}
    for name in fleet_wide:
        if getattr(entry, name) is None:
            update[name] = getattr(settings, name)
    for name in ("path", "tokenizer_path", "chat_template"):
        path = update.get(name, getattr(entry, name))
        if path is not None:
            # Path.expanduser would raise for a user that does not exist.
            update[name] = os.path.expanduser(path)
    return entry.model_copy(update=update)


def _explain_all(error: ValidationError, origins: Mapping[str, str]) -> str:
    return "\n".join(_explain(problem, origins) for problem in error.errors())


def _explain(problem: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return a problem of pydantic's as one line, with its setting and the setting's origin."""
    location = [str(part) for part in problem["loc"]]
    setting = location[0]
    message = expectation(problem, is_secret=setting in SECRETS)
    origin = origins.get(setting, "arguments")
    return mask_secrets(f"{'.'.join(location)}: {message} (from {origin})")


def _check_models(settings: Settings, origins: Mapping[str, str]) -> None:
    """Raise SettingsError for a default that is no model, and for options of no model."""
    try:
        entries = model_entries(settings)
        check_options(entries, dict(settings))
    except SettingsError as error:
        given = [origins[name] for name in ("options", "models") if origins[name] != "default"]
        if "(from " in str(error) or not given:
            raise
        raise SettingsError(f"{error} (from {' and '.join(given)})") from None

    ids = [entry.id for entry in entries]
    if settings.default_model is not None and settings.default_model not in ids:
        known = ", ".join(ids)
        origin = origins["default_model"]
        raise SettingsError(
            f"default_model: expected one of {known}, got {settings.default_model!r} (from "
            f"{origin})"
        )
    for experiment in settings.ab:
        if experiment.name in ids:
            raise SettingsError(
                f"ab: expected another name than that of a model, got {experiment.name!r} (from "
                f"{origins['ab']})"
            )


def _entry_of_path(settings: Settings, path: str) -> ModelEntry:
    """Return the entry of `model_path`, named after its directory, whether that exists or not."""
    if path in WITHOUT_FILES:
        return ModelEntry(id=path, path=path)
    if is_url(path):
        return ModelEntry(id=urlsplit(path).hostname or "model", path=path)
    try:
        # Path.expanduser would raise for a user that does not exist.
        location = Path(os.path.expanduser(path)).absolute()
    except FileNotFoundError:
        problem = f"{path!r} lies in this process's directory, which is gone"
        raise settings.refusal(
            "model_path", problem, "change to one that is there, or name a whole path"
        ) from None

    is_file = os.path.isfile(location) or location.suffix in WEIGHT_SUFFIXES
    name = location.parent.name if is_file else location.name
    named = hub_name(path)
    if named is not None:
        name = named.model_id
    try:
        return ModelEntry(id=name, path=path)
    except ValidationError:
        flag = shlex.quote(f"{_as_model_id(name)}={path}")
        problem = f"{name!r} cannot serve as a model id"
        raise settings.refusal("model_path", problem, f"name it with --model {flag}") from None


def _as_model_id(name: str) -> str:
    """Return a name as a model's id: `my-model` of `my model`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"
