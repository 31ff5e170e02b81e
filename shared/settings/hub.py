"""Models of the Hugging Face hub: names in the settings become directories of the hub's own cache.

The one module that knows `huggingface_hub`, whose variables count: HF_HOME, HF_HUB_CACHE,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE. No code of a repository is fetched.
"""

import errno
import logging
import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from shared.settings.hub_names import HubName, commit_of, hub_name
from shared.settings.models import ModelEntry
from shared.settings.paths import fault_of, path_refusal, unreadable
from shared.settings.settings import Settings, given_entries
from shared.settings.text import reason
from shared.tasks.runner_table import WITHOUT_FILES
from shared.telemetry.logging_setup import fields

log = logging.getLogger("aios.hub")

_SAFETENSORS = "*.safetensors"
_OTHER_WEIGHTS = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.onnx",
    "*.onnx_data",
    # HRM-Text as its trainer saves it.
    "*.distcp",
    ".metadata",
    "*/.metadata",
    # HRM and TRM as their trainers save them.
    "checkpoint",
    "*/checkpoint",
    "step_*",
    "*/step_*",
)
"""Weights that are fetched where a repository has no safetensors. Workers load them weights-only."""
_BESIDE_WEIGHTS = (
    "*.json",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "*.spm",
    "*.jinja",
    "*.yaml",
    "*.yml",
    # The small head of an AI-OS implant, whose base model may be in safetensors.
    "q_head.pt",
    "*/q_head.pt",
)
_NEVER = ("*.py", "*.pyc", "*_all_preds.*", "training_args.bin", "*/training_args.bin")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BAR = "huggingface_hub.snapshot_download"
"""The name of the library's bar of bytes. Its others count the same bytes, and files."""


class HubError(Exception):
    """A model of the hub that cannot be had. `remedy` says what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


@dataclass(frozen=True)
class Snapshot:
    """A model's directory in the cache. `is_fresh` is false if the hub could not be asked."""

    directory: str
    is_fresh: bool


def with_hub_models(
    settings: Settings, *, has_gpu: bool = False, may_end: bool = False
) -> Settings:
    """Return the settings with a directory for each model that they name as one of the hub.

    Files that the cache lacks are fetched, with a progress bar on a terminal. Models that require
    a GPU stay as they are unless this machine `has_gpu`. Raise SettingsError, whose message says
    what to do, also for any name of the hub if the setting `hub` is false.

    Ctrl-C waits for the files on their way. If the process `may_end`, it ends at once instead; then
    this is called in its main thread.
    """
    entries: list[ModelEntry] = []
    for entry in given_entries(settings):
        name = hub_name(entry.path)
        is_for_others = entry.gpu_required and not has_gpu
        if name is None or is_for_others or entry.runner in WITHOUT_FILES:
            entries.append(entry)
        elif settings.hub:
            with _ending_at_once(may_end):
                entries.append(_fetched(settings, entry, name))
        else:
            fault = fault_of(entry.path, may_be_directory=True)
            raise unreadable(settings, entry, "path", fault or "it is a name of the hub")
    if tuple(entries) == given_entries(settings):
        return settings
    return settings.model_copy(update={"models": tuple(entries)})


@contextmanager
def _ending_at_once(may_end: bool) -> Iterator[None]:
    """Let SIGINT end the process without Python, whose threads would go on to download."""
    if not may_end:
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _fetched(settings: Settings, entry: ModelEntry, name: HubName) -> ModelEntry:
    """Return the entry with the model's directory as its path. Raise SettingsError."""
    try:
        snapshot = _snapshot(name)
    except HubError as error:
        problem = f"model {entry.id!r}: {error.problem}"
        raise path_refusal(settings, entry, problem, error.remedy) from None
    mib = round(_num_bytes(snapshot.directory) / 2**20, 1)
    log.info(
        "model of the hub",
        extra=fields(
            model=entry.id,
            commit=commit_of(snapshot.directory),
            mib=mib,
            asked_hub=snapshot.is_fresh,
        ),
    )
    return entry.model_copy(update={"path": snapshot.directory})


def is_cached(name: HubName) -> bool:
    """Return whether the cache has the files of a model, without asking the hub."""
    try:
        _cached(name, "")
    except HubError:
        return False
    return True


def _snapshot(name: HubName) -> Snapshot:
    """Return the model's directory in the cache, complete. Raise HubError."""
    from huggingface_hub import constants, snapshot_download

    # HTTPError, the base of what its HTTP client raises, is not exported by name.
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The client logs a line for each request.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    endpoint = constants.ENDPOINT
    page = f"{endpoint}/{name.repository}"
    try:
        files = _listing(name)
        directory = snapshot_download(
            name.repository,
            revision=name.revision,
            allow_patterns=_patterns(name, files),
            ignore_patterns=list(_NEVER),
            tqdm_class=_bar_class(),
        )
    except OfflineModeIsEnabled:
        return _cached(name, f"HF_HUB_OFFLINE forbids to ask {endpoint}")
    except GatedRepoError:
        raise HubError(
            f"{name.repository} is gated",
            f"accept its terms at {page}, and let HF_TOKEN be a token of that account",
        ) from None
    except RevisionNotFoundError:
        raise HubError(
            f"{name.repository} has no revision {name.revision!r}",
            f"name a branch, a tag or a whole commit of {page}/commits/main, or none for main",
        ) from None
    except RepositoryNotFoundError:
        raise HubError(
            f"{endpoint} has no model {name.repository} that may be read, and there is no such path",
            "check the name; if it is private, let HF_TOKEN be a token that may read it",
        ) from None
    except HFValidationError as error:
        raise HubError(
            f"{name.repository!r} is no name of a model ({_line(error)})", "expected org/name"
        ) from None
    except LocalEntryNotFoundError as error:
        return _cached(name, f"{endpoint} cannot be reached ({_line(error.__cause__ or error)})")
    except HfHubHTTPError as error:
        return _cached(name, f"{endpoint} answers {error.response.status_code}")
    except HTTPError as error:
        return _cached(name, f"{endpoint} cannot be reached ({_line(error)})")
    except (OSError, ValueError, RuntimeError) as error:
        raise _broken(error) from None
    return _in_folder(name, directory, is_fresh=True)


def _listing(name: HubName) -> list[str]:
    """Return the files of the repository.

    Those of a commit do not change, so the hub is asked only once for them.
    """
    from huggingface_hub import HfApi

    if name.revision is not None and _COMMIT.fullmatch(name.revision):
        files = _known_listing(name)
        if files is not None:
            return files
    info = HfApi().model_info(name.repository, revision=name.revision)
    return [sibling.rfilename for sibling in info.siblings or ()]


def _known_listing(name: HubName) -> list[str] | None:
    """Return the files of the repository as the cache knows them, None if it does not."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(name.repository, revision=name.revision)
    except CachedRepoTreeNotFoundError:
        return None
    return [file.path for file in tree]


def _cached(name: HubName, obstacle: str) -> Snapshot:
    """Return the model's directory as the cache has it.

    Raise HubError if it lacks the model or a file of it; `obstacle` says why the hub is not asked.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    files = _known_listing(name)
    # Another program, or an older library, may have filled the cache without a listing.
    patterns = None if files is None else _patterns(name, files)
    try:
        directory = snapshot_download(
            name.repository,
            revision=name.revision,
            allow_patterns=patterns,
            ignore_patterns=list(_NEVER),
            local_files_only=True,
        )
    except LocalEntryNotFoundError as error:
        place = "is not in"
        if isinstance(error, IncompleteSnapshotError):
            place = "is only in part in"
        raise HubError(
            f"{name.repository} {place} the cache {constants.HF_HUB_CACHE}, and {obstacle}",
            f"`{name.download_command}` fills the cache where there is a network; HF_HUB_CACHE "
            "names another cache",
        ) from None
    return _in_folder(name, directory, is_fresh=False)


def _in_folder(name: HubName, directory: str, *, is_fresh: bool) -> Snapshot:
    """Return the model's own folder in the directory of its repository. Raise HubError."""
    path = os.path.join(directory, name.folder) if name.folder else directory
    if not os.path.isdir(path):
        raise HubError(
            f"{name.repository} has no folder {name.folder!r} with files of a model",
            "name one that it has, or none",
        )
    return Snapshot(path, is_fresh)


def _patterns(name: HubName, files: Sequence[str]) -> list[str]:
    """Return the patterns of the files to fetch. Raise HubError if none are weights.

    Where there are safetensors, no other weights are fetched.
    """
    prefix = f"{name.folder}/" if name.folder else ""
    inside = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
    weights: tuple[str, ...] = (_SAFETENSORS,)
    if not _any_matches(inside, weights):
        weights = _OTHER_WEIGHTS
    if not _any_matches(inside, weights):
        suffixes = sorted({os.path.splitext(file)[1] or file for file in inside})
        shown = ", ".join(suffixes[:8]) or "none"
        raise HubError(
            f"{name.repository} has no weights that are served here (its files: {shown})",
            "name a repository with safetensors",
        )
    return [prefix + pattern for pattern in (*weights, *_BESIDE_WEIGHTS)]


def _any_matches(files: Sequence[str], patterns: Sequence[str]) -> bool:
    for file in files:
        is_kept = not any(fnmatch(file, pattern) for pattern in _NEVER)
        if is_kept and any(fnmatch(file, pattern) for pattern in patterns):
            return True
    return False


def _bar_class() -> Any:
    """Return the library's progress bar, of which only one is drawn for a model."""
    from huggingface_hub.utils.tqdm import tqdm

    class OneBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            if options.get("name") != _BAR:
                options["disable"] = True
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

    return OneBar


def _broken(error: OSError | ValueError | RuntimeError) -> HubError:
    """Return the error for a download that could not be written, or an answer that is none."""
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HubError(
            f"no space is left for it in the cache {cache}",
            "free some (what has come is kept), or name another directory by HF_HUB_CACHE",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return HubError(
            f"it cannot be written to the cache {cache}: {reason(error)}",
            "name a directory that may be written to by HF_HUB_CACHE",
        )
    if isinstance(error, RuntimeError):
        # So the library's second way of downloading ends that is broken off.
        return HubError(
            f"the download was broken off ({_line(error)})", "start again: what has come is kept"
        )
    return HubError(
        f"{constants.ENDPOINT} does not answer as a hub does ({_line(error)})",
        "let HF_ENDPOINT be the address of a hub, or leave it out",
    )


def _num_bytes(directory: str) -> int:
    """Return the size of all files of a directory, links followed."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            # Somebody may have taken a file out of the cache to which a link is left.
            if os.path.exists(path):
                total += os.path.getsize(path)
    return total


def _line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
