"""The jobs role of `aios serve hrm` runs and is restarted, and no request waits for it."""

import signal

import httpx

from tests.fixtures.e2e.serving import serving
from tests.fixtures.polling import is_running, wait_until


def test_the_fleet_starts_it_and_does_not_need_it() -> None:
    with serving("--model", "echo=echo", "--log-level", "warning") as fleet:
        (role,) = fleet.children("scripts.cli.jobs")
        role.send_signal(signal.SIGSTOP)
        body = {"prompts": ["abc"], "max_tokens": 6}
        answer = httpx.post(f"{fleet.url}/generate", json=body, timeout=60)
        assert answer.json()["completions"] == ["abcabc"]

        role.kill()
        wait_until(lambda: not is_running(role.pid), "it is gone")
        wait_until(lambda: len(fleet.children("scripts.cli.jobs")) == 1, "it is there again")
        assert fleet.stop() == 0
