"""Entry points of installed packages are found and told apart, and errors carry their names."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import plugins
from shared.plugins import PluginError, entries, load

GROUP = "aios.tests"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    plugins.entries.cache_clear()
    yield
    plugins.entries.cache_clear()


def install(site: Path, package: str, **targets: str) -> None:
    """Write the metadata of a package with these entry points."""
    folder = site / f"{package}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    text = f"[{GROUP}]\n"
    for name, target in targets.items():
        text += f"{name} = {target}\n"
    (folder / "entry_points.txt").write_text(text)


def test_what_is_installed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "one", path="os.path:join", name="os:name")
    monkeypatch.syspath_prepend(tmp_path)
    assert entries(GROUP).keys() == {"path", "name"}
    assert load(GROUP)["path"]("a", "b") == "a/b"


def test_nothing_is_installed() -> None:
    assert load(GROUP) == {}


def test_two_packages_cannot_have_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "one", path="os.path:join")
    install(tmp_path, "other", path="os.path:split")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"aios.tests: (one|other) and (one|other) both add 'path'; remove one"
    with pytest.raises(PluginError, match=message):
        entries(GROUP)


@pytest.mark.parametrize(
    "target", ["no_such_module:it", "os:nothing_of_that_name", "broken_plugin:it"]
)
def test_one_that_cannot_be_loaded_is_named(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    install(tmp_path, "one", it=target)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"^aios.tests: 'it' of one cannot be loaded: \w+Error: "):
        load(GROUP)
