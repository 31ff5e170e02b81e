"""Plugins are found in packages and in a folder and told apart, and errors carry their names."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import plugins
from shared.plugins import PluginError, entries, load

GROUP = "aios.endpoints"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    plugins.plugins.cache_clear()
    plugins.entries.cache_clear()
    yield
    plugins.plugins.cache_clear()
    plugins.entries.cache_clear()


def install(site: Path, package: str, **targets: str) -> None:
    """Write the metadata of a package with these entry points."""
    folder = site / f"{package}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nSummary: It is {package}.\n"
    )
    text = f"[{GROUP}]\n"
    for name, target in targets.items():
        text += f"{name} = {target}\n"
    (folder / "entry_points.txt").write_text(text)


def put(folder: Path, name: str, manifest: str, **modules: str) -> None:
    """Write a plugin into a folder."""
    (folder / name).mkdir(parents=True)
    (folder / name / "plugin.toml").write_text(manifest)
    for module, code in modules.items():
        (folder / name / f"{module}.py").write_text(code)


def test_what_is_installed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "one", path="os.path:join", name="os:name")
    monkeypatch.syspath_prepend(tmp_path)
    assert entries(GROUP).keys() == {"path", "name"}
    assert load(GROUP)["path"]("a", "b") == "a/b"
    [plugin] = plugins.plugins()
    assert (plugin.name, plugin.version, plugin.about) == ("one", "1.0", "It is one.")
    assert plugin.names("endpoints") == ["name", "path"]
    assert plugin.names("tasks") == []


def test_nothing_is_installed() -> None:
    assert load(GROUP) == {}
    assert plugins.plugins() == ()


def test_a_folder_of_plugins_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules come behind installed ones, and what is no plugin is let be."""
    manifest = 'version = "2.0"\nabout = "Says it."\n[endpoints]\nsay = "sayer.words:SAY"\n'
    put(tmp_path / "some", "sayer", manifest, words="SAY = 'it'")
    put(tmp_path / "some", "json", '[endpoints]\nother = "json:dumps"\n', __init__="1 / 0")
    (tmp_path / "some" / "notes").mkdir()
    (tmp_path / "some" / "README.md").write_text("")
    monkeypatch.setenv("AIOS_PLUGINS", str(tmp_path / "some"))
    assert load(GROUP)["say"] == "it"
    assert load(GROUP)["other"]([1]) == "[1]"
    found = {plugin.name: (plugin.version, plugin.about) for plugin in plugins.plugins()}
    assert found == {"json": ("", ""), "sayer": ("2.0", "Says it.")}


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("[endpoints", "cannot be read"),
        ("[endpoint]\nsay = 'a:b'\n", r"endpoint: expected version and about .* tasks, runners"),
        ("tasks = 'a:b'\n", "tasks: expected version"),
        ("version = 2\n", "version: expected version"),
        ("[tasks]\nsay = 'module'\n", r"tasks\.say: expected a text as module:attribute"),
        ("[tasks]\nsay = 1\n", r"tasks\.say: expected a text"),
    ],
)
def test_a_wrong_manifest_is_named(
    manifest: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "sayer", manifest)
    monkeypatch.setenv("AIOS_PLUGINS", str(tmp_path))
    with pytest.raises(PluginError, match=rf"sayer/plugin\.toml.*{words}"):
        load(GROUP)


def test_a_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_PLUGINS", "no/such/folder")
    with pytest.raises(PluginError, match=r"AIOS_PLUGINS: expected a folder, .*no/such/folder"):
        load(GROUP)


def test_two_plugins_cannot_have_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "one", path="os.path:join")
    install(tmp_path, "other", path="os.path:split")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"aios.endpoints: (one|other) and (one|other) both add 'path'; remove one"
    with pytest.raises(PluginError, match=message):
        entries(GROUP)


def test_a_package_and_a_folder_cannot_have_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "one", path="os.path:join")
    monkeypatch.syspath_prepend(tmp_path)
    put(tmp_path / "some", "sayer", '[endpoints]\npath = "os.path:split"\n')
    monkeypatch.setenv("AIOS_PLUGINS", str(tmp_path / "some"))
    with pytest.raises(PluginError, match="one and sayer both add 'path'"):
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
    message = r"^aios.endpoints: 'it' of one cannot be loaded: \w+Error: "
    with pytest.raises(PluginError, match=message):
        load(GROUP)
