"""Tries images: what is in them, whether they serve, and whether they end when they are told to.

All run with a read-only root, without capabilities, as the user that the image names. Raises
AssertionError or EngineError for the first thing that is not as it should be.
"""

import http.client
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from scripts.cli.embedded_redis import EmbeddedRedis, free_port
from scripts.tools.images.build import image_name
from scripts.tools.images.engine import Container, Engine, Image, running
from shared.settings.settings import SAMPLE_MODEL

API_LIMIT_BYTES = 250_000_000
MAY_TAKE_TO_STOP_S = 10.0  # after which Docker kills
_DEADLINE_S = 120.0
_NO_REDIS = "redis://127.0.0.1:1/0"
_LOOK_INSIDE = """
import importlib.util, json, os, shutil
print(json.dumps({
    "uid": os.getuid(),
    "tools": [name for name in ("cc", "gcc", "g++", "clang", "make", "aios") if shutil.which(name)],
    "packages": [name for name in ("torch", "torchvision", "torchaudio") if importlib.util.find_spec(name)],
    "writable": [path for path in ("/", "/app", "/opt/aios", "/etc", "/var/tmp", "/tmp") if os.access(path, os.W_OK)],
}))
"""


@dataclass
class Report:
    """One line of the table. Times in seconds; None where nothing was run."""

    image: Image
    ready_s: float | None = None
    stop_s: float | None = None
    saw: str = ""


def try_image(engine: Engine, target: str, tag: str) -> Report:
    """What was seen of one image, looked into and, where there is a trial for it, run."""
    report = Report(engine.describe(image_name(target, tag)))
    look_inside(engine, report.image, with_torch=target != "api")
    if target == "api":
        assert report.image.size_bytes <= API_LIMIT_BYTES, f"{report.image}"
    if target in TRIALS:
        TRIALS[target](engine, report, tag)
    return report


def look_inside(engine: Engine, image: Image, with_torch: bool) -> None:
    """No root, no compiler, nothing to write to but /tmp, torch only where it belongs, a check of
    health."""
    seen = json.loads(engine.run(image.name, "-c", _LOOK_INSIDE, entrypoint="python3"))
    packages = ["torch"] if with_torch else []
    assert seen == {"uid": 10001, "tools": ["aios"], "packages": packages, "writable": ["/tmp"]}, (
        f"{image.name}: {seen}"
    )
    assert image.user == "10001:10001" and image.health[0] == "CMD", f"{image}"


def try_api(engine: Engine, report: Report, tag: str) -> None:
    """A front lives without Redis, and says that it is not ready."""
    port = free_port()
    started = time.monotonic()
    with running(
        engine, report.image.name, {"AIOS_PORT": str(port), "AIOS_REDIS_URL": _NO_REDIS}
    ) as front:
        await_status(front, port, "/healthz", 200)
        report.ready_s = time.monotonic() - started
        await_status(front, port, "/readyz", 503)
        front.execute(*report.image.health[1:])
        report.stop_s = stop(front)
    report.saw = "/healthz without Redis"


def try_worker(engine: Engine, report: Report, tag: str) -> None:
    """A front and a worker, each in its container, serve the sample model through a Redis
    outside."""
    port = free_port()
    with EmbeddedRedis() as redis:
        env = {
            "AIOS_REDIS_URL": redis.url,
            "AIOS_PORT": str(port),
            "AIOS_WORKER_PORT": str(free_port()),
        }
        started = time.monotonic()
        with (
            running(engine, image_name("api", tag), env) as front,
            running(engine, report.image.name, env) as worker,
        ):
            await_status(front, port, "/readyz", 200)
            report.ready_s = time.monotonic() - started
            worker.execute(*report.image.health[1:])
            check_answer(port, solves=True)
            report.stop_s = stop(worker)
            stop(front)
    report.saw = "sample model with an api container"


def try_hrm_serve(engine: Engine, report: Report, tag: str) -> None:
    """As it is, with the echo model, and `--dry-run`; no weights are mounted."""
    tried = engine.run(report.image.name, "serve", "hrm", "--dry-run")
    assert "decoded one token" in tried, tried
    _serve(engine, report, {"AIOS_MODEL_PATH": "echo"}, solves=False)
    _serve(engine, report, {}, solves=True)
    report.saw = "--dry-run, echo, sample model"


def try_simplefoundation(engine: Engine, report: Report, tag: str) -> None:
    """With a model that is mounted, as its users start it."""
    _serve(
        engine,
        report,
        {"MODEL_PATH": "/app/model"},
        solves=True,
        mounts={str(SAMPLE_MODEL): "/app/model"},
    )
    report.saw = "a model mounted at /app/model"


TRIALS: dict[str, Callable[[Engine, Report, str], None]] = {
    "api": try_api,
    "worker-cpu": try_worker,
    "hrm-serve": try_hrm_serve,
    "simplefoundation": try_simplefoundation,
}


def _serve(
    engine: Engine,
    report: Report,
    env: dict[str, str],
    solves: bool,
    mounts: dict[str, str] | None = None,
) -> None:
    port = free_port()
    started = time.monotonic()
    with running(engine, report.image.name, {"AIOS_PORT": str(port), **env}, mounts) as fleet:
        await_status(fleet, port, "/readyz", 200)
        report.ready_s = time.monotonic() - started
        fleet.execute(*report.image.health[1:])
        check_answer(port, solves)
        report.stop_s = stop(fleet)


def await_status(container: Container, port: int, path: str, status: int) -> None:
    """Ask until the answer has this status; AssertionError when the container ends or the deadline
    has passed."""
    deadline = time.monotonic() + _DEADLINE_S
    seen: int | str | None = None
    while seen != status:
        assert time.monotonic() < deadline, f"{path} never was {status}, at the end {seen}"
        assert container.is_running(), f"it ended before {path} was {status}"
        time.sleep(0.2)
        try:
            seen, _ = ask(port, "GET", path)
        except OSError as error:
            seen = str(error)


def check_answer(port: int, solves: bool) -> None:
    """One prompt is answered; by the sample model rightly."""
    asked = {"prompts": ["Solve for x: 2x + 3 = 9"], "temperature": 0}
    status, answer = ask(port, "POST", "/generate", asked)
    assert status == 200 and answer["completions"][0], answer
    assert not solves or answer["completions"][0].endswith("x = 3"), answer


def stop(container: Container) -> float:
    """Seconds from SIGTERM to the end, which is one with status 0 and in time."""
    status, took_s = container.stop()
    assert status == 0 and took_s < MAY_TAKE_TO_STOP_S, f"ended with {status} after {took_s:.1f} s"
    return took_s


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Status and JSON of an answer. Raises OSError where nobody answers."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        headers = {"Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
