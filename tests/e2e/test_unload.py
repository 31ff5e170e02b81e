"""Unloading over HTTP from real worker processes: their memory shrinks, and the next request has
the model back."""

import asyncio
from pathlib import Path

import httpx
import psutil
import torch
from redis.asyncio import Redis
from transformers import GPT2Config, GPT2LMHeadModel

from scripts.train.train_sample import byte_tokenizer
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.e2e.fleet import start_worker
from tests.fixtures.polling import DEADLINE_S, until

ADMIN = {"X-API-Key": "root"}
ASK = {"prompts": ["Hello", "Once upon a time"], "max_tokens": 6, "temperature": 0}
MIB = 2**20


async def test_a_worker_gives_its_memory_back_and_takes_it_again(
    redis_url: str, redis: Redis, tmp_path: object
) -> None:
    """D22 and D92: the same answer before and after."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=264, n_positions=64, n_embd=512, n_layer=16, n_head=8)
    GPT2LMHeadModel(config).save_pretrained(str(tmp_path))  # 50 M parameters: 200 MB of weights
    byte_tokenizer().save_pretrained(str(tmp_path))
    worker = await start_worker(
        redis_url, redis, "--threads", "1", "--device", "cpu", model=f"big={tmp_path}"
    )
    try:
        async with in_memory(redis, admin_keys="ops:root", require_key="no") as client:
            before = (await ask(client)).json()
            full = psutil.Process(worker.pid).memory_info().rss
            async with asyncio.timeout(DEADLINE_S):
                while (
                    told := await client.post("/api/models/unload/big", headers=ADMIN)
                ).status_code == 202:
                    continue
            assert told.json() == {
                "model_id": "big",
                "status": "unloaded",
                "workers": 1,
                "unloaded": 1,
            }
            assert psutil.Process(worker.pid).memory_info().rss < full - 150 * MIB
            assert (await client.get("/api/models/status/big")).json()["status"] == "unloaded"
            assert (await ask(client)).json() == before
            await until(lambda: is_ready(client), "the fleet is told")
            await loses_its_files(client, worker.process, Path(str(tmp_path)), before)
    finally:
        await worker.end()


async def loses_its_files(
    client: httpx.AsyncClient, worker: asyncio.subprocess.Process, path: Path, before: object
) -> None:
    """A request for an unloaded model without files is told why, the worker lives, and the model
    comes back."""
    await until(lambda: is_unloaded(client), "the model is unloaded")
    weights = path / "model.safetensors"
    weights.rename(path / "away")
    refused = await client.post("/generate", json=ASK, timeout=60)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "model_failed"
    await until(lambda: is_failed(client), "the fleet is told")
    refused = await client.post("/generate", json=ASK, timeout=60)
    assert (refused.status_code, refused.headers["X-Reject-Reason"]) == (503, "model_failed")
    assert int(refused.headers["Retry-After"]) >= 1
    assert worker.returncode is None
    (path / "away").rename(weights)
    await until(lambda: is_ready(client), "the model is back by itself")
    assert (await ask(client)).json() == before


async def is_unloaded(client: httpx.AsyncClient) -> bool:
    return (await client.post("/api/models/unload/big", headers=ADMIN)).status_code == 200


async def is_failed(client: httpx.AsyncClient) -> bool:
    told = (await client.get("/api/models/status/big")).json()
    return bool(told["status"] == "failed" and "has no weights" in told["reason"])


async def is_ready(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/api/models/status/big")).json()["status"] == "ready")


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    answer = await client.post("/generate", json=ASK, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer
