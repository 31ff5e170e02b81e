"""`python -m worker` with the rigged echo runner in the place of the plain one; the same flags."""

import sys

from shared.cli import run_role
from shared.runner_table import RUNNERS, RunnerInfo
from worker.__main__ import run

if __name__ == "__main__":
    RUNNERS["echo"] = RunnerInfo("scripts.chaos.rigged:RiggedEcho")
    sys.exit(run_role("python -m scripts.chaos.worker", run))
