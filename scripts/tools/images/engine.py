"""Docker, or buildah with podman, as words of commands; and containers that are stopped and removed
by their id.

It knows how an engine is called. What is built and what is expected of it is none of its business.
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
# The engines' own defaults are wider; nothing of ours needs more than this.
LOCKED_DOWN = (
    "--network=host",
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)


class EngineError(RuntimeError):
    """A command of the engine failed, or there is no engine; the message holds what it said."""


@dataclass(frozen=True)
class Engine:
    """`builder` builds an image, `runner` begins every other command; `run_flags` go to each
    container.

    `mounts_folders` is whether a build can see folders of this machine.
    """

    builder: tuple[str, ...]
    runner: tuple[str, ...]
    run_flags: tuple[str, ...] = ()
    mounts_folders: bool = False

    def call(self, *words: str) -> str:
        """What the command printed on stdout, stripped. Raises EngineError if it fails."""
        done = subprocess.run([*self.runner, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineError(
                f"{' '.join([*self.runner, *words])}: status "
                f"{done.returncode}\n{done.stderr[-2000:]}"
            )
        return done.stdout.strip()

    def has_image(self, image: str) -> bool:
        """Whether there is an image of this name on this machine."""
        command = [*self.runner, "image", "inspect", image]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def describe(self, image: str) -> "Image":
        """What the engine knows of an image. Raises EngineError if there is none of this name."""
        said: dict[str, Any] = json.loads(self.call("image", "inspect", image))[0]
        config = said["Config"]
        health = (
            config.get("Healthcheck") or said.get("Healthcheck") or {"Test": ["NONE"]}
        )  # Docker's place, podman's
        return Image(image, said["Size"], config.get("User", ""), tuple(health["Test"]))

    def run(self, image: str, *arguments: str, entrypoint: str | None = None) -> str:
        """Run a container to its end; what it printed. Raises EngineError if it ends with another
        status than 0."""
        chosen = (f"--entrypoint={entrypoint}",) if entrypoint else ()
        return self.call("run", "--rm", *LOCKED_DOWN, *self.run_flags, *chosen, image, *arguments)


@dataclass(frozen=True)
class Image:
    """`size_bytes` without compression; `health` as in a Dockerfile's HEALTHCHECK: CMD or NONE, and
    the words."""

    name: str
    size_bytes: int
    user: str
    health: tuple[str, ...]


@dataclass(frozen=True)
class Container:
    """One that runs in the background."""

    engine: Engine
    id: str

    def execute(self, *command: str) -> str:
        """Run a command in it; what that printed. Raises EngineError if it fails."""
        return self.engine.call("exec", self.id, *command)

    def is_running(self) -> bool:
        return self.engine.call("inspect", "--format={{.State.Running}}", self.id) == "true"

    def stop(self) -> tuple[int, float]:
        """End it with SIGTERM, after STOP_GRACE_S with SIGKILL; its exit status, and how long that
        took (seconds)."""
        started = time.monotonic()
        self.engine.call("stop", f"--time={STOP_GRACE_S}", self.id)
        took_s = time.monotonic() - started
        return int(self.engine.call("inspect", "--format={{.State.ExitCode}}", self.id)), took_s

    def logs(self) -> str:
        """The end of what it wrote to stdout and stderr."""
        command = [*self.engine.runner, "logs", "--tail=40", self.id]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return done.stdout


@contextmanager
def running(
    engine: Engine, image: str, env: Mapping[str, str], mounts: Mapping[str, str] | None = None
) -> Iterator[Container]:
    """A container of the image with this environment, `mounts` (folder here: folder there)
    read-only; removed after."""
    variables = [f"--env={name}={value}" for name, value in env.items()]
    volumes = [f"--volume={here}:{there}:ro" for here, there in (mounts or {}).items()]
    container = Container(
        engine,
        engine.call(
            "run", "--detach", *LOCKED_DOWN, *engine.run_flags, *variables, *volumes, image
        ),
    )
    try:
        yield container
    except BaseException:
        print(container.logs())
        raise
    finally:
        engine.call("rm", "--force", container.id)


def find_engine() -> Engine:
    """Docker if its daemon answers, else buildah and podman. Raises EngineError if there is
    neither."""
    if shutil.which("docker") and _succeeds(["docker", "info"]):
        return Engine(("docker", "build"), ("docker",))
    if shutil.which("buildah") and shutil.which("podman"):
        # The flags make both work where they have no systemd and are in a container or a small
        # machine themselves.
        return Engine(
            (
                "buildah",
                "--storage-driver=overlay",
                "build",
                "--format=docker",
                "--layers",
                "--isolation=chroot",
            ),
            ("podman", "--storage-driver=overlay", "--runtime=runc", "--cgroup-manager=cgroupfs"),
            (
                "--no-healthcheck",
                "--read-only-tmpfs=false",
                "--ulimit=nofile=1024:1024",
                "--ulimit=nproc=1024:1024",
            ),
            mounts_folders=True,
        )
    raise EngineError("expected a Docker that answers `docker info`, or buildah and podman")


def _succeeds(command: Sequence[str]) -> bool:
    return not subprocess.run(command, capture_output=True, check=False).returncode
