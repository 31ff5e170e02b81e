"""The `aios` command: its arguments, and the settings of the processes that it starts."""

import asyncio
import os
import socket
from pathlib import Path

import pytest
from redis.asyncio import Redis

from scripts.cli import serve
from scripts.cli.aios import main
from scripts.cli.embedded_redis import EmbeddedRedis
from scripts.cli.serve import (
    bindable_port,
    callers_need_key,
    fleet_roles,
    has_all_models,
    ready_line,
    watch_redis,
)
from scripts.cli.supervisor import Supervisor
from shared.access import Grant, Keyring
from shared.fleet.presence import Fleet
from shared.messages import ModelInfo, TaskName, WorkerInfo
from shared.queue.broker import Broker
from shared.settings.command_line import tell_of_variables
from shared.settings.settings import ModelEntry, Settings, SettingsError, resolve
from tests.fixtures.polling import until


@pytest.mark.parametrize("argv", [[], ["serve"]])
def test_no_command_gets_the_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert "aios serve hrm" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert main(["-V"]) == 0
    assert "one worker (needs --redis-url)" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["serve", "hrm"], ["api"], ["worker"]])
def test_every_command_prints_its_configuration(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--print_config", "--max-batch-size", "3"]) == 0
    assert "--max-batch-size" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["api"], ["worker"]])
def test_a_role_alone_needs_a_redis(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOS_REDIS_URL", raising=False)
    assert main(command) == 2
    assert "redis_url" in capsys.readouterr().err


def test_children_resolve_to_the_parents_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    # The variable must not reach a child whose settings say cpu.
    monkeypatch.setenv("FORCE_DEVICE", "cuda")
    settings = Settings(
        device="cpu", workers=3, threads=2, models=(ModelEntry(id="a", path="echo"),)
    )
    copies = [{"AIOS_WORKER_CORES": "0"}, {"AIOS_WORKER_CORES": "1"}, {"AIOS_WORKER_CORES": "2"}]

    api, worker, jobs = fleet_roles(settings, copies)

    assert (api.name, len(api.copies), api.argv[-1]) == ("api", 1, "api")
    assert (worker.name, len(worker.copies), worker.argv[-1]) == ("worker", 3, "worker")
    assert (jobs.name, len(jobs.copies), jobs.argv[-1]) == ("jobs", 1, "scripts.cli.jobs")
    for role in (api, worker, jobs):
        config = Path(role.env["AIOS_CONFIG"])
        for copy in role.copies:
            assert resolve({}, {**role.env, **copy}, config).settings == settings


def test_each_process_has_a_port_of_its_own_for_metrics() -> None:
    settings = Settings(worker_port=9090, metrics_port=8001)

    api, worker, jobs = fleet_roles(settings, [{"A": "b"}, {}])

    assert worker.copies == [{"A": "b", "AIOS_WORKER_PORT": "9090"}, {"AIOS_WORKER_PORT": "9091"}]
    assert api.env["AIOS_METRICS_PORT"] == "8001"
    assert worker.env["AIOS_METRICS_PORT"] == "none"
    assert jobs.env["AIOS_METRICS_PORT"] == "none"

    # Port 0 is any free port, so each copy may have the same setting.
    _, worker, _ = fleet_roles(Settings(worker_port=0), [{}, {}])
    assert worker.env["AIOS_WORKER_PORT"] == "0"
    assert worker.copies == [{}, {}]


class MortalRedis(EmbeddedRedis):
    """A Redis that dies at each check, `times` in all."""

    pid = 1  # type: ignore[assignment]

    def __init__(self, times: int) -> None:
        self.times = times

    def revive(self) -> bool:
        self.times -= 1
        return self.times >= 0


@pytest.mark.parametrize(
    ("deaths", "lives_s", "status"), [(4, 10.0, 0), (5, 10.0, 1), (50, 0.0, 0)]
)
async def test_a_redis_that_dies_again_and_again_ends_the_fleet(
    deaths: int, lives_s: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deaths count when they come within `lives_s` of a start."""
    monkeypatch.setattr(serve, "REDIS_CHECK_S", 0.001)
    monkeypatch.setattr(serve, "REDIS_LIVES_S", lives_s)
    supervisor = Supervisor([])
    redis = MortalRedis(deaths)
    watching = asyncio.create_task(watch_redis(redis, supervisor))
    await until(lambda: redis.times < 0 or watching.done(), "it has died so often")
    await asyncio.sleep(0)
    assert watching.done() == (status == 1)
    watching.cancel()
    supervisor.stop()
    assert await supervisor.run() == status


def ready_fleet(*tasks: TaskName) -> Fleet:
    model = ModelInfo("m", "causal", "for tests", 512, 256, 8, tasks, is_default=True)
    return Fleet((), {"m": model})


def test_the_ready_line_has_what_to_type_next() -> None:
    settings = Settings(host="0.0.0.0", port=8123)
    line = ready_line(settings, ready_fleet("generate"), needs_key=False)
    assert line.startswith(
        "ready at http://127.0.0.1:8123  model: m  docs: http://127.0.0.1:8123/docs  try: curl -s "
    )
    assert "/generate" in line
    assert "Authorization" not in line

    line = ready_line(settings, ready_fleet("embed"), needs_key=False)
    assert line.endswith("try: curl -s http://127.0.0.1:8123/v1/models")

    line = ready_line(Settings(host="::", port=1), ready_fleet(), needs_key=False)
    assert line.startswith("ready at http://[::1]:1 ")


def test_a_fleet_of_several_pools_is_ready_when_each_model_has_a_worker() -> None:
    """Else a request that names no model would get that of the pool that is ready first."""
    served = ready_fleet("generate").models["m"]
    fleet = Fleet((WorkerInfo("w1", "ready", (served,)),), {"m": served})
    mine = ModelEntry(id="m", path="echo")
    other = ModelEntry(id="other", path="echo")
    on_gpu = other.model_copy(update={"gpu_required": True})

    assert has_all_models(Settings(models=(mine, other)), fleet), "all workers serve all models"
    assert not has_all_models(Settings(models=(mine, other), image_workers=1), fleet)
    assert not has_all_models(Settings(models=(mine, other), audio_workers=1), fleet)
    assert has_all_models(Settings(models=(mine,), image_workers=1), fleet)
    assert has_all_models(Settings(models=(mine, on_gpu), image_workers=1), fleet)


async def test_the_ready_line_says_that_a_key_is_needed_and_never_which() -> None:
    settings = resolve({}, {"API_KEYS": "hush-1"}, None).settings
    needs_key = await callers_need_key(settings)

    line = ready_line(settings, ready_fleet("generate"), needs_key=needs_key)

    assert "-H 'Authorization: Bearer YOUR-KEY'" in line
    assert "hush" not in line


async def test_a_key_is_needed_once_one_was_made_in_a_redis_that_is_not_the_fleets_own(
    redis: Redis, redis_url: str
) -> None:
    settings = Settings(redis_url=redis_url)
    assert not await callers_need_key(settings)
    await Keyring(Broker(redis)).create(Grant("ann", "ann"))
    assert await callers_need_key(settings)
    assert not await callers_need_key(settings.model_copy(update={"require_key": "no"}))


def test_only_a_front_whose_redis_ends_with_it_finishes_what_is_in_flight() -> None:
    settings = Settings(drain_timeout_s=30)

    # Batches add nothing to what is in flight.
    jobs, api, worker = fleet_roles(settings, [{}], redis_ends=True)
    assert api.env["AIOS_REDIS_ENDS_WITH_FLEET"] == "1"
    assert api.env["AIOS_DRAIN_TIMEOUT_S"] == "30.0"
    assert api.grace_s == 40
    for role in (worker, jobs):
        assert "AIOS_REDIS_ENDS_WITH_FLEET" not in role.env
        assert role.env["AIOS_DRAIN_TIMEOUT_S"] == "1.0"
        assert role.grace_s == 11

    for role in fleet_roles(settings, [{}]):
        assert "AIOS_REDIS_ENDS_WITH_FLEET" not in role.env
        assert role.grace_s == 40


def test_only_the_front_is_given_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "hush-1")
    settings = resolve({}, {"API_KEYS": "hush-1", "AIOS_ADMIN_KEYS": "hush-2"}, None).settings

    api, worker, jobs = fleet_roles(settings, [{}])

    assert api.env["AIOS_API_KEYS"] == "hush-1"
    assert api.env["AIOS_ADMIN_KEYS"] == "hush-2"
    assert "hush" not in str(worker.env)
    assert "hush" not in str(jobs.env)


def test_a_fleets_ports_are_looked_at_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name in ("port", "metrics_port", "worker_port"):
            values = {"host": "127.0.0.1", "port": 0} | {name: port}
            sentence = f"^{name}: cannot listen on 127.0.0.1 port {port}: "
            with pytest.raises(SettingsError, match=sentence):
                bindable_port(Settings(**values))

    free = bindable_port(Settings(host="127.0.0.1", port=0))
    assert bindable_port(Settings(host="127.0.0.1", port=free)) == free


def test_ports_of_one_fleet_must_differ() -> None:
    free = bindable_port(Settings(host="127.0.0.1", port=0))
    with pytest.raises(SettingsError, match=r"^metrics_port: cannot listen"):
        bindable_port(Settings(host="127.0.0.1", port=free, metrics_port=free))
    beyond = r"^worker_port: 2 workers have the ports 65535 and up, beyond 65535"
    with pytest.raises(SettingsError, match=beyond):
        bindable_port(Settings(host="127.0.0.1", port=0, worker_port=65_535), workers=2)


def test_a_child_tells_of_a_setting_as_its_parent_had_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PORT", "8123")
    settings = resolve({"device": "cpu"}, {"PORT": "8123"}, None).settings
    _, worker, _ = fleet_roles(settings, [{}])

    child = resolve({}, worker.env, Path(os.devnull)).settings

    assert child.origin("port") == "PORT"
    assert child.origin("device") == "--device"
    assert child.origin("host") == "default"
    with caplog.at_level("INFO"):
        tell_of_variables(settings)
        assert caplog.records[0].fields == {"variables": {"PORT": "8123"}}  # type: ignore[attr-defined]
        # A child has no such variable: its value comes with the settings.
        monkeypatch.delenv("PORT")
        tell_of_variables(child)
    assert len(caplog.records) == 1


def test_a_misspelt_variable_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIOS_MAX_BATCH", "4")
    monkeypatch.setenv("AIOS_APIKEYS", "secret")
    tell_of_variables(Settings())

    batch, keys = caplog.records
    assert batch.levelname == "WARNING"
    assert batch.fields == {"variable": "AIOS_MAX_BATCH", "nearest": "AIOS_MAX_BATCH_SIZE"}  # type: ignore[attr-defined]
    assert keys.levelname == "WARNING"
    assert keys.fields == {"variable": "AIOS_APIKEYS", "nearest": "AIOS_API_KEYS"}  # type: ignore[attr-defined]

    _, worker, _ = fleet_roles(Settings(), [{"AIOS_WORKER_CORES": "0"}])
    monkeypatch.setattr("os.environ", {**os.environ, **worker.env, **worker.copies[0]})
    tell_of_variables(Settings())
    assert len(caplog.records) == 2, "a child says nothing again, and knows what its parent gave it"
