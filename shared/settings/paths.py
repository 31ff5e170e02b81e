"""Checks of files and directories that settings name. A wrong one becomes an error of one line."""

import os
import stat

from shared.settings.hub_names import SCHEME, hub_name
from shared.settings.layers import env_name, flag_name
from shared.settings.settings import ModelEntry, Settings, SettingsError, model_entries
from shared.settings.text import reason
from shared.tasks.runner_table import WITHOUT_FILES

_MODEL_PATHS = {
    "path": "directory or file",
    "tokenizer_path": "directory or file",
    "chat_template": "file",
}
"""The paths of a model's entry, and the kind of each."""
_FETCHED = os.path.join("aios", "models")


def fetched_models_folder() -> str:
    """Return the folder of the models that `aios models fetch` has fetched, there or not."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # By the XDG base directory specification a relative one is ignored.
    if not os.path.isabs(cache):
        cache = os.path.expanduser(os.path.join("~", ".cache"))
    return os.path.join(cache, _FETCHED)


def read_text(settings: Settings, name: str) -> str:
    """Return the text of the file that setting `name` names. Raise SettingsError."""
    path = str(getattr(settings, name))
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as stream:
            return stream.read()
    except (OSError, ValueError) as error:
        problem = f"cannot read {path!r}: {reason(error)}"
        raise settings.refusal(name, problem, _remedy(name, "text file")) from None


def check_model_paths(settings: Settings) -> None:
    """Look at every path of the models. Raise SettingsError for the first that cannot be read.

    A model that requires a GPU may lie on another machine, and is left to a worker that has one.
    Names of models on the hub are left to `with_hub_models`, or refused if `hub` is false.
    """
    for entry in model_entries(settings):
        if entry.gpu_required:
            continue
        for field, kind in _MODEL_PATHS.items():
            path = getattr(entry, field)
            if path is None or (field == "path" and entry.runner in WITHOUT_FILES):
                continue
            if field == "path" and settings.hub and hub_name(path) is not None:
                continue
            fault = fault_of(path, may_be_directory=kind != "file")
            if fault is not None:
                raise unreadable(settings, entry, field, fault)


def fault_of(path: str, *, may_be_directory: bool) -> str | None:
    """Return why a path cannot be read, None if it can."""
    expanded = os.path.expanduser(path)
    try:
        mode = os.stat(expanded).st_mode
        if stat.S_ISDIR(mode):
            if not may_be_directory:
                return "it is a directory"
            os.scandir(expanded).close()
        elif stat.S_ISREG(mode):
            # Other kinds are not opened: a pipe may wait for a writer, or be readable only once.
            open(expanded, "rb").close()
    except (OSError, ValueError) as error:
        return reason(error)
    return None


def path_refusal(settings: Settings, entry: ModelEntry, problem: str, remedy: str) -> SettingsError:
    """Return the error for a model's path, which names the setting that the path comes from."""
    return settings.refusal(_setting_of(settings, entry, "path"), problem, remedy)


def _setting_of(settings: Settings, entry: ModelEntry, field: str) -> str:
    """Return the setting that a path of a model comes from."""
    for given in settings.models:
        if given.id == entry.id and getattr(given, field) is not None:
            return "models"
    return "model_path" if field == "path" else field


def unreadable(settings: Settings, entry: ModelEntry, field: str, fault: str) -> SettingsError:
    """Return the error for a path of a model that cannot be read because of a fault."""
    name = _setting_of(settings, entry, field)
    shown = ""
    if field not in (name, "path"):
        shown = f"the {field.replace('_', ' ')} "
    path = getattr(entry, field)
    problem = f"model {entry.id!r}: cannot read {shown}{path!r}: {fault}"
    remedy = _remedy(name, _MODEL_PATHS[field])
    folder, model = os.path.split(os.path.expanduser(path))
    if folder == fetched_models_folder():
        remedy += f"; `aios models fetch {model}` fetches it"
    named = hub_name(path)
    if named is not None:
        remedy += (
            f"; --no-hub forbids to fetch it from the hub: `{named.download_command} --local-dir "
            "DIRECTORY` does that beforehand"
        )
    elif path.startswith(SCHEME):
        remedy += f"; a model of the hub is {SCHEME}org/name[@revision][/folder]"
    return settings.refusal(name, problem, remedy)


def _remedy(name: str, kind: str) -> str:
    return f"name a {kind} that this process may read by {flag_name(name)} or {env_name(name)}"
