"""Every example of the docs that is a request to a server, or a client of one, does what its page
says."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest

from shared.access import digest_of, id_of
from tests.fixtures.e2e.examples import ROOT, Block, blocks_of, outputs
from tests.fixtures.e2e.serving import serving
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.worker.sapient_fixtures import Net, write_checkpoint

PAGES = {
    "README.md": "sample",
    "docs/api.md": "sample",
    "docs/artifacts.md": "sample",
    "docs/clients.md": "sample",
    "docs/access.md": "trial",
    "docs/delivery.md": "trial",
    "docs/models.md": "trial",
    "docs/python.md": "nowhere",
}
"""The fleet that each page speaks of: `sample` is as `aios serve hrm` starts it, `trial` has the
echo, and a page that is `nowhere` speaks of none."""

ELSEWHERE = {
    "docs/compose.md": "speaks of containers, which are built and run where there is an engine for them",
    "docs/load.md": "puts loads on fleets; tests/scripts/test_load.py puts small ones",
    "docs/metrics.md": "shows a terminal; tests/scripts/test_top.py draws it",
    "docs/operations.md": "needs roles apart; test_runbook.py follows it",
    "docs/baselines.md": "records what was measured beside another server",
}
"""Pages with requests that are not run here, and why."""

EXEMPT = {
    "scripts/run_hrm_server.sh": "installs into .venv and stays; test_serve.py runs what it starts",
    "scripts/test.sh": "would run this test",
    ".venv/bin/aios serve hrm": "wants a model of the reader's; test_dry_run.py does so with others",
    "AIOS_API_KEYS=": "stays; tests/api/test_keys.py knows keys of the environment",
    "st run": (
        "fails by two findings that the page explains; test_schemathesis.py runs it with a "
        "configuration"
    ),
}
"""What is not run, by how it begins, and why."""


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
NODE = ROOT / "tests" / "e2e" / "node" / "node_modules"


@dataclass
class Stage:
    """What to write for the addresses of the docs, and the variables that its pages speak of."""

    addresses: dict[str, str]
    variables: dict[str, dict[str, str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def sample() -> Iterator[Stage]:
    with serving("--threads", "1", "--admin-keys", "ops:c1a8e9f0", "--require-key", "no") as fleet:
        yield Stage({"localhost:8000": fleet.url.removeprefix("http://")})


@pytest.fixture(scope="module")
def nowhere() -> Stage:
    return Stage({})


@pytest.fixture(scope="module")
def trial(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The echo and a network for Sudokus, a term that may not be said, a key that is made, and a
    job that is done."""
    redis_server.flush()
    place = tmp_path_factory.mktemp("trial")
    (place / "terms").write_text("forbidden\n")
    write_checkpoint(
        place, Net(halt_max_steps=2), filename="step_1", data_path="data/sudoku-extreme-1k-aug-1000"
    )
    flags = [
        "--model",
        "echo=echo",
        "--model",
        f"sudoku={place}",
        "--default-model",
        "echo",
        "--max-batch-size",
        "4",
    ]
    flags += [
        "--redis-url",
        redis_server.url,
        "--require-key",
        "no",
        "--prohibited-terms",
        str(place / "terms"),
    ]
    create = [
        sys.executable,
        "-m",
        "scripts.cli.aios",
        "keys",
        "create",
        "docs",
        "--redis-url",
        redis_server.url,
    ]
    with serving(*flags) as fleet:
        key = subprocess.run(
            create, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
        ).stdout.strip()
        asked = httpx.post(
            f"{fleet.url}/v1/completions", json={"prompt": "hello ", "max_tokens": 12}
        )
        addresses = {
            "redis://localhost:6379": redis_server.url,
            "localhost:8000": fleet.url.removeprefix("http://"),
        }
        access = {"KEY": key, "ID": id_of(digest_of(key))}
        yield Stage(
            addresses,
            {"docs/access.md": access, "docs/delivery.md": {"ID": asked.headers["X-Job-Id"]}},
        )


def is_exempt(command: str) -> bool:
    return any(command.startswith(beginning) for beginning in EXEMPT)


def run_of(block: Block) -> Block:
    """The block without what is exempt."""
    return replace(
        block, examples=tuple(item for item in block.examples if not is_exempt(item.command))
    )


RUN = [block for block in map(run_of, BLOCKS) if block.examples]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "block", RUN, ids=[f"{block.page}: {block.examples[0].command[:60]}" for block in RUN]
)
def test_examples_print_what_the_page_says(
    block: Block, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if block.language == "js" and not NODE.exists():
        pytest.skip("needs `npm ci` in tests/e2e/node, and Node 20")
    stage: Stage = request.getfixturevalue(PAGES[block.page])
    printed = outputs(block, tmp_path, stage.addresses, stage.variables.get(block.page, {}))
    for example, output in zip(block.examples, printed, strict=True):
        assert example.fits(output), (example.command, output)


def test_no_example_is_overlooked() -> None:
    """Every request to a server that stands on any page is in a block that is read, or is
    exempt."""
    pages = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    ]
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in pages}
    asked = {page for page, stage in PAGES.items() if stage != "nowhere"}
    assert {page for page in pages if "localhost:8000" in texts[page]} - ELSEWHERE.keys() == asked
    for page in PAGES:
        commands = [
            example.command for block in BLOCKS if block.page == page for example in block.examples
        ]
        assert texts[page].count("localhost:8000") == sum(
            command.count("localhost:8000") for command in commands
        ), page


def test_every_exemption_is_of_something() -> None:
    commands = [example.command for block in BLOCKS for example in block.examples]
    for beginning in EXEMPT:
        assert any(command.startswith(beginning) for command in commands), beginning
