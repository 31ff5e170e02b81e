"""A model answers a Python program as it answers over HTTP: texts to the letter, and numbers but
for the order in which a batch adds them up.
"""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.queue.broker import Broker
from shared.queue.leases import QueuePolicy
from shared.settings.settings import SAMPLE_MODEL, ModelEntry, Settings
from tests.fixtures.api.frames import frames
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.polling import until
from tests.fixtures.worker.sapient_fixtures import Net, write_checkpoint
from tests.fixtures.worker.tiny_causal import llama, write
from worker.host.loading import load_models
from worker.host.service import WorkerService
from worker.llm import LLM, CompletionOutput, SamplingParams

CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "max_tokens": 60, "logprobs": 2},
    "sampled": {
        "seed": 7,
        "temperature": 1.3,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.01,
        "max_tokens": 20,
    },
    "choices": {"seed": -1, "n": 2, "max_tokens": 12, "logprobs": 0},
    "stops": {"seed": 3, "stop": ["=", "1"], "max_tokens": 40, "min_tokens": 2},
    "penalties": {
        "seed": 5,
        "max_tokens": 16,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.2,
        "logit_bias": {"30": 2.0},
        "stop_token_ids": [40],
        "ignore_eos": True,
    },
}
PROMPTS = ["Compute: 347 + 285", "Solve for x: 4x - 2 = 10", "hi"]
TAIL = [ord(character) for character in "cde"]
GRID = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SUDOKU = Net(halt_max_steps=2)


def params_of(fields: dict[str, Any]) -> SamplingParams:
    biases = {int(token): bias for token, bias in fields.get("logit_bias", {}).items()}
    return SamplingParams(**(fields | {"logit_bias": biases}))


def as_http_tells(outputs: list[CompletionOutput]) -> list[dict[str, Any]]:
    return [
        {"text": item.text, "finish_reason": item.finish_reason, "logprobs": values_of(item)}
        for item in outputs
    ]


def values_of(output: CompletionOutput) -> list[float] | None:
    if output.logprobs is None:
        return None
    return [
        table[token].logprob for token, table in zip(output.token_ids, output.logprobs, strict=True)
    ]


def told(text: str, reason: str, logprobs: list[float] | None) -> dict[str, Any]:
    return {"text": text, "finish_reason": reason, "logprobs": near(logprobs)}


def near(values: Any) -> Any:
    return pytest.approx(values, abs=1e-4)


def told_by(choice: dict[str, Any]) -> dict[str, Any]:
    logprobs = choice.get("logprobs")
    return told(choice["text"], choice["finish_reason"], logprobs and logprobs["token_logprobs"])


def joined(answer: httpx.Response) -> dict[int, tuple[str, str]]:
    """Of each choice of a stream its text and why it ended."""
    choices: dict[int, tuple[str, str]] = {}
    for frame in frames(answer)[:-1]:
        for part in frame.json["choices"]:
            text, reason = choices.get(part["index"], ("", ""))
            choices[part["index"]] = (text + part["text"], part["finish_reason"] or reason)
    return choices


async def streamed(llm: LLM, prompt: str, params: SamplingParams) -> dict[int, tuple[str, str]]:
    choices: dict[int, tuple[str, str]] = {}
    async for chunk in llm.stream_generate(prompt, params):
        text, reason = choices.get(chunk.index, ("", ""))
        choices[chunk.index] = (text + chunk.text, chunk.finish_reason or reason)
    return choices


async def check_texts(client: httpx.AsyncClient, llm: LLM, name: str) -> None:
    body: dict[str, Any] = {"model": name}
    for fields in CASES.values():
        params = params_of(fields)
        over_http = (
            await client.post("/v1/completions", json=body | {"prompt": PROMPTS} | fields)
        ).json()
        outputs = await asyncio.to_thread(llm.generate, PROMPTS, params)
        choices = [choice for output in outputs for choice in output.outputs]
        assert as_http_tells(choices) == [told_by(choice) for choice in over_http["choices"]], (
            fields
        )
        assert (
            sum(len(choice.token_ids) for choice in choices)
            == over_http["usage"]["completion_tokens"]
        )
        assert (
            sum(len(output.prompt_token_ids) for output in outputs)
            == over_http["usage"]["prompt_tokens"]
        )

        stream = await client.post(
            "/v1/completions", json=body | {"prompt": PROMPTS[0], "stream": True} | fields
        )
        assert await streamed(llm, PROMPTS[0], params) == joined(stream), fields


async def check_dialogue(client: httpx.AsyncClient, llm: LLM, name: str) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    asked = {"messages": turns, "temperature": 0, "max_tokens": 9}
    answer = (await client.post("/v1/chat/completions", json={"model": name} | asked)).json()
    (output,) = llm.chat(turns, SamplingParams(temperature=0, max_tokens=9))
    assert output.outputs[0].text == answer["choices"][0]["message"]["content"]


async def check_numbers(client: httpx.AsyncClient, llm: LLM, name: str) -> None:
    contexts = ["Compute: 1 + 1", "Hello", "Compute: 1 + 1"]
    tails = ["= 2", " world", "= 3"]
    asked = {"model": name, "prompts": contexts, "continuations": tails}
    over_http = (await client.post("/loglikelihood", json=asked)).json()
    scores = llm.score(contexts, tails)
    assert [score.log_likelihood for score in scores] == near(over_http["ll"])
    assert [score.num_tokens for score in scores] == over_http["num_tokens"]
    assert [score.is_greedy for score in scores] == over_http["is_greedy"]
    same = llm.score(contexts[0], tails[::2])
    assert [score.log_likelihood for score in same] == near(
        [score.log_likelihood for score in scores[::2]]
    )

    rolling = (
        await client.post("/loglikelihood_rolling", json={"model": name, "prompts": contexts})
    ).json()
    assert [score.log_likelihood for score in llm.score_rolling(contexts)] == near(rolling["ll"])

    vectors = (await client.post("/v1/embeddings", json={"model": name, "input": contexts})).json()
    for vector, item in zip(llm.embed(contexts), vectors["data"], strict=True):
        assert vector == near(item["embedding"])

    ids = (await client.post("/tokenize", json={"model": name, "prompt": "Hello"})).json()["tokens"]
    assert llm.tokenize("Hello") == tuple(ids)


@pytest.mark.timeout(240)
async def test_answers_are_those_over_http(redis: Redis, tmp_path: Path) -> None:
    places = {"sample": SAMPLE_MODEL, "llama": tmp_path / "llama", "sudoku": tmp_path / "sudoku"}
    write(llama, places["llama"])
    places["sudoku"].mkdir()
    write_checkpoint(
        places["sudoku"], SUDOKU, filename="step_1", data_path="data/sudoku-extreme-1k-aug-1000"
    )
    entries = tuple(ModelEntry(id=name, path=str(place)) for name, place in places.items())
    settings = Settings(models=entries, max_batch_size=4)

    stop = asyncio.Event()
    worker = WorkerService(Broker(redis), QueuePolicy(result_ttl_s=60), drain_timeout_s=5)
    serving = asyncio.create_task(worker.run(lambda: load_models(settings), stop))
    try:
        async with in_memory(redis) as client:

            async def is_ready() -> bool:
                return (await client.get("/readyz")).status_code == 200

            await until(is_ready, "the worker is ready", deadline_s=120)
            for name in ("sample", "llama"):
                with LLM(places[name], threads=1) as llm:
                    await check_texts(client, llm, name)
                    await check_numbers(client, llm, name)
                    if name == "sample":
                        await check_dialogue(client, llm, name)
            with LLM(places["sudoku"], threads=1) as llm:
                (solution,) = llm.solve([GRID])
                body = {"model": "sudoku", "grid": GRID}
                answer = (await client.post("/v1/puzzles/solve", json=body)).json()
                assert (
                    "".join(str(cell) for row in solution.grid for cell in row)
                    == answer["solutions"][0]["grid"]
                )
                assert solution.confidence == near(answer["solutions"][0]["confidence"])
    finally:
        stop.set()
        await serving
