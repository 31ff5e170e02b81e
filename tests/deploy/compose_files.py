"""The compose files as Docker would read them, as far as tests need it: variables filled in,
override merged."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "deploy" / "compose"
FILES = ("compose.yaml", "compose.gpu.yaml")
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def variables(text: str) -> dict[str, str]:
    """Each variable and its default. Raises AssertionError for one without, or with two."""
    assert text.count("${") == len(_VARIABLE.findall(text)), "every variable has a default"
    found: dict[str, str] = {}
    for name, default in _VARIABLE.findall(text):
        assert found.setdefault(name, default) == default, f"{name} has two defaults"
    return found


def env_example() -> dict[str, str]:
    lines = (PLACE / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def services(*files: str) -> dict[str, dict[str, Any]]:
    """The services of the files, later ones on top, every variable at its default."""
    merged: Any = {}
    for name in files or FILES:
        text = _VARIABLE.sub(lambda match: match[2], (PLACE / name).read_text())
        merged = _on_top(merged, yaml.safe_load(text)["services"])
    for service in merged.values():
        service["environment"] = {
            key: str(value) for key, value in service.get("environment", {}).items()
        }
    return dict(merged)


def _on_top(under: Any, over: Any) -> Any:
    if isinstance(under, dict) and isinstance(over, dict):
        return under | {key: _on_top(under.get(key), value) for key, value in over.items()}
    return over


def health_argv(service: dict[str, Any]) -> list[str]:
    """The health check's command."""
    kind, *argv = service["healthcheck"]["test"]
    return list(argv) if kind == "CMD" else ["sh", "-c", *argv]


def health_port(service: dict[str, Any]) -> int:
    [port] = re.findall(r"127\.0\.0\.1:(\d+)/", " ".join(health_argv(service)))
    return int(port)
