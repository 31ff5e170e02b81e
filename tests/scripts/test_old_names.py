"""The commands of older documents are found by their names.

Their flags and variables are mapped to our settings.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from scripts.cli import aios, jobs, serve
from scripts.cli.old_names import commands
from shared.settings.command_line import role_command, run_role
from shared.settings.hub import with_hub_models
from shared.settings.layers import NOT_OBEYED
from shared.settings.settings import Settings, SettingsError, resolve
from tests.fixtures.bare_settings import without_settings
from tests.fixtures.hub import asked_here

MODULES = {
    "aios.serve.hrm_server": commands.hrm_server,
    "levanter.serve.min_server": commands.min_server,
    "inference.server.model_server": commands.model_server,
}
SERVE = ("serve", "hrm")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Collect the settings of each command in place of serving.

    The environment has no settings.
    """
    collected: list[Settings] = []

    def serve_hrm(settings: Settings) -> int:
        collected.append(settings)
        return 0

    monkeypatch.setitem(serve.command.commands, "hrm", role_command("hrm", serve_hrm))
    monkeypatch.setattr(commands, "serve_hrm", serve_hrm)
    for name in os.environ.keys() - without_settings(os.environ).keys():
        monkeypatch.delenv(name)
    return collected


def run_python(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=without_settings(os.environ),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.parametrize("module", MODULES)
def test_python_finds_it_in_any_directory(module: str, tmp_path: Path) -> None:
    """A74, B35, C3: the package is installed under that name."""
    done = run_python("-m", module, "--print-config", "--port", "8123", cwd=tmp_path)
    assert done.returncode == 0
    assert "8123" in done.stdout
    assert "--port" in done.stdout

    refused = run_python("-m", module, "--prot", "1", cwd=tmp_path)
    assert refused.returncode == 2
    hint = "--prot: there is no such flag; did you mean --port? --help lists those there are"
    assert refused.stderr == f"python -m {module}: {hint}\n"


@pytest.mark.parametrize("command", MODULES.values())
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--model_path", "/m", "--host", "h", "--port", "1"],
            {"model_path": "/m", "host": "h", "port": 1},
        ),
        (
            ["--model-path=/m", "--tokenizer-path", "/t"],
            {"model_path": "/m", "tokenizer_path": "/t"},
        ),
        (
            ["--hf-checkpoint", "/m", "--tokenizer", "/t"],
            {"model_path": "/m", "tokenizer_path": "/t"},
        ),
        (["--checkpoint-path", "/m"], {"model_path": "/m"}),
        (
            ["--load_in_8bit", "--no_flash_attention"],
            {"quantize": "int8", "flash_attention": False},
        ),
        (
            ["--seed", "7", "--log-level", "debug", "--no-access-log"],
            {"seed": 7, "log_level": "debug", "access_log": False},
        ),
        (["--access-log"], {"access_log": True}),
        (["--healthz-mode", "ready"], {"healthz_mode": "ready"}),
        (
            ["--device", "cpu", "--enable-cors", "--cors-origins", "*"],
            {"device": "cpu", "enable_cors": True},
        ),
    ],
)
def test_flags_are_those_of_the_documents(
    command: Callable[[list[str]], int],
    flags: list[str],
    expected: dict[str, object],
    served: list[Settings],
) -> None:
    assert command(flags) == 0
    (settings,) = served
    for name, value in expected.items():
        assert getattr(settings, name) == value


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--hf-checkpoint", "/a", "--checkpoint-path", "/b"],
            ["model_path: ", "exclude each other"],
        ),
        (["--checkpoint-path", "/b", "--hf_checkpoint=/a"], ["model_path: ", "exclude each other"]),
        (["--model-path", "/a", "--checkpoint-path", "/b"], ["model_path: ", "exclude each other"]),
        (
            ["--tokenizer", "/a", "--tokenizer-path", "/b"],
            ["tokenizer_path: ", "exclude each other"],
        ),
        (
            ["--load_in_4bit", "--load_in_8bit"],
            ["quantize: ", "--load-in-4bit and --load-in-8bit exclude each other"],
        ),
        (["--load_in_4bit"], ["quantize: ", "4 bits", "int8", "(from --load-in-4bit)"]),
        (["--quantize", "nf4"], ["quantize: ", "4 bits", "(from --quantize)"]),
        (["--hf-checkpoint", "/no/where", "--port", "x"], ["port: ", "(from --port)"]),
    ],
)
def test_what_cannot_be_is_refused(
    flags: list[str], words: list[str], served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    """B33, X15: flags that exclude each other or have no meaning are refused in one line."""
    for command in MODULES.values():
        assert command(flags) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        for word in words:
            assert word in printed
    assert served == []


def test_only_min_server_waits_until_the_model_is_warm(
    served: list[Settings], tmp_path: Path
) -> None:
    """X6: a file outranks the command's default."""
    for command, mode in (
        (commands.hrm_server, "live"),
        (commands.min_server, "ready"),
        (commands.model_server, "live"),
    ):
        assert command([]) == 0
        assert served[-1].healthz_mode == mode

    config = tmp_path / "config.yaml"
    config.write_text("serve: {hrm: {healthz_mode: live}}")
    assert commands.min_server(["--config", str(config)]) == 0
    assert served[-1].healthz_mode == "live"


def every_role() -> dict[str, Callable[[list[str]], int]]:
    return {
        **MODULES,
        "serve": lambda flags: aios.main([*SERVE, *flags]),
        "api": lambda flags: aios.main(["api", *flags]),
        "worker": lambda flags: aios.main(["worker", *flags]),
        "jobs": jobs.main,
    }


@pytest.mark.parametrize("role", every_role())
def test_a_variable_is_obeyed_or_refused_by_every_role(
    role: str,
    served: list[Settings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """C6, D17, D71, D72, D105: no variable is passed over in silence."""
    run = every_role()[role]
    variables = dict.fromkeys(NOT_OBEYED, "1")
    variables["ENABLE_LARGE_MODELS"] = "0"
    variables["LOAD_IN_4BIT"] = "true"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
        assert run(["--print-config"]) == 2
        printed = capsys.readouterr().err
        assert name in printed
        assert printed.count("\n") == 1
        monkeypatch.delenv(name)

    monkeypatch.setenv("LOAD_IN_8BIT", "true")
    assert run(["--print-config"]) == 0
    assert re.search(r"^quantize +int8 +# LOAD_IN_8BIT$", capsys.readouterr().out, re.MULTILINE)
    assert served == []


def test_switches_of_the_environment() -> None:
    assert resolve({}, {"LOAD_IN_8BIT": "TRUE"}, None).settings.quantize == "int8"
    assert resolve({}, {"LOAD_IN_8BIT": "1"}, None).origins["quantize"] == "LOAD_IN_8BIT"

    both_off = {"LOAD_IN_4BIT": "false", "LOAD_IN_8BIT": "off"}
    assert resolve({}, both_off, None).settings.quantize == "none"
    with_ours = {"LOAD_IN_8BIT": "true", "AIOS_QUANTIZE": "none"}
    assert resolve({}, with_ours, None).settings.quantize == "none"
    assert resolve({"quantize": "int8"}, {"LOAD_IN_4BIT": "true"}, None).settings.quantize == "int8"

    for env, words in (
        ({"LOAD_IN_4BIT": "true"}, r"4 bits.*\(from LOAD_IN_4BIT\)"),
        ({"LOAD_IN_4BIT": "1", "LOAD_IN_8BIT": "1"}, "exclude each other"),
        ({"LOAD_IN_8BIT": "perhaps"}, "expected true or false"),
    ):
        with pytest.raises(SettingsError, match=words):
            resolve({}, env, None)


def test_what_is_so_anyway_may_be_asked_for() -> None:
    harmless = {"TRUST_REMOTE_CODE": "never", "ALLOW_UNSANDBOXED": "0", "ENABLE_LARGE_MODELS": "1"}
    assert resolve({}, harmless, None).settings == Settings()


def test_a_real_package_of_that_name_is_found_before_ours(tmp_path: Path) -> None:
    real = tmp_path / "levanter" / "__init__.py"
    real.parent.mkdir()
    real.write_text("")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import levanter; print(levanter.__file__)"]
    done = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(real)


def test_a_model_of_the_hub_is_served_under_its_whole_name(
    served: list[Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """B97: `--hf-checkpoint org/model` is a model of the hub, here of its cache."""
    commit = "a" * 40
    folder = tmp_path / "models--org--net"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)

    for flags in (["--hf-checkpoint", "org/net"], ["--hf_checkpoint=org/net"]):
        assert commands.min_server([*flags, "--tokenizer", "/t"]) == 0
        with asked_here("http://127.0.0.1:9", tmp_path) as patch:
            patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
            (entry,) = with_hub_models(served[-1]).models
        assert entry.id == "org/net"
        assert entry.path == str(snapshot)

    assert commands.min_server(["--hf-checkpoint", str(tmp_path)]) == 0
    assert served[-1].model_path == str(tmp_path)
    flags = ["--no-hub", "--hf-checkpoint", "org/other"]
    assert run_role("worker", serve.dry_run_worker, flags) == 2
    assert "hf download org/other" in capsys.readouterr().err
