"""Three commands that run `aios serve hrm` under the names of older servers.

Their flags and variables are those of all roles. One default differs: the health check of
`min_server` succeeds only when its model is warm.
"""

import os
import re
import sys
from collections.abc import Sequence

from scripts.cli.aios import dry_run_worker, serve_hrm
from shared.settings.command_line import run_role

MIN_SERVER_DEFAULTS = {"healthz_mode": "ready"}
_CHECKPOINT_FLAG = "--hf-checkpoint"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def hrm_server(argv: Sequence[str] | None = None) -> int:
    """Run a fleet as AI-OS's server. Return the exit status."""
    return run_role("python -m aios.serve.hrm_server", serve_hrm, argv, dry_run_worker)


def min_server(argv: Sequence[str] | None = None) -> int:
    """Run a fleet as Levanter's server. Return the exit status."""
    if argv is None:
        argv = sys.argv[1:]
    return run_role(
        "python -m levanter.serve.min_server",
        serve_hrm,
        with_cached_model(argv),
        dry_run_worker,
        defaults=MIN_SERVER_DEFAULTS,
    )


def model_server(argv: Sequence[str] | None = None) -> int:
    """Run a fleet as SimpleFoundation's server. Return the exit status."""
    return run_role("python -m inference.server.model_server", serve_hrm, argv, dry_run_worker)


def with_cached_model(argv: Sequence[str]) -> list[str]:
    """Return the arguments with each `--hf-checkpoint ORG/MODEL` as `--model ORG/MODEL=PATH`.

    The path is that of the model in the cache of Hugging Face; nothing is downloaded. A model that
    the cache does not have stays as it is, and is refused later as a path that does not exist.
    """
    arguments: list[str] = []
    needs_value = False
    for argument in argv:
        if needs_value:
            arguments += _checkpoint(argument)
            needs_value = False
            continue

        # Argparse takes `--flag VALUE` and `--flag=VALUE`, and our flags are also spelt with `_`.
        flag, equals, value = argument.partition("=")
        if flag.replace("_", "-") != _CHECKPOINT_FLAG:
            arguments.append(argument)
        elif equals:
            arguments += _checkpoint(value)
        else:
            needs_value = True

    if needs_value:
        # The parser of the flags refuses the missing value.
        arguments.append(_CHECKPOINT_FLAG)
    return arguments


def _checkpoint(value: str) -> list[str]:
    """Return the flag and the value that load the model of an `--hf-checkpoint`."""
    path = cached_model(value)
    if path is None:
        return [_CHECKPOINT_FLAG, value]
    return ["--model", f"{value}={path}"]


def cached_model(name: str) -> str | None:
    """Return the path of a model in the cache of Hugging Face.

    Return None if the cache does not have the model, if there is a file or folder of this name, or
    if the name is not of the form ORG/MODEL.
    """
    if os.path.exists(name) or not _HUB_NAME.fullmatch(name):
        return None

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return str(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
