"""Builds images of the Dockerfile, with the package index and certificates of whoever builds, of
which nothing stays.

PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST and PIP_CERT (or SSL_CERT_FILE) reach pip as
secrets of the build. So does PIP_FIND_LINKS, a folder of wheels, where the builder can mount it
(buildah can, Docker cannot).
"""

import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.tools.images.engine import Engine, EngineError
from shared.shipped import REPO_ROOT

LAST_TARGET = "simplefoundation"
STAND_IN = "localhost/aios-base:bookworm"
_CA_INSIDE = "/run/secrets/ca"
_PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host")


@dataclass(frozen=True)
class BuildPlan:
    """What all images of one call have in common; None leaves a choice to the Dockerfile."""

    tag: str
    base: str | None
    torch_index: str | None
    revision: str


def image_name(target: str, tag: str) -> str:
    return f"{'' if target == LAST_TARGET else 'aios/'}{target}:{tag}"


def build(engine: Engine, target: str, plan: BuildPlan, env: Mapping[str, str]) -> None:
    """Build one image. Raises EngineError; the builder's own words are on stdout and stderr."""
    chosen = {
        "BASE": plan.base,
        "TORCH_INDEX_URL": plan.torch_index,
        "VERSION": plan.tag,
        "REVISION": plan.revision,
    }
    words = [f"--build-arg={name}={value}" for name, value in chosen.items() if value is not None]
    words.append(f"--tag={image_name(target, plan.tag)}")
    if target != LAST_TARGET:  # which is what is built when none is named
        words.append(f"--target={target}")
    if plan.base == STAND_IN and engine.mounts_folders:
        words.append("--pull=never")
    with tempfile.TemporaryDirectory(prefix="aios-images-") as folder:
        words += _passed_to_pip(engine, env, Path(folder))
        status = subprocess.run([*engine.builder, *words, str(REPO_ROOT)], check=False).returncode
    if status:
        raise EngineError(f"building {target} failed with status {status}")


def _passed_to_pip(engine: Engine, env: Mapping[str, str], folder: Path) -> list[str]:
    words = []
    options = {name: env.get(f"PIP_{name.upper().replace('-', '_')}") for name in _PIP_OPTIONS}
    if authorities := env.get("PIP_CERT") or env.get("SSL_CERT_FILE"):
        words.append(f"--secret=id=ca,src={authorities}")
        options["cert"] = _CA_INSIDE
    wheels = env.get("PIP_FIND_LINKS")
    if wheels and engine.mounts_folders and Path(wheels).is_dir():
        words.append(f"--volume={wheels}:{wheels}:ro")
        options["find-links"] = wheels
    config = folder / "pip.conf"
    config.write_text(pip_config(options.items()))
    return [*words, f"--secret=id=pip,src={config}"]


def pip_config(options: Iterable[tuple[str, str | None]]) -> str:
    """A pip.conf of the options that have a value."""
    return "\n".join(["[global]", *(f"{name} = {value}" for name, value in options if value), ""])


def make_stand_in(engine: Engine) -> None:
    """Import a Debian with Python as STAND_IN, for machines that reach Debian's mirror but no
    registry of images.

    Raises EngineError; needs mmdebstrap, and to be root.
    """
    if engine.has_image(STAND_IN):
        return
    packages = "--include=python3,python3-venv,ca-certificates"
    unread = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    with tempfile.TemporaryDirectory(prefix="aios-images-") as folder:
        archive = f"{folder}/root.tar"
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            packages,
            *unread,
            "bookworm",
            archive,
        ]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise EngineError(f"no stand-in for the base image: {error}") from error
        engine.call("import", archive, STAND_IN)
