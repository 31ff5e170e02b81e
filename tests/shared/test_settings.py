"""Settings: who outranks whom, what is refused and how that is said, and that children get what the
parent had."""

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

# field, (default, then what YAML, environment and flag would set it to), as values
LAYERED: list[tuple[str, tuple[Any, Any, Any, Any]]] = [
    ("port", (8000, 9001, 9002, 9003)),
    ("host", ("0.0.0.0", "1.1.1.1", "2.2.2.2", "3.3.3.3")),
    ("model_path", (None, "/yaml", "/env", "/cli")),
    ("device", ("auto", "cpu", "cuda", "mps")),
    ("dtype", ("auto", "float32", "bfloat16", "float16")),
    ("workers", (1, 2, "auto", 3)),
    ("threads", ("auto", 1, 2, "auto")),
    ("kv_memory_mib", ("auto", 64, 128, "auto")),
    ("kv_memory_fraction", (None, 0.25, 0.5, 1.0)),
    ("max_gpu_memory_gb", (None, 8.0, 16.5, 80.0)),
    ("pin_cores", (True, False, True, False)),
    ("max_batch_size", (16, 2, 3, 4)),
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


@pytest.mark.parametrize("layers", range(4))
@pytest.mark.parametrize(("field", "values"), LAYERED)
def test_flag_over_environment_over_yaml_over_default(
    field: str, values: tuple[Any, ...], layers: int, tmp_path: Path
) -> None:
    default, in_yaml, in_env, in_flag = values
    listed = list(in_yaml) if isinstance(in_yaml, tuple) else in_yaml
    path = write_yaml(tmp_path, {field: listed}) if layers >= 1 else None
    env = {f"AIOS_{field.upper()}": as_text(in_env)} if layers >= 2 else {}
    flags = {field: as_text(in_flag)} if layers >= 3 else {}
    resolved = resolve(flags, env, path)
    assert getattr(resolved.settings, field) == (default, in_yaml, in_env, in_flag)[layers]
    origins = (
        "default",
        f"{path}: serve.hrm.{field}",
        f"AIOS_{field.upper()}",
        "--" + field.replace("_", "-"),
    )
    assert resolved.origins[field] == origins[layers]


@given(
    present=st.lists(st.sampled_from(["yaml", "env", "cli"]), unique=True),
    field=st.sampled_from(LAYERED),
)
def test_the_highest_layer_present_wins(
    present: list[str], field: tuple[str, tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    name, (default, in_yaml, in_env, in_flag) = field
    listed = list(in_yaml) if isinstance(in_yaml, tuple) else in_yaml
    path = (
        write_yaml(tmp_path_factory.mktemp("config"), {name: listed}) if "yaml" in present else None
    )
    env = {f"AIOS_{name.upper()}": as_text(in_env)} if "env" in present else {}
    settings = resolve({name: as_text(in_flag)} if "cli" in present else {}, env, path).settings
    expected = [
        v for v, layer in ((in_flag, "cli"), (in_env, "env"), (in_yaml, "yaml")) if layer in present
    ]
    assert getattr(settings, name) == (expected or [default])[0]


def test_aliases_are_read_and_yield_to_the_proper_name() -> None:
    env = {
        "MODEL_PATH": "/m",
        "HOST": "h",
        "PORT": "81",
        "FORCE_DEVICE": "CPU",
        "MAX_GPU_MEM_GB": "24",
    }
    settings = resolve({}, env | {"TEXT_WORKERS": "2"}, None).settings
    assert (settings.model_path, settings.host, settings.port, settings.device) == (
        "/m",
        "h",
        81,
        "cpu",
    )
    assert (settings.max_gpu_memory_gb, settings.workers) == (24, 2)
    resolved = resolve({}, env | {"AIOS_PORT": "82"}, None)
    assert (resolved.settings.port, resolved.origins["port"]) == (82, "AIOS_PORT")


def test_a_count_may_be_auto_and_a_bad_one_is_one_problem(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert resolve({"workers": "AUTO"}, {}, None).settings.workers == "auto"
    with pytest.raises(SettingsError) as caught:
        resolve({"workers": "1.5", "threads": "x"}, {}, None)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["workers", "threads"]
    with pytest.raises(SystemExit):
        run_role("test", lambda settings: 0, ["--help"])
    assert "one worker: N | auto (default auto)" in " ".join(capsys.readouterr().out.split())


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
        ("default_model", "other", "sample-hrm-text"),
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
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["port", "threads"]
    assert "(from --port)" in lines[0] and "(from AIOS_THREADS)" in lines[1]


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
    assert resolve({}, {}, path).settings.models == expected
    assert (
        resolve({}, {"AIOS_MODELS": json.dumps([brain, "x=echo"])}, None).settings.models
        == expected
    )
    assert [
        entry.id for entry in resolve({}, {"AIOS_MODELS": "a=1,b=2"}, None).settings.models
    ] == ["a", "b"]
    assert expected[1].runner == "echo"


def test_a_model_path_outranks_a_list_from_a_lower_layer(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, {"models": ["a=x"]})
    assert [
        entry.id for entry in model_entries(resolve({"model_path": "/m/other"}, {}, path).settings)
    ] == ["other"]


def test_a_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a shell stands that another one has removed: only what lies there cannot be had."""
    place = tmp_path / "gone"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    assert model_entries(resolve({"model_path": "echo"}, {}, None).settings)[0].runner == "echo"
    assert model_entries(resolve({"model_path": "/m/one"}, {}, None).settings)[0].id == "one"
    with pytest.raises(
        SettingsError, match=r"^model_path: 'one' lies in .* gone \(from --model-path\)"
    ):
        resolve({"model_path": "one"}, {}, None)


@pytest.mark.parametrize(
    ("model_path", "expected"),
    [
        (None, ("sample-hrm-text", "auto")),
        ("artifacts/brains/actv1/actv1_student.pt", ("actv1", "auto")),
        ("/models/brain.v2", ("brain.v2", "auto")),
        ("echo", ("echo", "echo")),
    ],
)
def test_one_entry_is_named_after_its_directory(
    model_path: str | None, expected: tuple[str, str]
) -> None:
    (entry,) = model_entries(Settings(model_path=model_path, tokenizer_path="/t", dtype="bfloat16"))
    assert (entry.id, entry.runner) == expected
    assert (entry.tokenizer_path, entry.dtype, entry.context_window) == ("/t", "bfloat16", 2048)


def parsed(*argv: str) -> Settings:
    """The settings that a role is given for `argv`."""
    given: list[Settings] = []
    assert run_role("test", lambda settings: given.append(settings) or 0, argv) == 0
    return given[0]


def test_an_entrys_own_condition_outranks_the_fleets() -> None:
    entries = (ModelEntry(id="a", path="x", condition="raw"), ModelEntry(id="b", path="y"))
    assert [
        entry.condition for entry in model_entries(Settings(models=entries, condition="cot"))
    ] == ["raw", "cot"]


def test_flags_take_dashes_underscores_and_aliases() -> None:
    argv = [
        "--max_batch_size=3",
        "--tokenizer",
        "/t_1",
        "--model",
        "a=/a_b",
        "--model=b=c",
        "--enable_cors",
    ]
    settings = parsed(*argv)
    assert (settings.max_batch_size, settings.tokenizer_path, settings.enable_cors) == (
        3,
        "/t_1",
        True,
    )
    assert [(entry.id, entry.path) for entry in settings.models] == [("a", "/a_b"), ("b", "c")]
    assert parsed("--no-enable-cors").enable_cors is False
    assert parsed("--checkpoint-path", "/x").model_path == "/x"


def test_print_config_shows_values_and_origins_and_hides_passwords(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIOS_REDIS_URL", "redis://user:s3cr:et/@host:1/0?password=s3cret")
    flags = ["--print-config", "--port", "7", "--config", str(write_yaml(tmp_path, {"threads": 2}))]
    assert run_role("aios test", lambda settings: 1, flags) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines()}
    assert list(lines) == list(Settings.model_fields)
    assert lines["port"] == ["7", "#", "--port"]
    assert lines["threads"][-1] == "serve.hrm.threads" and lines["host"][-1] == "default"
    # Resolved only where the machine is known.
    assert lines["dtype"][0] == lines["kv_memory_mib"][0] == "auto"
    assert lines["redis_url"] == ["redis://user:***@host:1/0?password=***", "#", "AIOS_REDIS_URL"]
    assert "s3cr" not in printed


def test_a_refused_password_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_role("aios test", lambda settings: 0, ["--redis-url", "reddis://:hush@host"]) == 2
    captured = capsys.readouterr()
    assert "redis_url" in captured.err and "hush" not in captured.err + captured.out


@pytest.mark.parametrize(
    "password", ["hush", "hush/", "hush#", "hush?", "hush hush", "hush@", "hush:"]
)
def test_nor_is_one_in_a_url_that_is_none(
    password: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def need_redis(settings: Settings) -> int:
        redis_url(settings)
        return 0

    assert (
        run_role("aios test", need_redis, ["--redis-url", f"redis://:{password}@host:99999/0"]) == 2
    )
    captured = capsys.readouterr()
    assert "is no URL of a Redis" in captured.err and "hush" not in captured.err + captured.out


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
    """Its brackets and quotes would become a part of the keys."""
    with pytest.raises(
        SettingsError,
        match=f"expected values with commas between them, not a JSON list.*{variable}",
    ):
        resolve({}, {variable: '["one","two"]'}, None)


def test_yes_in_yaml_is_a_yes(tmp_path: Path) -> None:
    for written, meant in ((True, "yes"), (False, "no"), ("auto", "auto")):
        assert (
            resolve({}, {}, write_yaml(tmp_path, {"require_key": written})).settings.require_key
            == meant
        )


def test_a_role_gets_its_settings_and_a_dry_run_its_own_way() -> None:
    run = [lambda settings: settings.port, lambda settings: settings.port + 1]
    assert run_role("test", run[0], ["--port", "5"], run[1]) == 5
    assert run_role("test", run[0], ["--port", "5", "--dry-run"], run[1]) == 6


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
    assert mask_secrets(f"redis_url: expected a URL, got {url} (from --redis-url)") == (
        f"redis_url: expected a URL, got {shown} (from --redis-url)"
    )


paths = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda t: t.lower() != "none"
)
quantizations = st.sampled_from(["none", "int8"])
entries = st.builds(
    ModelEntry,
    id=names,
    path=paths,
    dtype=st.sampled_from([None, "float16"]),
    quantize=st.none() | quantizations,
)
overrides = st.fixed_dictionaries(
    {},
    optional={
        "host": paths,
        "port": st.integers(0, 65535),
        "model_path": st.none() | names,
        "tokenizer_path": st.none() | paths,
        "models": st.lists(entries, max_size=3, unique_by=lambda entry: entry.id).map(tuple),
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
        "workers": st.just("auto") | st.integers(1, 99),
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
    shipped = (REPO_ROOT / "config" / "default.yaml").read_text()
    assert resolve({}, {}, REPO_ROOT / "config" / "default.yaml").settings == Settings()
    uncommented = tmp_path / "all.yaml"
    uncommented.write_text(
        "\n".join(
            line.replace("    # ", "    ", 1) for line in shipped.splitlines() if "#   " not in line
        )
    )
    section = yaml.safe_load(uncommented.read_text())["serve"]["hrm"]
    assert list(section) == list(Settings.model_fields)
    assert resolve({}, {}, uncommented).settings == Settings()


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1
    assert "port" in render_config(resolve({}, {}, None))
