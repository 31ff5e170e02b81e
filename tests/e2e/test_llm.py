"""A model answers a Python program as it answers over HTTP.

Texts are equal to the letter. Numbers may differ by the order in which a batch adds them up.
"""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.queue.broker import Broker
from shared.queue.leases import QueuePolicy
from shared.settings.settings import DEFAULT_MODEL, ModelEntry, Settings
from shared.tasks.results import ContinuationScore
from tests.fixtures.api.frames import frames
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.polling import until
from tests.fixtures.worker.puzzle_nets import Net, write_checkpoint
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
DEPTHS: dict[str, dict[str, Any]] = {
    "cycles": {"temperature": 0, "max_tokens": 60, "cycles": "2x1"},
    "effort": {"temperature": 0, "max_tokens": 60, "effort": "medium"},
}
PROMPTS = ["Compute: 347 + 285", "Solve for x: 4x - 2 = 10", "hi"]
GRID = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SUDOKU = Net(halt_max_steps=2)


def params_of(fields: dict[str, Any]) -> SamplingParams:
    biases = {}
    for token, bias in fields.get("logit_bias", {}).items():
        biases[int(token)] = bias
    return SamplingParams(**(fields | {"logit_bias": biases}))


def logprobs_of(output: CompletionOutput) -> list[float] | None:
    """Return the log-probability of each token that was chosen."""
    if output.logprobs is None:
        return None
    values = []
    for token, table in zip(output.token_ids, output.logprobs, strict=True):
        values.append(table[token].logprob)
    return values


def near(values: Any) -> Any:
    return pytest.approx(values, abs=1e-4)


def check_choice(output: CompletionOutput, choice: dict[str, Any]) -> None:
    """Check one choice of a program against the same choice over HTTP."""
    assert output.text == choice["text"]
    assert output.finish_reason == choice["finish_reason"]

    logprobs = choice.get("logprobs")
    if logprobs is None:
        assert logprobs_of(output) is None
    else:
        assert logprobs_of(output) == near(logprobs["token_logprobs"])


def log_likelihoods(scores: list[ContinuationScore]) -> list[float]:
    return [score.log_likelihood for score in scores]


def joined(answer: httpx.Response) -> dict[int, tuple[str, str]]:
    """Return the text and the finish reason of each choice of a stream."""
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


async def check_texts(
    client: httpx.AsyncClient, llm: LLM, name: str, cases: dict[str, dict[str, Any]]
) -> None:
    for fields in cases.values():
        params = params_of(fields)
        body = {"model": name, "prompt": PROMPTS} | fields
        over_http = (await client.post("/v1/completions", json=body)).json()

        outputs = await asyncio.to_thread(llm.generate, PROMPTS, params)

        choices = list[CompletionOutput]()
        num_prompt_tokens = 0
        num_completion_tokens = 0
        for output in outputs:
            choices += output.outputs
            num_prompt_tokens += len(output.prompt_token_ids)
            for choice in output.outputs:
                num_completion_tokens += len(choice.token_ids)
        for choice, expected in zip(choices, over_http["choices"], strict=True):
            check_choice(choice, expected)
        assert num_completion_tokens == over_http["usage"]["completion_tokens"]
        assert num_prompt_tokens == over_http["usage"]["prompt_tokens"]

        body = {"model": name, "prompt": PROMPTS[0], "stream": True} | fields
        stream = await client.post("/v1/completions", json=body)
        assert await streamed(llm, PROMPTS[0], params) == joined(stream), fields


async def check_dialogue(client: httpx.AsyncClient, llm: LLM, name: str) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    body = {"model": name, "messages": turns, "temperature": 0, "max_tokens": 9}

    answer = (await client.post("/v1/chat/completions", json=body)).json()
    (output,) = llm.chat(turns, SamplingParams(temperature=0, max_tokens=9))

    assert output.outputs[0].text == answer["choices"][0]["message"]["content"]


async def check_numbers(client: httpx.AsyncClient, llm: LLM, name: str) -> None:
    contexts = ["Compute: 1 + 1", "Hello", "Compute: 1 + 1"]
    continuations = ["= 2", " world", "= 3"]
    body = {"model": name, "prompts": contexts, "continuations": continuations}
    over_http = (await client.post("/loglikelihood", json=body)).json()
    scores = llm.score(contexts, continuations)
    assert log_likelihoods(scores) == near(over_http["ll"])
    for score, num_tokens, is_greedy in zip(
        scores, over_http["num_tokens"], over_http["is_greedy"], strict=True
    ):
        assert score.num_tokens == num_tokens
        assert score.is_greedy == is_greedy

    # The first and the third context are equal, so that one context may stand for both.
    same = llm.score(contexts[0], ["= 2", "= 3"])
    assert log_likelihoods(same) == near(log_likelihoods([scores[0], scores[2]]))

    body = {"model": name, "prompts": contexts}
    rolling = (await client.post("/loglikelihood_rolling", json=body)).json()
    assert log_likelihoods(llm.score_rolling(contexts)) == near(rolling["ll"])

    body = {"model": name, "input": contexts}
    embeddings = (await client.post("/v1/embeddings", json=body)).json()["data"]
    for vector, expected in zip(llm.embed(contexts), embeddings, strict=True):
        assert vector == near(expected["embedding"])

    body = {"model": name, "prompt": "Hello"}
    tokens = (await client.post("/tokenize", json=body)).json()["tokens"]
    assert llm.tokenize("Hello") == tuple(tokens)


async def check_solution(client: httpx.AsyncClient, llm: LLM) -> None:
    body = {"model": "sudoku", "grid": GRID}
    answer = (await client.post("/v1/puzzles/solve", json=body)).json()["solutions"][0]

    (solution,) = llm.solve([GRID])

    cells = ""
    for row in solution.grid:
        for cell in row:
            cells += str(cell)
    assert cells == answer["grid"]
    assert solution.confidence == near(answer["confidence"])


async def test_answers_are_those_over_http(redis: Redis, tmp_path: Path) -> None:
    paths = {"sample": DEFAULT_MODEL, "llama": tmp_path / "llama", "sudoku": tmp_path / "sudoku"}
    write(llama, paths["llama"])
    paths["sudoku"].mkdir()
    write_checkpoint(
        paths["sudoku"], SUDOKU, filename="step_1", data_path="data/sudoku-extreme-1k-aug-1000"
    )
    entries = tuple(ModelEntry(id=name, path=str(path)) for name, path in paths.items())
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
                with LLM(paths[name], threads=1) as llm:
                    await check_texts(client, llm, name, CASES)
                    await check_numbers(client, llm, name)
                    if name == "sample":
                        await check_texts(client, llm, name, DEPTHS)
                        await check_dialogue(client, llm, name)
            with LLM(paths["sudoku"], threads=1) as llm:
                await check_solution(client, llm)
    finally:
        stop.set()
        await serving
