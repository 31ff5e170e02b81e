"""The packages that a command needs beside those of every installation."""

from importlib.util import find_spec

from shared.settings.layers import SettingsError

EXTRAS = {
    "api": ("fastapi", "uvicorn", "python_multipart"),
    "worker": ("torch", "transformers", "tokenizers", "safetensors", "numpy", "jinja2"),
}


def require_extras(*names: str) -> None:
    """Raise SettingsError if a package of these extras is missing; the message has a remedy."""
    missing = []
    for name in names:
        for module in EXTRAS[name]:
            if find_spec(module) is None:
                missing.append(module)
    if missing:
        extra = "all" if len(names) > 1 else names[0]
        raise SettingsError(
            f"not installed: {', '.join(missing)}; pip install 'aios-hrm-fleet[{extra}]'"
            " (on a CPU torch==2.13.0 first, from https://download.pytorch.org/whl/cpu)"
        )
