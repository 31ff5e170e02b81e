"""`aios lm-eval`: the command line of lm-evaluation-harness, which knows the model `hrm-fleet`.

    aios lm-eval run --model hrm-fleet --model_args url=http://localhost:8000 --tasks arc_easy

The harness finds models in a table of its own, to which this adds one.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import click

from shared.commands import EXIT_OK, Argument, Command
from shared.settings.command_line import EXIT_BAD_SETTINGS

PROG = "aios lm-eval"
MODEL = "hrm-fleet"


def run(words: Sequence[str]) -> int:
    """Run the harness with these words and return its exit status."""
    if find_spec("lm_eval") is None:
        print(f"{PROG}: needs the harness: pip install 'lm-eval[api]'", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    from lm_eval.__main__ import cli_evaluate

    register()
    # The harness reads the words of the process, in which its own command comes first.
    sys.argv = ["lm_eval", *words]
    cli_evaluate()
    return EXIT_OK


def register() -> None:
    """Let the harness of this process know the model `hrm-fleet`."""
    # Its own models first: it adds them only to an empty table.
    import_module("lm_eval.models")
    from lm_eval.api.registry import model_registry

    model_registry.register(MODEL, target="scripts.cli.lm_harness.model:HrmFleet")


command = Command(
    "lm-eval",
    callback=run,
    # Everything is the harness's, --help too.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
    params=[
        Argument(
            "words",
            nargs=-1,
            required=False,
            type=click.UNPROCESSED,
            metavar="[ARGUMENTS OF LM-EVAL]...",
            help="as lm-evaluation-harness has them; its --model is hrm-fleet",
        )
    ],
    help="The command line of lm-evaluation-harness, with a fleet as its model.",
    examples=(
        "aios lm-eval run --model hrm-fleet --model_args url=http://localhost:8000 --tasks arc_easy",
    ),
)
