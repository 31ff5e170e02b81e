"""The bench of proxies asks an engine directly and through a fleet, and compares both."""

import re

import pytest

from scripts.bench.proxy import main


def test_an_engine_is_asked_directly_and_through_a_fleet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--step-ms", "2", "--clients", "4", "--tokens", "4", "--rounds", "1"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    first, whole, rate, cost = lines[-4:]
    assert re.match(r"  4 clients: first token [\d.]+ ms, through the fleet -?[\d.]+ \(", first)
    assert "whole answer" in whole
    assert "tokens/s, through the fleet" in rate
    front, redis, worker, total = map(int, re.findall(r"\d+", cost))
    assert total == pytest.approx(front + redis + worker, abs=2)
