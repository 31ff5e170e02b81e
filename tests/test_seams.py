"""A new thing touches few files.

Each kind of change is made to a copy of the product, tried there, and its files are counted.
docs/architecture.md has the counts. One that grows means that a seam is in the wrong place.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shared.shipped import REPO_ROOT

ROOMS = ("api", "worker", "shared", "scripts", "config", "docs", "deploy")
PAGE = REPO_ROOT / "docs" / "architecture.md"


@dataclass(frozen=True)
class Change:
    """New files by their paths, and new lines.

    Each of `lines` is a path, a line of that file, and the line to insert behind it. `generators`
    are the modules that write files from lists. `proof` is code that is run in the copy after them.
    """

    files: dict[str, str] = field(default_factory=dict)
    lines: tuple[tuple[str, str, str], ...] = ()
    proof: str = ""
    generators: tuple[str, ...] = ()

    @property
    def num_files(self) -> int:
        changed = {path for path, _, _ in self.lines}
        return len(self.files) + len(changed)


DIALECT = Change(
    files={
        "api/routes/odd.py": '''
"""A dialect with errors of its own: `POST /odd/say`."""

from collections.abc import Sequence

from pydantic import BaseModel

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.http.error_format import ErrorFormat
from api.submit.limits import Limits
from api.endpoints.plans import text_plan
from api.submit.request_record import SubmittedWork
from api.stream.request_events import Outcome
from api.schemas.fields import SampledRequest
from shared.messages import ModelInfo


class OddRequest(SampledRequest):
    say: str


class OddAnswer(BaseModel):
    said: str


class OddError(BaseModel):
    wrong: str


def _plan(body: OddRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    return text_plan(body, [body.say], 4, model, limits)


def _render(work: SubmittedWork, outcomes: Sequence[Outcome]) -> OddAnswer:
    return OddAnswer(said=outcomes[0].choices[0].text)


ODD = ErrorFormat(lambda problem: {"wrong": problem.message}, OddError, invalid_body=418)
SAY = Endpoint("odd", "generate", OddRequest, OddAnswer, _plan, _render, errors=ODD)
SAY_POST = Post("/odd/say", "say", "Say it.", (SAY,), tag="odd")
DIALECT = Dialect((SAY_POST,), prefix="/odd/", errors=ODD)
''',
    },
    lines=(
        (
            "api/endpoints/dialects.py",
            "from shared import plugins\n",
            "from api.routes import odd\n",
        ),
        ("api/endpoints/dialects.py", "    echo_task.DIALECT,\n", "    odd.DIALECT,\n"),
    ),
    proof="""
import asyncio, httpx
from api.http.app import create_app
from shared.queue.broker import Broker, connect
from shared.settings.settings import Settings

async def main():
    app = create_app(Settings(), Broker(connect("redis://127.0.0.1:1")))
    assert "/odd/say" in app.openapi()["paths"]
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
        answer = await client.post("/odd/nowhere", json={})
        assert (answer.status_code, list(answer.json())) == (404, ["wrong"]), answer.text

asyncio.run(main())
""",
)

RUNNER = '''
"""A mechanism: numbers of pixels are turned upside down."""

from collections.abc import Hashable, Sequence

from shared.errors import FleetError, InvalidRequest
from shared.inverting import Invert, Inverted
from shared.messages import Task
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import BatchProgress, Files, NewFile, TaskOutput, TaskRunnerSpec


class Inverter:
    def __init__(self, options: RunnerOptions) -> None:
        self.spec = TaskRunnerSpec(
            "inverter", options.name, "inverts", options.max_batch, ("invert",), Invert(b"0")
        )

    def read(self, task: Task, files: Files) -> Invert:
        if not isinstance(task, Invert):
            raise InvalidRequest("This model only inverts.", field="model")
        return task

    def group_key(self, item: Invert) -> Hashable:
        return None

    def run(
        self, items: Sequence[Invert], progress: BatchProgress
    ) -> list[TaskOutput | FleetError]:
        outputs = []
        for task in items:
            turned = bytes(255 - pixel for pixel in task.pixels)
            outputs.append(TaskOutput(Inverted(len(turned)), (NewFile(turned, "image/x-raw"),)))
        return outputs
'''
TASK = '''
"""The task of turning pixels upside down."""

from shared.tasks.results import OtherResult
from shared.tasks.specs import OtherTask


class Invert(OtherTask, frozen=True, tag="invert"):
    pixels: bytes


class Inverted(OtherResult, frozen=True, tag="invert"):
    num_pixels: int


def cost_of_pixels(task: Invert) -> int:
    return len(task.pixels)
'''
MECHANISM = Change(
    files={"worker/runners/inverter.py": RUNNER},
    lines=(
        (
            "shared/tasks/runner_table.py",
            "RUNNERS = {\n",
            '    "inverter": RunnerInfo("worker.runners.inverter:Inverter", has_files=False),\n',
        ),
    ),
)
IMAGE_TASK = Change(
    files={"shared/inverting.py": TASK},
    lines=(
        (
            "shared/tasks/task_table.py",
            "from shared.tasks.echo_task import EchoedTask, EchoTask\n",
            "from shared.inverting import Invert, Inverted, cost_of_pixels\n",
        ),
        (
            "shared/tasks/task_table.py",
            '    "echo_task": TaskInfo(EchoTask, EchoedTask, cost=_cost_of_steps),\n',
            '    "invert": TaskInfo(Invert, Inverted, cost=cost_of_pixels),\n',
        ),
    ),
    proof="""
from shared.inverting import Invert
from shared.messages import Job, decode_job, encode
from shared.settings.models import ModelEntry
from shared.settings.settings import Settings
from worker.host.loading import load_models

assert decode_job(encode(Job("00", "m", Invert(b"ab")))).task == Invert(b"ab")
[model] = load_models(Settings(models=(ModelEntry(id="m", path="inverter"),)))
assert (model.info.runner, model.info.tasks) == ("inverter", ("invert",))
""",
)
METRIC = Change(
    lines=(
        (
            "shared/telemetry/metrics.py",
            "    def __init__(self, sheet: MetricSheet) -> None:\n",
            '        self.odd = sheet.counter("aios_odd_total", "Odd things.")\n',
        ),
    ),
    proof="""
from shared.telemetry.metrics import Metrics
assert "aios_odd_total" in Metrics().render().decode()
assert "`aios_odd_total`" in open("docs/metrics.md").read()
""",
    generators=("scripts.tools.metrics_page",),
)
SETTING = Change(
    lines=(
        (
            "shared/settings/settings.py",
            '    compile_layers: bool = setting_of(HrmTextOptions, "compile_layers")\n',
            '    oddness: Count = Field(default=7, description="how odd things may be")\n',
        ),
    ),
    proof="""
from shared.settings.settings import Settings, resolve
assert resolve({"oddness": 9}, {}, None).settings.oddness == 9
assert "oddness: 7" in open("config/default.yaml").read()
assert "`--oddness`" in open("docs/settings.md").read()
""",
    generators=("scripts.tools.settings_files",),
)
CHANGES: dict[str, tuple[Change, ...]] = {
    "a dialect with errors of its own": (DIALECT,),
    "a mechanism": (MECHANISM,),
    "a task of a known mechanism": (IMAGE_TASK, MECHANISM),
    "a metric": (METRIC,),
    "a setting": (SETTING,),
}
"""The change that is counted, then those that it needs to be tried."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy the product, without its tests."""
    ignored = shutil.ignore_patterns("__pycache__")
    for room in ROOMS:
        shutil.copytree(REPO_ROOT / room, tmp_path / room, ignore=ignored)
    return tmp_path


def apply(change: Change, root: Path) -> None:
    for path, text in change.files.items():
        assert not (root / path).exists()
        (root / path).write_text(text.lstrip())
    for path, before, line in change.lines:
        text = (root / path).read_text()
        assert before in text, (path, before)
        (root / path).write_text(text.replace(before, before + line, 1))


def run_python(root: Path, *arguments: str) -> None:
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("name", CHANGES)
def test_a_new_thing_is_few_files(name: str, copy: Path) -> None:
    counted, *needed = CHANGES[name]
    for change in (counted, *needed):
        apply(change, copy)

    for module in counted.generators:
        run_python(copy, "-m", module)

    if counted.proof:
        run_python(copy, "-c", counted.proof)

    rows = re.findall(r"^\| ([a-z ]+) \| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    num_files = dict(rows)
    assert num_files[name] == str(counted.num_files)
