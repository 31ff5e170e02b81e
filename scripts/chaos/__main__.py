"""`python -m scripts.chaos --rows kill,stop,...`: the table of what the fleet bears, measured on
this machine.

Exits with 1 if a row falls short. The bars: nothing failed, nothing asked again by a client of one
front, all texts as in an undisturbed run, one terminal event a job, nothing left behind in Redis.
"""

import argparse
import asyncio
import os
import sys
import time
from dataclasses import fields

from scripts.chaos.cancel import cancel
from scripts.chaos.criteria import ExperimentPlan, Row
from scripts.chaos.fair import fair
from scripts.chaos.scenarios import ROWS, RowOf
from scripts.chaos.submits import submits

_SHOWN = 5
ALL_ROWS: dict[str, RowOf] = {**ROWS, "submits": submits, "fair": fair, "cancel": cancel}


def main() -> int:
    args = _parser().parse_args()
    plan = ExperimentPlan(
        **{item.name: getattr(args, item.name) for item in fields(ExperimentPlan)}
    )
    print(f"{plan}; {os.cpu_count()} cores", flush=True)
    rows = [_run(name, plan) for name in args.rows.split(",")]
    return 1 if any(row.wrong for row in rows) else 0


def _run(name: str, plan: ExperimentPlan) -> Row:
    begun, before = time.strftime("%H:%M:%S"), os.getloadavg()[0]
    row = asyncio.run(ALL_ROWS[name](plan))
    told = ", ".join(f"{key} {value}" for key, value in row.figures.items())
    verdict = "falls short" if row.wrong else "holds"
    print(
        (
            f"| {row.name} | {verdict} | {told} | {begun}, load {before:.1f} to "
            f"{os.getloadavg()[0]:.1f} |"
        ),
        flush=True,
    )
    for line in row.wrong[:_SHOWN]:
        print(f"  {line}", flush=True)
    if len(row.wrong) > _SHOWN:
        print(f"  and {len(row.wrong) - _SHOWN} more", flush=True)
    return row


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.chaos", description=__doc__)
    parser.add_argument("--rows", default=",".join(ALL_ROWS), help="of " + ", ".join(ALL_ROWS))
    for item in fields(ExperimentPlan):
        kind = type(item.default)
        parser.add_argument("--" + item.name.replace("_", "-"), type=kind, default=item.default)
    return parser


if __name__ == "__main__":
    sys.exit(main())
