"""Models that are named as `org/name[@revision]` or `hf://...`, fetched from a stand-in for the hub."""

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from scripts.cli.aios import main
from shared.settings.hub import is_cached, with_hub_models
from shared.settings.hub_names import HubName, commit_of, hub_name
from shared.settings.paths import check_model_paths
from shared.settings.settings import ModelEntry, Settings, SettingsError, model_entries, resolve
from tests.fixtures.hub import TOKEN, StandInHub, asked_here, stand_in_hub
from tests.fixtures.polling import wait_until

# Equal files would be fetched once, as the cache keeps files by their contents.
FILES = {
    "config.json": "{}",
    "tokenizer.json": "[]",
    "chat_template.jinja": "a template",
    "model.safetensors": "weights",
    "pytorch_model.bin": "the same weights",
    "modeling_net.py": "raise SystemExit",
    "sub/inner.py": "raise SystemExit",
    "banner.jpg": "a picture",
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    with stand_in_hub() as running, asked_here(running.url, tmp_path / "cache"):
        yield running


def directory(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def path_of(name: str, **settings: object) -> Path:
    """Return the directory of the only model, which is named as one of the hub."""
    given = Settings.model_validate({"model_path": name, **settings})
    [entry] = model_entries(with_hub_models(given))
    return Path(entry.path)


def refusal(name: str) -> str:
    """Return the sentence that refuses a model. It is one line."""
    with pytest.raises(SettingsError) as error:
        path_of(name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("org/name", HubName("org/name")),
        ("org/na.me-1@v1.0", HubName("org/na.me-1", "v1.0")),
        ("hf://org/name", HubName("org/name")),
        ("hf://org/name@refs/pr/3", HubName("org/name", "refs/pr/3")),
        ("hf://org/name@main/deep/er", HubName("org/name", "main", "deep/er")),
        ("hf://org/name/../..", None),
        ("hf://name", None),
        ("org/name/deeper", None),
        ("org/model.safetensors", None),
        ("/org/name", None),
        ("./org/name", None),
        ("~/name", None),
        ("echo", None),
        ("models/hrm-text-math", None),
        ("https://host/v1", None),
    ],
)
def test_names_are_told_from_paths(path: str, expected: HubName | None) -> None:
    assert hub_name(path) == expected


def test_the_id_is_the_name_without_org_and_revision() -> None:
    for path in ("org/net", "org/net@v1", "hf://org/net@v1/sub"):
        [entry] = model_entries(Settings(model_path=path))
        assert entry.id == "net"
    resolved = resolve({"models": ["mine=hf://org/net@v1"]}, {}, None).settings
    assert model_entries(resolved)[0].path == "hf://org/net@v1"


def test_safetensors_come_alone_and_code_never(
    hub: StandInHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commit = hub.add("org/net", directory(tmp_path / "net", FILES))
    with caplog.at_level(logging.INFO, "aios.hub"):
        found = path_of("org/net")

    wanted = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
    assert hub.fetched() == wanted
    assert {file.name for file in found.iterdir()} == wanted
    assert commit_of(str(found)) == f"org/net@{commit}"
    [record] = [record for record in caplog.records if record.name == "aios.hub"]
    said = record.__dict__["fields"]
    assert said["commit"] == f"org/net@{commit}"
    assert said["mib"] >= 0
    assert is_cached(HubName("org/net"))
    assert not is_cached(HubName("org/other"))


@pytest.mark.parametrize(
    "names",
    [
        {"config.json", "pytorch_model.bin"},
        {"all_config.yaml", "checkpoint"},
        {"all_config.yaml", "step_1200"},
        {"manifest.yaml", "model.pt"},
        {"fsdp2_epoch_1/.metadata", "fsdp2_epoch_1/__0_0.distcp", "train_metadata.yaml"},
        {"net.onnx", "net.yaml"},
        {"starter_brain.json", "q_head.pt", "model/model.safetensors"},
    ],
)
def test_other_weights_come_where_there_are_no_safetensors(
    names: set[str], hub: StandInHub, tmp_path: Path
) -> None:
    needless = {"step_1200_all_preds.0", "train.py", "training_args.bin"}
    hub.add("org/net", directory(tmp_path / "net", {name: name for name in names | needless}))
    path_of("org/net")
    assert hub.fetched() == names


def test_a_folder_of_a_repository_comes_alone(hub: StandInHub, tmp_path: Path) -> None:
    files = {"v1/step_5": "one", "v1/all_config.yaml": "arch", "v2/step_9": "two", "README.md": ""}
    hub.add("org/net", directory(tmp_path / "net", files))
    found = path_of("hf://org/net@main/v1")
    assert (found / "step_5").read_text() == "one"
    assert hub.fetched() == {"v1/step_5", "v1/all_config.yaml"}
    assert "org/net has no weights" in refusal("hf://org/net/v3")


def test_a_revision_is_pinned(hub: StandInHub, tmp_path: Path) -> None:
    """`main` is what it was at the start, and a commit is not asked for twice."""
    old = hub.add("org/net", directory(tmp_path / "old", FILES | {"model.safetensors": "old"}))
    hub.repositories["org/net"].refs["v1"] = old
    new = hub.add("org/net", directory(tmp_path / "new", FILES | {"model.safetensors": "new"}))

    for revision, commit, weights in (("v1", old, "old"), ("main", new, "new"), (old, old, "old")):
        found = path_of(f"org/net@{revision}")
        assert commit_of(str(found)) == f"org/net@{commit}"
        assert (found / "model.safetensors").read_text() == weights

    hub.requests.clear()
    path_of(f"hf://org/net@{old}")
    assert hub.requests == []


def test_resolved_settings_ask_no_hub_again(hub: StandInHub, tmp_path: Path) -> None:
    """Children get directories, with the options of the models as they were given."""
    hub.add("org/net", directory(tmp_path / "net", FILES))
    entries = (ModelEntry(id="a", path="org/net", dtype="float32"), ModelEntry(id="b", path="echo"))
    settings = with_hub_models(Settings(models=entries, quantize="int8"))
    hub.requests.clear()

    child = resolve({}, settings.to_env(), None).settings
    assert with_hub_models(child) is child
    check_model_paths(child)
    assert hub.requests == []
    first, second = child.models
    assert (first.id, first.dtype, first.quantize) == ("a", "float32", None)
    assert second == entries[1]


def test_the_cache_serves_without_a_hub(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with stand_in_hub() as hub:
        commit = hub.add("org/net", directory(tmp_path / "net", FILES))
        with asked_here(hub.url, cache):
            found = path_of("org/net")
    with asked_here(hub.url, cache) as patch:
        assert path_of("org/net") == found  # nobody listens there any more
        assert path_of(f"org/net@{commit}") == found
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert path_of("org/net") == found

        said = refusal("org/other@v2")
        assert "HF_HUB_OFFLINE forbids" in said
        assert "`hf download org/other --revision v2`" in said
        (found / "model.safetensors").unlink()
        assert f"only in part in the cache {cache}" in refusal("org/net")
    with asked_here(hub.url, cache):
        assert f"{hub.url} cannot be reached" in refusal("org/other")


def test_gated_and_private_repositories(hub: StandInHub, tmp_path: Path) -> None:
    net = directory(tmp_path / "net", FILES)
    hub.add("org/gated", net, is_gated=True)
    hub.add("org/private", net, is_private=True)

    said = refusal("org/gated")
    assert "model 'gated': org/gated is gated" in said
    assert f"accept its terms at {hub.url}/org/gated" in said
    assert "HF_TOKEN" in said
    said = refusal("org/private")
    assert f"{hub.url} has no model org/private that may be read" in said
    assert "HF_TOKEN" in said
    assert f"{hub.url} has no model org/typo" in refusal("org/typo")
    assert "org/gated has no revision 'v9'" in refusal("org/gated@v9")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        assert (path_of("org/gated") / "model.safetensors").is_file()
        assert (path_of("org/private") / "model.safetensors").is_file()


def test_other_faults_are_one_line(hub: StandInHub, tmp_path: Path) -> None:
    hub.add("org/net", directory(tmp_path / "net", FILES))
    hub.add("org/gguf", directory(tmp_path / "gguf", {"net.gguf": "", "config.json": ""}))
    said = refusal("org/gguf")
    assert "no weights that are served here (its files: .gguf, .json)" in said
    assert hub.fetched() == set()
    assert "is no name of a model" in refusal("org/na--me")

    # A disk cannot be filled here, so the library's call reports what it would.
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", full)
        assert f"no space is left for it in the cache {tmp_path / 'cache'}" in refusal("org/net")

    with asked_here(f"{hub.url}/elsewhere", tmp_path / "empty"):
        assert "answers 404" in refusal("org/net")
    (tmp_path / "file").write_text("")
    with asked_here(hub.url, tmp_path / "file"):
        assert "cannot be written to the cache" in refusal("org/net")


def test_no_hub_refuses_names(hub: StandInHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "hrm", "--no-hub", "--model", "mine=org/net@v1"]) == 2
    said = capsys.readouterr().err
    assert "model 'mine': cannot read 'org/net@v1': it does not exist (from --model)" in said
    assert "--no-hub forbids to fetch it" in said
    assert "`hf download org/net --revision v1 --local-dir DIRECTORY`" in said
    assert hub.requests == []


def test_a_model_for_gpus_is_left_to_a_worker_with_one(hub: StandInHub, tmp_path: Path) -> None:
    hub.add("org/net", directory(tmp_path / "net", FILES))
    settings = Settings(models=(ModelEntry(id="a", path="org/net", gpu_required=True),))
    assert with_hub_models(settings) is settings
    check_model_paths(settings)
    assert with_hub_models(settings, has_gpu=True).models[0].path != "org/net"


def test_ctrl_c_does_not_wait_for_downloads(hub: StandInHub, tmp_path: Path) -> None:
    hub.add("org/net", directory(tmp_path / "net", FILES))
    hub.gives.clear()
    code = """
from shared.settings.hub import with_hub_models
from shared.settings.settings import Settings
with_hub_models(Settings(model_path="org/net"), may_end=True)
"""
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    process = subprocess.Popen([sys.executable, "-c", code], env=env)
    try:
        wait_until(lambda: hub.fetched() != set(), "a download has begun")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == -signal.SIGINT
        assert not hub.gives.is_set()
    finally:
        process.kill()
        process.wait()


def test_a_process_obeys_the_librarys_variables(hub: StandInHub, tmp_path: Path) -> None:
    """A bar is drawn on a terminal alone, torch is not loaded, and HF_HUB_OFFLINE asks nobody."""
    hub.add("org/net", directory(tmp_path / "net", FILES))
    code = """
import sys
from shared.settings.hub import with_hub_models
from shared.settings.settings import Settings
if sys.argv[1] == "terminal":
    sys.stderr.isatty = lambda: True
print(*with_hub_models(Settings(model_path="org/net")).models)
assert "torch" not in sys.modules
"""

    def run(stderr: str, home: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / home)} | variables
        command = [sys.executable, "-c", code, stderr]
        return subprocess.run(
            command, env=env, capture_output=True, text=True, check=True, timeout=120
        )

    quiet = run("pipe", "first")
    assert quiet.stderr == ""
    terminal = run("terminal", "second").stderr
    assert "Reconstruction complete" in terminal
    assert "Fetching 4 files" not in terminal
    assert "Download complete" not in terminal

    hub.requests.clear()
    assert run("pipe", "first", HF_HUB_OFFLINE="1").stdout == quiet.stdout
    assert hub.requests == []
