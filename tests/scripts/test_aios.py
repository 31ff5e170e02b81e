"""The `aios` command: what it accepts, and what it hands to the processes it starts."""

import asyncio
import os
import socket
from pathlib import Path

import pytest
from redis.asyncio import Redis

from scripts.cli import aios
from scripts.cli.aios import bindable_port, callers_need_key, fleet_roles, main, ready_line
from scripts.cli.embedded_redis import EmbeddedRedis
from scripts.cli.supervisor import Supervisor
from shared.access import Grant, Keyring
from shared.fleet.presence import Fleet
from shared.messages import ModelInfo, TaskName
from shared.queue.broker import Broker
from shared.settings.command_line import tell_of_variables
from shared.settings.settings import ModelEntry, Settings, SettingsError, resolve
from tests.fixtures.polling import until


@pytest.mark.parametrize("argv", [[], ["serve"], ["serve", "other"], ["nonsense"]])
def test_anything_unknown_gets_the_usage(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert "aios serve hrm" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert (main(["--help"]), main(["--version"]), main(["-V"])) == (0, 0, 0)
    assert "aios worker" in capsys.readouterr().out


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
    monkeypatch.setenv("FORCE_DEVICE", "cuda")  # must not reach a child that is told cpu
    settings = Settings(
        device="cpu", workers=3, threads=2, models=(ModelEntry(id="a", path="echo"),)
    )
    api, worker, jobs = fleet_roles(
        settings, [{"AIOS_WORKER_CORES": str(copy)} for copy in range(3)]
    )
    assert [(role.name, len(role.copies), role.argv[-1]) for role in (api, worker, jobs)] == [
        ("api", 1, "api"),
        ("worker", 3, "worker"),
        ("jobs", 1, "scripts.cli.jobs"),
    ]
    for role in (api, worker, jobs):
        for copy in role.copies:
            assert (
                resolve({}, {**role.env, **copy}, Path(role.env["AIOS_CONFIG"])).settings
                == settings
            )


def test_each_process_has_a_port_of_its_own_for_metrics() -> None:
    settings = Settings(worker_port=9090, metrics_port=8001)
    api, worker, jobs = fleet_roles(settings, [{"A": "b"}, {}])
    assert worker.copies == [{"A": "b", "AIOS_WORKER_PORT": "9090"}, {"AIOS_WORKER_PORT": "9091"}]
    assert [role.env["AIOS_METRICS_PORT"] for role in (api, worker, jobs)] == [
        "8001",
        "none",
        "none",
    ]
    _, free, _ = fleet_roles(Settings(worker_port=0), [{}, {}])
    assert (free.env["AIOS_WORKER_PORT"], free.copies) == ("0", [{}, {}])


class MortalRedis(EmbeddedRedis):
    """Dies whenever it is looked at, `times` in all."""

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
    """Deaths count that come within `lives_s` of a start."""
    monkeypatch.setattr(aios, "REDIS_CHECK_S", 0.001)
    monkeypatch.setattr(aios, "REDIS_LIVES_S", lives_s)
    supervisor = Supervisor([])
    redis = MortalRedis(deaths)
    watching = asyncio.create_task(aios.watch_redis(redis, supervisor))
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
    assert "/generate" in line and "Authorization" not in line
    assert ready_line(settings, ready_fleet("embed"), needs_key=False).endswith(
        "try: curl -s http://127.0.0.1:8123/v1/models"
    )
    line = ready_line(Settings(host="::", port=1), ready_fleet(), needs_key=False)
    assert line.startswith("ready at http://[::1]:1 ")


async def test_the_ready_line_says_that_a_key_is_needed_and_never_which() -> None:
    settings = resolve({}, {"API_KEYS": "hush-1"}, None).settings
    line = ready_line(settings, ready_fleet("generate"), needs_key=await callers_need_key(settings))
    assert "-H 'Authorization: Bearer YOUR-KEY'" in line and "hush" not in line


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
    own = fleet_roles(settings, [{}], redis_ends=True)
    assert [role.env.get("AIOS_REDIS_ENDS_WITH_FLEET") for role in own] == ["1", None, None]
    assert [role.env["AIOS_DRAIN_TIMEOUT_S"] for role in own] == ["30.0", "1.0", "1.0"]
    assert [role.grace_s for role in own] == [40, 11, 11]
    others = fleet_roles(settings, [{}])
    assert not any("AIOS_REDIS_ENDS_WITH_FLEET" in role.env for role in others)
    assert [role.grace_s for role in others] == [40, 40, 40]


def test_only_the_front_is_given_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "hush-1")
    settings = resolve({}, {"API_KEYS": "hush-1", "AIOS_ADMIN_KEYS": "hush-2"}, None).settings
    api, *others = fleet_roles(settings, [{}])
    assert [api.env[name] for name in ("AIOS_API_KEYS", "AIOS_ADMIN_KEYS")] == ["hush-1", "hush-2"]
    assert not any("hush" in str(role.env) for role in others)


def test_a_fleets_ports_are_looked_at_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name in ("port", "metrics_port", "worker_port"):
            values = {"host": "127.0.0.1", "port": 0} | {name: port}
            with pytest.raises(
                SettingsError, match=f"^{name}: cannot listen on 127.0.0.1 port {port}: "
            ):
                bindable_port(Settings(**values))
    free = bindable_port(Settings(host="127.0.0.1", port=0))
    assert bindable_port(Settings(host="127.0.0.1", port=free)) == free


def test_ports_of_one_fleet_must_differ() -> None:
    free = bindable_port(Settings(host="127.0.0.1", port=0))
    with pytest.raises(SettingsError, match=r"^metrics_port: cannot listen"):
        bindable_port(Settings(host="127.0.0.1", port=free, metrics_port=free))
    with pytest.raises(
        SettingsError, match=r"^worker_port: 2 workers have the ports 65535 and up, beyond 65535"
    ):
        bindable_port(Settings(host="127.0.0.1", port=0, worker_port=65_535), workers=2)


def test_a_child_tells_of_a_setting_as_its_parent_had_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PORT", "8123")
    settings = resolve({"device": "cpu"}, {"PORT": "8123"}, None).settings
    _, worker, _ = fleet_roles(settings, [{}])
    child = resolve({}, worker.env, Path(os.devnull)).settings
    assert [child.origin(name) for name in ("port", "device", "host")] == [
        "PORT",
        "--device",
        "default",
    ]
    with caplog.at_level("INFO"):
        tell_of_variables(settings)
        assert caplog.records[0].fields == {"variables": {"PORT": "8123"}}  # type: ignore[attr-defined]
        monkeypatch.delenv("PORT")  # as for a child
        tell_of_variables(child)
    assert len(caplog.records) == 1


def test_a_misspelt_variable_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIOS_MAX_BATCH", "4")
    monkeypatch.setenv("AIOS_APIKEYS", "secret")
    tell_of_variables(Settings())
    assert [(record.levelname, record.fields) for record in caplog.records] == [  # type: ignore[attr-defined]
        ("WARNING", {"variable": "AIOS_MAX_BATCH", "nearest": "AIOS_MAX_BATCH_SIZE"}),
        ("WARNING", {"variable": "AIOS_APIKEYS", "nearest": "AIOS_API_KEYS"}),
    ]
    _, worker, _ = fleet_roles(Settings(), [{"AIOS_WORKER_CORES": "0"}])
    monkeypatch.setattr("os.environ", {**os.environ, **worker.env, **worker.copies[0]})
    tell_of_variables(Settings())
    assert len(caplog.records) == 2, "a child says nothing again, and knows what its parent gave it"
