"""`aios keys` creates and revokes keys while fronts run, without a restart."""

import asyncio

import httpx
import openai
import pytest
from redis.asyncio import Redis

from tests.fixtures.e2e.aios_keys import aios_keys
from tests.fixtures.e2e.fleet import front, start_worker


async def test_keys_are_made_used_and_revoked_while_the_fleet_runs(
    redis_url: str, redis: Redis
) -> None:
    flags = ("--require-key", "yes")
    async with (
        front(redis_url, *flags) as first,
        front(redis_url, *flags) as second,
        httpx.AsyncClient(timeout=60) as http,
    ):
        worker = await start_worker(redis_url, redis)
        try:
            await first.ready()
            await second.ready()
            assert (await http.get(f"{first.url}/healthz")).status_code == 200

            # Both at once: one create does not undo the other.
            ann_key, bob_key = await asyncio.gather(
                aios_keys(redis_url, "create", "ann"), aios_keys(redis_url, "create", "bob")
            )
            ann = openai.AsyncOpenAI(base_url=f"{first.url}/v1", api_key=ann_key)
            bob = openai.AsyncOpenAI(base_url=f"{first.url}/v1", api_key=bob_key)
            answer = await ann.completions.create(model="local", prompt="abc", max_tokens=6)
            assert answer.choices[0].text == "abcabc"

            job_url = f"{second.url}/v1/jobs/{answer.id.removeprefix('cmpl-')}"
            for headers, status in (
                ({"X-API-Key": ann_key}, 200),
                ({"X-API-Key": bob_key}, 404),
                ({}, 401),
            ):
                assert (await http.get(job_url, headers=headers)).status_code == status

            ids = {}
            for line in (await aios_keys(redis_url, "list")).splitlines():
                key_id, name, *_ = line.split()
                ids[name] = key_id
            await aios_keys(redis_url, "revoke", ids["ann"])
            for url in (first.url, second.url):
                with pytest.raises(openai.AuthenticationError):
                    await ann.with_options(base_url=f"{url}/v1").models.list()
                assert (await bob.with_options(base_url=f"{url}/v1").models.list()).data
        finally:
            await worker.end()
