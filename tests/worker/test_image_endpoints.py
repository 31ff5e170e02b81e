"""OpenAI's own client makes, changes and varies pictures."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from redis.asyncio import Redis

from shared.messages import Task
from shared.tasks.pictures import ChangePicture, MakePictures
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.tiny_diffusion import write_pipeline
from tests.fixtures.worker.fleets import fleet
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import FilesAtHand, TaskOutput, Unwatched
from worker.runners.diffusion import DiffusionRunner, load

PICTURE = encoded(picture(70, 40))
STEPS = {"num_inference_steps": 2, "seed": 7}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> DiffusionRunner:
    return load(RunnerOptions(str(write_pipeline(tmp_path_factory.mktemp("painter"))), name="t"))


def made(runner: DiffusionRunner, task: Task) -> list[bytes]:
    """Return the pictures that the runner makes."""
    item = runner.read(task, FilesAtHand({"x": PICTURE}))
    [output] = runner.run([item], Unwatched())
    assert isinstance(output, TaskOutput), output
    return [file.data for file in output.files]


def data_of(answer: Any) -> list[bytes]:
    return [base64.b64decode(image.b64_json) for image in answer.data]


@asynccontextmanager
async def client_of(redis: Redis, runner: DiffusionRunner) -> AsyncIterator[openai.AsyncOpenAI]:
    async with fleet(redis, runner) as http:
        yield openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none", http_client=http)


async def test_openais_client_makes_pictures(redis: Redis, runner: DiffusionRunner) -> None:
    file = ("a.png", PICTURE, "image/png")
    async with client_of(redis, runner) as client:
        generated = await client.images.generate(
            prompt="good", model="t", n=2, size="64x32", extra_body=STEPS
        )
        edited = await client.images.edit(
            image=file, prompt="good", model="t", extra_body=STEPS | {"strength": 0.9}
        )
        in_list = await client.images.edit(image=[file], prompt="good", model="t")
        varied = await client.images.create_variation(
            image=file, model="t", n=2, size="256x256", extra_body=STEPS | {"strength": 0.9}
        )
    assert data_of(generated) == made(
        runner,
        MakePictures("good", 7, width=64, height=32, num_inference_steps=2, num_images=2),
    )
    assert [image.seed for image in generated.data] == [7, 8]
    changed = ChangePicture("x", "good", 7, strength=0.9, num_inference_steps=2)
    assert data_of(edited) == made(runner, changed)
    assert len(data_of(in_list)) == 1
    assert len(data_of(varied)) == 2


async def test_what_is_not_served_is_told(redis: Redis, runner: DiffusionRunner) -> None:
    file = ("a.png", PICTURE, "image/png")
    async with client_of(redis, runner) as client:
        with pytest.raises(openai.BadRequestError, match="width: expected a multiple of 8"):
            await client.images.generate(prompt="good", model="t", size="63x64")
        with pytest.raises(openai.BadRequestError, match="response_format: this is not supported"):
            await client.images.generate(prompt="good", model="t", response_format="url")
        with pytest.raises(openai.BadRequestError, match="mask"):
            await client.images.edit(image=file, mask=file, prompt="good", model="t")
        with pytest.raises(openai.BadRequestError, match="image"):
            await client.images.edit(image=[file, file], prompt="good", model="t")
        with pytest.raises(openai.BadRequestError, match="expected a picture"):
            await client.images.create_variation(image=b"none", model="t")
