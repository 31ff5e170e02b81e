"""Time decoding steps and prefill with keys and values in fewer bits, turn by turn.

python -m scripts.bench.kv_steps --threads 2 --cache FOLDER --lengths 125,1000

It prints the milliseconds of a decoding step of a full batch behind prompts of each length, and of
the prefill of such a prompt. Each figure is the median of the rounds, and the best of the
repetitions within one. All engines are in one process, so memory is needed for all of them.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter as now
from typing import get_args

from scripts.bench.measure import header
from scripts.bench.model import SIZES, hrm_text
from scripts.bench.options import options
from scripts.bench.ours import Ours
from scripts.bench.prompts import draw_prompts
from scripts.bench.rig import QUICK, Load
from shared.tasks.runner_options import KVDtype

_KV_MIB = 3072
_REPEATS = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Print a header, and a table with a row for each length and dtype."""
    parser = options(__doc__)
    parser.add_argument("--dtype", default="float32", help="of weights")
    parser.add_argument("--lengths", default="125,1000", help="tokens of a prompt")
    args = parser.parse_args(argv)
    header_of_run = header(
        size=args.size,
        threads=args.threads,
        rounds=args.rounds,
        dtype=args.dtype,
        quantize=args.quantize,
    )
    print(header_of_run)
    load = QUICK if args.quick else Load()
    print(f"| prompt | keys and values | step of {load.concurrent}, ms | prefill of a prompt, ms |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        path = hrm_text(args.cache or Path(scratch), args.size)
        engines = {kv_dtype: _engine(path, load, args, kv_dtype) for kv_dtype in get_args(KVDtype)}
        for length in map(int, args.lengths.split(",")):
            _measure(engines, length, load, args)


def _engine(path: Path, load: Load, args: argparse.Namespace, kv_dtype: KVDtype) -> Ours:
    # With the prefix cache a prompt is computed once, although many rounds go on behind it.
    return Ours(
        path,
        threads=args.threads,
        max_batch=load.concurrent,
        quantize=args.quantize,
        dtype=args.dtype,
        kv_dtype=kv_dtype,
        kv_mib=_KV_MIB,
        prefix_cache=True,
    )


def _measure(
    engines: dict[KVDtype, Ours], length: int, load: Load, args: argparse.Namespace
) -> None:
    """Print the rows of prompts of `length` tokens."""
    vocab = SIZES[args.size].vocab
    prompts = draw_prompts(load.concurrent, length, length, vocab)
    steps: dict[KVDtype, list[float]] = {kv_dtype: [] for kv_dtype in engines}
    prefills: dict[KVDtype, list[float]] = {kv_dtype: [] for kv_dtype in engines}
    for engine in engines.values():
        # Computed before, because long prompts take so many steps that the first rows would end.
        engine.generate(prompts, [1] * len(prompts))
    for number in range(args.rounds):
        # Prompts that no cache holds.
        [fresh] = draw_prompts(1, length, length, vocab, seed=number + 1)
        for kv_dtype, engine in engines.items():
            seconds = [engine.decode_steps(prompts, [], load.steps) for _ in range(_REPEATS)]
            steps[kv_dtype].append(min(seconds) / load.steps)
            begun_s = now()
            engine.generate([fresh], [1])
            prefills[kv_dtype].append(now() - begun_s)

    for kv_dtype in engines:
        step_ms = 1000 * statistics.median(steps[kv_dtype])
        prefill_ms = 1000 * statistics.median(prefills[kv_dtype])
        print(f"| {length} | {kv_dtype} | {step_ms:.1f} | {prefill_ms:.1f} |", flush=True)


if __name__ == "__main__":
    main()
