"""Every example of the API's page, on a fleet as `aios serve hrm` starts it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.examples import Example, examples_of
from tests.e2e.serving import Serving, serving

EXAMPLES = examples_of(Path(__file__).parents[2] / "docs" / "api.md")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Serving]:
    with serving("--threads", "1", "--admin-keys", "ops:c1a8e9f0", "--require-key", "no") as running:
        yield running


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.command for example in EXAMPLES])
def test_an_example_prints_what_the_page_says(fleet: Serving, example: Example) -> None:
    command = example.command.replace("localhost:8000", fleet.url.removeprefix("http://"))
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    assert example.fits(done.stdout), done.stdout


def test_no_example_is_overlooked() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) == page.count("$ curl") > 20
