"""The flags that benchmarks share, and the options of a model's own runner."""

import argparse
import os
from pathlib import Path

from scripts.bench.model import SIZES
from shared.accelerators import ACCELERATORS
from shared.tasks.runner_options import KVDtype, Options, validated
from shared.tasks.runner_table import info_of
from worker.runners.registry import detect


def options(description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags that benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="torch threads of each process of our side"
    )
    parser.add_argument(
        "--baseline-threads",
        type=int,
        default=os.cpu_count(),
        help="torch threads of the other side",
    )
    parser.add_argument(
        "--quantize", choices=list(ACCELERATORS), default="none", help="weights of our side"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument(
        "--quick", action="store_true", help="small loads, which only show that the rows run"
    )
    parser.add_argument("--size", choices=list(SIZES), default="reference", help="which net")
    parser.add_argument(
        "--cache", type=Path, help="where nets are kept between runs (default: nowhere)"
    )
    return parser


def own_options(path: Path, kv_dtype: KVDtype) -> Options:
    """Return the options of a model's own runner, with keys and values in `kv_dtype`."""
    return validated(info_of(detect(str(path))).options, {"kv_dtype": kv_dtype})
