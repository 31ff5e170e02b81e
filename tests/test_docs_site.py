"""The documentation is built as a site, strictly, and loads nothing from other hosts."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts.tools.docs_site import OUTSIDE, with_links_of_site
from tests.fixtures.accessibility import barriers
from tests.fixtures.browser import COLOURS, DESKTOP, opened

ROOT = Path(__file__).resolve().parents[1]
_LOADED = re.compile(
    r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=\"?(https?:[^\s\">]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site. A link that leads nowhere, or a page in no menu, fails it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_there_and_is_found(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"README"}
    pages |= {Path(name).stem for name in OUTSIDE.values()} | {"index"}
    assert pages <= {path.stem for path in site.glob("*.html")}
    index = json.loads((site / "search" / "search_index.json").read_text())
    found = {entry["location"].partition("#")[0].removesuffix(".html") for entry in index["docs"]}
    assert pages <= {name or "index" for name in found}


def test_nothing_comes_from_other_hosts(site: Path) -> None:
    loaded = {}
    for path in site.rglob("*.html"):
        if found := _LOADED.findall(path.read_text()):
            loaded[path.name] = found
    for path in site.rglob("*.css"):
        if found := re.findall(r"url\(\"?(https?:[^)]+)\)", path.read_text()):
            loaded[path.name] = found
    assert loaded == {}


def test_pictures_are_small_and_are_shown_with_words(site: Path) -> None:
    pictures = {path.name: path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()}
    assert pictures
    shown = {}
    for page in site.glob("*.html"):
        for alt, name in re.findall(r'<img alt="([^"]*)" src="images/([^"]+)"', page.read_text()):
            shown[name] = alt
    assert shown.keys() == pictures.keys()
    for name, num_bytes in pictures.items():
        assert len(shown[name]) > 20, name
        assert num_bytes < (400_000 if name.endswith(".gif") else 60_000), name
        assert (site / "images" / name).stat().st_size == num_bytes


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Serve the site, and return its address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


async def test_everybody_can_read_its_front_page(address: str) -> None:
    async with opened(address, DESKTOP) as page:
        for colours in COLOURS:
            await page.emulate_media(color_scheme=colours)
            await page.reload()
            found = await barriers(page)
            assert not found, found


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("batches.md", "[a](access.md#budgets)", "[a](access.md#budgets)"),
        ("batches.md", "[a](../README.md)", "[a](start.md)"),
        ("batches.md", "[a](../deploy/compose/compose.yaml)", "a (`deploy/compose/compose.yaml`)"),
        ("start.md", "[a](docs/batches.md#lines)", "[a](batches.md#lines)"),
        ("start.md", "[a](SECURITY.md)", "[a](security.md)"),
        ("simplefoundation.md", "[a](../../../docs/api.md)", "[a](api.md)"),
        ("start.md", "[a](https://example.com/x.md)", "[a](https://example.com/x.md)"),
        ("start.md", "[a](nowhere.md)", "[a](nowhere.md)"),
    ],
)
def test_links_of_the_repository_are_those_of_the_site(page: str, link: str, expected: str) -> None:
    assert with_links_of_site(f"See {link}.", page) == f"See {expected}."
