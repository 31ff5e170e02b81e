"""Build the images, run each one as it would be run in earnest, and print what they weigh.

    python -m scripts.tools.images # with Docker, or buildah and podman
    python -m scripts.tools.images --stand-in --torch-index '' # no registry of images, and torch from
    pip's own index
    python -m scripts.tools.images api hrm-serve --tag 0.1.0 --base
    python:3.11.14-slim-bookworm@sha256:...

The trial of worker-cpu needs the api image, too; that of worker-cuda looks into it only. Status 1
if one fails.
"""

import argparse
import os
import subprocess
import sys

from scripts.tools.images.build import LAST_TARGET, STAND_IN, BuildPlan, build, make_stand_in
from scripts.tools.images.engine import EngineError, find_engine
from scripts.tools.images.smoke import Report, try_image
from shared.shipped import REPO_ROOT

TARGETS = ("api", "worker-cpu", "hrm-serve", LAST_TARGET)


def main() -> int:
    options = _parser().parse_args()
    try:
        engine = find_engine()
        base = STAND_IN if options.stand_in else options.base
        if options.stand_in and options.build:
            make_stand_in(engine)
        plan = BuildPlan(options.tag, base, options.torch_index, _revision())
        for target in options.targets if options.build else ():
            build(engine, target, plan, os.environ)
        reports = (
            [try_image(engine, target, options.tag) for target in options.targets]
            if options.smoke
            else []
        )
    except (EngineError, AssertionError) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    print(render(reports))
    return 0


def render(reports: list[Report]) -> str:
    """The reports as a table in Markdown."""
    lines = ["| image | size | up after | SIGTERM to exit 0 | run with |", "|---|---|---|---|---|"]
    for report in reports:
        size = f"{report.image.size_bytes / 1e6:.0f} MB"
        cells = (
            report.image.name,
            size,
            _seconds(report.ready_s),
            _seconds(report.stop_s),
            report.saw or "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _revision() -> str:
    """The commit, with a mark if the tree differs from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = (*TARGETS, "worker-cuda")
    parser.add_argument(
        "targets", nargs="*", default=TARGETS, metavar="TARGET", help=f"of {', '.join(known)}"
    )
    parser.add_argument("--tag", default="local")
    parser.add_argument("--base", help="image that has Python, in place of the Dockerfile's")
    parser.add_argument(
        "--stand-in", action="store_true", help="make a base with mmdebstrap (Debian's Python 3.11)"
    )
    parser.add_argument(
        "--torch-index",
        default=os.environ.get("AIOS_TORCH_INDEX"),
        help=(
            "index to take torch from, in place of the Dockerfile's; '' is pip's own "
            "(default: AIOS_TORCH_INDEX)"
        ),
    )
    parser.add_argument("--build", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--smoke", action=argparse.BooleanOptionalAction, default=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
