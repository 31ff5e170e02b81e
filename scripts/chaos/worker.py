"""Run `python -m worker` with the rigged echo runners in place of the plain ones."""

import sys
from dataclasses import replace

from shared.settings.command_line import run_role
from shared.tasks.runner_table import RUNNERS
from worker.__main__ import run

if __name__ == "__main__":
    RUNNERS["echo"] = replace(RUNNERS["echo"], target="scripts.chaos.rigged:RiggedEcho")
    RUNNERS["echo-task"] = replace(
        RUNNERS["echo-task"], target="scripts.chaos.rigged:RiggedEchoTask"
    )
    sys.exit(run_role("python -m scripts.chaos.worker", run))
