"""Every request and every client in the docs' examples does what its page says."""

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
from tests.fixtures.worker.arc_nets import write_arc
from tests.fixtures.worker.puzzle_nets import Net, write_checkpoint

PAGES = {
    "README.md": "sample",
    "docs/api.md": "sample",
    "docs/artifacts.md": "sample",
    "docs/batches.md": "sample",
    "docs/clients.md": "sample",
    "docs/evaluation.md": "sample",
    "docs/access.md": "trial",
    "docs/delivery.md": "trial",
    "docs/maintenance.md": "trial",
    "docs/models.md": "trial",
    "docs/webhooks.md": "trial",
    "docs/tutorial.md": "tutorial",
    "docs/hardware.md": "nowhere",
    "docs/python.md": "nowhere",
}
"""The fleet of each page.

`sample` is the fleet of `aios serve hrm`. `trial` has the echo, and `tutorial` the models of the
tutorial, which closes it by its first key. A page that is `nowhere` has none.
"""

ELSEWHERE = {
    "docs/cli.md": "lists commands; tests/scripts/test_commands.py runs all of them",
    "docs/compose.md": "runs containers, which need a container engine",
    "docs/load.md": "puts loads on fleets; tests/scripts/test_load.py puts small ones",
    "docs/metrics.md": "shows a terminal; tests/scripts/test_top.py draws it",
    "docs/operations.md": "needs roles apart; test_runbook.py follows it",
    "docs/baselines.md": "records what was measured beside another server",
}
"""Pages whose requests are not run here, and the reason."""

EXEMPT = {
    "scripts/run_hrm_server.sh": (
        "installs into .venv and stays; test_serve.py runs what it starts, test_ui.py the app"
    ),
    "scripts/test.sh": "would run this test",
    ".venv/bin/aios serve hrm --model-path /path": (
        "needs a model of the reader; test_dry_run.py loads others"
    ),
    'aios serve hrm --model-path "$(aios models fetch': "downloads; tests/scripts/test_fetch.py does not",
    "aios serve hrm --config config/models.yaml": "the same, once they are there",
    "aios serve hrm --model-path sapientinc": "downloads; test_hub_models.py asks a stand-in",
    "aios serve hrm --model maths=hf": "the same",
    "aios models fetch": "the same, and tests/worker/test_real_models.py asks the models",
    "aios serve hrm --model math=models/hrm-text-math --model base=http": (
        "stays, and asks a server of the reader; test_proxy.py asks others"
    ),
    "AIOS_API_KEYS=": "stays; tests/api/test_keys.py knows keys of the environment",
    "git clone": "there is a clone",
    ".venv/bin/python -m scripts.train.train_puzzles": (
        "trains for a quarter of an hour; tests/scripts/test_train_puzzles.py trains for seconds"
    ),
    "redis-server --appendonly yes": "stays, as what follows; test_roles_apart.py runs roles apart",
    "AIOS_REDIS_URL=redis://:SECRET@": "the same",
    "aios doctor --device cuda": "needs a GPU",
    "st run": (
        "fails by two findings that the page explains; test_schemathesis.py runs it with a "
        "configuration"
    ),
}
"""Commands that are not run, by their beginning, and the reason."""


def blocks_of_pages() -> list[Block]:
    blocks = list[Block]()
    for page in PAGES:
        blocks += blocks_of(page)
    return blocks


BLOCKS = blocks_of_pages()
NODE = ROOT / "tests" / "e2e" / "node" / "node_modules"


@dataclass
class Stage:
    """The fleet's addresses for those in the docs, and the shell variables of each page."""

    addresses: dict[str, str]
    variables: dict[str, dict[str, str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def sample() -> Iterator[Stage]:
    with serving("--threads", "1", "--admin-keys", "ops:c1a8e9f0", "--require-key", "no") as fleet:
        yield Stage({"localhost:8000": fleet.url.removeprefix("http://")})


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Serve the models of the tutorial. Its commands find this fleet, and no other, by a folder."""
    folder = tmp_path_factory.mktemp("tutorial")
    folder.chmod(0o700)
    run_dir = {"AIOS_RUN_DIR": str(folder)}
    with serving("--threads", "1", cwd=ROOT, env=run_dir) as fleet:
        addresses = {"localhost:8000": fleet.url.removeprefix("http://"), ".venv/bin/": ""}
        yield Stage(addresses, {"docs/tutorial.md": run_dir})


@pytest.fixture(scope="module")
def nowhere() -> Stage:
    return Stage({})


@pytest.fixture(scope="module")
def trial(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Serve the echo and networks for Sudokus and ARC, with a prohibited term.

    Two keys are created and a job is done.
    """
    redis_server.flush()
    folder = tmp_path_factory.mktemp("trial")
    (folder / "terms").write_text("forbidden\n")
    write_checkpoint(
        folder,
        Net(halt_max_steps=2),
        filename="step_1",
        data_path="data/sudoku-extreme-1k-aug-1000",
    )

    arc = tmp_path_factory.mktemp("arc")
    write_arc(arc)

    flags = ["--model", "echo=echo", "--model", f"sudoku={folder}", "--default-model", "echo"]
    flags += ["--model", f"arc={arc}"]
    flags += ["--max-batch-size", "4", "--redis-url", redis_server.url, "--require-key", "no"]
    flags += ["--admin-keys", "ops:c1a8e9f0"]
    flags += ["--prohibited-terms", str(folder / "terms"), "--webhook-allow", "127.0.0.0/8"]
    create = [sys.executable, "-m", "scripts.cli.aios", "keys", "create", "docs"]
    create += ["--redis-url", redis_server.url]
    with serving(*flags) as fleet:
        created = subprocess.run(create, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        key = created.stdout.strip()
        admin = {"X-API-Key": "c1a8e9f0"}
        other = httpx.post(
            f"{fleet.url}/v1/keys", json={"name": "other"}, headers=admin, timeout=60
        )
        body = {"prompt": "hello ", "max_tokens": 12}
        answer = httpx.post(f"{fleet.url}/v1/completions", json=body, timeout=60)

        addresses = {
            "redis://localhost:6379": redis_server.url,
            "localhost:8000": fleet.url.removeprefix("http://"),
        }
        variables = {
            "docs/access.md": {
                "KEY": key,
                "ID": id_of(digest_of(key)),
                "ADMIN_KEY": admin["X-API-Key"],
                "OTHER_ID": other.json()["id"],
            },
            "docs/delivery.md": {"ID": answer.headers["X-Job-Id"]},
        }
        yield Stage(addresses, variables)


def is_exempt(command: str) -> bool:
    return command.startswith(tuple(EXEMPT))


def blocks_to_run() -> list[Block]:
    """Return the blocks without their exempt examples, and without blocks that have no other."""
    blocks = []
    for block in BLOCKS:
        examples = [example for example in block.examples if not is_exempt(example.command)]
        if examples:
            blocks.append(replace(block, examples=tuple(examples)))
    return blocks


def name_of(block: Block) -> str:
    return f"{block.page}: {block.examples[0].command[:60]}"


def commands_of(blocks: list[Block]) -> list[str]:
    commands = []
    for block in blocks:
        for example in block.examples:
            commands.append(example.command)
    return commands


@pytest.mark.parametrize("block", blocks_to_run(), ids=name_of)
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
    """Every request to a server on any page is in a block that is read, or is exempt."""
    address = "localhost:8000"
    texts = {"README.md": (ROOT / "README.md").read_text(encoding="utf-8")}
    for path in (ROOT / "docs").glob("*.md"):
        texts[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")

    for page, text in texts.items():
        has_requests = address in text and page not in ELSEWHERE
        has_a_fleet = PAGES.get(page, "nowhere") != "nowhere"
        assert has_requests == has_a_fleet, page

    for page in PAGES:
        commands = commands_of([block for block in BLOCKS if block.page == page])
        num_requests = sum(command.count(address) for command in commands)
        assert texts[page].count(address) == num_requests, page


def test_every_exemption_is_of_something() -> None:
    commands = commands_of(BLOCKS)
    for beginning in EXEMPT:
        assert any(command.startswith(beginning) for command in commands), beginning
