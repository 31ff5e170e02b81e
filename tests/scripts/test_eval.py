"""`aios eval`: reports of a fleet that is asked over HTTP, and what they tell beside earlier ones."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from scripts.cli import aios
from scripts.cli.eval import EXIT_REGRESSED
from shared.shipped import REPO_ROOT
from tests.fixtures.api.changed_worker import ChangedWorker, words_set
from tests.fixtures.api.fronts import live


def main(words: list[str]) -> int:
    return aios.main(["eval", *words])


class Desk:
    """A front that listens, its worker, and a folder with a set and for reports."""

    def __init__(self, url: str, worker: ChangedWorker, folder: Path) -> None:
        self.url = url
        self.worker = worker
        self.folder = folder
        self.reports = folder / "cache" / "reports.json"

    async def aios_eval(self, *words: str) -> int:
        where = ["--reports", str(self.reports)]
        if words[0] == "run":
            where += ["--url", self.url, "--sets", str(self.folder)]
        return await asyncio.to_thread(main, [*words, *where])

    def latest(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.reports.read_text())["reports"][0]
        return report


@pytest.fixture
async def desk(redis: Redis, redis_url: str, tmp_path: Path) -> AsyncIterator[Desk]:
    (tmp_path / "words.json").write_bytes(msgspec.json.encode(words_set()))
    async with ChangedWorker(redis_url) as worker, live(redis) as (client, _):
        yield Desk(str(client.base_url).rstrip("/"), worker, tmp_path)


async def test_history_detects_an_injected_slowdown_and_an_accuracy_drop(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    # Far longer than anything else takes.
    desk.worker.delay_s = 0.25
    assert await desk.aios_eval("run", "--strict") == 0
    [result] = desk.latest()["results"]
    assert result["accuracy"]["value"] == 0.8
    assert result["model"]["id"] == "echo"
    assert result["tokens"] == 13
    assert result["latency_ms"]["p50"] >= 250
    assert len(desk.worker.jobs) == 6, "each item once, and a warm-up"
    capsys.readouterr()

    desk.worker.delay_s = 0.75
    assert await desk.aios_eval("run") == 0, "a warning"
    assert "warning: words by echo: median latency" in capsys.readouterr().err
    assert await desk.aios_eval("run", "--strict") == EXIT_REGRESSED, "a regression is no baseline"

    desk.worker.delay_s = 0.0
    desk.worker.is_right = False
    assert await desk.aios_eval("run", "--strict") == EXIT_REGRESSED
    assert "accuracy 0.0 %, below the interval of 80.0 %" in capsys.readouterr().err

    desk.worker.is_right = True
    assert await desk.aios_eval("run", "--strict") == 0
    assert await desk.aios_eval("history") == 0
    rows = capsys.readouterr().out.splitlines()[-5:]
    assert [row.split("|")[-2].strip() for row in rows] == ["0", "1", "1", "1", "0"]


async def test_an_accepted_report_is_the_next_baseline(desk: Desk) -> None:
    assert await desk.aios_eval("run") == 0
    before = desk.folder / "cache" / "before.json"
    before.write_bytes(desk.reports.read_bytes())
    desk.worker.is_right = False
    desk.worker.delay_s = 0.15
    assert await desk.aios_eval("run", "--strict", "--accept") == 0
    desk.worker.delay_s = 0.0
    assert await desk.aios_eval("run", "--strict") == 0
    baseline = ("--baseline", str(before))
    assert await desk.aios_eval("run", "--strict", *baseline) == EXIT_REGRESSED


async def test_the_page_needs_nothing_else(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    page = desk.folder / "page.html"
    data = desk.folder / "cache" / "report.json"
    data.parent.mkdir()
    files = ("--html", str(page), "--json", str(data))
    assert await desk.aios_eval("run", *files) == 0
    assert page.read_text().count("<svg") == 1, "there is no course yet"
    assert await desk.aios_eval("run", *files) == 0
    text = page.read_text()
    assert text.count("<svg") == 2
    assert not re.findall(r"""(?:src|href)=["']?(?!#)[^"'> ]*//""", text)
    assert "<script" not in text and "@import" not in text
    assert "alpha beta gamma3" in text, "what was answered"
    assert json.loads(data.read_text()) == desk.latest()
    assert await desk.aios_eval("latest") == 0
    assert "| words | echo |" in capsys.readouterr().out


async def test_failures_are_wrong_and_told(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    (desk.folder / "bad.json").write_text("{}")
    assert await desk.aios_eval("run") == 1
    assert "bad.json" in capsys.readouterr().err
    (desk.folder / "bad.json").unlink()

    assert await desk.aios_eval("run", "--tasks", "singing") == 1
    assert "expected some of words" in capsys.readouterr().err
    assert await desk.aios_eval("run", "--model", "nobody") == 1
    told = capsys.readouterr()
    assert "Skipped: words by nobody: no model is served that does 'generate'." in told.out
    assert not desk.reports.exists(), "nothing was asked"
    assert await desk.aios_eval("latest") == 1


async def test_a_set_that_is_refused_now_and_was_answered_before_is_worse(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    other = msgspec.structs.replace(words_set(), task="other")
    (desk.folder / "other.json").write_bytes(msgspec.json.encode(other))
    assert await desk.aios_eval("run", "--strict") == 0
    refused = msgspec.structs.replace(words_set(top_k=-7), task="other")
    (desk.folder / "other.json").write_bytes(msgspec.json.encode(refused))
    assert await desk.aios_eval("run", "--strict") == EXIT_REGRESSED
    told = capsys.readouterr()
    assert "Skipped: other by echo: refused: 422: options.top_k" in told.out
    assert "warning: other by echo: answered in eval-" in told.err
    [skipped] = desk.latest()["skipped"]
    assert skipped["baseline"] is not None


async def test_the_name_of_older_documents_does_the_same(desk: Desk) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "app.eval.run",
        *("--url", desk.url, "--sets", str(desk.folder), "--limit", "2", "--tasks", "words"),
        cwd=desk.folder,
        env={"PYTHONPATH": f"{REPO_ROOT}:{REPO_ROOT / 'scripts' / 'entry_points'}"},
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    reports = json.loads((desk.folder / "cache" / "eval_reports.json").read_text())["reports"]
    assert [len(result["items"]) for result in reports[0]["results"]] == [2]
