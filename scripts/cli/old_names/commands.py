"""Three commands that are `aios serve hrm` under other names; flags and variables are those of all
our roles.

What differs is a default: `min_server` is healthy once its model is warm.
"""

import os
import re
import sys
from collections.abc import Sequence

from scripts.cli.aios import dry_run_worker, serve_hrm
from shared.settings.command_line import run_role

MIN_SERVER_DEFAULTS = {"healthz_mode": "ready"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def hrm_server(argv: Sequence[str] | None = None) -> int:
    """Be AI-OS's server; the exit status."""
    return run_role("python -m aios.serve.hrm_server", serve_hrm, argv, dry_run_worker)


def min_server(argv: Sequence[str] | None = None) -> int:
    """Be Levanter's server; the exit status."""
    words = with_cached_model(sys.argv[1:] if argv is None else argv)
    name = "python -m levanter.serve.min_server"
    return run_role(name, serve_hrm, words, dry_run_worker, defaults=MIN_SERVER_DEFAULTS)


def model_server(argv: Sequence[str] | None = None) -> int:
    """Be SimpleFoundation's server; the exit status."""
    return run_role("python -m inference.server.model_server", serve_hrm, argv, dry_run_worker)


def with_cached_model(words: Sequence[str]) -> list[str]:
    """`--hf-checkpoint org/model` as the place where Hugging Face's cache has that model, under its
    own name.

    Nothing is fetched. What the cache does not have is left as it stands, to be refused as a path.
    """
    result: list[str] = []
    waits_for_value = False
    for word in words:
        flag, equals, value = word.partition("=")
        if waits_for_value:
            flag, value, waits_for_value = "--hf-checkpoint", word, False
        elif flag.replace("_", "-") != "--hf-checkpoint":
            result.append(word)
            continue
        elif not equals:
            waits_for_value = True
            continue
        place = cached(value)
        result += ["--hf-checkpoint", value] if place is None else ["--model", f"{value}={place}"]
    return [*result, "--hf-checkpoint"] if waits_for_value else result


def cached(name: str) -> str | None:
    """Where Hugging Face's cache has the model of that name, None if it has none or it is no such
    name."""
    if os.path.exists(name) or not _HUB_NAME.fullmatch(name):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return str(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
