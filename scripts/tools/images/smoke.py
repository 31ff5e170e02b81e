"""Try images: inspect each of them, serve with it, and end it with SIGTERM.

All containers run with a read-only root file system, without capabilities, as the user that the
image names. A trial raises AssertionError or EngineError at its first failure.
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
from shared.settings.settings import DEFAULT_MODEL

API_LIMIT_BYTES = 250_000_000
STOP_LIMIT_S = 10.0
"""The time after which `docker stop` kills a container."""
_DEADLINE_S = 120.0
_UNREACHABLE_REDIS = "redis://127.0.0.1:1/0"
_USER_ID = 10001
_INSPECT = """
import importlib.util, json, os, shutil

tools = ("cc", "gcc", "g++", "clang", "make", "aios")
packages = ("torch", "torchvision", "torchaudio")
folders = ("/", "/app", "/opt/aios", "/etc", "/var/tmp", "/tmp")
print(json.dumps({
    "uid": os.getuid(),
    "tools": [name for name in tools if shutil.which(name)],
    "packages": [name for name in packages if importlib.util.find_spec(name)],
    "writable": [path for path in folders if os.access(path, os.W_OK)],
}))
"""


@dataclass
class Report:
    """A row of the table: an image, its times in seconds, and the trial that it passed.

    Times are None and the trial is empty where an image was not served.
    """

    image: Image
    ready_s: float | None = None
    stop_s: float | None = None
    trial: str = ""


def try_image(engine: Engine, target: str, tag: str) -> Report:
    """Inspect one image, and serve with it if there is a trial for it.

    Raises AssertionError or EngineError at the first failure.
    """
    report = Report(engine.describe(image_name(target, tag)))
    check_contents(engine, report.image, with_torch=target != "api")
    if target == "api":
        assert report.image.size_bytes <= API_LIMIT_BYTES, f"{report.image}"
    if target in TRIALS:
        TRIALS[target](engine, report, tag)
    return report


def check_contents(engine: Engine, image: Image, with_torch: bool) -> None:
    """Check an image's user, tools, packages, writable folders and health check.

    The user is not root, there is no compiler, torch is there only where it belongs, and nothing
    but /tmp is writable.
    """
    contents = json.loads(engine.run(image.name, "-c", _INSPECT, entrypoint="python3"))
    expected = {
        "uid": _USER_ID,
        "tools": ["aios"],
        "packages": ["torch"] if with_torch else [],
        "writable": ["/tmp"],
    }
    assert contents == expected, f"{image.name}: {contents}"
    assert image.user == f"{_USER_ID}:{_USER_ID}", f"{image}"
    assert image.health[0] == "CMD", f"{image}"


def try_api(engine: Engine, report: Report, tag: str) -> None:
    """Check that a front is live without Redis, and that it is not ready."""
    port = free_port()
    env = {"AIOS_PORT": str(port), "AIOS_REDIS_URL": _UNREACHABLE_REDIS}
    started = time.monotonic()
    with running(engine, report.image.name, env) as front:
        await_status(front, port, "/healthz", status=200)
        report.ready_s = time.monotonic() - started
        await_status(front, port, "/readyz", status=503)
        front.execute(*report.image.health[1:])
        report.stop_s = stop(front)
    report.trial = "/healthz without Redis"


def try_worker(engine: Engine, report: Report, tag: str) -> None:
    """Serve the default model with a front and a worker, each in its container.

    Their Redis runs outside of both, on this machine.
    """
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
            await_status(front, port, "/readyz", status=200)
            report.ready_s = time.monotonic() - started
            worker.execute(*report.image.health[1:])
            check_generate(port, solves=True)
            report.stop_s = stop(worker)
            stop(front)
    report.trial = "default model with an api container"


def try_hrm_serve(engine: Engine, report: Report, tag: str) -> None:
    """Run `--dry-run`, then serve the echo model, then the models of the image."""
    output = engine.run(report.image.name, "serve", "hrm", "--dry-run")
    assert "decoded one token" in output, output
    _serve(engine, report, {"AIOS_MODEL_PATH": "echo"}, solves=False)
    _serve(engine, report, {}, solves=True)
    report.trial = "--dry-run, echo, shipped models"


def try_simplefoundation(engine: Engine, report: Report, tag: str) -> None:
    """Serve a model that is mounted, with the variable that the image's users set, and the app."""
    _serve(
        engine,
        report,
        {"MODEL_PATH": "/app/model"},
        solves=True,
        mounts={str(DEFAULT_MODEL): "/app/model"},
        app_port=free_port(),
    )
    report.trial = "a model mounted at /app/model, and the web app"


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
    *,
    solves: bool,
    mounts: dict[str, str] | None = None,
    app_port: int | None = None,
) -> None:
    """Serve with one container that holds a whole fleet; write its times to the report.

    With `app_port` the web app has to answer there, too.
    """
    port = free_port()
    env = {"AIOS_PORT": str(port), **env}
    if app_port is not None:
        env["AIOS_UI_PORT"] = str(app_port)
    started = time.monotonic()
    with running(engine, report.image.name, env, mounts) as fleet:
        await_status(fleet, port, "/readyz", status=200)
        report.ready_s = time.monotonic() - started
        if app_port is not None:
            await_status(fleet, app_port, "/_stcore/host-config", status=200)
        fleet.execute(*report.image.health[1:])
        check_generate(port, solves)
        report.stop_s = stop(fleet)


def await_status(container: Container, port: int, path: str, status: int) -> None:
    """Request a path of the container until the response has this status.

    Raises AssertionError when the container ends or the deadline has passed.
    """
    deadline = time.monotonic() + _DEADLINE_S
    last: int | str | None = None
    while last != status:
        assert time.monotonic() < deadline, f"{path} was never {status}; the last was {last}"
        assert container.is_running(), f"the container ended before {path} was {status}"
        time.sleep(0.2)
        try:
            last, _ = request(port, "GET", path)
        except OSError as error:
            last = str(error)


def check_generate(port: int, solves: bool) -> None:
    """Check that one prompt is completed, and that the completion is right if `solves`."""
    body = {"prompts": ["Solve for x: 2x + 3 = 9"], "temperature": 0}
    status, response = request(port, "POST", "/generate", body)
    assert status == 200, response
    completion = response["completions"][0]
    assert completion, response
    if solves:
        assert completion.endswith("x = 3\n\\boxed{3}"), response


def stop(container: Container) -> float:
    """End a container with SIGTERM. Return the seconds until its end.

    Raises AssertionError if its status is not 0 or if it takes STOP_LIMIT_S.
    """
    status, elapsed_s = container.stop()
    assert status == 0, f"ended with {status} after {elapsed_s:.1f} s"
    assert elapsed_s < STOP_LIMIT_S, f"ended with {status} after {elapsed_s:.1f} s"
    return elapsed_s


def request(port: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Return the status and the JSON of a response. Raises OSError where no server answers."""
    content = None
    if body is not None:
        content = json.dumps(body)
    headers = {"Content-Type": "application/json"}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except http.client.HTTPException as error:
            # A server that ends within a response is as good as none.
            raise ConnectionError(str(error)) from error
