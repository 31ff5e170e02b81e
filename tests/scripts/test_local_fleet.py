"""Tools find the fleets of this machine, for their owner alone and only while they live."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.cli.local_fleet import (
    LocalFleet,
    announced,
    choose_fleet,
    running_fleets,
    with_local_fleet,
)
from shared.settings.settings import Settings, SettingsError
from tests.fixtures.polling import wait_until

HOLDER = """
import sys
from scripts.cli.local_fleet import LocalFleet, announced
redis_url = "redis://:s3cret@127.0.0.1:1/0"
with announced(LocalFleet(1, 8001, "http://127.0.0.1:8001", redis_url, 1, True)):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the files; the tools look in no other."""
    monkeypatch.delenv("AIOS_RUN_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "run").mkdir(mode=0o700)
    return tmp_path / "run" / "aios"


def fleet(port: int = 8000) -> LocalFleet:
    url = f"http://127.0.0.1:{port}"
    return LocalFleet(
        os.getpid(), port, url, f"redis://:s3cret@127.0.0.1:{port}/0", 1, has_open_metrics=True
    )


def test_a_fleet_is_found_while_it_runs_and_its_password_is_its_owners(folder: Path) -> None:
    with announced(fleet()):
        assert running_fleets() == [fleet()]
        assert running_fleets() == [fleet()], "looking at it changes nothing"
        (file,) = folder.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert running_fleets() == []
    assert list(folder.iterdir()) == []


def test_what_is_no_file_is_passed_over(folder: Path) -> None:
    """A tool opens no pipe, which would block it for ever."""
    folder.mkdir(mode=0o700)
    os.mkfifo(folder / "pipe.fleet.json")
    (folder / "folder.fleet.json").mkdir()
    with announced(fleet()):
        assert running_fleets() == [fleet()]


@pytest.mark.parametrize("lost", ["XDG_RUNTIME_DIR", "XDG_STATE_HOME"])
def test_it_is_found_from_a_shell_without_a_session(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next folder serves if one cannot be used, as in a container."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(lost, str(tmp_path / "file" / "none"))
    with announced(fleet()):
        assert running_fleets() == [fleet()]


def test_a_user_without_a_home_needs_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user whom the system does not know needs no variable either."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    with announced(fleet()):
        assert running_fleets() == [fleet()]
        (file,) = tmp_path.glob("aios-*/*")
        assert file.parent == tmp_path / f"aios-{os.getuid()}"


def test_without_any_folder_the_fleet_runs_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIOS_RUN_DIR", str(tmp_path / "file" / "none"))
    with announced(fleet()):
        assert running_fleets() == []
    assert "fleet not found by tools" in caplog.messages


def test_a_killed_fleet_is_not_found_although_its_process_id_is_taken_again(folder: Path) -> None:
    """A file belongs to the process that holds it open, not to its process id.

    Here it names process 1, which always runs.
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    with holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "held\n"
            (running,) = running_fleets()
            assert running.port == 8001
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
        assert len(list(folder.iterdir())) == 1, "it could not clean up"
        wait_until(lambda: running_fleets() == [], "it is no longer found")
        assert list(folder.iterdir()) == [], "and was cleaned up"


def test_a_folder_or_a_file_of_somebody_else_is_not_believed(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    with announced(fleet()):
        (folder / "9-other.fleet.json").write_text(json.dumps({"pid": 9}))
        (folder / "8-broken.fleet.json").write_text("{")
        assert running_fleets() == [fleet()]
        folder.chmod(0o755)
        assert running_fleets() == [], "others might have put it there"
        folder.chmod(0o700)


def test_one_of_several_is_chosen_by_its_port() -> None:
    with announced(fleet(8000)), announced(fleet(9000)):
        assert choose_fleet(9000) == fleet(9000)
        several = r"several.*127.0.0.1:8000 .*127.0.0.1:9000 .*--port"
        with pytest.raises(SettingsError, match=several):
            choose_fleet()
        with pytest.raises(SettingsError, match=r"port: no fleet with port 1 .*127.0.0.1:8000 "):
            choose_fleet(1)


def test_a_redis_that_is_named_wins() -> None:
    named = Settings(redis_url="redis://elsewhere")
    with announced(fleet()):
        assert with_local_fleet(named) == (named, None)
        settings, local = with_local_fleet(Settings())
        assert settings.redis_url == fleet().redis_url
        assert local == fleet()
        with pytest.raises(SettingsError, match="port: chooses a fleet"):
            with_local_fleet(named, 8000)

    none = r"redis_url: .*no `aios serve hrm` of this user runs here"
    with pytest.raises(SettingsError, match=none):
        with_local_fleet(Settings())


def test_its_password_is_not_told_when_one_is_to_be_chosen() -> None:
    with announced(fleet(8000)), announced(fleet(9000)), pytest.raises(SettingsError) as error:
        choose_fleet()
    assert "s3cret" not in str(error.value)
