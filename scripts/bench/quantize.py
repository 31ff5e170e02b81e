"""What int8 linear layers change in a model's logits, in its greedy text and, for the sample model,
in its answers.

python -m scripts.bench.quantize --model-path models/sample-hrm-text --problems 200 --least-weights
1

Prompts are held-out problems. The fp32 model answers each with up to 64 tokens; along these tokens
the logits of both are compared, position by position (teacher-forced); then int8 answers the same
prompts by itself (free-running).
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from scripts.eval_sample import exact_share
from scripts.sample_problems import KINDS, held_out
from shared.messages import Generate, Sampling
from shared.settings import SAMPLE_MODEL
from worker.accelerators import prepare
from worker.device import use_threads
from worker.engine import Engine
from worker.models import linear
from worker.models.act_bundle import load_act_bundle
from worker.registry import detect, load_sequence_runner
from worker.request import Emission, SequenceWork
from worker.runners.base import Runner, RunnerOptions

_ANSWER = Sampling(max_tokens=64, seed=0, temperature=0.0)
_WINDOW = 256

Ids = tuple[int, ...]
Logits = Callable[[Ids, Ids], Tensor]
"""(prompt, response) -> [response tokens, vocab]: what each token of the response was chosen
from."""


def network(path: Path, quantize: str) -> Logits:
    """The network by itself, without our engine, batches or pages: transformers' own code, or one
    row of a brain."""
    if detect(str(path)) == "hrm-act":
        return _brain(path, quantize)
    model = AutoModelForCausalLM.from_pretrained(
        path, local_files_only=True, dtype=torch.float32
    ).eval()
    prepare(model, RunnerOptions(str(path), quantize=quantize))
    is_prefix_lm = model.config.model_type == "hrm_text"

    def logits(prompt: Ids, response: Ids) -> Tensor:
        types = (
            {"token_type_ids": torch.tensor([[1] * len(prompt) + [0] * len(response)])}
            if is_prefix_lm
            else {}
        )
        table: Tensor = (
            model(torch.tensor([[*prompt, *response]]), use_cache=False, **types).logits[0].float()
        )
        return table[len(prompt) - 1 : -1]

    return logits


def _brain(path: Path, quantize: str) -> Logits:
    """One row per token: attention looks both ways, so that a later token changes what an earlier
    one came from."""
    model = load_act_bundle(path).model
    prepare(model, RunnerOptions(str(path), quantize=quantize))

    def logits(prompt: Ids, response: Ids) -> Tensor:
        lengths = torch.arange(len(prompt), len(prompt) + len(response))
        ids = torch.tensor([[*prompt, *response[:-1]]]).expand(len(response), -1)
        out = model.forward_segment(ids, lengths, model.initial_carry(*ids.shape))
        return model.logits(out.hidden[torch.arange(len(response)), lengths - 1])

    return logits


def answers(runner: Runner, prompts: Sequence[str]) -> list[Ids]:
    """Response ids of each prompt at temperature 0, the end token left out."""
    said: list[Emission] = []
    engine = Engine(runner, said.extend)
    for index, prompt in enumerate(prompts):
        engine.submit(SequenceWork(str(index), runner.encode(Generate(prompt, _ANSWER)), _ANSWER))
    while engine.has_work:
        engine.step()
    ids: list[Ids] = [()] * len(prompts)
    for emission in said:
        ids[int(emission.key)] += tuple(emission.ids)
    return ids


def common(left: Ids, right: Ids) -> int:
    """Tokens until the two part."""
    pairs = enumerate(zip(left, right, strict=False))
    return next(
        (place for place, (one, other) in pairs if one != other), min(len(left), len(right))
    )


@torch.inference_mode()
def compare(path: Path, count: int, runners: Sequence[Runner]) -> None:
    prompts = [
        problem.prompt for kind in KINDS for problem in held_out(kind, -(-count // len(KINDS)))
    ][:count]
    whole, rounded = (answers(runner, prompts) for runner in runners)
    rows = [
        (runners[0].encode(Generate(text, _ANSWER)).prompt_ids, ids)
        for text, ids in zip(prompts, whole, strict=True)
    ]
    tables = [
        torch.cat([net(*row) for row in rows if row[1]])
        for net in (network(path, "none"), network(path, "int8"))
    ]
    gap, agree = (tables[0] - tables[1]).abs(), tables[0].argmax(-1) == tables[1].argmax(-1)
    print(
        f"teacher-forced, {len(agree)} positions; logits deviate by "
        f"{tables[0].std(-1).mean():.3f} within a position:"
    )
    print(
        f"  mean |delta logit| {gap.mean():.4f}, max {gap.max():.4f}, greedy agreement "
        f"{agree.float().mean():.4f}"
    )
    parted = [common(one, other) for one, other in zip(whole, rounded, strict=True)]
    equal = sum(one == other for one, other in zip(whole, rounded, strict=True))
    share = sum(parted) / sum(map(len, whole))
    print(
        f"free-running: {equal} of {count} answers equal; {share:.4f} of all tokens come "
        "before the first that differs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", default=str(SAMPLE_MODEL))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument(
        "--problems",
        type=int,
        default=0,
        help="of each kind, to be answered exactly: sample model only",
    )
    parser.add_argument(
        "--least-weights", type=int, help="round layers of this size too, though they gain no speed"
    )
    args = parser.parse_args()
    use_threads(1)
    linear.MIN_INT8_WEIGHTS = args.least_weights or linear.MIN_INT8_WEIGHTS
    options = [
        RunnerOptions(path=args.model_path, max_batch=32, context_window=_WINDOW, quantize="none"),
        RunnerOptions(path=args.model_path, max_batch=32, context_window=_WINDOW, quantize="int8"),
    ]
    runners = [load_sequence_runner("auto", option) for option in options]
    print(runners[1].spec.found)
    compare(Path(args.model_path), args.prompts, runners)
    for kind in KINDS if args.problems else ():
        problems = held_out(kind, args.problems)
        shares = [exact_share(runner, problems) for runner in runners]
        print(f"  {kind:10} exact: fp32 {shares[0]:.3f}, int8 {shares[1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
