"""Time an engine's steps with our kernels and by torch alone, turn by turn.

python -m scripts.bench.steps --threads 2 --dtypes float32,bfloat16,int8 --cache FOLDER

It prints the milliseconds of a decoding step of 16, 8 and 1 sequences of about 125 tokens, and of
the prefill of a prompt of about 87. Each figure is the median of the rounds, each turn in a process
of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter as now

from scripts.bench.measure import header
from scripts.bench.model import SIZES, hrm_text
from scripts.bench.options import options
from scripts.bench.ours import Ours
from scripts.bench.prompts import draw_prompts
from scripts.bench.rig import QUICK, Load
from worker.native import library as native

TORCH_ALONE = "torch alone"
SIDES = (TORCH_ALONE, "our kernels")
_REPEATS = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Print a header and a table, or with `--turn` the figures of one turn as JSON."""
    parser = options(__doc__)
    parser.add_argument("--dtypes", default="float32,bfloat16,int8", help="of weights")
    parser.add_argument("--turn", nargs=2, metavar=("SIDE", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.turn:
        print(json.dumps(turn(args, *args.turn)))
        return

    print(header(size=args.size, threads=args.threads, rounds=args.rounds))
    titles = [f"step of {batch}" for batch in _batches(args)] + ["prefill of a prompt"]
    print(f"| weights | side | {' | '.join(f'{title}, ms' for title in titles)} |")
    print(f"|{'---|' * (2 + len(titles))}")
    with tempfile.TemporaryDirectory() as scratch:
        args.cache = args.cache or Path(scratch)
        hrm_text(args.cache, args.size)
        for dtype in args.dtypes.split(","):
            rounds: dict[str, list[list[float]]] = {side: [] for side in SIDES}
            for _ in range(args.rounds):
                for side in SIDES:
                    rounds[side].append(_in_process(args, side, dtype))
            for side, figures in rounds.items():
                columns = zip(*figures, strict=True)
                cells = [f"{statistics.median(column):.1f}" for column in columns]
                print(f"| {dtype} | {side} | {' | '.join(cells)} |", flush=True)


def turn(args: argparse.Namespace, side: str, dtype: str) -> list[float]:
    """Return the milliseconds of a decoding step of each batch, and of a prompt's prefill.

    Each is the best of some repetitions.
    """
    if side == TORCH_ALONE:
        # Nothing is found there, as on a machine without compiled kernels.
        native.FOLDER = Path("nowhere")
    load = _load(args)
    engine = Ours(
        hrm_text(args.cache, args.size),
        threads=args.threads,
        max_batch=load.concurrent,
        quantize="int8" if dtype == "int8" else "none",
        dtype="float32" if dtype == "int8" else dtype,
    )
    prompts = draw_prompts(load.concurrent, *load.prompt_tokens, SIZES[args.size].vocab)

    def prefill() -> float:
        begun_s = now()
        engine.generate(prompts, [1] * len(prompts))
        return (now() - begun_s) / len(prompts)

    milliseconds = []
    for batch in _batches(args):
        steps = [engine.decode_steps(prompts[:batch], [], load.steps) for _ in range(_REPEATS)]
        milliseconds.append(1000 * min(steps) / load.steps)
    milliseconds.append(1000 * min(prefill() for _ in range(_REPEATS)))
    return milliseconds


def _in_process(args: argparse.Namespace, side: str, dtype: str) -> list[float]:
    """Return the figures of a turn in a process of its own."""
    words = [sys.executable, "-m", "scripts.bench.steps", "--turn", side, dtype]
    words += ["--cache", str(args.cache), "--size", args.size, "--threads", str(args.threads)]
    if args.quick:
        words.append("--quick")
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    figures: list[float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _load(args: argparse.Namespace) -> Load:
    return QUICK if args.quick else Load()


def _batches(args: argparse.Namespace) -> list[int]:
    """Return the numbers of sequences that decode together."""
    most = _load(args).concurrent
    return [most, most // 2, 1]


if __name__ == "__main__":
    main()
