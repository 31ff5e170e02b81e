"""Compare the engine with `transformers`, each in its own process, row by row.

python -m scripts.bench.engine --threads 2 --rows decode,single,prefill
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from scripts.bench.generation import decode, prefill, single, staggered
from scripts.bench.measure import header
from scripts.bench.options import options
from scripts.bench.rig import QUICK, Load, Rig
from scripts.bench.rows import cost, prefix, scoring

ROWS: dict[str, Callable[[Rig], list[str]]] = {
    "decode": decode,
    "single": single,
    "prefill": prefill,
    "staggered": staggered,
    "scoring": scoring,
    "prefix": prefix,
    "cost": cost,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print a header, then the rows that `argv` names."""
    args = _arguments(argv)
    disable_progress_bar()
    print(
        header(
            size=args.size,
            threads=args.threads,
            baseline_threads=args.baseline_threads,
            quantize=args.quantize,
        )
    )
    load = QUICK if args.quick else Load()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as engines:
        rig = Rig(
            size=args.size,
            cache=args.cache or Path(scratch),
            threads=args.threads,
            baseline_threads=args.baseline_threads,
            quantize=args.quantize,
            rounds=args.rounds,
            load=load,
            engines=engines,
        )
        for name in args.rows:
            for line in ROWS[name](rig):
                print(line, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument(
        "--rows", type=_rows, default=list(ROWS), help=f"some of {','.join(ROWS)} (default: all)"
    )
    return parser.parse_args(argv)


def _rows(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown row {unknown[0]!r}: some of {','.join(ROWS)} are expected"
        )
    return names


if __name__ == "__main__":
    main()
