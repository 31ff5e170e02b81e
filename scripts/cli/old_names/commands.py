"""Three commands that run `aios serve hrm` under the names of older servers, and one of the app.

Their flags and variables are those of all roles. One default differs: the health check of
`min_server` succeeds only when its model is warm.
"""

import sys
from collections.abc import Sequence

from scripts.cli import ui
from scripts.cli.serve import dry_run_worker, serve_hrm
from shared.settings.command_line import run_role
from shared.settings.hub_names import SCHEME, hub_name

MIN_SERVER_DEFAULTS = {"healthz_mode": "ready"}
_CHECKPOINT_FLAG = "--hf-checkpoint"


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
        with_hub_model(argv),
        dry_run_worker,
        defaults=MIN_SERVER_DEFAULTS,
    )


def model_server(argv: Sequence[str] | None = None) -> int:
    """Run a fleet as SimpleFoundation's server. Return the exit status."""
    return run_role("python -m inference.server.model_server", serve_hrm, argv, dry_run_worker)


def hrm_ui(argv: Sequence[str] | None = None) -> int:
    """Become the server of the web app. Return the exit status if that cannot be."""
    return ui.main(argv, prog="python -m aios.serve.hrm_ui")


def with_hub_model(argv: Sequence[str]) -> list[str]:
    """Return the arguments with each `--hf-checkpoint ORG/MODEL` as `--model ORG/MODEL=ORG/MODEL`.

    So the model keeps its whole name as its id. A path stays as it is.
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
    if hub_name(value) is None:
        return [_CHECKPOINT_FLAG, value]
    return ["--model", f"{value.removeprefix(SCHEME)}={value}"]
