"""Time a model's answers with drafts and without, turn by turn.

python -m scripts.bench.drafts --model models/hrm-text-math --threads 1 --rounds 5

Prompts are held-out maths problems, or the lines of a file. As many as
`--concurrent` names are answered at a time. It prints tokens a second, their ratio, and what share
of drafts was right. All answers of both sides must be equal.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter as now

from scripts.bench.maths import KINDS, problems_of
from scripts.bench.measure import Comparison, header
from shared.messages import Done, Generate, Sampling
from shared.settings.settings import DEFAULT_MODEL
from shared.tasks.runner_options import HrmTextOptions
from worker.engine.engine import Engine
from worker.engine.engine_stats import EngineStats
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import Runner, RunnerOptions
from worker.hardware.device import keep_freed_memory, use_threads
from worker.host.loading import warm_up
from worker.runners.registry import load_sequence_runner


@dataclass(frozen=True)
class Turn:
    """One side's answers to all prompts, the seconds that they took, and the engine's counts."""

    answers: list[list[int]]
    seconds: float
    stats: EngineStats


def main(argv: Sequence[str] | None = None) -> int:
    """Print a header and a line for each number of concurrent prompts."""
    args = _arguments(argv)
    keep_freed_memory()
    use_threads(args.threads)
    own = HrmTextOptions(draft_tokens=args.draft_tokens, draft_cycles=args.draft_cycles)
    options = RunnerOptions(
        path=args.model, dtype=args.dtype, kv_bytes=2**30, prefix_cache=False, own=own
    )
    runner = load_sequence_runner("hrm-text", options)
    if not runner.spec.max_drafts:
        print("this model does not draft here")
        return 1
    warm_up(runner)

    print(header(model=args.model, threads=args.threads, rounds=args.rounds, dtype=args.dtype))
    print(f"up to {runner.spec.max_drafts} drafts for {runner.spec.draft_cost:.3f} of a forward")
    tasks = _tasks(args)
    are_equal = True
    for concurrent in args.concurrent:
        speed = Comparison()
        for number in range(args.rounds + 1):
            drafted = turn(runner, tasks, concurrent, max_drafts=runner.spec.max_drafts)
            plain = turn(runner, tasks, concurrent, max_drafts=0)
            are_equal = are_equal and drafted.answers == plain.answers
            # The first round does not count: it touches memory for the first time.
            if number:
                speed.add(ours=drafted.seconds, theirs=plain.seconds)
        stats = drafted.stats
        name = f"{concurrent} at a time"
        line = speed.rates(name, stats.num_tokens, "tok/s", sides=("drafts", "none"))
        share = stats.num_accepted / max(1, stats.num_drafted)
        print(f"{line}  drafted {stats.num_drafted}, right {share:.3f}", flush=True)
    print(f"answers equal: {are_equal}")
    return 0 if are_equal else 1


def turn(runner: Runner, tasks: Sequence[Generate], concurrent: int, *, max_drafts: int) -> Turn:
    """Answer all tasks, `concurrent` at a time, with up to `max_drafts` drafts a sequence."""
    spec = runner.spec
    emissions: list[Emission] = []
    runner.spec = replace(spec, max_batch=concurrent, max_drafts=max_drafts)
    engine = Engine(runner, emissions.extend)
    runner.spec = spec
    for number, task in enumerate(tasks):
        engine.submit(SequenceWork(str(number), runner.encode(task), task.sampling))

    begun_s = now()
    while engine.has_work:
        engine.step()
    seconds = now() - begun_s

    answers: list[list[int]] = [[] for _ in tasks]
    for emission in emissions:
        assert emission.ended is None or isinstance(emission.ended, Done), emission.ended
        answers[int(emission.key)] += emission.ids
    return Turn(answers, seconds, engine.stats)


def _tasks(args: argparse.Namespace) -> list[Generate]:
    texts: list[str] = []
    if args.prompts is not None:
        texts = args.prompts.read_text().splitlines()
    else:
        for kind in KINDS:
            texts += [problem.prompt for problem in problems_of(kind, args.count)]
    tasks: list[Generate] = []
    for number, text in enumerate(texts):
        sampling = Sampling(args.tokens, seed=number, temperature=args.temperature)
        tasks.append(Generate(text, sampling))
    return tasks


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="directory of an HRM-Text")
    parser.add_argument("--prompts", type=Path, help="file with a prompt a line")
    parser.add_argument("--count", type=int, default=10, help="problems of each of four kinds")
    parser.add_argument("--tokens", type=int, default=96, help="most tokens of an answer")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--draft-tokens", type=int, default=7)
    parser.add_argument("--draft-cycles", type=int, default=1)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
