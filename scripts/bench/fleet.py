"""The whole fleet - front, Redis, workers - beside engines in processes of their own and beside
`transformers`.

python -m scripts.bench.fleet --workers 2 --threads 1
"""

import argparse
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
from scripts.bench.ours import KV_MIB, Ours
from scripts.bench.prompts import draw_prompts
from scripts.bench.rig import QUICK, Load
from scripts.bench.serve import engine, fleet
from scripts.bench.theirs import Theirs


@dataclass(frozen=True)
class Turn:
    """Median seconds to a first token (0 for the static batch), and the texts (none from the
    engines)."""

    first_token_s: float = 0.0
    said: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a header, then fleet, engines and transformers under the same load."""
    args = _parser().parse_args(argv)
    disable_progress_bar()
    facts = {
        name: getattr(args, name)
        for name in ("size", "workers", "threads", "baseline_threads", "quantize")
    }
    print(header(**facts))
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
    places = -(-len(prompts) // args.workers)
    flags = ["--max-batch-size", str(places)]
    flags += [] if args.quantize == "none" else ["--quantize", args.quantize]
    serving = [
        "--workers",
        str(args.workers),
        "--threads",
        str(args.threads),
        "--kv-memory-mib",
        str(KV_MIB),
    ]
    serving += ["--no-prefix-cache"]  # turns repeat their prompts
    url = stack.enter_context(
        fleet(["--model-path", str(path), "--device", "cpu", *serving, *flags])
    )
    facts = {"threads": args.threads, "max_batch": places, "quantize": args.quantize}
    engines = [stack.enter_context(engine(path, **facts)) for _ in range(args.workers)]
    theirs = Theirs(path, threads=args.baseline_threads)
    words = model.tokenizer(model.SIZES[args.size].vocab)

    def static_batch() -> Turn:
        ids = theirs.generate(prompts, length).ids
        return Turn(said=[str(words.decode(row, skip_special_tokens=True)) for row in ids])

    return take_turns(
        args.rounds,
        fleet=lambda: _fleet_turn(url, prompts, length),
        engine=lambda: _engine_turn(engines, prompts, length),
        theirs=static_batch,
    )


def _fleet_turn(url: str, prompts: list[list[int]], length: int) -> Turn:
    streams = complete_all(url, prompts, length)
    waits = [stream.first_at - stream.begun_at for stream in streams]
    return Turn(statistics.median(waits), [stream.text for stream in streams])


def _engine_turn(engines: list[Ours], prompts: list[list[int]], length: int) -> Turn:
    """The prompts dealt out to all engines."""
    begun = now()
    dealt = [prompts[number :: len(engines)] for number in range(len(engines))]
    with ThreadPoolExecutor(len(engines)) as callers:
        said = callers.map(
            lambda one, some: one.generate(some, [length] * len(some)), engines, dealt
        )
        return Turn(statistics.median(item.first_at - begun for some in said for item in some))


def _rows(turns: dict[str, list[Timed[Turn]]], tokens: int) -> list[str]:
    seconds = {name: [turn.seconds for turn in some] for name, some in turns.items()}
    waits = {
        name: [turn.value.first_token_s for turn in turns[name]] for name in ("fleet", "engine")
    }
    added = statistics.median(
        mine - other for mine, other in zip(waits["fleet"], waits["engine"], strict=True)
    )
    texts = zip(turns["fleet"][0].value.said, turns["theirs"][0].value.said, strict=True)
    equal = sum(mine == other for mine, other in texts)
    lines = [
        Comparison(seconds[one], seconds[other]).rates(
            f"{one} / {other}", tokens, "tok/s", (one, other)
        )
        for one, other in (("fleet", "theirs"), ("engine", "theirs"), ("fleet", "engine"))
    ]
    first = Comparison(waits["fleet"], waits["engine"]).latencies("TTFT p50", ("fleet", "engine"))
    said = (
        f"  greedy answers of fleet and theirs equal: {equal} of "
        f"{len(turns['fleet'][0].value.said)}"
    )
    return [*lines, f"{first}  added, median: {1000 * added:.1f} ms", said]


def _parser() -> argparse.ArgumentParser:
    parser = options(__doc__)
    parser.add_argument(
        "--workers", type=int, default=1, help="worker processes, and engines beside them"
    )
    return parser


if __name__ == "__main__":
    main()
