"""Measure which faults a fleet on this machine tolerates.

`python -m scripts.chaos --scenarios kill,stop,...` prints a row of a table for each scenario. The
exit status is 1 if a scenario falls short. It holds if no request failed, if no client of a single
front had to repeat a request, if all texts are those of an undisturbed run, if each job has one
terminal event, and if nothing is left behind in Redis.
"""

import argparse
import asyncio
import os
import sys
import time
from dataclasses import fields

from scripts.chaos.cancel import cancel
from scripts.chaos.criteria import ExperimentPlan, ScenarioResult
from scripts.chaos.fair import fair
from scripts.chaos.media import media
from scripts.chaos.scenarios import SCENARIOS, Scenario
from scripts.chaos.submits import submits

_SHOWN = 5
ALL_SCENARIOS: dict[str, Scenario] = {
    **SCENARIOS,
    "submits": submits,
    "fair": fair,
    "cancel": cancel,
    "media": media,
}


def main() -> int:
    options = vars(_parser().parse_args())
    names = options.pop("scenarios").split(",")

    # Every other option is a field of the plan.
    plan = ExperimentPlan(**options)
    print(f"{plan}; {os.cpu_count()} cores", flush=True)

    status = 0
    for name in names:
        result = _run(name, plan)
        if result.wrong:
            status = 1
    return status


def _run(name: str, plan: ExperimentPlan) -> ScenarioResult:
    """Run a scenario and print its row, with the first few of its problems below."""
    started_at = time.strftime("%H:%M:%S")
    load_before = os.getloadavg()[0]
    result = asyncio.run(ALL_SCENARIOS[name](plan))
    load_after = os.getloadavg()[0]

    figures = ", ".join(f"{key} {value}" for key, value in result.figures.items())
    verdict = "falls short" if result.wrong else "holds"
    load = f"load {load_before:.1f} to {load_after:.1f}"
    print(f"| {result.name} | {verdict} | {figures} | {started_at}, {load} |", flush=True)

    for line in result.wrong[:_SHOWN]:
        print(f"  {line}", flush=True)
    if len(result.wrong) > _SHOWN:
        print(f"  and {len(result.wrong) - _SHOWN} more", flush=True)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.chaos", description=__doc__)
    # That of pictures and sounds needs models, which only its caller can name.
    usual = [name for name in ALL_SCENARIOS if name != "media"]
    parser.add_argument(
        "--scenarios", default=",".join(usual), help="of " + ", ".join(ALL_SCENARIOS)
    )
    for field in fields(ExperimentPlan):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default)
    return parser


if __name__ == "__main__":
    sys.exit(main())
