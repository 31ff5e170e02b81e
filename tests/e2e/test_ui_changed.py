"""The web app as docs/ui.md has people change it: a file, and a plugin with a page and a tab."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import expect

from shared.shipped import REPO_ROOT
from tests.fixtures.browser import DESKTOP, PHONE, expect_no_overflow, opened
from tests.fixtures.e2e.app_pages import TOLERATED
from tests.fixtures.polling import wait_until
from tests.fixtures.redis_server import free_port

URL = "http://127.0.0.1:1"
TOLERATED_OF_CHARTS = ("WARN Infinite extent", "WARN Scale bindings")


def example(language: str) -> str:
    """Return the one example in this language of the documentation."""
    page = (REPO_ROOT / "docs" / "ui.md").read_text(encoding="utf-8")
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    text: str = block
    return text


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run `aios ui` with the examples of the documentation, and yield its address."""
    folder: Path = tmp_path_factory.mktemp("changed")
    plugin = folder / "plugins" / "arithmetic"
    plugin.mkdir(parents=True)
    (plugin / "plugin.toml").write_text(example("toml"))
    (plugin / "parts.py").write_text(example("python"))
    broken = folder / "plugins" / "broken"
    broken.mkdir()
    (broken / "plugin.toml").write_text('[ui_pages]\nlost = "no_such_module:PAGE"\n')
    (folder / "own.yaml").write_text(example("yaml"))

    port = str(free_port())
    command = [sys.executable, "-m", "scripts.cli.aios", "ui", "--server-url", URL, "--port", port]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOS_PLUGINS", str(folder / "plugins"))
        patch.setenv("PYTHONPATH", str(REPO_ROOT))
        patch.setenv("STREAMLIT_THEME_BASE_FONT_SIZE", "18")
        words = [*command, "--config", "own.yaml"]
        process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_up(process, address), "the app answers", deadline_s=120)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def is_up(process: "subprocess.Popen[bytes]", address: str) -> bool:
    assert process.poll() is None, "the app has ended"
    try:
        return httpx.get(f"{address}/_stcore/health").is_success
    except httpx.TransportError:
        return False


async def test_it_looks_as_its_file_says(app: str) -> None:
    """C29: title, pages, examples and colours, and what plugins add."""
    tolerated = (*TOLERATED, *TOLERATED_OF_CHARTS)
    async with opened(app, DESKTOP, tolerated=tolerated) as page:
        await expect(page.get_by_role("heading", name="Solve")).to_be_visible(timeout=60_000)
        await expect(page).to_have_title("Mental arithmetic")
        links = page.get_by_test_id("stPageLink")
        # Behind the name of a page's icon.
        names = [re.compile(f"{name}$") for name in ("Solve", "Puzzles", "Notes")]
        await expect(links).to_have_text(names)
        await page.get_by_role("radio", name="Compute: 12 + 7").click()
        await expect(page.get_by_role("textbox", name="Problem").first).to_have_value(
            "Compute: 12 + 7"
        )
        button = page.get_by_role("button", name="Solve", exact=True).first
        await expect(button).to_have_css("background-color", "rgb(138, 47, 93)")
        await expect(page.locator("html")).to_have_css("font-size", "18px")
        await expect(page.get_by_text("'lost' of broken cannot be loaded")).to_be_visible()

        await page.get_by_role("tab", name="Percent").click()
        await expect(page.get_by_role("radio", name="What is 15% of 240?").last).to_be_visible()
        await page.get_by_role("link", name="Puzzles").click()
        await expect(page.get_by_role("radio", name="Monday")).to_be_visible()
        await page.get_by_role("link", name="Notes").click()
        await expect(page.get_by_text(f"The server is {URL}.")).to_be_visible()
        await page.set_viewport_size({"width": PHONE, "height": 800})
        await expect_no_overflow(page)
