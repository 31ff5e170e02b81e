"""Measure the effect of int8 linear layers on a model's logits, greedy texts and answers.

    python -m scripts.bench.quantize --model-path models/hrm-text-math --problems 200 \\
        --least-weights 1

The prompts are held-out maths problems. The fp32 model answers each of them with up
to 64 tokens. Along these tokens the logits of both models are compared at each position
(teacher-forced). Then the int8 model answers the same prompts by itself (free-running). With
`--problems` the right answers of both models are counted, which only a model for maths can give.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from scripts.bench.maths import KINDS, problems_of, share_solved
from scripts.train.problems.problem import Problem
from shared.messages import Generate, Sampling
from shared.settings.settings import DEFAULT_MODEL
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import Runner, RunnerOptions
from worker.hardware.device import use_threads
from worker.models import linear
from worker.models.act_bundle import load_act_bundle
from worker.runners.accelerators import prepare
from worker.runners.registry import detect, load_sequence_runner

_ANSWER = Sampling(max_tokens=64, seed=0, temperature=0.0)
_WINDOW = 256

Ids = tuple[int, ...]
# From a prompt and a response to the logits [response tokens, vocab] that each token is chosen
# from.
Logits = Callable[[Ids, Ids], Tensor]


def network(path: Path, quantize: str) -> Logits:
    """Return the network of a model, without our engine, batches or pages.

    A brain (hrm-act) is computed by our code, any other model by transformers.
    """
    if detect(str(path)) == "hrm-act":
        return _brain(path, quantize)
    model = AutoModelForCausalLM.from_pretrained(
        path, local_files_only=True, dtype=torch.float32
    ).eval()
    prepare(model, RunnerOptions(str(path), quantize=quantize))
    is_prefix_lm = model.config.model_type == "hrm_text"

    def logits(prompt: Ids, response: Ids) -> Tensor:
        ids = torch.tensor([[*prompt, *response]])
        types = {}
        if is_prefix_lm:
            types["token_type_ids"] = torch.tensor([[1] * len(prompt) + [0] * len(response)])
        all_logits: Tensor = model(ids, use_cache=False, **types).logits[0].float()
        # A token is chosen from the logits of the position before it.
        return all_logits[len(prompt) - 1 : -1]

    return logits


def _brain(path: Path, quantize: str) -> Logits:
    """Return the network of a brain, which computes a row for each token of the response."""
    model = load_act_bundle(path).model
    prepare(model, RunnerOptions(str(path), quantize=quantize))

    def logits(prompt: Ids, response: Ids) -> Tensor:
        # Attention is bidirectional, so a later token would change the logits of an earlier one.
        # Each row ends before the token that it chooses.
        lengths = torch.arange(len(prompt), len(prompt) + len(response))
        ids = torch.tensor([[*prompt, *response[:-1]]]).expand(len(response), -1)
        out = model.forward_segment(ids, lengths, model.initial_carry(*ids.shape))
        return model.logits(out.hidden[torch.arange(len(response)), lengths - 1])

    return logits


def answers(runner: Runner, prompts: Sequence[str]) -> list[Ids]:
    """Return the token ids of each response at temperature 0, without the end token."""
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    for index, prompt in enumerate(prompts):
        engine.submit(SequenceWork(str(index), runner.encode(Generate(prompt, _ANSWER)), _ANSWER))
    while engine.has_work:
        engine.step()
    ids: list[Ids] = [()] * len(prompts)
    for emission in emissions:
        ids[int(emission.key)] += tuple(emission.ids)
    return ids


def common(left: Ids, right: Ids) -> int:
    """Return the number of tokens before the first one that differs."""
    for index, (left_id, right_id) in enumerate(zip(left, right, strict=False)):
        if left_id != right_id:
            return index
    return min(len(left), len(right))


@torch.inference_mode()
def compare(path: Path, count: int, runners: Sequence[Runner]) -> None:
    """Print how much the logits and the answers of both runners differ, on `count` prompts.

    The first of `runners` is that of the fp32 model, the second that of the int8 model.
    """
    problems: list[Problem] = []
    for kind in KINDS:
        problems += problems_of(kind, math.ceil(count / len(KINDS)))
    prompts = [problem.prompt for problem in problems[:count]]
    fp32_answers = answers(runners[0], prompts)
    int8_answers = answers(runners[1], prompts)

    logits_of = []
    for quantize in ("none", "int8"):
        net = network(path, quantize)
        logits = []
        for text, response in zip(prompts, fp32_answers, strict=True):
            if response:
                prompt = runners[0].encode(Generate(text, _ANSWER)).prompt_ids
                logits.append(net(prompt, response))
        logits_of.append(torch.cat(logits))
    fp32_logits, int8_logits = logits_of
    gap = (fp32_logits - int8_logits).abs()
    agree = fp32_logits.argmax(-1) == int8_logits.argmax(-1)
    print(
        f"teacher-forced, {len(agree)} positions; logits deviate by "
        f"{fp32_logits.std(-1).mean():.3f} within a position:"
    )
    print(
        f"  mean |delta logit| {gap.mean():.4f}, max {gap.max():.4f}, greedy agreement "
        f"{agree.float().mean():.4f}"
    )

    num_equal = 0
    num_common = 0
    num_tokens = 0
    for fp32_answer, int8_answer in zip(fp32_answers, int8_answers, strict=True):
        if fp32_answer == int8_answer:
            num_equal += 1
        num_common += common(fp32_answer, int8_answer)
        num_tokens += len(fp32_answer)
    print(
        f"free-running: {num_equal} of {count} answers equal; {num_common / num_tokens:.4f} of all "
        "tokens come before the first that differs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", default=str(DEFAULT_MODEL))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument(
        "--problems",
        type=int,
        default=0,
        help="of each kind, to be solved, by a model for maths",
    )
    parser.add_argument(
        "--least-weights", type=int, help="round layers of this size too, though they gain no speed"
    )
    args = parser.parse_args()
    use_threads(1)
    if args.least_weights:
        linear.MIN_INT8_WEIGHTS = args.least_weights
    runners = []
    for quantize in ("none", "int8"):
        options = RunnerOptions(
            path=args.model_path, max_batch=32, context_window=_WINDOW, quantize=quantize
        )
        runners.append(load_sequence_runner("auto", options))
    print(runners[1].spec.found)
    compare(Path(args.model_path), args.prompts, runners)
    if not args.problems:
        return
    for kind in KINDS:
        problems = problems_of(kind, args.problems)
        fp32 = share_solved(runners[0], problems)
        int8 = share_solved(runners[1], problems)
        print(f"  {kind:10} solved: fp32 {fp32:.3f}, int8 {int8:.3f}", flush=True)


if __name__ == "__main__":
    main()
