"""Compare a whole fleet (front, Redis, workers) with bare engines and with `transformers`.

python -m scripts.bench.fleet --workers 2 --threads 1
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter as now

from transformers.utils.logging import disable_progress_bar

from scripts.bench import model
from scripts.bench.client import complete_all
from scripts.bench.measure import Comparison, Timed, header, take_turns
from scripts.bench.options import options
from scripts.bench.ours import KV_MIB, Ours, Response
from scripts.bench.prompts import draw_prompts
from scripts.bench.rig import QUICK, Load
from scripts.bench.serve import engine, fleet
from scripts.bench.theirs import Theirs


@dataclass(frozen=True)
class Turn:
    """One turn of a side: the median seconds to a first token, and the texts.

    The turns of transformers have no time to a first token, and those of engines have no texts.
    """

    first_token_s: float = 0.0
    texts: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a header, then fleet, engines and transformers under the same load."""
    args = _parser().parse_args(argv)
    disable_progress_bar()
    print(
        header(
            size=args.size,
            workers=args.workers,
            threads=args.threads,
            baseline_threads=args.baseline_threads,
            quantize=args.quantize,
        )
    )
    load = QUICK if args.quick else Load()
    prompts = draw_prompts(load.concurrent, *load.prompt_tokens, model.SIZES[args.size].vocab)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        path = model.hrm_text(args.cache or Path(scratch), args.size)
        turns = _turns(args, path, prompts, load.new_tokens, stack)
    for line in _rows(turns, len(prompts) * load.new_tokens):
        print(line)


def _turns(
    args: argparse.Namespace, path: Path, prompts: list[list[int]], length: int, stack: ExitStack
) -> dict[str, list[Timed[Turn]]]:
    """Start all sides, let them take turns, and return the turns of each."""
    max_batch = math.ceil(len(prompts) / args.workers)
    flags = ["--model-path", str(path), "--device", "cpu"]
    flags += ["--workers", str(args.workers)]
    flags += ["--threads", str(args.threads)]
    flags += ["--kv-memory-mib", str(KV_MIB)]
    flags += ["--max-batch-size", str(max_batch)]
    # All turns have the same prompts, and one must not use the results of another.
    flags.append("--no-prefix-cache")
    if args.quantize != "none":
        flags += ["--quantize", args.quantize]
    url = stack.enter_context(fleet(flags))

    engines = []
    for _ in range(args.workers):
        running = engine(path, threads=args.threads, max_batch=max_batch, quantize=args.quantize)
        engines.append(stack.enter_context(running))
    theirs = Theirs(path, threads=args.baseline_threads)
    tokenizer = model.tokenizer(model.SIZES[args.size].vocab)

    def static_batch() -> Turn:
        batch = theirs.generate(prompts, length)
        texts = []
        for ids in batch.ids:
            texts.append(str(tokenizer.decode(ids, skip_special_tokens=True)))
        return Turn(texts=texts)

    return take_turns(
        args.rounds,
        fleet=lambda: _fleet_turn(url, prompts, length),
        engine=lambda: _engine_turn(engines, prompts, length),
        theirs=static_batch,
    )


def _fleet_turn(url: str, prompts: list[list[int]], length: int) -> Turn:
    streams = complete_all(url, prompts, length)
    waits = [stream.first_at - stream.started_at for stream in streams]
    return Turn(statistics.median(waits), [stream.text for stream in streams])


def _engine_turn(engines: list[Ours], prompts: list[list[int]], length: int) -> Turn:
    """Divide the prompts among all engines and return their turn."""

    def generate(ours: Ours, share: list[list[int]]) -> list[Response]:
        return ours.generate(share, [length] * len(share))

    started = now()
    shares = [prompts[number :: len(engines)] for number in range(len(engines))]
    waits = []
    with ThreadPoolExecutor(len(engines)) as pool:
        for responses in pool.map(generate, engines, shares):
            for response in responses:
                waits.append(response.first_at - started)
        return Turn(statistics.median(waits))


def _rows(turns: dict[str, list[Timed[Turn]]], tokens: int) -> list[str]:
    """Return the rows of all turns, in each of which a side generated `tokens` tokens."""
    lines = []
    for one, other in (("fleet", "theirs"), ("engine", "theirs"), ("fleet", "engine")):
        speed = Comparison(
            [turn.seconds for turn in turns[one]], [turn.seconds for turn in turns[other]]
        )
        lines.append(speed.rates(f"{one} / {other}", tokens, "tok/s", (one, other)))

    waits = Comparison()
    added = []
    for through_fleet, direct in zip(turns["fleet"], turns["engine"], strict=True):
        fleet_s = through_fleet.value.first_token_s
        engine_s = direct.value.first_token_s
        waits.add(fleet_s, engine_s)
        added.append(fleet_s - engine_s)
    first = waits.latencies("TTFT p50", ("fleet", "engine"))
    lines.append(f"{first}  added, median: {1000 * statistics.median(added):.1f} ms")

    texts = turns["fleet"][0].value.texts
    num_equal = 0
    for our_text, their_text in zip(texts, turns["theirs"][0].value.texts, strict=True):
        if our_text == their_text:
            num_equal += 1
    lines.append(f"  greedy answers of fleet and theirs equal: {num_equal} of {len(texts)}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = options(__doc__)
    parser.add_argument(
        "--workers", type=int, default=1, help="worker processes, and engines beside them"
    )
    return parser


if __name__ == "__main__":
    main()
