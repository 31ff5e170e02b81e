"""The wheel, and the one made from the source archive, in an environment that has nothing else of
this project."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shared.shipped import REPO_ROOT
from tests.fixtures.e2e.serving import serving

_SOURCES = ("api", "config", "models", "scripts", "shared", "worker")
_FILES = (
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "SECURITY.md",
    "constraints.txt",
    "pyproject.toml",
    "setup.py",
)


def run(*command: str | Path, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wheel_of(source: Path, place: Path) -> Path:
    """The wheel that `pip wheel` makes of a source folder or archive, without an index."""
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        source,
        *offline,
        "--wheel-dir",
        place,
        cwd=place.parent,
    )
    (wheel,) = place.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building leaves nothing in this tree and finds nothing of an
    earlier build."""
    copy = tmp_path_factory.mktemp("source")
    for name in _SOURCES:
        shutil.copytree(REPO_ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _FILES:
        shutil.copy(REPO_ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of(source, tmp_path_factory.mktemp("wheel") / "out")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with the wheel, and this one's other packages. Its folder."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place.parent)
    python = place / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=place.parent)
    packages = next(place.glob("lib/python3*/site-packages"))
    # A path from a .pth file comes behind the environment's own, and .pth files in it are not read:
    # the editable installation of this tree stays out.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    yield place


def test_it_serves_the_sample_from_an_empty_folder(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert re.fullmatch(
        r"aios \d+\.\d+\.\d+\n", run(installed / "bin" / "aios", "--version", cwd=tmp_path)
    )
    command = (str(installed / "bin" / "aios"),)
    with serving("--threads", "1", command=command, cwd=tmp_path) as fleet:
        for child in (
            *fleet.children("api"),
            *fleet.children("worker"),
            *fleet.children("scripts.cli.jobs"),
        ):
            assert child.cmdline()[0].startswith(str(installed))
            assert str(REPO_ROOT) + os.sep not in str(child.environ().get("PYTHONPATH"))
        body = {"prompts": ["Solve for x: 2x + 3 = 9"], "temperature": 0}
        answer = httpx.post(f"{fleet.url}/generate", json=body, timeout=180)
        assert answer.json()["completions"][0].endswith("x = 3")
        assert fleet.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_every_module_and_its_data_are_in_it(wheel: Path, source: Path) -> None:
    # Installed under the names of the folders in it.
    old_names = source / "scripts" / "entry_points"
    expected = {str(file.relative_to(old_names)) for file in old_names.rglob("*.py")}
    for room in ("api", "worker", "shared", "scripts"):
        files = [
            *(source / room).rglob("*.py"),
            *(source / room).rglob("*.lua"),
            source / room / "py.typed",
        ]
        expected |= {
            str(file.relative_to(source)) for file in files if not file.is_relative_to(old_names)
        }
    models = [file for file in (source / "models").rglob("*") if file.is_file()]
    expected |= {f"shared/{file.relative_to(source)}" for file in models}
    assert set(contents(wheel)) == expected


@pytest.mark.parametrize("words", [("-m", "api"), ("-m", "scripts.cli.jobs")])
def test_each_role_starts_as_a_module_too(
    installed: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert "redis_url" in run(installed / "bin" / "python", *words, "--print-config", cwd=tmp_path)


def test_the_wheel_of_the_source_archive_is_the_same(
    wheel: Path, source: Path, tmp_path: Path
) -> None:
    code = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        assert "constraints.txt" in {Path(name).name for name in members.getnames()}
    again = wheel_of(archive, tmp_path / "again")
    assert contents(again) == contents(wheel)


def contents(wheel: Path) -> dict[str, int]:
    """The files of a wheel and their checksums."""
    with zipfile.ZipFile(wheel) as files:
        return {
            file.filename: file.CRC for file in files.infolist() if "dist-info" not in file.filename
        }


def test_what_is_not_installed_is_named(installed: Path, tmp_path: Path) -> None:
    """Without the extras there is a sentence, and no traceback."""
    code = (
        "import sys\nfrom scripts.cli import aios\naios.find_spec = lambda name: "
        "None\nsys.exit(aios.main(sys.argv[1:]))\n"
    )
    command = [str(installed / "bin" / "python"), "-c", code, "serve", "hrm"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 2
    assert "not installed: fastapi, uvicorn, python_multipart, torch" in done.stderr
    assert "pip install 'aios-hrm-fleet[all]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plugin_adds_a_task_what_does_it_and_how_it_is_asked_for(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of this project is changed: a package is installed beside it. The last test of this
    environment."""
    shutil.copytree(REPO_ROOT / "tests" / "fixtures" / "plugin", tmp_path / "plugin")
    plugin = wheel_of(tmp_path / "plugin", tmp_path / "out")
    pip = (sys.executable, "-m", "pip", "--python", installed / "bin" / "python")
    run(*pip, "install", "--no-index", "--no-deps", plugin, cwd=tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    model = {"id": "mirror", "path": str(tmp_path), "runner": "mirror", "options": {"ends": "!"}}
    monkeypatch.setenv("AIOS_MODELS", json.dumps([model]))
    with serving(command=(str(installed / "bin" / "aios"),), cwd=tmp_path) as fleet:
        body = {"texts": ["abc", "d e"]}
        assert httpx.post(f"{fleet.url}/mirror", json=body, timeout=180).json() == {
            "texts": ["cba!", "e d!"]
        }
        job = {"task": "mirror", **body, "by_word": True}
        later = httpx.post(
            f"{fleet.url}/v1/jobs", json=job, headers={"Prefer": "wait=180"}, timeout=180
        )
        assert later.json() == {"texts": ["abc!", "e d!"]}
        refused = httpx.post(f"{fleet.url}/generate", json={"prompts": ["a"]}, timeout=180)
        assert "serves 'mirror'" in refused.json()["error"]["message"]
        assert "/mirror" in httpx.get(f"{fleet.url}/openapi.json", timeout=180).json()["paths"]
        assert fleet.stop() == 0
