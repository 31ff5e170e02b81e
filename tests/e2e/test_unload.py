"""A real worker unloads a model over HTTP: its memory shrinks.

The next request has the model back.
"""

import asyncio
from pathlib import Path

import httpx
import psutil
import torch
from redis.asyncio import Redis
from transformers import GPT2Config, GPT2LMHeadModel

from scripts.train.special_tokens import byte_tokenizer
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.e2e.fleet import start_worker
from tests.fixtures.polling import DEADLINE_S, until

ADMIN = {"X-API-Key": "root"}
BODY = {"prompts": ["Hello", "Once upon a time"], "max_tokens": 6, "temperature": 0}
MIB = 2**20


async def test_a_worker_gives_its_memory_back_and_takes_it_again(
    redis_url: str, redis: Redis, tmp_path: object
) -> None:
    """D22, D92: the answer is the same before and after."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=264, n_positions=64, n_embd=512, n_layer=16, n_head=8)
    # 50 M parameters are 200 MB of weights.
    GPT2LMHeadModel(config).save_pretrained(str(tmp_path))
    byte_tokenizer().save_pretrained(str(tmp_path))
    flags = ("--threads", "1", "--device", "cpu")
    worker = await start_worker(redis_url, redis, *flags, model=f"big={tmp_path}")
    try:
        async with in_memory(redis, admin_keys="ops:root", require_key="no") as client:
            before = (await ask(client)).json()
            full = psutil.Process(worker.pid).memory_info().rss

            unloaded = await unload(client)
            # 202 says that the worker has not done it yet.
            async with asyncio.timeout(DEADLINE_S):
                while unloaded.status_code == 202:
                    unloaded = await unload(client)
            assert unloaded.json() == {
                "model_id": "big",
                "status": "unloaded",
                "workers": 1,
                "unloaded": 1,
            }
            process = psutil.Process(worker.pid)
            await until(
                lambda: process.memory_info().rss < full - 150 * MIB, "the memory is given back"
            )
            assert (await client.get("/api/models/status/big")).json()["status"] == "unloaded"
            assert (await ask(client)).json() == before
            await until(lambda: is_ready(client), "the fleet is told")
            await loses_its_files(client, worker.process, Path(str(tmp_path)), before)
    finally:
        await worker.end()


async def loses_its_files(
    client: httpx.AsyncClient, worker: asyncio.subprocess.Process, path: Path, before: object
) -> None:
    """A request for an unloaded model without files is refused with the reason.

    The worker lives, and the model comes back with its files.
    """
    await until(lambda: is_unloaded(client), "the model is unloaded")
    weights = path / "model.safetensors"
    weights.rename(path / "away")
    refused = await client.post("/generate", json=BODY, timeout=60)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "model_failed"
    await until(lambda: is_failed(client), "the fleet is told")
    refused = await client.post("/generate", json=BODY, timeout=60)
    assert refused.status_code == 503
    assert refused.headers["X-Reject-Reason"] == "model_failed"
    assert int(refused.headers["Retry-After"]) >= 1
    assert worker.returncode is None
    (path / "away").rename(weights)
    await until(lambda: is_ready(client), "the model is back by itself")
    assert (await ask(client)).json() == before


async def unload(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/api/models/unload/big", headers=ADMIN)


async def is_unloaded(client: httpx.AsyncClient) -> bool:
    return (await unload(client)).status_code == 200


async def is_failed(client: httpx.AsyncClient) -> bool:
    model = (await client.get("/api/models/status/big")).json()
    return bool(model["status"] == "failed" and "has no weights" in model["reason"])


async def is_ready(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/api/models/status/big")).json()["status"] == "ready")


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    answer = await client.post("/generate", json=BODY, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer
