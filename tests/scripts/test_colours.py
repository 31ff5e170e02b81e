"""Tables and colours on a terminal, and plain lines elsewhere."""

import asyncio
import io
import re
import sys
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from scripts.cli.aios import main
from scripts.cli.colours import listing, painted, without_markup
from scripts.cli.runs.progress import counting, waiting
from scripts.cli.watch.screen import View, screen
from scripts.cli.watch.table import Heading
from shared.access import Grant, Keyring
from shared.fleet.snapshot import Snapshot
from shared.queue.broker import Broker
from tests.fixtures.polling import until

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
HEADINGS = (Heading("NAME", is_name=True), Heading("SIZE", rank=1), Heading("OF", is_name=True))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Let stdout be a terminal that takes colours, of 60 columns, and return it.

    It is no fixture: pytest sets stdout again between these and the test.
    """
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    return shown


def plain(lines: Sequence[str]) -> list[str]:
    return [_ESCAPES.sub("", line) for line in lines]


def test_lists_are_tables_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["a", "1", "x"], ["long name", "20", "y"]]
    lines = ["a  1  x", "long name  20  y"]
    assert listing(HEADINGS, rows, lines, none="none") == lines
    assert listing(HEADINGS, [], [], none="none") == []

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    table = ["NAME       SIZE  OF", "a             1  x", "long name    20  y"]
    assert listing(HEADINGS, rows, lines, none="none") == table
    assert listing(HEADINGS, [], [], none="none") == ["none"]


def test_a_narrow_terminal_loses_no_cell_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "10")
    title, row = listing(HEADINGS, [["a" * 12, "1", "b" * 12]], [], none="none")
    assert title == f"\x1b[1mNAME{'':10}OF\x1b[0m"
    assert row == f"{'a' * 12}  {'b' * 12}"


def test_markdown_is_aligned_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    markdown = "three:\n\n| task | right |\n|---|---|\n| a \\| b | 1 % |\n| c | 100 % |\n\n- so\n"
    shown = plain(without_markup(markdown).splitlines())
    assert shown == ["three:", "", "task   right", "a | b    1 %", "c      100 %", "", "- so"]


def test_markdown_stays_elsewhere() -> None:
    assert without_markup("| a |\n|---|\n| b |\n") == "| a |\n|---|\n| b |\n"


def test_states_are_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    away = Snapshot(at="2026-11-30T00:00:00+00:00", status="redis_away", problem="refused")
    lines = screen(View(away, hints=()), 60)
    assert painted(lines)[0] == lines[0].replace(
        "REDIS IS AWAY", "\x1b[31m\x1b[1mREDIS IS AWAY\x1b[0m"
    )
    assert painted(["MODEL  WORKERS", "w: m failed: why"]) == [
        "\x1b[1mMODEL  WORKERS\x1b[0m",
        "\x1b[31mw: m failed: why\x1b[0m",
    ]
    monkeypatch.setenv("NO_COLOR", "1")
    assert painted(lines) == lines


async def test_keys_are_a_table_with_their_limits(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "160")
    keyring = Keyring(Broker(redis))
    await keyring.create(Grant(name="alice", tenant="acme", concurrency=3))
    words = ["keys", "list", "--redis-url", redis_url]
    assert await asyncio.to_thread(main, words) == 0
    title, row = plain(terminal.getvalue().splitlines())
    assert title.split()[:3] == ["ID", "NAME", "TENANT"]
    assert row.split()[1:4] == ["alice", "acme", "interactive"]
    assert row[title.index("OPEN JOBS") :].split()[0] == "3"
    assert row.split()[-1] == "-", "it holds for ever"

    terminal.truncate(0)
    terminal.seek(0)
    assert await asyncio.to_thread(main, [*words, "--json"]) == 0
    assert terminal.getvalue().startswith('{"id": ')


def test_what_is_counted_is_drawn_on_a_terminal_alone() -> None:
    for stream, is_drawn in ((Terminal(), True), (io.StringIO(), False)):
        with counting("sums by hrm", 2, stream) as done:
            done()
            done()
        drawn = stream.getvalue()
        assert ("2/2 [########################]  sums by hrm" in drawn) is is_drawn
        assert drawn.endswith("\r\x1b[K") is is_drawn
        assert bool(drawn) is is_drawn


async def test_work_of_unknown_length_is_drawn_when_it_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scripts.cli.runs.progress._QUIET_S", 0.01)
    stream = Terminal()
    with waiting("loading models", stream):
        await until(lambda: "loading models" in stream.getvalue(), "a line")
    assert stream.getvalue().endswith("\r\x1b[K")

    monkeypatch.setattr("scripts.cli.runs.progress._QUIET_S", 60.0)
    for quick in (Terminal(), io.StringIO()):
        with waiting("loading models", quick):
            pass
        assert "loading" not in quick.getvalue()
