"""Build images of the Dockerfile with the package index and the certificates of this machine.

PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST and PIP_CERT (or SSL_CERT_FILE) reach pip as
secrets of the build, so nothing of them stays in an image. PIP_FIND_LINKS, a folder of wheels, is
mounted where the builder can do so: buildah can, Docker cannot.
"""

import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.tools.images.engine import Engine, EngineError
from shared.shipped import REPO_ROOT

LAST_TARGET = "simplefoundation"
"""The Dockerfile's last stage, which a build without `--target` makes."""
STAND_IN = "localhost/aios-base:bookworm"
_CERTIFICATES_PATH = "/run/secrets/ca"
_PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host")


@dataclass(frozen=True)
class BuildPlan:
    """The arguments that all images of one call share; None leaves a choice to the Dockerfile."""

    tag: str
    base: str | None
    torch_index: str | None
    revision: str


def image_name(target: str, tag: str) -> str:
    """Return the name of a target's image, as the Compose files and the chart use it."""
    if target == LAST_TARGET:
        return f"{target}:{tag}"
    return f"aios/{target}:{tag}"


def build(engine: Engine, target: str, plan: BuildPlan, env: Mapping[str, str]) -> None:
    """Build one image. The builder prints to stdout and stderr.

    `env` is the environment whose settings of pip the build uses. Raises EngineError if the builder
    fails.
    """
    build_args = {
        "BASE": plan.base,
        "TORCH_INDEX_URL": plan.torch_index,
        "VERSION": plan.tag,
        "REVISION": plan.revision,
    }
    flags = []
    for name, value in build_args.items():
        if value is not None:
            flags.append(f"--build-arg={name}={value}")
    flags.append(f"--tag={image_name(target, plan.tag)}")
    if target != LAST_TARGET:
        flags.append(f"--target={target}")
    if plan.base == STAND_IN and engine.mounts_folders:
        # The stand-in is on this machine only: buildah must not look for it in a registry.
        flags.append("--pull=never")

    with tempfile.TemporaryDirectory(prefix="aios-images-") as folder:
        flags += _pip_flags(engine, env, Path(folder))
        command = [*engine.builder, *flags, str(REPO_ROOT)]
        status = subprocess.run(command, check=False).returncode
    if status:
        raise EngineError(f"building {target} failed with status {status}")


def _pip_flags(engine: Engine, env: Mapping[str, str], folder: Path) -> list[str]:
    """Return the builder's flags for pip's secrets; write the pip.conf among them to `folder`."""
    flags = []
    options: dict[str, str | None] = {}
    for name in _PIP_OPTIONS:
        variable = f"PIP_{name.upper().replace('-', '_')}"
        options[name] = env.get(variable)

    certificates = env.get("PIP_CERT") or env.get("SSL_CERT_FILE")
    if certificates:
        flags.append(f"--secret=id=ca,src={certificates}")
        options["cert"] = _CERTIFICATES_PATH

    wheels = env.get("PIP_FIND_LINKS")
    if wheels and engine.mounts_folders and Path(wheels).is_dir():
        flags.append(f"--volume={wheels}:{wheels}:ro")
        options["find-links"] = wheels

    config = folder / "pip.conf"
    config.write_text(pip_config(options.items()))
    flags.append(f"--secret=id=pip,src={config}")
    return flags


def pip_config(options: Iterable[tuple[str, str | None]]) -> str:
    """Return a pip.conf of those options that have a value."""
    lines = ["[global]"]
    for name, value in options:
        if value:
            lines.append(f"{name} = {value}")
    return "\n".join(lines) + "\n"


def make_stand_in(engine: Engine) -> None:
    """Import a Debian with Python as the image STAND_IN, unless the engine has it already.

    It serves machines that reach Debian's mirror but no registry of images. It needs mmdebstrap
    and root. Raises EngineError if either step fails.
    """
    if engine.has_image(STAND_IN):
        return
    with tempfile.TemporaryDirectory(prefix="aios-images-") as folder:
        archive = f"{folder}/root.tar"
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--include=python3,python3-venv,ca-certificates",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "bookworm",
            archive,
        ]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise EngineError(f"no stand-in for the base image: {error}") from error
        engine.call("import", archive, STAND_IN)
