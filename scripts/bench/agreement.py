"""Compare the greedy tokens of every path through the engine with an unbatched reference.

    python -m scripts.bench.agreement --model models/hrm-text-math --prompts 100 --tokens 48

Each prompt is answered alone, in batches, staggered, in chunks, after preemption, over a cached
prefix, resumed from a log, as one of several choices, and with as many drafts as there can be. The
reference is `generate` of transformers on the prompt alone. Where numbers are rounded (`--dtype`,
`--quantize`, `--kv-dtype`), and for models unknown to transformers, it is the engine itself with
one sequence at a time and without a cache. A difference is accepted only where the two best logits
of the reference lie within 1e-4 of each other. Their gap is printed.
"""

import argparse
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from transformers import AutoModelForCausalLM

from scripts.bench.options import own_options
from shared.accelerators import ACCELERATORS
from shared.errors import InvalidRequest
from shared.messages import Done, Generate, Sampling
from shared.tasks.runner_options import KVDtype
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import Runner, RunnerOptions
from worker.engine.sequence import Encoded
from worker.hardware import device
from worker.runners.registry import detect, load_sequence_runner

NEAR_TIE = 1e-4
Prompt = tuple[int, ...]
Answers = list[list[int]]


class Reference(Protocol):
    """An unbatched way to compute greedy responses."""

    def answer(self, prompt: Prompt, num_tokens: int) -> list[int]:
        """Return the greedy response to a prompt."""

    def gap(self, prompt: Prompt, response: Sequence[int]) -> float:
        """Return the distance of the two best logits behind `prompt` and `response`."""


class OwnReference:
    """The reference that is our engine with one sequence at a time."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def answer(self, prompt: Prompt, num_tokens: int) -> list[int]:
        return Load([prompt], num_tokens).run(self._runner)[0]

    def gap(self, prompt: Prompt, response: Sequence[int]) -> float:
        emissions: list[Emission] = []
        engine = Engine(self._runner, emissions.extend)
        # A sequence that is resumed behind the response has one more token to choose.
        num_tokens = len(response) + 1
        sampling = Sampling(num_tokens, seed=0, temperature=0.0, logprobs=2)
        engine.submit(
            SequenceWork("gap", Encoded(prompt, num_tokens), sampling, (tuple(response),))
        )
        while engine.has_work:
            engine.step()
        best = emissions[-1].logprobs[0].top
        return best[0][2] - best[1][2]


class TransformersReference:
    """The reference that is an unbatched forward pass of transformers.

    For a PrefixLM `token_type_ids` mark the tokens of the prompt.
    """

    def __init__(self, path: Path, eos_ids: frozenset[int]) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, local_files_only=True
        )
        self._model = model.eval()
        self._is_prefix_lm = detect(str(path)) == "hrm-text"
        self._eos_ids = eos_ids

    def answer(self, prompt: Prompt, num_tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        types = {}
        if self._is_prefix_lm:
            types["token_type_ids"] = torch.ones_like(ids)
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=sorted(self._eos_ids) or None,
            pad_token_id=0,
            **types,
        )
        response: list[int] = out[0, len(prompt) :].tolist()
        return response

    def gap(self, prompt: Prompt, response: Sequence[int]) -> float:
        ids = torch.tensor([[*prompt, *response]])
        types = {}
        if self._is_prefix_lm:
            is_prompt = torch.arange(ids.shape[1]) < len(prompt)
            types["token_type_ids"] = is_prompt.long()[None]
        with torch.inference_mode():
            logits = self._model(input_ids=ids, use_cache=False, **types).logits
        best = logits[0, -1].topk(2).values
        return float(best[0] - best[1])


@dataclass
class Load:
    """Prompts that are sent to one engine.

    `at` has the step before which each prompt is sent; without it all are sent before the first.
    `replayed_ids` are the token ids of each response that a log already holds.
    """

    prompts: Sequence[Prompt]
    num_tokens: int
    at: Sequence[int] = ()
    replayed_ids: Answers = field(default_factory=list)
    n: int = 1

    def run(self, runner: Runner) -> Answers:
        """Return the last choice of the response to each prompt.

        Raise RuntimeError if a sequence fails.
        """
        emissions: list[Emission] = []
        engine = Engine(runner, emissions.extend)
        arrivals = self.at or [0] * len(self.prompts)

        step = 0
        while step <= max(arrivals) or engine.has_work:
            for index, prompt in enumerate(self.prompts):
                if arrivals[index] == step:
                    engine.submit(self._work(index, prompt))
            engine.step()
            step += 1
        answers: Answers = [[] for _ in self.prompts]
        for index, ids in enumerate(self.replayed_ids):
            answers[index] += ids
        for emission in emissions:
            if emission.ended is not None and not isinstance(emission.ended, Done):
                raise RuntimeError(emission.ended.message)
            if emission.choice == self.n - 1:
                answers[int(emission.key)] += emission.ids
        return answers

    def _work(self, index: int, prompt: Prompt) -> SequenceWork:
        sampling = Sampling(self.num_tokens, seed=index, temperature=0.0, n=self.n)
        replayed_ids: tuple[tuple[int, ...], ...] = ()
        if self.replayed_ids:
            replayed_ids = (tuple(self.replayed_ids[index]),)
        return SequenceWork(str(index), Encoded(prompt, self.num_tokens), sampling, replayed_ids)


Way = Callable[[Sequence[Prompt], int, Answers], Answers]


def ways(options: RunnerOptions, kind: str, most_tokens: int) -> dict[str, Way]:
    """Return the paths through the engine by their names.

    A path is called with the prompts, the number of tokens to generate and the answers of the
    reference. A prompt and its answer have at most `most_tokens` together.
    """

    def loaded(**changes: Any) -> Runner:
        return load_sequence_runner(kind, replace(options, **changes))

    plain = loaded()
    cold = loaded(prefix_cache=False)
    small_steps = loaded(step_tokens=24, prefix_cache=False)
    few_pages = _with_few_pages(loaded(prefix_cache=False), most_tokens)
    eager = _with_free_drafts(loaded(prefix_cache=False))

    def all_at_once(runner: Runner, n: int = 1) -> Way:
        def answer(prompts: Sequence[Prompt], count: int, _: Answers) -> Answers:
            return Load(prompts, count, n=n).run(runner)

        return answer

    def batches(size: int, runner: Runner = cold) -> Way:
        def answer(prompts: Sequence[Prompt], count: int, _: Answers) -> Answers:
            answers: Answers = []
            for start in range(0, len(prompts), size):
                answers += Load(prompts[start : start + size], count).run(runner)
            return answers

        return answer

    def staggered(prompts: Sequence[Prompt], count: int, _: Answers) -> Answers:
        every_third_step = range(0, 3 * len(prompts), 3)
        return Load(prompts, count, at=every_third_step).run(cold)

    def prefix_hit(prompts: Sequence[Prompt], count: int, _: Answers) -> Answers:
        # The first run fills the prefix cache.
        Load(prompts, count).run(plain)
        return Load(prompts, count).run(plain)

    def resumed(prompts: Sequence[Prompt], count: int, expected: Answers) -> Answers:
        halves = [ids[: len(ids) // 2] for ids in expected]
        return Load(prompts, count, replayed_ids=halves).run(cold)

    return {
        "alone": batches(1),
        "batch 2": batches(2),
        "batch 8": batches(8),
        "batch 16": batches(16),
        "staggered": staggered,
        "chunked": all_at_once(small_steps),
        "preempted": all_at_once(few_pages),
        "prefix hit": prefix_hit,
        "resumed": resumed,
        "third choice": all_at_once(cold, n=3),
        "with drafts": batches(2, eager),
    }


def _with_few_pages(runner: Runner, num_tokens: int) -> Runner:
    """Limit a runner to pages for little more than `num_tokens`, and return it.

    A batch of 16 must then preempt its sequences again and again.
    """
    spec = runner.spec
    if spec.num_pages:
        num_pages = math.ceil(num_tokens / spec.page_size) + 4
        runner.spec = replace(spec, num_pages=min(spec.num_pages, num_pages))
    return runner


def _with_free_drafts(runner: Runner) -> Runner:
    """Let a runner draft as if that cost nothing, and return it."""
    runner.spec = replace(runner.spec, draft_cost=0.0)
    return runner


def varied_prompts(count: int, vocab_size: int, longest: int, seed: int = 0) -> list[Prompt]:
    """Return prompts of random token ids, with 1 to `longest` tokens each.

    Every fourth prompt begins with an earlier one.
    """
    rng = random.Random(seed)
    prompts: list[Prompt] = []
    for index in range(count):
        length = rng.randint(1, longest)
        ids = tuple(rng.randrange(10, vocab_size) for _ in range(length))
        if index % 4 == 3:
            ids = (prompts[rng.randrange(len(prompts))] + ids)[:longest]
        prompts.append(ids)
    return prompts


def compare(
    name: str, expected: Answers, answers: Answers, gap: Callable[[int, list[int]], float]
) -> bool:
    """Print the number of equal answers, and the gap at the first difference of each other one.

    `gap` is called with the index of a prompt and the tokens before the difference. Return False if
    a difference is no near tie.
    """
    num_equal = 0
    is_right = True
    for index in range(len(expected)):
        if expected[index] == answers[index]:
            num_equal += 1
            continue
        position = _first_difference(expected[index], answers[index])
        distance = gap(index, expected[index][:position])
        if distance >= NEAR_TIE:
            is_right = False
        print(f"  {name}: prompt {index} differs at token {position}, top-2 gap {distance:.2e}")
    verdict = "" if is_right else "  WRONG"
    print(f"{name:>14}: {num_equal} of {len(expected)} equal{verdict}")
    return is_right


def _first_difference(one: Sequence[int], two: Sequence[int]) -> int:
    """Return the first index at which two responses differ.

    If one response begins with the other, return the length of the shorter one.
    """
    for index, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return index
    return min(len(one), len(two))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", required=True, help="directory of an HRM-Text export or a causal LM"
    )
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--longest", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--quantize", choices=list(ACCELERATORS), default="none")
    parser.add_argument("--kv-dtype", choices=get_args(KVDtype), default="auto")
    args = parser.parse_args()
    device.use_threads(args.threads)
    options = RunnerOptions(
        path=args.model,
        dtype=args.dtype,
        kv_bytes=2**30,
        quantize=args.quantize,
        own=own_options(Path(args.model), args.kv_dtype),
    )
    return 0 if agrees(options, args.prompts, args.tokens, args.longest) else 1


def agrees(options: RunnerOptions, num_prompts: int, num_tokens: int, longest: int) -> bool:
    """Compare every path with the reference, and print a line for each.

    Return True if all agree.
    """
    kind = detect(options.path)
    runner = load_sequence_runner(kind, replace(options, max_batch=1, prefix_cache=False))
    is_known = kind in ("hrm-text", "causal") and (Path(options.path) / "config.json").is_file()
    reference: Reference = OwnReference(runner)
    if is_known and options.dtype == "float32" and not options.is_lossy:
        reference = TransformersReference(Path(options.path), runner.eos_ids)

    prompts = varied_prompts(num_prompts, _vocab_size(runner), longest)
    expected = [reference.answer(prompt, num_tokens) for prompt in prompts]

    def gap(index: int, response: Sequence[int]) -> float:
        return reference.gap(prompts[index], response)

    all_agree = True
    for name, answer in ways(options, kind, longest + num_tokens).items():
        answers = answer(prompts, num_tokens, expected)
        if not compare(name, expected, answers, gap):
            all_agree = False
    return all_agree


def _vocab_size(runner: Runner) -> int:
    """Return the lowest token id that the model refuses, by bisection."""
    low = 10
    high = 2**20
    while low + 1 < high:
        middle = (low + high) // 2
        try:
            runner.encode(Generate((middle,), Sampling(1, seed=0)))
            low = middle
        except InvalidRequest:
            high = middle
    return high


if __name__ == "__main__":
    sys.exit(main())
