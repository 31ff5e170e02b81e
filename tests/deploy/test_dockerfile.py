"""The Dockerfile's promises, read from its text: stages, copied files, users, pins and health
checks."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fixtures.redis_server import free_port

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
IMAGES = {"api", "worker-cpu", "worker-cuda", "hrm-serve", "simplefoundation"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions() -> list[tuple[str, str, str]]:
    """Return stage, instruction and arguments of each instruction, in the order of the file.

    Instructions before the first stage have an empty string for their stage."""
    code = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    stage = ""
    parsed = []
    for line in code.replace("\\\n", "").splitlines():
        if not line:
            continue
        name, arguments = line.split(maxsplit=1)
        if name == "FROM":
            stage = arguments.split()[-1]
        parsed.append((stage, name, arguments))
    return parsed


def parents() -> dict[str, str]:
    """Return the image or stage that each stage is made from, in the order of the file."""
    bases = {}
    for stage, name, arguments in instructions():
        if name == "FROM":
            bases[stage] = arguments.split()[0]
    return bases


def lineage(stage: str) -> list[str]:
    """Return the stage, the one that it is made from, and so on up to the base image."""
    line = [stage]
    while line[-1] in parents():
        line.append(parents()[line[-1]])
    return line


def inherited(stage: str, instruction: str) -> str:
    """Return the arguments of the instruction that holds for an image: the last one of the nearest
    stage that has it."""
    for ancestor in lineage(stage):
        last = None
        for where, name, arguments in instructions():
            if where == ancestor and name == instruction:
                last = arguments
        if last is not None:
            return last
    raise AssertionError(f"{stage} has no {instruction}")


def test_all_images_are_there_and_a_plain_build_makes_the_last() -> None:
    assert set(parents()) >= IMAGES
    assert list(parents())[-1] == "simplefoundation"


def test_the_one_among_the_designs_is_the_same_file() -> None:
    assert (ROOT / "docs" / "design" / "Dockerfile").resolve() == ROOT / "Dockerfile"


def rooms() -> set[str]:
    """Return the packages at the top of the tree."""
    patterns = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    names = {pattern.removesuffix("*").partition(".")[0] for pattern in patterns}
    return names - entry_points().keys()


def entry_points() -> dict[str, Path]:
    """Return the folders of the packages that older documents name, by name."""
    folders = {}
    for path in (ROOT / "scripts" / "entry_points").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            folders[path.name] = path
    return folders


def test_what_is_copied_exists_and_is_let_through() -> None:
    allowed = set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert allowed == rooms() | {
        "README.md",
        "assets",
        "config",
        "constraints.txt",
        "models",
        "pyproject.toml",
        "setup.py",
    }
    for name in allowed:
        assert (ROOT / name).exists(), name

    for _, name, arguments in instructions():
        if name != "COPY":
            continue
        first = arguments.split()[0]
        if first.startswith("--from="):
            assert first.removeprefix("--from=") in parents(), arguments
        else:
            sources = arguments.split()[:-1]
            for source in sources:
                assert source.partition("/")[0] in {".", *allowed}, arguments
                assert (ROOT / source).exists(), arguments


def test_every_room_is_installed_by_its_place() -> None:
    room_loop = re.search(r"for room in ([\w ]+);", TEXT)
    assert room_loop is not None
    assert set(room_loop[1].split()) == rooms()

    paths = set()
    for name, folder in entry_points().items():
        for inner in folder.iterdir():
            if inner.name != "__pycache__":
                paths.add(f"{name}/{inner.name}")
    name_loop = re.search(r"for name in ([\w/ ]+);", TEXT)
    assert name_loop is not None
    assert set(name_loop[1].split()) == paths


@pytest.mark.parametrize("image", sorted(IMAGES))
def test_an_image_runs_aios_as_a_user_and_ends_on_sigterm(image: str) -> None:
    assert inherited(image, "USER") == "10001:10001"
    assert json.loads(inherited(image, "ENTRYPOINT")) == ["aios"]
    assert json.loads(inherited(image, "CMD"))[0] in ("api", "worker", "serve")
    assert inherited(image, "STOPSIGNAL") == "SIGTERM"
    assert lineage(image)[-2:] == ["runtime", "${BASE}"]


def test_the_image_of_all_has_the_web_app_for_others_too() -> None:
    """C37, C38."""
    assert json.loads(inherited("simplefoundation", "CMD"))[2:] == ["--ui", "--ui-host", "0.0.0.0"]
    assert inherited("simplefoundation", "EXPOSE") == "8501"
    assert inherited("packages-simplefoundation", "RUN").endswith(',ui]"')


def test_torch_is_one_version_and_its_siblings_stay_out() -> None:
    pins = set(re.findall(r"\btorch==[\d.]+\d", TEXT))
    assert pins == {"torch==2.13.0"}
    assert "torch==2.13.0" in PROJECT["project"]["optional-dependencies"]["worker"]
    assert "torchvision" not in TEXT
    assert "torchaudio" not in TEXT
    for stage, name, command in instructions():
        if name == "RUN" and "pip install" in command:
            is_pinned = "-c constraints.txt" in command or "--no-deps torch==" in command
            assert is_pinned, (stage, command)


def test_the_base_names_a_version() -> None:
    stage, _, base = next(entry for entry in instructions() if entry[1] == "ARG")
    assert stage == ""
    assert re.fullmatch(r"BASE=python:3\.1[12]\.\d+-slim-\w+", base), base


@contextmanager
def answering(status: int) -> Iterator[int]:
    """Run a server that answers health checks with this status, and yield its port."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def is_healthy(image: str, variable: str, port: int) -> bool:
    """Return whether the image's health check, run here, passes."""
    check = json.loads(inherited(image, "HEALTHCHECK").partition("CMD ")[2])
    # A proxy that is named in the environment must not be asked.
    env = {**os.environ, variable: str(port), "http_proxy": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, *check[1:]], env=env, stderr=subprocess.DEVNULL, check=False
    )
    return done.returncode == 0


@pytest.mark.parametrize(
    ("image", "variable"),
    [("api", "AIOS_PORT"), ("hrm-serve", "PORT"), ("worker-cpu", "AIOS_WORKER_PORT")],
)
def test_the_check_of_health_asks_the_process(image: str, variable: str) -> None:
    with answering(200) as port:
        assert is_healthy(image, variable, port)
    with answering(503) as port:
        assert not is_healthy(image, variable, port)
    assert not is_healthy(image, variable, free_port())
