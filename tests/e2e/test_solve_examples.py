"""The documented examples of /solve/*: right with most seeds, when nothing but the problem is
given."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from api.schemas.simple_foundation import CodingRequest, MathRequest
from scripts.train.eval_solve import EXAMPLES, Example, body_of, is_right
from shared.messages import Prompting
from shared.settings.models import ModelEntry, PromptingEntry
from shared.settings.settings import SAMPLE_MODEL, SettingsError
from tests.fixtures.e2e.inside import fleet_inside
from worker.engine.runner import RunnerOptions
from worker.host.loading import prompting_of
from worker.runners.echo import Echo
from worker.runners.registry import load_runner

NUM_SEEDS = 4
"""Of each; `python -m scripts.train.eval_solve` does the 100 that the documentation quotes."""
ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "README.md",
    "docs/api.md",
    "docs/clients.md",
    "docs/first-run.md",
    "scripts/examples/solve_math_problem.py",
)
_BODY = re.compile(r'/solve/\w+.*?"problem": "([^"]+)"')
_CLIENT = re.compile(r'solve_math_problem [^"\n]*"([^"\n]+)"\n')


async def test_they_are_right_whatever_the_seed(redis: Redis) -> None:
    runner = load_runner("auto", RunnerOptions(path=str(SAMPLE_MODEL), name="sample", max_batch=16))
    prompting = prompting_of(ModelEntry(id="sample", path=str(SAMPLE_MODEL)))
    async with fleet_inside(redis, {"sample": runner}, prompting) as client:

        async def ask(example: Example, seed: int) -> bool:
            answer = await client.post(example.path, json=body_of(example, seed))
            assert answer.status_code == 200, answer.text
            return is_right(example, answer.json())

        asked = [ask(example, seed) for example in EXAMPLES for seed in range(NUM_SEEDS)]
        rights = await asyncio.gather(*asked)
    for number, example in enumerate(EXAMPLES):
        own = rights[number * NUM_SEEDS : (number + 1) * NUM_SEEDS]
        assert all(own), f"{example.problem}: {sum(own)} of {NUM_SEEDS}"


def test_every_documented_problem_is_measured() -> None:
    shown: set[str] = set()
    for name in SOURCES:
        text = (ROOT / name).read_text(encoding="utf-8")
        shown |= {*_BODY.findall(text), *_CLIENT.findall(text)}
    for body in (MathRequest, CodingRequest):
        examples: Any = body.model_config["json_schema_extra"]
        shown |= {example["problem"] for example in examples["examples"]}
    assert shown == {example.problem for example in EXAMPLES}


async def test_the_caller_outranks_the_model_and_the_model_the_endpoint(redis: Redis) -> None:
    """The echo says the prompt, so what it was asked shows."""
    declared = Prompting(
        math="M {problem} M", coding="C {problem} C", repetition_penalty=1.0, temperature=0.0
    )
    async with fleet_inside(
        redis, {"echo": Echo(RunnerOptions("echo", name="echo"))}, declared
    ) as client:

        async def said(path: str, **body: object) -> str:
            answer = await client.post(path, json={"problem": "1 + 1", "max_tokens": 9} | body)
            return str(answer.raise_for_status().json()["solution"])

        assert await said("/solve/math") == "M 1 + 1 M"
        assert await said("/solve/coding") == "C 1 + 1 C"
        assert await said("/solve/math", template="own {problem}") == "own 1 + 1"
        assert await said("/solve/math", template=None) == "M 1 + 1 M"


def test_what_is_declared_fills_what_is_left_open() -> None:
    declared = Prompting(temperature=0.2, top_k=5, repetition_penalty=1.3)
    bare = MathRequest.model_validate({"problem": "a"}).suited(declared).sampling(4)
    assert (bare.temperature, bare.top_k, bare.top_p, bare.repetition_penalty) == (0.2, 5, 1.0, 1.3)
    given = {"problem": "a", "temperature": 1, "top_k": 0, "repetition_penalty": None}
    own = MathRequest.model_validate(given).suited(declared).sampling(4)
    assert (own.temperature, own.top_k, own.repetition_penalty) == (1.0, 0, 1.3)
    greedy = (
        MathRequest.model_validate({"problem": "a", "do_sample": False})
        .suited(declared)
        .sampling(4)
    )
    assert greedy.temperature == 0


def test_an_entry_outranks_the_models_directory(tmp_path: Path) -> None:
    (tmp_path / "prompting.json").write_text('{"math": "a {problem}", "top_k": 3}')
    own = PromptingEntry(math="b {problem}")
    assert prompting_of(ModelEntry(id="m", path=str(tmp_path))) == Prompting(
        math="a {problem}", top_k=3
    )
    assert prompting_of(ModelEntry(id="m", path=str(tmp_path), prompting=own)) == Prompting(
        "b {problem}", top_k=3
    )
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
