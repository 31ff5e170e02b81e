"""The documented examples of /solve/* are right when a request has nothing but the problem."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from api.schemas.simple_foundation import CodingRequest, MathRequest
from scripts.train.eval_solve import EXAMPLES, Example, body_of, is_right
from shared.messages import Prompting, Sampling
from shared.settings.models import ModelEntry, PromptingEntry
from shared.settings.settings import Settings, SettingsError, model_entries
from tests.fixtures.e2e.inside import fleet_inside
from worker.engine.runner import Runner, RunnerOptions
from worker.host.loading import prompting_of
from worker.runners.echo import Echo
from worker.runners.registry import load_runner

NUM_SEEDS = 4
"""Seeds for each example. `python -m scripts.train.eval_solve` tries the 100 that the docs quote."""
ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "README.md",
    "docs/api.md",
    "docs/clients.md",
    "docs/first-run.md",
    "scripts/examples/solve_math_problem.py",
)
_BODY = re.compile(r'/solve/\w+.*?"problem": "([^"]+)"')
_ROW = re.compile(r"^\| `/solve/\w+` \| (\D[^|]*) \| \d+ \|$", re.MULTILINE)
_CLIENT = re.compile(r'solve_math_problem [^"\n]*"([^"\n]+)"\n')


async def test_they_are_right_whatever_the_seed(redis: Redis) -> None:
    runners: dict[str, Runner] = {}
    prompting: dict[str, Prompting] = {}
    for model in model_entries(Settings()):
        options = RunnerOptions(path=model.path, name=model.id, max_batch=16)
        runners[model.id] = load_runner("auto", options)
        prompting[model.id] = prompting_of(model)
    async with fleet_inside(redis, runners, prompting) as client:

        async def ask(example: Example, seed: int) -> bool:
            answer = await client.post(example.path, json=body_of(example, seed))
            assert answer.status_code == 200, answer.text
            return is_right(example, answer.json())

        requests = []
        for example in EXAMPLES:
            for seed in range(NUM_SEEDS):
                requests.append(ask(example, seed))
        # All at once, so that they share batches.
        results = await asyncio.gather(*requests)

    for number, example in enumerate(EXAMPLES):
        of_example = results[number * NUM_SEEDS : (number + 1) * NUM_SEEDS]
        assert all(of_example), f"{example.problem}: {sum(of_example)} of {NUM_SEEDS}"


def test_every_documented_problem_is_measured() -> None:
    documented: set[str] = set()
    for name in SOURCES:
        text = (ROOT / name).read_text(encoding="utf-8")
        documented.update(_BODY.findall(text))
        documented.update(_CLIENT.findall(text))
        documented.update(_ROW.findall(text))
    for body in (MathRequest, CodingRequest):
        schema: Any = body.model_config["json_schema_extra"]
        for example in schema["examples"]:
            documented.add(example["problem"])
    assert documented == {example.problem for example in EXAMPLES}


async def test_the_caller_outranks_the_model_and_the_model_the_endpoint(redis: Redis) -> None:
    """The echo answers with its prompt, so the solution shows the template."""
    declared = Prompting(
        math="M {problem} M", coding="C {problem} C", repetition_penalty=1.0, temperature=0.0
    )
    echo = Echo(RunnerOptions("echo", name="echo"))
    async with fleet_inside(redis, {"echo": echo}, {"echo": declared}) as client:

        async def solution(path: str, **body: object) -> str:
            answer = await client.post(path, json={"problem": "1 + 1", "max_tokens": 9} | body)
            return str(answer.raise_for_status().json()["solution"])

        assert await solution("/solve/math") == "M 1 + 1 M"
        assert await solution("/solve/coding") == "C 1 + 1 C"
        assert await solution("/solve/math", template="own {problem}") == "own 1 + 1"
        assert await solution("/solve/math", template=None) == "M 1 + 1 M"


def test_what_is_declared_fills_what_is_left_open() -> None:
    declared = Prompting(temperature=0.2, top_k=5, repetition_penalty=1.3)

    def sampling_of(**fields: object) -> Sampling:
        request = MathRequest.model_validate({"problem": "a", **fields})
        return request.suited(declared).sampling(4)

    bare = sampling_of()
    assert bare.temperature == 0.2
    assert bare.top_k == 5
    assert bare.top_p == 1.0
    assert bare.repetition_penalty == 1.3

    given = sampling_of(temperature=1, top_k=0, repetition_penalty=None)
    assert given.temperature == 1.0
    assert given.top_k == 0
    assert given.repetition_penalty == 1.3

    greedy = sampling_of(do_sample=False)
    assert greedy.temperature == 0


def test_an_entry_outranks_the_models_directory(tmp_path: Path) -> None:
    (tmp_path / "prompting.json").write_text('{"math": "a {problem}", "top_k": 3}')

    of_directory = ModelEntry(id="m", path=str(tmp_path))
    assert prompting_of(of_directory) == Prompting(math="a {problem}", top_k=3)

    prompting = PromptingEntry(math="b {problem}")
    of_entry = ModelEntry(id="m", path=str(tmp_path), prompting=prompting)
    assert prompting_of(of_entry) == Prompting(math="b {problem}", top_k=3)

    assert prompting_of(ModelEntry(id="m", path=str(tmp_path / "step_1"))).top_k == 3
    assert prompting_of(ModelEntry(id="m", path="echo")) == Prompting()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"math": "no place"}', '{"top_p": 0}', '{"maths": "{problem}"}']
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prompting.json"
    file.write_text(text)
    with pytest.raises(SettingsError, match=re.escape(str(file))):
        prompting_of(ModelEntry(id="m", path=str(tmp_path)))
