"""The pictures in the docs show the app as it is: they are taken again, and compared."""

import asyncio
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from scripts.tools.screenshots import take_screenshots
from shared.shipped import REPO_ROOT
from tests.fixtures.redis_server import free_port

MOST_DIFFERENCE = 2.0
"""The most that the colours of a picture may differ on average, of 255. Times and ports differ."""


def test_pictures_of_the_docs_are_those_of_the_app(tmp_path: Path) -> None:
    """If this fails, the app has changed: `python -m scripts.tools.screenshots` takes them anew."""
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium")
    asyncio.run(take_screenshots(tmp_path, app_port=free_port()))
    shown = REPO_ROOT / "docs" / "images"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in shown.glob("*.png"))
    differences = {name: difference_of(tmp_path / name, shown / name) for name in names}
    assert max(differences.values()) < MOST_DIFFERENCE, differences


def difference_of(first: Path, second: Path) -> float:
    """Return how much two pictures differ: the mean over all pixels and colours, of 255."""
    with Image.open(first) as one, Image.open(second) as other:
        assert one.size == other.size
        changes = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
    means = ImageStat.Stat(changes).mean
    return sum(means) / len(means)


def test_a_changed_picture_is_noticed(tmp_path: Path) -> None:
    """A picture that lacks its lower third differs by more than a picture may."""
    path = REPO_ROOT / "docs" / "images" / "generate.png"
    with Image.open(path) as picture:
        changed = picture.convert("RGB")
    width, height = changed.size
    changed.paste("white", (0, 2 * height // 3, width, height))
    changed.save(tmp_path / "changed.png")
    assert difference_of(tmp_path / "changed.png", path) > MOST_DIFFERENCE
