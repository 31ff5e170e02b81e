"""The arguments and the secrets of an image's build.

`python -m scripts.tools.images` builds and tries the images themselves.
"""

import json
import sys
from pathlib import Path

import pytest

from scripts.tools.images.__main__ import render
from scripts.tools.images.build import BuildPlan, build, image_name
from scripts.tools.images.engine import Engine, EngineError, Image
from scripts.tools.images.smoke import Report

NOTE_WORDS = """
import json, sys
secrets = {}
for word in sys.argv:
    if "--secret" in word:
        name, source = word.partition("=")[2].removeprefix("id=").split(",src=")
        secrets[name] = source
json.dump({"words": sys.argv[2:], "pip": open(secrets["pip"]).read()}, open(sys.argv[1], "w"))
"""


def noting(notes: Path, mounts_folders: bool = True) -> Engine:
    """Return an engine that records the arguments of its build."""
    return Engine(
        (sys.executable, "-c", NOTE_WORDS, str(notes)), ("false",), mounts_folders=mounts_folders
    )


def test_an_index_and_its_password_go_in_as_a_secret_alone(tmp_path: Path) -> None:
    env = {
        "PIP_INDEX_URL": "https://me:pass@index.test/simple",
        "PIP_CERT": "/ca.pem",
        "PIP_FIND_LINKS": str(tmp_path),
    }
    plan = BuildPlan("local", base="python:3.12-slim", torch_index="", revision="abc")
    build(noting(tmp_path / "notes"), "api", plan, env)
    notes = json.loads((tmp_path / "notes").read_text())
    assert notes["pip"].splitlines() == [
        "[global]",
        "index-url = https://me:pass@index.test/simple",
        "cert = /run/secrets/ca",
        f"find-links = {tmp_path}",
    ]

    words = notes["words"]
    assert "me:pass" not in " ".join(words)
    assert "--target=api" in words
    assert "--tag=aios/api:local" in words
    assert "--secret=id=ca,src=/ca.pem" in words
    assert "--build-arg=BASE=python:3.12-slim" in words
    assert "--build-arg=TORCH_INDEX_URL=" in words
    assert f"--volume={tmp_path}:{tmp_path}:ro" in words


def test_what_is_not_chosen_is_left_to_the_dockerfile(tmp_path: Path) -> None:
    plan = BuildPlan("1.0", base=None, torch_index=None, revision="abc")
    build(
        noting(tmp_path / "notes", mounts_folders=False),
        "simplefoundation",
        plan,
        {"PIP_FIND_LINKS": str(tmp_path)},
    )
    notes = json.loads((tmp_path / "notes").read_text())
    assert notes["pip"] == "[global]\n"
    chosen = [word for word in notes["words"] if not word.startswith("--secret=id=pip")]
    assert chosen[:-1] == [
        "--build-arg=VERSION=1.0",
        "--build-arg=REVISION=abc",
        "--tag=simplefoundation:1.0",
    ]


def test_a_failed_build_says_which() -> None:
    engine = Engine(("false",), ("false",))
    plan = BuildPlan("local", base=None, torch_index=None, revision="abc")
    with pytest.raises(EngineError, match="building worker-cpu failed with status 1"):
        build(engine, "worker-cpu", plan, {})


def test_names_are_those_that_compose_and_charts_use() -> None:
    assert image_name("worker-cuda", "local") == "aios/worker-cuda:local"
    assert image_name("simplefoundation", "latest") == "simplefoundation:latest"


def test_the_table_has_a_line_for_each_image() -> None:
    image = Image("aios/api:local", 200_400_000, "10001:10001", ("NONE",))
    lines = render(
        [Report(image, ready_s=1.25, stop_s=0.5, trial="it"), Report(image)]
    ).splitlines()
    assert lines[2:] == [
        "| aios/api:local | 200 MB | 1.2 s | 0.5 s | it |",
        "| aios/api:local | 200 MB | - | - | - |",
    ]
