"""The HTML report of a comparison, opened in a real browser."""

import asyncio
import json
from pathlib import Path

import pytest
from redis.asyncio import Redis

from scripts.cli import aios
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import live
from tests.fixtures.browser import DESKTOP, PHONE, expect_no_overflow, opened


def main(words: list[str]) -> int:
    return aios.main(["ab", *words])


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
async def test_a_person_reads_it(redis: Redis, redis_url: str, tmp_path: Path, width: int) -> None:
    lines = [
        json.dumps({"prompt": "a <b>", "answer": "a <b>", "kind": "one"}),
        json.dumps({"prompt": "c d", "answer": "c", "kind": "two"}),
    ]
    questions = tmp_path / "q.jsonl"
    questions.write_text("\n".join(lines))
    report = tmp_path / "r.html"
    async with EchoWorker(redis_url), live(redis) as (client, _):
        url = str(client.base_url).rstrip("/")
        command = ["run", f"ours=aios:{url}", f"theirs=openai:{url}/v1", "--grader", "exact"]
        command += ["--questions", str(questions), "--template", "theirs=say {problem}"]
        assert await asyncio.to_thread(main, [*command, "--html", str(report)]) == 0

    async with opened(report.as_uri(), width) as page:
        assert await page.title() == "A/B comparison"
        assert await page.locator("h1").inner_text() == "A/B comparison"
        sides = page.locator("table").first.locator("tbody tr")
        assert await sides.locator("th").all_inner_texts() == ["ours", "theirs"]
        assert "50.0 % (9.5 to 90.5), 1 of 2" in await sides.first.inner_text()

        plot = await page.locator("figure svg").bounding_box()
        assert plot is not None
        assert plot["width"] > 300
        assert plot["height"] > 100
        drawn = await page.locator("figure svg").text_content() or ""
        assert "answered within, ms" in drawn

        answer = page.get_by_text("say a <b>", exact=True)
        assert not await answer.is_visible()
        await page.get_by_text("All 2 answers").click()
        assert await answer.is_visible()
        assert await page.locator("td.right").count() == 1
        assert await page.locator("td.wrong").count() == 3
        await expect_no_overflow(page)
