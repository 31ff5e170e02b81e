"""Measure what keys and values in fewer bits save, and how much they change a model's answers.

    python -m scripts.bench.kv_accuracy --model-path models/hrm-text-math --problems 200

The prompts are held-out maths problems, which any model can read. The model
answers each of them with up to 64 tokens, with keys and values in its own dtype. Along these tokens
the log-probabilities of the five likeliest tokens are compared at each position (teacher-forced).
Then each prompt is answered in each dtype (free-running). With `--problems` the right answers are
counted, which only a model for maths can give.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from scripts.bench.maths import KINDS, problems_of, share_solved
from scripts.bench.measure import header
from scripts.bench.options import own_options
from scripts.bench.quantize import Ids, answers, common
from shared.messages import Generate, Read, Sampling, TokenLogprob
from shared.settings.settings import DEFAULT_MODEL
from shared.tasks.runner_options import KVDtype
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import RunnerOptions
from worker.hardware.device import use_threads
from worker.runners.paged import PagedRunner
from worker.runners.registry import load_runner

_BUDGET = 512 * 2**20
_WINDOW = 256
_BATCH = 32
_NUM_COMPARED = 5
"""The likeliest tokens of a position whose log-probabilities are compared."""
_NUM_READ = 20
"""The likeliest tokens among which they are looked for in the other dtype."""


@dataclass(frozen=True)
class Answers:
    """The free-running answers of a runner, and the tokens of given answers as it reads them."""

    ids: list[Ids]
    read: list[TokenLogprob]


def load(path: Path, kv_dtype: KVDtype, quantize: str) -> PagedRunner:
    """Return the model with keys and values in `kv_dtype`."""
    options = RunnerOptions(
        str(path),
        max_batch=_BATCH,
        context_window=_WINDOW,
        kv_bytes=_BUDGET,
        quantize=quantize,
        own=own_options(path, kv_dtype),
    )
    runner = load_runner("auto", options)
    assert isinstance(runner, PagedRunner), "a model with keys and values"
    return runner


def read_answers(
    runner: PagedRunner, prompts: Sequence[str], responses: Sequence[Ids]
) -> list[TokenLogprob]:
    """Return the tokens of the given responses, one after the other, with the likeliest beside."""
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    for index, (text, response) in enumerate(zip(prompts, responses, strict=True)):
        encoded = runner.encode(Generate(text, Sampling(1, seed=0)))
        task = Read((*encoded.prompt_ids, *response), num_top=_NUM_READ)
        engine.submit(SequenceWork(str(index), runner.encode(task), None))
    while engine.has_work:
        engine.step()

    read: list[list[TokenLogprob]] = [[] for _ in prompts]
    for emission in emissions:
        read[int(emission.key)] += emission.logprobs
    tokens: list[TokenLogprob] = []
    for response, logprobs in zip(responses, read, strict=True):
        # The prompt's own tokens come first, as far as the model predicts them.
        tokens += logprobs[len(logprobs) - len(response) :]
    return tokens


def row(kv_dtype: KVDtype, runner: PagedRunner, exact: Answers, other: Answers) -> str:
    """Return the table's row of a dtype, whose answers are `other`."""
    differences = []
    num_same = 0
    for token, other_token in zip(exact.read, other.read, strict=True):
        if token.top[0][0] == other_token.top[0][0]:
            num_same += 1
        log_probs = {token_id: log_prob for token_id, _, log_prob in other_token.top}
        for token_id, _, log_prob in token.top[:_NUM_COMPARED]:
            if token_id in log_probs:
                differences.append(abs(log_prob - log_probs[token_id]))

    num_equal = 0
    num_common = 0
    num_tokens = 0
    for ids, other_ids in zip(exact.ids, other.ids, strict=True):
        if ids == other_ids:
            num_equal += 1
        num_common += common(ids, other_ids)
        num_tokens += len(ids)

    page_size = runner.spec.page_size
    bytes_of_token = runner.net.kv_shape.bytes_per_token(runner.store.keys.dtype)
    cells = [
        kv_dtype,
        f"{bytes_of_token:,}",
        f"{_BUDGET // (bytes_of_token * page_size):,}",
        f"{num_same / len(exact.read):.4f} of {len(exact.read):,}",
        f"{sum(differences) / len(differences):.4f}",
        f"{max(differences):.3f}",
        f"{num_equal} of {len(exact.ids)}",
        f"{num_common / num_tokens:.4f}",
    ]
    return f"| {' | '.join(cells)} |"


TITLES = (
    "keys and values",
    "bytes of a token",
    "pages of 16 in 512 MiB",
    "same greedy token, teacher-forced",
    "mean difference of a log-probability",
    "largest",
    "answers equal, free-running",
    "tokens before the first that differs",
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--quantize", default="none", help="weights")
    parser.add_argument(
        "--problems",
        type=int,
        default=0,
        help="of each kind, to be solved, by a model for maths",
    )
    args = parser.parse_args(argv)
    use_threads(1)
    prompts = []
    for kind in KINDS:
        for problem in problems_of(kind, -(-args.prompts // len(KINDS))):
            prompts.append(problem.prompt)

    print(header(model=args.model_path.name, quantize=args.quantize))
    print(f"| {' | '.join(TITLES)} |")
    print(f"|{'---|' * len(TITLES)}")
    exact: Answers | None = None
    for kv_dtype in get_args(KVDtype):
        runner = load(args.model_path, kv_dtype, args.quantize)
        ids = answers(runner, prompts)
        responses = ids if exact is None else exact.ids
        found = Answers(ids, read_answers(runner, prompts, responses))
        exact = exact or found
        print(row(kv_dtype, runner, exact, found), flush=True)
    if not args.problems:
        return

    for kind in KINDS:
        shares = []
        for kv_dtype in get_args(KVDtype):
            runner = load(args.model_path, kv_dtype, args.quantize)
            share = share_solved(runner, problems_of(kind, args.problems))
            shares.append(f"{kv_dtype} {share:.3f}")
        print(f"  {kind:10} solved: {', '.join(shares)}", flush=True)


if __name__ == "__main__":
    main()
