"""`python -m worker` with the rigged echo runner in the place of the plain one; the same flags."""

import sys

from shared.cli import run_role
from worker.__main__ import run
from worker.registry import RUNNERS

if __name__ == "__main__":
    RUNNERS["echo"] = "scripts.chaos.rigged:RiggedEcho"
    sys.exit(run_role("python -m scripts.chaos.worker", run))
