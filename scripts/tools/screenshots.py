"""Pictures of the web app for the documentation: `python -m scripts.tools.screenshots`.

Only some are taken with the words `pictures` or `recording` behind it.

A real fleet of shipped models is run, and its pages are photographed in Debian's chromium. For
`killed-worker.gif` a worker is killed while its answer is on the page, in a fleet that is busy with
other answers. Needs the dev extra. The pictures go to `docs/images`.

`tests/e2e/test_screenshots.py` takes the pictures, too, and compares them with these.
"""

import asyncio
import io
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import psutil
from PIL import Image, ImageDraw, ImageFont
from playwright.async_api import Browser, Page, async_playwright, expect

from shared.shipped import REPO_ROOT

_IMAGES = REPO_ROOT / "docs" / "images"
_DESKTOP = (1000, 700)
_CHAT = (1000, 780)
"""High enough for the whole chat: while it is cut off, the app scrolls whenever it likes."""
_PHONE = (390, 780)
_READY = re.compile(rb"ready at (http://\S+)")
_COLOURS = 64
_PATIENCE_MS = 60_000
_REST_MS = 300
"""A page is drawn if it looks the same after this time."""
_SUM = "Compute: 347 + 285"
_APP_PORT = 8599

# The other work beside which a worker is killed: it makes the answer slow enough to be watched.
_NUM_OTHERS = 60
_OTHER_TOKENS = 400
_FRAME_S = 0.1
_LAST_FRAME_S = 3.0
_RECORDED = (760, 560)
_CAPTION_HEIGHT = 46


@dataclass(frozen=True)
class Fleet:
    url: str
    process: psutil.Process

    def workers(self) -> list[psutil.Process]:
        """Return the running workers."""
        found = []
        for child in self.process.children(recursive=True):
            if child.is_running() and "worker" in child.cmdline()[-1:]:
                found.append(child)
        return found


@asynccontextmanager
async def _fleet(*flags: str) -> AsyncIterator[Fleet]:
    """Run a fleet, and yield it when it is ready."""
    models = REPO_ROOT / "models"
    command = [sys.executable, "-m", "scripts.cli.aios", "serve", "hrm", "--host", "127.0.0.1"]
    command += ["--port", "0", "--threads", "1", "--model", f"maths={models / 'hrm-text-math'}"]
    process = await asyncio.create_subprocess_exec(
        *command, *flags, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    url = ""
    while not url:
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("the fleet ended before it was ready")
        if match := _READY.search(line):
            url = match[1].decode()
    drain = asyncio.create_task(process.stdout.read())
    try:
        yield Fleet(url, psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
        await drain


@asynccontextmanager
async def _browser() -> AsyncIterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise RuntimeError("needs chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        await browser.close()


async def take_screenshots(folder: Path, *, app_port: int) -> None:
    """Photograph the pages of a fleet with the app, which gets this port, into a folder."""
    models = REPO_ROOT / "models"
    flags = ["--workers", "1", "--ui", "--ui-port", str(app_port), "--default-model", "maths"]
    flags += ["--model", f"code={models / 'hrm-text-code'}"]
    flags += ["--model", f"sudoku={models / 'sample-trm-sudoku-9x9'}"]
    app = f"http://127.0.0.1:{app_port}"
    async with _fleet(*flags) as fleet, _browser() as browser:
        for name, url, pose, size in (
            ("landing", fleet.url, _pose_landing, _DESKTOP),
            (
                "generate",
                f"{app}/?prompt={_SUM.replace('+', '%2B')}&temperature=0.0",
                _pose_generate,
                _DESKTOP,
            ),
            ("solve", f"{app}/solve?maths_temperature=0.0", _pose_solve, _DESKTOP),
            ("chat", f"{app}/chat?chat_temperature=0.0", _pose_chat, _CHAT),
            ("sudoku", f"{app}/puzzles", _pose_sudoku, _DESKTOP),
            ("phone", f"{app}/puzzles", _pose_phone, _PHONE),
        ):
            await _photograph(browser, folder / f"{name}.png", url, pose, size=size)


async def _photograph(
    browser: Browser,
    path: Path,
    url: str,
    pose: Callable[[Page], Awaitable[None]],
    *,
    size: tuple[int, int],
) -> None:
    width, height = size
    page = await browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(_PATIENCE_MS)
    expect.set_options(timeout=_PATIENCE_MS)
    await page.goto(url)
    await pose(page)
    _save(await _screenshot_at_rest(page), path)
    await page.close()


async def _screenshot_at_rest(page: Page) -> bytes:
    """Return a PNG with transitions at their ends and nothing left to draw.

    Each run takes the same pictures.
    """
    before = b""
    taken = await page.screenshot(animations="disabled")
    while taken != before:
        await page.wait_for_timeout(_REST_MS)
        before = taken
        taken = await page.screenshot(animations="disabled")
    return taken


def _save(taken: bytes, path: Path) -> None:
    picture = Image.open(io.BytesIO(taken)).convert("RGB")
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size} bytes")


async def _pose_landing(page: Page) -> None:
    await page.get_by_role("button", name="Ask").click()
    await expect(page.get_by_role("status")).to_contain_text("Done in")
    await page.get_by_role("heading", name="From a program").scroll_into_view_if_needed()


async def _pose_generate(page: Page) -> None:
    await page.get_by_role("button", name="Generate", exact=True).click()
    await expect(page.get_by_text("tokens/s")).to_be_visible()
    await _wait_for_rest(page)
    await page.get_by_text("tokens/s").scroll_into_view_if_needed()


async def _pose_solve(page: Page) -> None:
    await page.get_by_role("radio", name=_SUM).click()
    await expect(page.get_by_label("Problem").first).to_have_value(_SUM)
    await page.get_by_role("button", name="Solve", exact=True).first.click()
    await expect(page.get_by_text("Response time")).to_be_visible()
    await _wait_for_rest(page)
    await page.get_by_text("Response time").scroll_into_view_if_needed()


async def _pose_chat(page: Page) -> None:
    await page.get_by_placeholder("Message").fill(_SUM)
    await page.get_by_placeholder("Message").press("Enter")
    await expect(page.get_by_text("tokens in")).to_be_visible()
    await _wait_for_rest(page)
    for text in ("Generate", "tokens in"):
        await expect(page.get_by_text(text)).to_be_in_viewport(ratio=1)


async def _pose_sudoku(page: Page) -> None:
    """Solve a puzzle, and go back to its first segment."""
    await page.get_by_role("radio", name="Hard 9 x 9").click()
    await expect(page.get_by_role("gridcell", name="row 1, column 2: 8")).to_be_visible()
    await page.get_by_role("button", name="Solve", exact=True).click()
    await expect(page.get_by_text("Response time")).to_be_visible()
    await page.get_by_role("slider", name="Segment").press("Home")
    await expect(page.get_by_text("1 of 16")).to_be_visible()
    await _show_grid(page)


async def _pose_phone(page: Page) -> None:
    await page.emulate_media(color_scheme="dark")
    await page.get_by_role("radio", name="Easy 9 x 9").click()
    await expect(page.get_by_role("gridcell", name="row 1, column 1: 6")).to_be_visible()
    await _show_grid(page)
    await page.wait_for_function("document.fonts.status === 'loaded'")


async def _show_grid(page: Page) -> None:
    await _wait_for_rest(page)
    await page.get_by_role("grid").evaluate("(grid) => grid.scrollIntoView({ block: 'center' })")


async def _wait_for_rest(page: Page) -> None:
    """Wait until the app has drawn all, so that what is scrolled to stays where it is."""
    for unfinished in ("[data-test-script-state=running]", "[data-stale=true]"):
        await expect(page.locator(unfinished)).to_have_count(0)


async def record_killed_worker() -> None:
    """Record a chat while the worker that writes the answer is killed.

    Of two workers one is suspended until then, so that it is known which one writes. Raise
    RuntimeError if the answer is not that of the undisturbed fleet.
    """
    flags = ["--workers", "2", "--lease-s", "3", "--ui", "--ui-port", str(_APP_PORT)]
    flags += ["--max-batch-size", str(2 * _NUM_OTHERS), "--request-timeout-s", "600"]
    async with (
        _fleet(*flags) as fleet,
        _browser() as browser,
        httpx.AsyncClient(base_url=fleet.url, timeout=600) as client,
    ):
        body = {"messages": [{"role": "user", "content": _SUM}], "temperature": 0}
        answer = (await client.post("/v1/chat/completions", json=body)).json()
        undisturbed = answer["choices"][0]["message"]["content"]
        width, height = _RECORDED
        page = await browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(_PATIENCE_MS)
        expect.set_options(timeout=_PATIENCE_MS)
        await page.goto(f"http://127.0.0.1:{_APP_PORT}/chat?chat_temperature=0.0")
        await page.get_by_placeholder("Message").fill(_SUM)
        writer, rescuer = fleet.workers()
        rescuer.suspend()
        try:
            await _keep_busy(client)
            frames = await _record(page, writer, rescuer, undisturbed)
        finally:
            rescuer.resume()
    _write_animation(frames)


async def _keep_busy(client: httpx.AsyncClient) -> None:
    """Submit the other work."""
    body = {"prompt": "Compute: 1 + 1", "max_tokens": _OTHER_TOKENS, "ignore_eos": True}
    headers = {"Prefer": "respond-async", "X-On-Disconnect": "continue"}
    for _ in range(_NUM_OTHERS):
        (await client.post("/v1/completions", json=body, headers=headers)).raise_for_status()


@dataclass(frozen=True)
class _Frame:
    """A picture of the page, the time of it, and what was done to the worker until then."""

    picture: Image.Image
    taken_s: float
    caption: str


async def _record(
    page: Page, writer: psutil.Process, rescuer: psutil.Process, undisturbed: str
) -> list[_Frame]:
    caption = f"process {writer.pid} writes"
    frames: list[_Frame] = []
    is_killed = False
    await page.get_by_placeholder("Message").press("Enter")
    while True:
        picture = Image.open(io.BytesIO(await page.screenshot())).convert("RGB")
        frames.append(_Frame(picture, time.monotonic(), caption))
        if await page.get_by_text("tokens in").count():
            break
        length = len(await _answer(page))
        if not is_killed and len(undisturbed) / 3 < length < len(undisturbed):
            writer.kill()
            rescuer.resume()
            is_killed = True
            caption = f"$ kill -9 {writer.pid}    # process {rescuer.pid} is to go on"
        await asyncio.sleep(_FRAME_S)
    frames.append(_Frame(picture, time.monotonic() + _LAST_FRAME_S, caption))
    if not is_killed:
        raise RuntimeError("the answer was there before the worker was killed")
    if (await _answer(page)).split() != undisturbed.split():
        raise RuntimeError("the answer is not that of the undisturbed fleet")
    return frames


async def _answer(page: Page) -> str:
    """Return the text of the answer, as far as it is on the page."""
    answer = page.get_by_test_id("stChatMessage").nth(1).get_by_test_id("stMarkdown").first
    return await answer.inner_text() if await answer.count() else ""


def _write_animation(frames: list[_Frame]) -> None:
    """Write the frames, each for as long as it was to be seen, with what was done below it."""
    font = ImageFont.load_default(size=20)
    pictures = []
    durations = []
    for frame, following in pairwise(frames):
        width, height = frame.picture.size
        canvas = Image.new("RGB", (width, height + _CAPTION_HEIGHT), "#15181c")
        canvas.paste(frame.picture, (0, 0))
        colour = "#ff9d8a" if frame.caption.startswith("$") else "#c9d1d9"
        ImageDraw.Draw(canvas).text((14, height + 11), frame.caption, colour, font=font)
        pictures.append(canvas.quantize(_COLOURS, dither=Image.Dither.NONE))
        durations.append(round(1000 * (following.taken_s - frame.taken_s)))
    path = _IMAGES / "killed-worker.gif"
    first, *rest = pictures
    first.save(path, append_images=rest, duration=durations, loop=0, optimize=True)
    seconds = sum(durations) / 1000
    print(f"{path}: {path.stat().st_size} bytes, {len(pictures)} frames, {seconds:.1f} s")


async def _main(wanted: list[str]) -> None:
    _IMAGES.mkdir(exist_ok=True)
    if not wanted or "pictures" in wanted:
        await take_screenshots(_IMAGES, app_port=_APP_PORT)
    if not wanted or "recording" in wanted:
        await record_killed_worker()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
