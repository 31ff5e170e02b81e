"""Settings: which layer outranks which, what is refused in which words, what children get."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shared.settings.command_line import redis_url, render_config, run_role
from shared.settings.settings import ModelEntry, Settings, SettingsError, model_entries, resolve
from shared.settings.text import mask_secrets
from shared.shipped import REPO_ROOT
from tests.fixtures.bare_settings import names, without_settings

# Each field with its default, and the values that YAML, environment and flag would set.
LAYERED: list[tuple[str, tuple[Any, Any, Any, Any]]] = [
    ("port", (8000, 9001, 9002, 9003)),
    ("host", ("0.0.0.0", "1.1.1.1", "2.2.2.2", "3.3.3.3")),
    ("model_path", (None, "/yaml", "/env", "/cli")),
    ("device", ("auto", "cpu", "cuda", "mps")),
    ("dtype", ("auto", "float32", "bfloat16", "float16")),
    ("workers", (None, 2, "auto", 3)),
    ("threads", ("auto", 1, 2, "auto")),
    ("kv_memory_mib", ("auto", 64, 128, "auto")),
    ("kv_memory_fraction", (None, 0.25, 0.5, 1.0)),
    ("max_gpu_memory_gb", (None, 8.0, 16.5, 80.0)),
    ("pin_cores", (True, False, True, False)),
    ("max_batch_size", (16, 2, 3, 4)),
    ("task_niceness", (19, 0, 5, 10)),
    ("queue_timeout_s", (60.0, 1.5, 2.5, 3.5)),
    ("enable_cors", (False, True, False, True)),
    ("cors_origins", (("*",), ("https://a",), ("https://b", "https://c"), ("https://d",))),
    ("attention", (None, "causal", "bidirectional", "causal")),
]


@pytest.fixture(autouse=True)
def no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - without_settings(os.environ).keys():
        monkeypatch.delenv(name)


def write_yaml(directory: Path, section: object) -> Path:
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump({"serve": {"hrm": section}}))
    return path


def as_text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def as_yaml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def ids_of(entries: tuple[ModelEntry, ...]) -> list[str]:
    return [entry.id for entry in entries]


def fields_named_in(error: SettingsError) -> list[str]:
    """Return the field that each line of the error begins with."""
    return [line.split(":")[0] for line in str(error).splitlines()]


@pytest.mark.parametrize("layers", range(4))
@pytest.mark.parametrize(("field", "values"), LAYERED)
def test_flag_over_environment_over_yaml_over_default(
    field: str, values: tuple[Any, ...], layers: int, tmp_path: Path
) -> None:
    _, in_yaml, in_env, in_flag = values
    path = None
    env = {}
    flags = {}
    origin = "default"
    if layers >= 1:
        path = write_yaml(tmp_path, {field: as_yaml(in_yaml)})
        origin = f"{path}: serve.hrm.{field}"

    if layers >= 2:
        origin = f"AIOS_{field.upper()}"
        env[origin] = as_text(in_env)

    if layers >= 3:
        origin = "--" + field.replace("_", "-")
        flags[field] = as_text(in_flag)

    resolved = resolve(flags, env, path)
    assert getattr(resolved.settings, field) == values[layers]
    assert resolved.origins[field] == origin


@given(
    present=st.lists(st.sampled_from(["yaml", "env", "cli"]), unique=True),
    field=st.sampled_from(LAYERED),
)
def test_the_highest_layer_present_wins(
    present: list[str], field: tuple[str, tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    name, (expected, in_yaml, in_env, in_flag) = field
    path = None
    env = {}
    flags = {}
    # From the lowest layer to the highest: the last one that is present counts.
    if "yaml" in present:
        path = write_yaml(tmp_path_factory.mktemp("config"), {name: as_yaml(in_yaml)})
        expected = in_yaml

    if "env" in present:
        env[f"AIOS_{name.upper()}"] = as_text(in_env)
        expected = in_env

    if "cli" in present:
        flags[name] = as_text(in_flag)
        expected = in_flag

    settings = resolve(flags, env, path).settings
    assert getattr(settings, name) == expected


def test_aliases_are_read_and_yield_to_the_proper_name() -> None:
    env = {
        "MODEL_PATH": "/m",
        "HOST": "h",
        "PORT": "81",
        "FORCE_DEVICE": "CPU",
        "MAX_GPU_MEM_GB": "24",
    }
    workers = {"TEXT_WORKERS": "2", "IMAGE_WORKERS": "3", "AUDIO_WORKERS": "1"}
    settings = resolve({}, env | workers, None).settings
    assert settings.model_path == "/m"
    assert settings.host == "h"
    assert settings.port == 81
    assert settings.device == "cpu"
    assert settings.max_gpu_memory_gb == 24
    assert settings.workers == 2
    assert settings.image_workers == 3
    assert settings.audio_workers == 1

    resolved = resolve({}, env | {"AIOS_PORT": "82"}, None)
    assert resolved.settings.port == 82
    assert resolved.origins["port"] == "AIOS_PORT"


def test_a_count_may_be_auto_and_a_bad_one_is_one_problem(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert resolve({"workers": "AUTO"}, {}, None).settings.workers == "auto"

    with pytest.raises(SettingsError) as caught:
        resolve({"workers": "1.5", "threads": "x"}, {}, None)
    assert fields_named_in(caught.value) == ["workers", "threads"]

    assert run_role("test", lambda settings: 0, ["--help"]) == 0

    help_text = " ".join(capsys.readouterr().out.split())
    assert "one worker: N | auto (default auto)" in help_text


def test_the_two_device_variables_must_agree() -> None:
    assert resolve({}, {"AIOS_DEVICE": "cpu", "FORCE_DEVICE": "CPU"}, None).settings.device == "cpu"
    with pytest.raises(
        SettingsError, match=r"device: AIOS_DEVICE=cpu and FORCE_DEVICE=cuda disagree"
    ):
        resolve({}, {"AIOS_DEVICE": "cpu", "FORCE_DEVICE": "cuda"}, None)


def test_an_empty_variable_is_not_set() -> None:
    assert resolve({}, {"AIOS_MODEL_PATH": "", "AIOS_PORT": ""}, None).settings == Settings()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("port", "70000", "less than or equal to 65535"),
        ("port", "-1", "greater than or equal to 0"),
        ("port", "http", "integer"),
        ("port", True, "boolean"),
        ("max_batch_size", "0", "greater than or equal to 1"),
        ("max_queue_depth", "-1", "greater than or equal to 0"),
        ("workers", "1.5", "integer"),
        ("workers", "some", "integer"),
        ("threads", "0", "greater than or equal to 1"),
        ("threads", True, "boolean"),
        ("kv_memory_mib", "none", "integer"),
        ("kv_memory_fraction", "1.1", "less than or equal to 1"),
        ("max_gpu_memory_gb", "0", "greater than 0"),
        ("lease_s", "0", "greater than 0"),
        ("ageing_s", "0.001", "greater than or equal to 0.01"),
        ("queue_timeout_s", "nan", "finite"),
        ("request_timeout_s", "inf", "finite"),
        ("device", "tpu", "'auto', 'cpu', 'cuda' or 'mps'"),
        ("enable_cors", "perhaps", "boolean"),
        ("cors_origins", ",", "at least 1"),
        ("model_path", "", "at least 1 character"),
        ("model_path", "/models/My Model", "--model 'My-Model=/models/My Model'"),
        ("api_keys", "a b", "key or name:key"),
        ("admin_keys", "a:b:c", "key or name:key"),
        ("require_key", "perhaps", "'auto', 'yes' or 'no'"),
        ("rate_limit", "10", "pattern"),
        ("rate_limit", "0/60", "pattern"),
        ("endpoint_rate_limits", "generate=10/60", "pattern"),
        ("models", ["sample"], "id=path"),
        ("models", ["=x"], "id=path"),
        ("models", ["a=x", "b=y", "a=z"], "distinct ids"),
        ("models", "[{", "JSON"),
        ("models", [{"id": "a", "path": "x", "runner": "magic"}], "hrm-act"),
        ("models", [{"id": "a", "path": "x", "weights": "y"}], "weights"),
        ("default_model", "other", "hrm-text-math"),
        ("ab", "a=b", "as JSON"),
        ("ab", {"x": 1}, "{name: {model: weight, model: weight}}"),
        ("ab", {"x": {"a": 1}}, "at least two models"),
        ("ab", {"x": {"a": 1, "b": 0}}, "greater than 0"),
        ("ab", {"x": {"a": 1, "b": float("inf")}}, "finite"),
        ("ab", {"x": {"a": 1, "b c": 1}}, "pattern"),
        ("ab", {"x y": {"a": 1, "b": 1}}, "pattern"),
        ("ab", {"x": {"a": 1, "b": 1}, "y": {"a": 1, "x": 1}}, "the experiment 'x'"),
        ("ab", {"hrm-text-math": {"a": 1, "b": 1}}, "another name than that of a model"),
        ("redis_url", "http://localhost", "redis://"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_its_field(
    field: str, value: Any, expected: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve({field: value}, {}, None)
    assert str(caught.value).startswith(field)
    assert expected in str(caught.value)


def test_every_bad_field_is_named_at_once_with_its_origin() -> None:
    with pytest.raises(SettingsError) as caught:
        resolve({"port": "x"}, {"AIOS_THREADS": "0"}, None)
    assert fields_named_in(caught.value) == ["port", "threads"]

    port, threads = str(caught.value).splitlines()
    assert "(from --port)" in port
    assert "(from AIOS_THREADS)" in threads


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("serve: {hrm: {max_batch: 3}}", "did you mean max_batch_size"),
        ("serve: {hrm: {colour: red}}", "colour: unknown key"),
        ("serve: {hrm: [1]}", "expected a mapping"),
        ("serve: 3", "expected a mapping"),
        ("- serve", "expected a mapping"),
        ("serve: {hrm: ", "readable YAML"),
        ("serve: {hrm: {port: yes}}", "port: True is a boolean"),
    ],
)
def test_a_bad_file_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=expected) as caught:
        resolve({}, {}, path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="config"):
        resolve({}, {}, tmp_path / "none.yaml")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert resolve({}, {}, empty).settings == Settings()


def test_models_from_flags_environment_and_yaml(tmp_path: Path) -> None:
    brain = {"id": "brain", "path": "b=1", "runner": "hrm-act", "context_window": 64}
    path = write_yaml(tmp_path, {"models": [brain, "x=echo"], "default_model": "x"})
    expected = (
        ModelEntry(id="brain", path="b=1", runner="hrm-act", context_window=64),
        ModelEntry(id="x", path="echo"),
    )
    assert expected[1].runner == "echo"
    assert resolve({}, {}, path).settings.models == expected

    env = {"AIOS_MODELS": json.dumps([brain, "x=echo"])}
    assert resolve({}, env, None).settings.models == expected

    env = {"AIOS_MODELS": "a=1,b=2"}
    assert ids_of(resolve({}, env, None).settings.models) == ["a", "b"]


def test_a_model_path_outranks_a_list_from_a_lower_layer(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, {"models": ["a=x"]})
    settings = resolve({"model_path": "/m/other"}, {}, path).settings
    assert ids_of(model_entries(settings)) == ["other"]


def test_a_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a working directory that was removed, only a relative path is refused."""
    directory = tmp_path / "gone"
    directory.mkdir()
    monkeypatch.chdir(directory)
    directory.rmdir()

    echo, *_ = model_entries(resolve({"model_path": "echo"}, {}, None).settings)
    assert echo.runner == "echo"

    absolute, *_ = model_entries(resolve({"model_path": "/m/one"}, {}, None).settings)
    assert absolute.id == "one"

    message = r"^model_path: 'one' lies in .* gone \(from --model-path\)"
    with pytest.raises(SettingsError, match=message):
        resolve({"model_path": "one"}, {}, None)


@pytest.mark.parametrize(
    ("model_path", "expected"),
    [
        ("artifacts/brains/actv1/actv1_student.pt", ("actv1", "auto")),
        ("/models/brain.v2", ("brain.v2", "auto")),
        ("echo", ("echo", "echo")),
    ],
)
def test_one_entry_is_named_after_its_directory(model_path: str, expected: tuple[str, str]) -> None:
    (entry,) = model_entries(Settings(model_path=model_path, tokenizer_path="/t", dtype="bfloat16"))
    assert (entry.id, entry.runner) == expected
    assert entry.tokenizer_path == "/t"
    assert entry.dtype == "bfloat16"


def test_the_models_that_ship_are_served_where_none_is_named() -> None:
    entries = model_entries(Settings(dtype="bfloat16"))
    assert [entry.id for entry in entries] == [
        "hrm-text-math",
        "hrm-text-code",
        "sample-trm-sudoku-9x9",
    ]
    for entry in entries:
        assert (Path(entry.path) / "held_out.json").exists()
        assert entry.dtype == "bfloat16"
    assert entry.context_window == 2048


def parsed(*argv: str) -> Settings:
    """Return the settings that a role gets for `argv`."""
    given: list[Settings] = []

    def role(settings: Settings) -> int:
        given.append(settings)
        return 0

    assert run_role("test", role, argv) == 0

    return given[0]


def test_an_entrys_own_condition_outranks_the_fleets() -> None:
    entries = (ModelEntry(id="a", path="x", condition="raw"), ModelEntry(id="b", path="y"))
    with_own, without = model_entries(Settings(models=entries, condition="cot"))
    assert with_own.condition == "raw"
    assert without.condition == "cot"


def test_a_tilde_in_a_models_paths_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in those that are fleet-wide, and not that of a user that there is none of."""
    monkeypatch.setenv("HOME", "/home/me")
    entries = ["a=~/one", {"id": "b", "path": "/two", "chat_template": "~/b.jinja"}]
    settings = Settings(models=entries, tokenizer_path="~/words")  # type: ignore[arg-type]
    one, two = model_entries(settings)
    assert (one.path, one.tokenizer_path) == ("/home/me/one", "/home/me/words")
    assert (two.path, two.chat_template) == ("/two", "/home/me/b.jinja")

    [by_path] = model_entries(Settings(model_path="~/models/small"))
    assert (by_path.id, by_path.path) == ("small", "/home/me/models/small")
    [unknown] = model_entries(Settings(model_path="~nobody-of-this-name/small"))
    assert unknown.path == "~nobody-of-this-name/small"


def test_flags_take_dashes_underscores_and_aliases() -> None:
    settings = parsed(
        "--max_batch_size=3",
        *("--tokenizer", "/t_1"),
        *("--model", "a=/a_b"),
        "--model=b=c",
        "--enable_cors",
    )
    assert settings.max_batch_size == 3
    assert settings.tokenizer_path == "/t_1"
    assert settings.enable_cors is True

    first, second = settings.models
    assert (first.id, first.path) == ("a", "/a_b")
    assert (second.id, second.path) == ("b", "c")

    assert parsed("--no-enable-cors").enable_cors is False
    assert parsed("--checkpoint-path", "/x").model_path == "/x"


def test_print_config_shows_values_and_origins_and_hides_passwords(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIOS_REDIS_URL", "redis://user:s3cr:et/@host:1/0?password=s3cret")
    path = write_yaml(tmp_path, {"threads": 2})
    flags = ["--print-config", "--port", "7", "--config", str(path)]
    assert run_role("aios test", lambda settings: 1, flags) == 0

    printed = capsys.readouterr().out
    lines = {}
    for line in printed.splitlines():
        field, *rest = line.split()
        lines[field] = rest

    assert list(lines) == list(Settings.model_fields)
    assert lines["port"] == ["7", "#", "--port"]
    assert lines["threads"][-1] == "serve.hrm.threads"
    assert lines["host"][-1] == "default"
    # Resolved only where the machine is known.
    assert lines["dtype"][0] == "auto"
    assert lines["kv_memory_mib"][0] == "auto"
    assert lines["redis_url"] == ["redis://user:***@host:1/0?password=***", "#", "AIOS_REDIS_URL"]
    assert "s3cr" not in printed


def test_a_refused_password_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_role("aios test", lambda settings: 0, ["--redis-url", "reddis://:hush@host"]) == 2
    captured = capsys.readouterr()
    assert "redis_url" in captured.err
    assert "hush" not in captured.err + captured.out


@pytest.mark.parametrize(
    "password", ["hush", "hush/", "hush#", "hush?", "hush hush", "hush@", "hush:"]
)
def test_nor_is_one_in_a_url_that_is_none(
    password: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def need_redis(settings: Settings) -> int:
        redis_url(settings)
        return 0

    flags = ["--redis-url", f"redis://:{password}@host:99999/0"]
    assert run_role("aios test", need_redis, flags) == 2

    captured = capsys.readouterr()
    assert "is no URL of a Redis" in captured.err
    assert "hush" not in captured.err + captured.out


def test_keys_come_from_all_their_variables_and_are_never_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {
        "AIOS_API_KEYS": "ann:hush-1, hush-2",
        "LEVANTER_API_KEY": "hush-3",
        "API_KEYS": "hush-4",
    }
    resolved = resolve({}, env, None)
    keys = [key.get_secret_value() for key in resolved.settings.api_keys]
    assert keys == ["ann:hush-1", "hush-2", "hush-3", "hush-4"]
    assert resolved.origins["api_keys"] == "AIOS_API_KEYS and LEVANTER_API_KEY and API_KEYS"

    for name, value in env.items():
        monkeypatch.setenv(name, value)

    assert run_role("aios test", lambda settings: 1, ["--print-config"]) == 0
    assert run_role("aios test", lambda settings: 1, ["--admin-keys", "hush 5"]) == 2

    captured = capsys.readouterr()
    assert "hush" not in captured.out + captured.err + repr(resolved.settings)


@pytest.mark.parametrize("variable", ["API_KEYS", "AIOS_API_KEYS", "AIOS_CORS_ORIGINS"])
def test_a_json_list_is_not_taken_for_a_value(variable: str) -> None:
    """A JSON list is refused, since its brackets and quotes would become a part of the keys."""
    message = f"expected values with commas between them, not a JSON list.*{variable}"
    with pytest.raises(SettingsError, match=message):
        resolve({}, {variable: '["one","two"]'}, None)


def test_yes_in_yaml_is_a_yes(tmp_path: Path) -> None:
    for written, expected in ((True, "yes"), (False, "no"), ("auto", "auto")):
        path = write_yaml(tmp_path, {"require_key": written})
        assert resolve({}, {}, path).settings.require_key == expected


def test_a_role_gets_its_settings_and_a_dry_run_its_own_way() -> None:
    def run(settings: Settings) -> int:
        return settings.port

    def dry_run(settings: Settings) -> int:
        return settings.port + 1

    assert run_role("test", run, ["--port", "5"], dry_run) == 5
    assert run_role("test", run, ["--port", "5", "--dry-run"], dry_run) == 6


def test_mask_keeps_what_is_no_secret() -> None:
    for text in (
        "redis://localhost:6379/0",
        "http://127.0.0.1:80/a, http://[::1]:81/b",
        "see https://x.org/@a/b",
    ):
        assert mask_secrets(text) == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:geheim@h:1/0", "redis://:***@h:1/0"),
        ("redis://me:geheim@h", "redis://me:***@h"),
        ("redis://me:ge heim@h", "redis://me:***@h"),
        ("redis://me:geheim@ge/heim@h", "redis://me:***@h"),
        ("redis://geheim@h:6379", "redis://***@h:6379"),
        ("unix:///run/r.sock?db=1&password=geheim&x=1", "unix:///run/r.sock?db=1&password=***&x=1"),
    ],
)
def test_a_password_is_masked_wherever_in_a_url_it_stands(url: str, shown: str) -> None:
    assert mask_secrets(url) == shown
    sentence = "redis_url: expected a URL, got {} (from --redis-url)"
    assert mask_secrets(sentence.format(url)) == sentence.format(shown)


characters = st.characters(codec="utf-8", exclude_characters="\0")
# In a child's environment "none" stands for None.
paths = st.text(characters, min_size=1).filter(lambda text: text.lower() != "none")
quantizations = st.sampled_from(["none", "int8"])
entries = st.builds(
    ModelEntry,
    id=names,
    path=paths,
    dtype=st.sampled_from([None, "float16"]),
    quantize=st.none() | quantizations,
)
splits = st.dictionaries(
    names.map("split-{}".format),
    st.dictionaries(names, st.floats(1e-9, 1e9), min_size=2, max_size=3),
    max_size=2,
)
overrides = st.fixed_dictionaries(
    {},
    optional={
        "host": paths,
        "port": st.integers(0, 65535),
        "model_path": st.none() | names,
        "tokenizer_path": st.none() | paths,
        "models": st.lists(entries, max_size=3, unique_by=lambda entry: entry.id).map(tuple),
        "ab": splits,
        "device": st.sampled_from(["auto", "cpu", "cuda", "mps"]),
        "quantize": quantizations,
        "lease_s": st.floats(min_value=1e-9, max_value=1e9),
        "enable_cors": st.booleans(),
        "cors_origins": st.lists(names, min_size=1).map(tuple),
        "api_keys": st.lists(names, max_size=2).map(tuple),
        "admin_keys": st.lists(names.map("ops:{}".format), max_size=2).map(tuple),
        "forwarded_allow_ips": st.sampled_from([(), ("*",), ("10.0.0.0/8", "::1")]),
        "root_path": st.sampled_from([None, "/hrm", "/a/b"]),
        "endpoint_rate_limits": st.sampled_from([(), ("/generate=10/60", "/v1/completions=1/1")]),
        "attention": st.sampled_from([None, "causal", "bidirectional"]),
        "workers": st.sampled_from((None, "auto")) | st.integers(1, 99),
        "threads": st.just("auto") | st.integers(1, 99),
        "kv_memory_mib": st.just("auto") | st.integers(1, 10**6),
        "kv_memory_fraction": st.none() | st.floats(0.01, 1),
        "redis_url": st.sampled_from([None, "redis://:a,b@h/0"]),
    },
)


@given(overrides)
def test_children_get_the_same_settings_through_the_environment(values: dict[str, Any]) -> None:
    settings = Settings(**values)
    env = settings.to_env()
    assert set(env) == {f"AIOS_{name.upper()}" for name in Settings.model_fields}
    assert resolve({}, env, None).settings == settings


def test_none_in_a_childs_environment_outranks_yaml(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, {"attention": "causal", "redis_url": "redis://h"})
    assert resolve({}, Settings().to_env(), path).settings == Settings()


def test_the_shipped_file_lists_every_key_with_its_default(tmp_path: Path) -> None:
    shipped = REPO_ROOT / "config" / "default.yaml"
    assert resolve({}, {}, shipped).settings == Settings()

    lines = []
    for line in shipped.read_text().splitlines():
        # Longer explanations are indented, and stay comments.
        if "#   " not in line:
            lines.append(line.replace("    # ", "    ", 1))

    uncommented = tmp_path / "all.yaml"
    uncommented.write_text("\n".join(lines))
    section = yaml.safe_load(uncommented.read_text())["serve"]["hrm"]
    assert list(section) == list(Settings.model_fields)
    assert resolve({}, {}, uncommented).settings == Settings()


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1
    assert "port" in render_config(resolve({}, {}, None))
