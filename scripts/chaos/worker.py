"""`python -m worker` with the rigged echo runners in the place of the plain ones; the same flags."""

import sys

from shared.cli import run_role
from worker.__main__ import run
from worker.registry import RUNNERS

if __name__ == "__main__":
    RUNNERS["echo"] = "scripts.chaos.rigged:RiggedEcho"
    RUNNERS["echo-task"] = "scripts.chaos.rigged:RiggedEchoTask"
    sys.exit(run_role("python -m scripts.chaos.worker", run))
