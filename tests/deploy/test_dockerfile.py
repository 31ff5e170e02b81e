"""What the Dockerfile promises, read from its text: stages, what is copied, users, pins, and its
checks of health."""

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
    """Stage (the empty string before the first), instruction and its words, one by one."""
    code = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    stage = ""
    found = []
    for line in filter(None, code.replace("\\\n", "").splitlines()):
        name, words = line.split(maxsplit=1)
        if name == "FROM":
            stage = words.split()[-1]
        found.append((stage, name, words))
    return found


def parents() -> dict[str, str]:
    """What each stage is made from, in the order of the file."""
    return {stage: words.split()[0] for stage, name, words in instructions() if name == "FROM"}


def lineage(stage: str) -> list[str]:
    """The stage, what it is made from, and so on."""
    parent = parents().get(stage)
    return [stage] if parent is None else [stage, *lineage(parent)]


def inherited(stage: str, instruction: str) -> str:
    """The words of the instruction that holds for an image: the last one of the nearest stage that
    has it."""
    for ancestor in lineage(stage):
        found = [
            words
            for place, name, words in instructions()
            if (place, name) == (ancestor, instruction)
        ]
        if found:
            return found[-1]
    raise AssertionError(f"{stage} has no {instruction}")


def test_all_images_are_there_and_a_plain_build_makes_the_last() -> None:
    assert set(parents()) >= IMAGES
    assert list(parents())[-1] == "simplefoundation"


def test_the_one_among_the_designs_is_the_same_file() -> None:
    assert (ROOT / "docs" / "design" / "Dockerfile").resolve() == ROOT / "Dockerfile"


def rooms() -> set[str]:
    """The packages at the top of the tree."""
    patterns = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    return {pattern.removesuffix("*") for pattern in patterns} - entry_points().keys()


def entry_points() -> dict[str, Path]:
    """The packages that older documents name, and where they lie."""
    return {
        place.name: place
        for place in (ROOT / "scripts" / "entry_points").iterdir()
        if place.is_dir()
    }


def test_what_is_copied_exists_and_is_let_through() -> None:
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert allowed == rooms() | {
        "README.md",
        "config",
        "constraints.txt",
        "models",
        "pyproject.toml",
    }
    for name in allowed:
        assert (ROOT / name).exists(), name
    for _, name, words in instructions():
        if name == "COPY" and not words.startswith("--from="):
            sources = words.split()[:-1]
            assert all(source == "." or source in allowed for source in sources), words
        if name == "COPY" and words.startswith("--from="):
            assert words.split()[0].removeprefix("--from=") in parents(), words


def test_every_room_is_installed_by_its_place() -> None:
    made = re.search(r"for room in ([\w ]+);", TEXT)
    assert made is not None
    assert set(made[1].split()) == rooms()
    named = re.search(r"for name in ([\w/ ]+);", TEXT)
    assert named is not None
    inner = {
        f"{name}/{room.name}" for name, place in entry_points().items() for room in place.iterdir()
    }
    assert set(named[1].split()) == {path for path in inner if "__pycache__" not in path}


@pytest.mark.parametrize("image", sorted(IMAGES))
def test_an_image_runs_aios_as_a_user_and_ends_on_sigterm(image: str) -> None:
    assert inherited(image, "USER") == "10001:10001"
    assert json.loads(inherited(image, "ENTRYPOINT")) == ["aios"]
    assert json.loads(inherited(image, "CMD"))[0] in ("api", "worker", "serve")
    assert inherited(image, "STOPSIGNAL") == "SIGTERM"
    assert lineage(image)[-2:] == ["runtime", "${BASE}"]


def test_torch_is_one_version_and_its_siblings_stay_out() -> None:
    pins = set(re.findall(r"\btorch==[\d.]+\d", TEXT))
    assert pins == {"torch==2.13.0"}
    assert "torch==2.13.0" in PROJECT["project"]["optional-dependencies"]["worker"]
    assert "torchvision" not in TEXT and "torchaudio" not in TEXT
    for stage, name, words in instructions():
        if name == "RUN" and "pip install" in words:
            assert "-c constraints.txt" in words or "--no-deps torch==" in words, (stage, words)


def test_the_base_names_a_version() -> None:
    base = next(words for stage, name, words in instructions() if name == "ARG" and not stage)
    assert re.fullmatch(r"BASE=python:3\.1[12]\.\d+-slim-\w+", base), base


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server on a port of this machine that answers everything with one status."""

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
    """What the image's check says, run here."""
    check = json.loads(inherited(image, "HEALTHCHECK").partition("CMD ")[2])
    env = {**os.environ, variable: str(port), "http_proxy": "http://127.0.0.1:1"}
    return not subprocess.run(
        [sys.executable, *check[1:]], env=env, stderr=subprocess.DEVNULL, check=False
    ).returncode


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
