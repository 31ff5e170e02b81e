"""The build backend of setuptools, which asks for a C compiler where the machine has none."""

import platform
import shutil
import sys

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - all hooks of PEP 517

# A compiler of 100 MB in a wheel. pip installs it for the build alone and removes it afterwards.
_COMPILER = "ziglang==0.17.1"


def get_requires_for_build_wheel(config_settings: dict[str, object] | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_compiler()]


def get_requires_for_build_editable(config_settings: dict[str, object] | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_compiler()]


def _compiler() -> list[str]:
    is_for_kernels = sys.platform == "linux" and platform.machine() == "x86_64"
    if is_for_kernels and shutil.which("cc") is None:
        return [_COMPILER]
    return []
