"""Files that come with this project and are no modules: models, the default settings."""

from importlib.resources import files
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[1]
"""The directory of our packages: that of a checkout, or where a wheel was installed."""


def shipped(name: str) -> Path:
    """Return the path of a shipped file or directory, such as `models/hrm-text-math`.

    In a checkout it lies beside our packages, in an installed wheel inside this one (setup.py).
    """
    beside_our_packages = REPO_ROOT / name
    if beside_our_packages.exists():
        return beside_our_packages
    return Path(str(files("shared").joinpath(name)))
