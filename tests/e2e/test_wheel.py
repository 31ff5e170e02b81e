"""The wheel works in an environment without this project's sources.

The wheel of the source archive is the same.
"""

import json
import os
import platform
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

_SOURCES = ("api", "assets", "config", "models", "scripts", "shared", "worker")
_FILES = (
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "SECURITY.md",
    "constraints.txt",
    "pyproject.toml",
    "setup.py",
)

_BUILD_S = 900
"""The longest build: half a minute of compiling alone, many times that on a busy machine."""

# Written out, because what knows them imports torch.
_INSTRUCTIONS = ("avx512_bf16", "avx512_vnni", "avx512", "avx_vnni", "avx2")
KERNELS = tuple(f"worker/native/kernels_{name}.so" for name in _INSTRUCTIONS)


def can_compile() -> bool:
    """Return whether this machine can compile the kernels."""
    is_x86_linux = sys.platform == "linux" and platform.machine() == "x86_64"
    return is_x86_linux and shutil.which("cc") is not None


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    env = {**os.environ, **variables}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=_BUILD_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wheel_of(source: Path, folder: Path, **variables: str) -> Path:
    """Build a wheel of a source folder or archive with `pip wheel`, without an index."""
    pip_wheel = (sys.executable, "-m", "pip", "wheel")
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run(*pip_wheel, *offline, "--wheel-dir", folder, source, cwd=folder.parent, **variables)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(python: Path, wheel: Path) -> None:
    """Install a wheel into the environment of `python`, without an index."""
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=wheel.parent)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the sources, so that a build leaves nothing in this tree.

    It also uses nothing of an earlier build.
    """
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
    """Create an environment with the wheel and this one's other packages, and return its folder."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    install(folder / "bin" / "python", wheel)

    packages = next(folder.glob("lib/python3*/site-packages"))
    # A path from a .pth file comes behind the environment's own, and .pth files in it are not read:
    # the editable installation of this tree stays out.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    yield folder


def test_it_serves_the_models_that_ship_from_an_empty_folder(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = installed / "bin" / "aios"
    version = run(command, "--version", cwd=tmp_path)
    assert re.fullmatch(r"aios \d+\.\d+\.\d+\n", version)

    with serving("--threads", "1", command=(str(command),), cwd=tmp_path) as fleet:
        for role in ("api", "worker", "scripts.cli.jobs"):
            for child in fleet.children(role):
                assert child.cmdline()[0].startswith(str(installed))
                assert str(REPO_ROOT) + os.sep not in str(child.environ().get("PYTHONPATH"))

        body = {"prompts": ["Solve for x: 2x + 3 = 9"], "temperature": 0}
        answer = httpx.post(f"{fleet.url}/generate", json=body, timeout=180)
        assert answer.json()["completions"][0].endswith("\\boxed{3}")
        reports = installed.parent / "reports.json"
        few = ("--tasks", "mathematics", "--limit", "1", "--reports", reports)
        python = installed / "bin" / "python"
        table = run(python, "-m", "app.eval.run", "--url", fleet.url, *few, cwd=tmp_path)
        assert "| mathematics | hrm-text-math |" in table
        assert fleet.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_every_module_and_its_data_are_in_it(wheel: Path, source: Path) -> None:
    """The wheel holds the product, and of `scripts` the command, the app and the old entry points."""
    expected = {"scripts/__init__.py"}
    for name in ("default.yaml", "models.yaml"):
        expected.add(f"shared/config/{name}")
    for package in ("api", "worker", "shared", "scripts/cli", "scripts/ui"):
        for pattern in ("*.py", "*.lua"):
            for file in (source / package).rglob(pattern):
                expected.add(str(file.relative_to(source)))
    for package in ("api", "worker", "shared", "scripts"):
        expected.add(f"{package}/py.typed")

    # The packages in this folder are installed at the top, under their own names.
    old_names = source / "scripts" / "entry_points"
    for file in old_names.rglob("*"):
        if file.suffix in (".py", ".toml"):
            expected.add(str(file.relative_to(old_names)))
    for pages in (source / "scripts" / "ui", source / "api"):
        for pattern in ("*.toml", "*.svg", "*.css", "*.js"):
            for file in pages.rglob(pattern):
                expected.add(str(file.relative_to(source)))

    for folder in ("assets", "models"):
        for file in (source / folder).rglob("*"):
            if file.is_file():
                expected.add(f"shared/{file.relative_to(source)}")
    assert set(contents(wheel)) - set(KERNELS) == expected

    if can_compile():
        assert set(KERNELS) <= set(contents(wheel))
        assert re.search(r"-py3-none-linux_x86_64\.whl$", wheel.name)


def test_without_a_compiler_it_is_for_every_platform(source: Path, tmp_path: Path) -> None:
    """A build that is told of no compiler asks for one, and is whole if it does not get it."""
    code = "; ".join(
        [
            "import backend, sys",
            "folder = sys.argv[1]",  # the backend changes the arguments
            "print(*backend.get_requires_for_build_wheel())",
            "backend.build_wheel(folder)",
        ]
    )
    env = {**os.environ, "PATH": "", "PYTHONPATH": str(REPO_ROOT / "scripts" / "build")}
    shutil.rmtree(source / "build", ignore_errors=True)
    done = subprocess.run(
        (sys.executable, "-c", code, tmp_path),
        cwd=source,
        env=env,
        capture_output=True,
        text=True,
        timeout=_BUILD_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not set(KERNELS) & set(contents(wheel))
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert "ziglang" in done.stdout
        assert "no C compiler" in done.stdout


@pytest.mark.parametrize("words", [("-m", "api"), ("-m", "scripts.cli.jobs")])
def test_each_role_starts_as_a_module_too(
    installed: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert "redis_url" in run(installed / "bin" / "python", *words, "--print-config", cwd=tmp_path)


def test_the_wheel_of_the_source_archive_is_the_same(
    wheel: Path, source: Path, tmp_path: Path
) -> None:
    """The kernels are not compiled a second time: the archive has their source."""
    code = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.partition("/")[2] for name in members.getnames()}
    assert {"constraints.txt", "setup.py", "worker/native/kernels.c"} <= names
    again = wheel_of(archive, tmp_path / "again", PATH="")
    expected = contents(wheel)
    for name in KERNELS:
        expected.pop(name, None)
    assert contents(again) == expected


def contents(wheel: Path) -> dict[str, int]:
    """Return the files of a wheel and their checksums."""
    checksums = {}
    with zipfile.ZipFile(wheel) as files:
        for file in files.infolist():
            if "dist-info" not in file.filename:
                checksums[file.filename] = file.CRC
    return checksums


def test_what_is_not_installed_is_named(installed: Path, tmp_path: Path) -> None:
    """Without the extras the command prints a sentence and no traceback."""
    code = "\n".join(
        [
            "import sys",
            "from scripts.cli import aios, extras",
            "extras.find_spec = lambda name: None",
            "sys.exit(aios.main(sys.argv[1:]))",
        ]
    )
    command = [str(installed / "bin" / "python"), "-c", code, "serve", "hrm"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=_BUILD_S, check=False
    )
    assert done.returncode == 2
    assert "not installed: fastapi, uvicorn, python_multipart, torch" in done.stderr
    assert "pip install 'aios-hrm-fleet[all]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plugin_adds_a_task_what_does_it_and_how_it_is_asked_for(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package beside this project adds a task, a runner and a route.

    Nothing of this project changes. This is the last test of the environment.
    """
    shutil.copytree(REPO_ROOT / "tests" / "fixtures" / "plugin", tmp_path / "plugin")
    plugin = wheel_of(tmp_path / "plugin", tmp_path / "out")
    install(installed / "bin" / "python", plugin)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    model = {"id": "mirror", "path": str(tmp_path), "runner": "mirror", "options": {"ends": "!"}}
    monkeypatch.setenv("AIOS_MODELS", json.dumps([model]))
    with serving(command=(str(installed / "bin" / "aios"),), cwd=tmp_path) as fleet:
        body = {"texts": ["abc", "d e"]}
        answer = httpx.post(f"{fleet.url}/mirror", json=body, timeout=180)
        assert answer.json() == {"texts": ["cba!", "e d!"]}

        job = {"task": "mirror", **body, "by_word": True}
        headers = {"Prefer": "wait=180"}
        waited = httpx.post(f"{fleet.url}/v1/jobs", json=job, headers=headers, timeout=180)
        assert waited.json() == {"texts": ["abc!", "e d!"]}

        refused = httpx.post(f"{fleet.url}/generate", json={"prompts": ["a"]}, timeout=180)
        assert "serves 'mirror'" in refused.json()["error"]["message"]
        assert "/mirror" in httpx.get(f"{fleet.url}/openapi.json", timeout=180).json()["paths"]
        assert fleet.stop() == 0
