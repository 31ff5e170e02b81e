"""A model whose path is a URL: its runner, and a worker that starts before the engine does."""

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from shared.settings.settings import ModelEntry, Settings, SettingsError, model_entries
from shared.shipped import REPO_ROOT
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.e2e.fleet import start_worker
from tests.fixtures.polling import until
from tests.fixtures.worker.upstreams import WORDS, proxy, stand_in
from worker.host.loading import load_known_models, load_models
from worker.runners.registry import detect

URL = "http://localhost:8001/v1"


def settings_of(url: str, *more: str) -> Settings:
    entries = [ModelEntry(id="m", path=url)]
    entries += [ModelEntry(id=name, path=name) for name in more]
    return Settings(models=tuple(entries), device="cpu")


def test_the_runner_of_a_url() -> None:
    assert detect(URL) == "proxy"
    assert ModelEntry.model_validate(f"base={URL}").runner == "proxy"
    [entry] = model_entries(Settings(model_path=URL))
    assert (entry.id, entry.path, entry.runner) == ("localhost", URL, "proxy")


def test_options_of_the_proxy_are_checked_before_anything_is_loaded() -> None:
    entry = ModelEntry(id="m", path=URL, options={"upstream": "x"})
    with pytest.raises(SettingsError, match="'upstream': there is none of that name"):
        load_models(Settings(models=(entry,)))


async def test_a_model_is_loaded_when_its_engine_answers() -> None:
    async with stand_in(
        models=[{"id": "big", "owned_by": "vllm", "max_model_len": 99}]
    ) as upstream:
        [model] = await asyncio.to_thread(load_models, settings_of(upstream.url))
        again = await asyncio.to_thread(model.again)
    info = model.info
    assert (info.runner, info.context_window, info.device, info.dtype) == ("proxy", 99, "", "")
    assert model.info.fingerprint == again.info.fingerprint != ""
    # Its trial was a request.
    assert [exchange.body["max_tokens"] for exchange in upstream.asked] == [1, 1]


def causal(tokens: list[str]) -> list[float | None]:
    return [None, *(-0.1 * place for place in range(1, len(tokens)))]


def bidirectional(tokens: list[str]) -> list[float | None]:
    """Return values that depend on how much comes later, as vLLM's do for an HRM-Text."""
    return [None, *(-1.0 * len(tokens) for _ in tokens[1:])]


def prefix_lm(tokens: list[str]) -> list[float | None]:
    return [None for _ in tokens]


@pytest.mark.parametrize(
    ("echo", "tasks"),
    [
        (None, ("generate",)),
        (prefix_lm, ("generate", "read")),
        (bidirectional, ("generate", "read")),
        (causal, ("generate", "score", "read")),
    ],
)
async def test_scores_are_offered_where_later_tokens_change_none(
    echo: Callable[[list[str]], list[float | None]] | None, tasks: tuple[str, ...]
) -> None:
    async with stand_in(echo=echo) as upstream:
        runner = await proxy(upstream.url)
    assert runner.spec.tasks == tasks


async def test_the_trial_of_an_engine_that_has_chats_alone_is_a_chat() -> None:
    async with stand_in(missing=("/v1/completions",)) as upstream:
        await asyncio.to_thread(load_models, settings_of(upstream.url))
        assert [exchange.path for exchange in upstream.asked] == ["/v1/chat/completions"]


async def test_a_model_of_an_engine_that_is_away_is_left_unloaded() -> None:
    async with stand_in() as upstream:
        url = upstream.url
    reason = f"model 'm': No engine answers at {url}"
    for others in ((), ("echo",)):
        settings = settings_of(url, *others)
        models, unloaded = await asyncio.to_thread(load_known_models, settings, {})
        assert [model.info.id for model in models] == list(others)
        assert [model.info.id for model in unloaded] == ["m"]
        assert unloaded[0].reason.startswith(reason)
        with pytest.raises(SettingsError, match=reason):
            await asyncio.to_thread(load_models, settings)


async def test_a_worker_waits_for_an_engine_that_starts_later(redis: Redis, redis_url: str) -> None:
    async with stand_in() as upstream:
        port = upstream.port
        url = upstream.url
    worker = await start_worker(redis_url, redis, model=f"m={url}")
    try:

        async def is_failed() -> bool:
            failure = (await Presence(redis).fleet()).failure("m")
            if failure is None:
                return False
            # The address is not told to callers.
            assert failure.reason.startswith("No engine answers at its URL: no connection")
            assert "127.0.0.1" not in failure.reason
            return True

        async def is_served() -> bool:
            return not await is_failed()

        await until(is_failed, "the model is shown as failed")
        async with stand_in(port), in_memory(redis) as client:
            await until(is_served, "the model is loaded")
            answer = await client.post("/v1/completions", json={"prompt": "Count"})
            assert answer.json()["choices"][0]["text"] == "".join(WORDS)
    finally:
        await worker.end()


async def test_a_process_that_serves_proxies_alone_loads_no_torch() -> None:
    program = """
import sys
from shared.settings.settings import ModelEntry, Settings
from worker.host.loading import load_models
load_models(Settings(models=(ModelEntry(id="m", path=sys.argv[1]),)))
import worker.host.service
sys.exit("torch" in sys.modules)
"""
    async with stand_in() as upstream:
        command = [sys.executable, "-c", program, upstream.url]
        result = await asyncio.to_thread(
            subprocess.run, command, cwd=REPO_ROOT, capture_output=True, text=True, check=False
        )
    assert result.returncode == 0, result.stderr
