"""The supervisor runs tiny shell commands.

It restarts them, ends on bad settings and stops them in order.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.cli.supervisor import Backoff, Role, Supervisor, status_in_words
from tests.fixtures.polling import DEADLINE_S, is_running, until, wait_until

QUICK = Backoff(first_s=0.01, longest_s=0.05)
LIVES = (
    'trap \'echo "down {name} $$" >> "$LOG"; exit 0\' TERM; echo "up {name} $$" >> "$LOG"; '
    "while :; do sleep 0.02; done"
)
READY = 'echo ready > "/proc/self/fd/$AIOS_REPORT_FD"; '
DEAF = 'trap "" TERM; echo "up deaf $$" >> "$LOG"; while :; do sleep 0.02; done'
MAIN = """
import asyncio, signal, sys
from scripts.cli import supervisor
from scripts.cli.supervisor import Role, Supervisor
supervisor._SAME_SIGNAL_S = float(sys.argv[2])
# A test run in the background ignores these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
env = {"PATH": "/usr/bin:/bin", "LOG": sys.argv[1]}
roles = []
for name, script in zip(sys.argv[3::2], sys.argv[4::2]):
    roles.append(Role(name, ["sh", "-c", script], env, grace_s=600))
sys.exit(asyncio.run(Supervisor(roles).run()))
"""


class Fleet:
    """Stand-in roles that write their events into a file, one line each."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "log"
        self.log.touch()
        self.supervisors: list[subprocess.Popen[bytes]] = []

    def role(self, name: str, script: str = LIVES, count: int = 1, grace_s: float = 10.0) -> Role:
        argv = ("sh", "-c", script.replace("{name}", name))
        return Role(name, argv, os.environ | {"LOG": str(self.log)}, [{}] * count, grace_s=grace_s)

    def let_go(self) -> None:
        """Make the file `$LOG.go`, for which a role may wait."""
        Path(f"{self.log}.go").touch()

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()]

    def with_words(self, *words: str) -> list[list[str]]:
        """Return the lines that begin with these words."""
        return [line for line in self.lines() if line[: len(words)] == list(words)]

    def count(self, *words: str) -> int:
        return len(self.with_words(*words))

    def saw(self, *words: str, times: int = 1) -> bool:
        return self.count(*words) >= times

    def pids(self, *names: str) -> list[int]:
        """Return the process ids of the roles, or of one."""
        return [int(line[2]) for line in self.with_words("up", *names)]

    def all_ended(self) -> bool:
        return not any(is_running(pid) for pid in self.pids())


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    for process in fleet.supervisors:
        # The children end with their parent.
        process.kill()
        process.wait()


async def test_a_child_that_dies_is_restarted(fleet: Fleet) -> None:
    roles = [fleet.role("api"), fleet.role("worker", READY + LIVES, count=2)]
    supervisor = Supervisor(roles, QUICK)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: fleet.saw("up", "worker", times=2) and fleet.saw("up", "api"), "all are up")
    os.kill(fleet.pids("worker")[0], signal.SIGKILL)
    await until(lambda: fleet.saw("up", "worker", times=3), "a third worker has started")
    supervisor.stop()
    assert await running == 0
    assert fleet.all_ended()
    assert len(fleet.pids()) == 4


async def test_the_first_copy_starts_alone(fleet: Fleet) -> None:
    """The others start when it is ready."""
    waits = 'echo "begun $$" >> "$LOG"; while [ ! -e "$LOG.go" ]; do sleep 0.02; done; '
    script = waits + 'echo "ready $$" >> "$LOG"; ' + READY + LIVES
    supervisor = Supervisor([fleet.role("worker", script, count=3)], QUICK)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: fleet.saw("begun"), "the first copy has begun")
    fleet.let_go()
    await until(lambda: fleet.saw("up", "worker", times=3), "all copies are up")
    supervisor.stop()
    assert await running == 0
    words = [line[0] for line in fleet.lines()]
    assert words[:2] == ["begun", "ready"]


async def test_others_start_when_the_first_copy_ends(fleet: Fleet) -> None:
    script = 'echo "begun $$" >> "$LOG"; exit 1'
    supervisor = Supervisor([fleet.role("worker", script, count=2)], Backoff(600.0, 600.0))
    running = asyncio.create_task(supervisor.run())
    await until(lambda: fleet.saw("begun", times=2), "both copies have begun")
    supervisor.stop()
    assert await running == 0


async def test_each_copy_has_its_own_environment_and_keeps_it(fleet: Fleet) -> None:
    script = (
        READY + 'echo "at $PLACE $$" >> "$LOG"; [ "$PLACE" = 1 ] || while :; do sleep 0.02; done'
    )
    role = Role(
        "worker",
        ("sh", "-c", script),
        os.environ | {"LOG": str(fleet.log)},
        [{"PLACE": "0"}, {"PLACE": "1"}],
    )
    supervisor = Supervisor([role], QUICK)
    running = asyncio.create_task(supervisor.run())
    await until(
        lambda: fleet.saw("at", "1", times=3) and fleet.saw("at", "0"),
        "copy 1 was started three times",
    )
    supervisor.stop()
    assert await running == 0
    assert fleet.count("at", "0") == 1


async def test_a_clean_exit_that_nobody_asked_for_is_a_death_too(fleet: Fleet) -> None:
    supervisor = Supervisor([fleet.role("short", READY + 'echo "up short $$" >> "$LOG"')], QUICK)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: fleet.saw("up", times=3), "it has run three times")
    supervisor.stop()
    assert await running == 0


async def test_bad_settings_stop_everyone_with_that_status(fleet: Fleet) -> None:
    wait_for_api = (
        'until grep -q "up api" "$LOG"; do sleep 0.01; done; echo "up worker $$" >> "$LOG"; exit 2'
    )
    supervisor = Supervisor([fleet.role("api"), fleet.role("worker", wait_for_api)], QUICK)
    assert await supervisor.run() == 2
    assert fleet.saw("down", "api")
    assert fleet.all_ended()
    assert fleet.count("up", "worker") == 1


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, object]]:
    return [record.__dict__["fields"] for record in caplog.records if record.getMessage() == name]


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        ('echo "up bad $$" >> "$LOG"; exit 1', 1, "exit status 1"),
        ('echo "up bad $$" >> "$LOG"; kill -9 $$', -9, "killed by SIGKILL (out of memory?)"),
        (
            (
                'echo "up bad $$" >> "$LOG"; echo "OSError: no such model" > '
                '"/proc/self/fd/$AIOS_REPORT_FD"; exit 1'
            ),
            1,
            "OSError: no such model",
        ),
    ],
)
async def test_one_that_never_gets_ready_ends_the_fleet_which_says_why(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, script: str, status: int, reason: str
) -> None:
    supervisor = Supervisor([fleet.role("api"), fleet.role("bad", script)], QUICK)
    assert await asyncio.wait_for(supervisor.run(), DEADLINE_S) == 1
    (event,) = events(caplog, "process never gets ready, the fleet ends")
    assert event == {"role": "bad", "copy": 0, "status": status, "reason": reason}
    assert fleet.count("up", "bad") == 5
    assert fleet.all_ended()


async def test_a_command_that_does_not_exist_ends_the_fleet(fleet: Fleet) -> None:
    supervisor = Supervisor([Role("none", ("/does/not/exist",), {}), fleet.role("api")], QUICK)
    assert await asyncio.wait_for(supervisor.run(), DEADLINE_S) == 1


async def test_a_role_that_is_not_needed_never_ends_the_fleet(fleet: Fleet) -> None:
    script = 'echo "up app $$" >> "$LOG"; exit 2'
    app = replace(fleet.role("app", script), is_needed=False)
    supervisor = Supervisor([app], QUICK)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: fleet.saw("up", "app", times=7), "it was started seven times")
    assert not running.done()
    supervisor.stop()
    assert await running == 0


async def test_one_that_dies_at_its_work_is_started_again_without_end(fleet: Fleet) -> None:
    """P7: poisonous requests crash workers many times over before all of them are convicted."""
    dies = READY + 'echo "up worker $$" >> "$LOG"; kill -9 $$'
    supervisor = Supervisor([fleet.role("worker", dies)], QUICK)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: fleet.saw("up", "worker", times=12), "it was started twelve times")
    assert not running.done()
    supervisor.stop()
    assert await running == 0


async def test_failed_starts_count_in_a_row(fleet: Fleet) -> None:
    """Four failures before and four after a life at work do not end the fleet."""
    script = (
        'echo "up worker $$" >> "$LOG"; [ $(($(grep -c "up worker" "$LOG") % 5)) = 0 ] || exit 1; '
        + READY
        + "exit 1"
    )
    supervisor = Supervisor([fleet.role("worker", script)], QUICK)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: fleet.saw("up", "worker", times=14), "it was started fourteen times")
    assert not running.done()
    supervisor.stop()
    assert await running == 0


@pytest.mark.parametrize("status", [1, 2])
async def test_a_fleet_with_one_good_copy_goes_on(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """The other copy has worked and can no longer start, as when its model's files are gone."""
    works = READY + 'echo "up worker $$" >> "$LOG"; '
    lives = works + "while :; do sleep 0.02; done"
    once = (
        f'[ -e "$LOG.once" ] && {{ echo "up bad $$" >> "$LOG"; exit {status}; }}; touch '
        '"$LOG.once"; '
    ) + works
    argv = ("sh", "-c", f'if [ "$PLACE" = 0 ]; then {lives}; else {once}fi')
    role = Role(
        "worker", argv, os.environ | {"LOG": str(fleet.log)}, [{"PLACE": "0"}, {"PLACE": "1"}]
    )
    supervisor = Supervisor([role], QUICK)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: fleet.saw("up", "bad", times=8), "it has failed eight times")
    assert not running.done()
    supervisor.stop()
    assert await running == 0


async def test_who_does_not_drain_in_time_is_killed(fleet: Fleet) -> None:
    supervisor = Supervisor([fleet.role("deaf", DEAF, grace_s=0.1)], QUICK)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: fleet.saw("up", "deaf"), "it is up")
    supervisor.stop()
    assert await running == 0
    assert fleet.all_ended()


def start(fleet: Fleet, *scripts: str, same_signal_s: float = 0.3) -> subprocess.Popen[bytes]:
    """Start a supervisor whose roles are given as `name=script`."""
    command = [sys.executable, "-c", MAIN, str(fleet.log), str(same_signal_s)]
    for script in scripts:
        command += script.split("=", 1)
    process = subprocess.Popen(command)
    fleet.supervisors.append(process)
    wait_until(lambda: fleet.saw("up", times=len(scripts)), "all are up")
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_roles_in_their_order(fleet: Fleet, number: signal.Signals) -> None:
    draining = (
        'trap \'sleep 0.2; echo "down api $$" >> "$LOG"; exit 0\' TERM; echo "up api $$" >> '
        '"$LOG"; '
    )
    process = start(
        fleet,
        f"api={draining}while :; do sleep 0.02; done",
        "worker=" + LIVES.replace("{name}", "worker"),
        same_signal_s=60,
    )
    process.send_signal(number)
    if number is not signal.SIGINT:
        # `timeout` and some init processes send a signal twice; the second hurries nobody.
        process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0
    first, second = fleet.lines()[2:]
    assert first[:2] == ["down", "api"]
    assert second[:2] == ["down", "worker"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_kills(fleet: Fleet, number: signal.Signals) -> None:
    seen = (
        'trap \'echo "term deaf $$" >> "$LOG"\' TERM; echo "up deaf $$" >> "$LOG"; while :; '
        "do sleep 0.02; done"
    )
    process = start(fleet, f"deaf={seen}")
    process.send_signal(number)
    wait_until(lambda: fleet.saw("term", "deaf"), "the child was asked to drain")
    if number is not signal.SIGINT:
        # Sooner it counts as the same signal.
        time.sleep(0.4)
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0, "it waits for the grace, which is longer"
    assert fleet.all_ended()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_children_do_not_outlive_a_killed_supervisor(fleet: Fleet) -> None:
    process = start(fleet, f"deaf={DEAF}", "worker=" + LIVES.replace("{name}", "worker"))
    process.kill()
    process.wait()
    wait_until(fleet.all_ended, "the children are gone")


def test_backoff_doubles_up_to_its_limit() -> None:
    backoff = Backoff()
    assert backoff.delay_s(1) == 0.5
    assert backoff.delay_s(2) == 1.0
    assert backoff.delay_s(3) == 2.0
    assert backoff.delay_s(4) == 4.0
    assert backoff.delay_s(5) == 8.0
    assert backoff.delay_s(6) == 10.0
    assert backoff.delay_s(1000) == 10.0


def test_a_status_is_told_as_people_know_it() -> None:
    assert status_in_words(0) == "exit status 0"
    assert status_in_words(3) == "exit status 3"
    assert status_in_words(-9) == "killed by SIGKILL (out of memory?)"
    assert status_in_words(-11) == "killed by SIGSEGV"
