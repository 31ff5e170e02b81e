"""Build the images, run each as in production, and print a table of their sizes and times.

    # With Docker, or buildah and podman:
    python -m scripts.tools.images

    # Without a registry of images, and with torch from pip's own index:
    python -m scripts.tools.images --stand-in --torch-index ''

    # Two images on a base image of one's own:
    python -m scripts.tools.images api hrm-serve --tag 0.1.0 --base python:3.11.14-slim-bookworm

The trial of worker-cpu also runs the api image. worker-cuda is inspected but not served, for want
of a GPU. The exit status is 1 if a build or a trial fails.
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
    args = _parser().parse_args()
    try:
        reports = build_and_try(args)
    except (EngineError, AssertionError) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    print(render(reports))
    return 0


def build_and_try(args: argparse.Namespace) -> list[Report]:
    """Build and try the images that the command line names.

    Raises EngineError if a command of the container engine fails, and AssertionError if an image
    fails its trial.
    """
    engine = find_engine()
    base = args.base
    if args.stand_in:
        base = STAND_IN
    if args.build:
        if args.stand_in:
            make_stand_in(engine)
        plan = BuildPlan(args.tag, base, args.torch_index, revision=_revision())
        for target in args.targets:
            build(engine, target, plan, os.environ)

    reports = []
    if args.smoke:
        for target in args.targets:
            reports.append(try_image(engine, target, args.tag))
    return reports


def render(reports: list[Report]) -> str:
    """Return the reports as a Markdown table."""
    lines = ["| image | size | up after | SIGTERM to exit 0 | run with |", "|---|---|---|---|---|"]
    for report in reports:
        cells = (
            report.image.name,
            f"{report.image.size_bytes / 1e6:.0f} MB",
            _seconds(report.ready_s),
            _seconds(report.stop_s),
            report.trial or "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _revision() -> str:
    """Return the commit, with `-dirty` behind it if the working tree differs."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return git.stdout.strip() or "unknown"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known_targets = ", ".join((*TARGETS, "worker-cuda"))
    parser.add_argument(
        "targets", nargs="*", default=TARGETS, metavar="TARGET", help=f"of {known_targets}"
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
