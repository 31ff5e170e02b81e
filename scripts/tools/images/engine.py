"""Run container engines (Docker, or buildah with podman) and containers by their command lines.

This module knows how an engine is called. What is built and what is expected of an image stand in
`build.py` and `smoke.py`.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STOP_GRACE_S = 20
# The engines' own defaults are wider; none of our images needs more than this.
LOCKED_DOWN = (
    "--network=host",
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)


class EngineError(RuntimeError):
    """A command of the engine failed, or there is no engine.

    The message holds the command, its status and the end of its stderr.
    """


@dataclass(frozen=True)
class Engine:
    """The command lines of a container engine.

    `builder` builds an image and `runner` begins every other command. `run_flags` go to each
    container. `mounts_folders` is true if a build can mount folders of this machine.
    """

    builder: tuple[str, ...]
    runner: tuple[str, ...]
    run_flags: tuple[str, ...] = ()
    mounts_folders: bool = False

    def call(self, *arguments: str) -> str:
        """Run a command of the engine. Return its stdout, stripped.

        Raises EngineError if the command fails.
        """
        command = [*self.runner, *arguments]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            raise EngineError(
                f"{' '.join(command)}: status {process.returncode}\n{process.stderr[-2000:]}"
            )
        return process.stdout.strip()

    def has_image(self, image: str) -> bool:
        """Return whether there is an image of this name on this machine."""
        return _succeeds([*self.runner, "image", "inspect", image])

    def describe(self, image: str) -> "Image":
        """Return what the engine knows of an image.

        Raises EngineError if there is no image of this name.
        """
        inspected: dict[str, Any] = json.loads(self.call("image", "inspect", image))[0]
        config = inspected["Config"]
        # Docker puts the health check into Config, podman beside it.
        healthcheck = config.get("Healthcheck") or inspected.get("Healthcheck")
        test = ["NONE"]
        if healthcheck:
            test = healthcheck["Test"]
        return Image(
            name=image,
            size_bytes=inspected["Size"],
            user=config.get("User", ""),
            health=tuple(test),
        )

    def run(self, image: str, *arguments: str, entrypoint: str | None = None) -> str:
        """Run a container to its end. Return its stdout, stripped.

        Raises EngineError if the container ends with another status than 0.
        """
        flags = [*LOCKED_DOWN, *self.run_flags]
        if entrypoint:
            flags.append(f"--entrypoint={entrypoint}")
        return self.call("run", "--rm", *flags, image, *arguments)


@dataclass(frozen=True)
class Image:
    """An image, as an engine describes it.

    `size_bytes` is the size without compression. `health` is the check of a Dockerfile's
    HEALTHCHECK: `CMD` and the words of its command, or `NONE`.
    """

    name: str
    size_bytes: int
    user: str
    health: tuple[str, ...]


@dataclass(frozen=True)
class Container:
    """A container that runs in the background."""

    engine: Engine
    id: str

    def execute(self, *command: str) -> str:
        """Run a command in the container. Return its stdout, stripped.

        Raises EngineError if the command fails.
        """
        return self.engine.call("exec", self.id, *command)

    def is_running(self) -> bool:
        return self.engine.call("inspect", "--format={{.State.Running}}", self.id) == "true"

    def stop(self) -> tuple[int, float]:
        """End the container with SIGTERM, after STOP_GRACE_S with SIGKILL.

        Return its exit status, and the seconds that the stop took.
        """
        started = time.monotonic()
        self.engine.call("stop", f"--time={STOP_GRACE_S}", self.id)
        elapsed_s = time.monotonic() - started
        status = int(self.engine.call("inspect", "--format={{.State.ExitCode}}", self.id))
        return status, elapsed_s

    def logs(self) -> str:
        """Return the last 40 lines that the container wrote to stdout and stderr."""
        process = subprocess.run(
            [*self.engine.runner, "logs", "--tail=40", self.id],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return process.stdout


@contextmanager
def running(
    engine: Engine, image: str, env: Mapping[str, str], mounts: Mapping[str, str] | None = None
) -> Iterator[Container]:
    """Run a container of the image with this environment; remove it when the context ends.

    `mounts` are folders of this machine, each with its path in the container, where it is
    read-only. If the context ends by an error, the container's logs are printed.
    """
    flags = ["--detach", *LOCKED_DOWN, *engine.run_flags]
    for name, value in env.items():
        flags.append(f"--env={name}={value}")
    for source, target in (mounts or {}).items():
        flags.append(f"--volume={source}:{target}:ro")

    container = Container(engine, id=engine.call("run", *flags, image))
    try:
        yield container
    except BaseException:
        print(container.logs())
        raise
    finally:
        engine.call("rm", "--force", container.id)


def find_engine() -> Engine:
    """Return Docker if its daemon answers, else buildah and podman.

    Raises EngineError if there is neither.
    """
    if shutil.which("docker") and _succeeds(["docker", "info"]):
        return Engine(builder=("docker", "build"), runner=("docker",))
    if shutil.which("buildah") and shutil.which("podman"):
        return _buildah_and_podman()
    raise EngineError("expected a Docker that answers `docker info`, or buildah and podman")


def _buildah_and_podman() -> Engine:
    """Return buildah and podman, with flags for a machine that is itself a container.

    With these flags both work without systemd and within the limits of a small machine.
    """
    builder = (
        "buildah",
        "--storage-driver=overlay",
        "build",
        "--format=docker",
        "--layers",
        "--isolation=chroot",
    )
    runner = (
        "podman",
        "--storage-driver=overlay",
        "--runtime=runc",
        "--cgroup-manager=cgroupfs",
    )
    run_flags = (
        "--no-healthcheck",
        "--read-only-tmpfs=false",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1024:1024",
    )
    return Engine(builder, runner, run_flags, mounts_folders=True)


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
