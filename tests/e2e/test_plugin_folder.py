"""A folder of plugins, which the environment names, adds tasks, runners and endpoints."""

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.fixtures.e2e.serving import AIOS, serving

MIRROR = Path(__file__).parent.parent / "fixtures" / "plugin" / "aios_mirror"
MANIFEST = """\
version = "1.0"
about = "Turns texts round."

[tasks]
mirror = "aios_mirror.task:MIRROR"

[runners]
mirror = "aios_mirror.runner:load"

[runner_options]
mirror = "aios_mirror.options:MirrorOptions"

[endpoints]
mirror = "aios_mirror.endpoint:DIALECT"
"""


def test_a_plugin_of_a_folder_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "plugins" / "aios_mirror"
    shutil.copytree(MIRROR, plugin)
    (plugin / "plugin.toml").write_text(MANIFEST)
    monkeypatch.setenv("AIOS_PLUGINS", str(tmp_path / "plugins"))
    model = {"id": "mirror", "path": str(tmp_path), "runner": "mirror", "options": {"ends": "!"}}
    monkeypatch.setenv("AIOS_MODELS", json.dumps([model]))
    with serving() as fleet:
        answer = httpx.post(f"{fleet.url}/mirror", json={"texts": ["abc"]}, timeout=180)
        assert answer.json() == {"texts": ["cba!"]}
        listed = httpx.get(f"{fleet.url}/api/plugins", timeout=180).json()
        assert listed["plugins"] == [
            {
                "name": "aios_mirror",
                "version": "1.0",
                "about": "Turns texts round.",
                "tasks": ["mirror"],
                "runners": ["mirror"],
                "endpoints": ["mirror"],
            }
        ]


@pytest.mark.parametrize("role", [("serve", "hrm"), ("worker",), ("api",)])
def test_a_plugin_that_cannot_be_loaded_is_named_in_a_line(
    role: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "plugin.toml").write_text('[tasks]\nit = "no_such_module:it"\n')
    monkeypatch.setenv("AIOS_PLUGINS", str(tmp_path))
    command = [*AIOS, *role, "--redis-url", "redis://127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    problem = "aios.tasks: 'it' of broken cannot be loaded: ModuleNotFoundError: No module named"
    assert f"aios {' '.join(role)}: {problem} 'no_such_module'\n" in done.stderr
    assert "Traceback" not in done.stderr
