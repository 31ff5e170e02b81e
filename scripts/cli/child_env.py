"""The environment of child processes, from which they resolve the settings of their parent."""

import json
import os
import sysconfig
from collections.abc import Mapping

from shared.settings.command_line import CONFIG_ENV
from shared.settings.layers import ORIGINS_ENV, env_name, general_names
from shared.settings.settings import Settings
from shared.settings.types import SECRETS
from shared.shipped import REPO_ROOT


def child_env(settings: Settings) -> dict[str, str]:
    """Return an environment in which a child process resolves exactly these settings.

    The child reads no settings file. It gets the origin of each setting for its error messages.
    """
    env = dict(os.environ)
    for name in general_names():
        env.pop(name, None)
    env |= settings.to_env()

    origins = {name: settings.origin(name) for name in Settings.model_fields}
    env[CONFIG_ENV] = os.devnull
    env[ORIGINS_ENV] = json.dumps(origins)
    env["PYTHONPATH"] = python_path()
    return env


def without_keys(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the keys of callers, which only a front needs."""
    keyless = dict(env)
    for secret in SECRETS:
        keyless.pop(env_name(secret), None)
    return keyless


def python_path() -> str:
    """Return a PYTHONPATH with which children find the packages of a checkout in any directory."""
    paths = []
    # Installed packages are found without it. In PYTHONPATH, site-packages would come before the
    # standard library.
    if str(REPO_ROOT) != sysconfig.get_path("purelib"):
        paths.append(str(REPO_ROOT))
    inherited = os.environ.get("PYTHONPATH")
    if inherited:
        paths.append(inherited)
    return os.pathsep.join(paths)
