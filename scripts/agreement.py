"""Does every path through the engine say what the model says? Greedy tokens against the model's
unbatched reference.

    python -m scripts.agreement --model models/sample-hrm-text --prompts 100 --tokens 48

Each prompt is answered alone, in batches, staggered, in chunks, after preemption, over a known
prefix, resumed from a log, and as one of several choices. The reference is transformers' own
`generate` on the prompt alone; with `--quantize` and for models unknown to transformers, it is the
engine itself with one sequence at a time and nothing shared. A difference is accepted only where
the reference's two best logits lie within 1e-4 of each other; the gap is printed.
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM

from shared.accelerators import ACCELERATORS
from shared.errors import InvalidRequest
from shared.messages import Done, Generate, Sampling
from worker import device
from worker.engine import Engine
from worker.registry import detect, load_sequence_runner
from worker.request import Emission, SequenceWork
from worker.runners.base import Runner, RunnerOptions
from worker.sequence import Encoded

NEAR_TIE = 1e-4
Prompt = tuple[int, ...]
Answers = list[list[int]]


class Reference(Protocol):
    def answer(self, prompt: Prompt, num_tokens: int) -> list[int]: ...

    def gap(self, prompt: Prompt, response: Sequence[int]) -> float:
        """Distance of the two best logits behind `prompt` and `response`."""


class OwnReference:
    """The engine with one sequence at a time."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def answer(self, prompt: Prompt, num_tokens: int) -> list[int]:
        return Load([prompt], num_tokens).run(self._runner)[0]

    def gap(self, prompt: Prompt, response: Sequence[int]) -> float:
        emissions: list[Emission] = []
        engine = Engine(self._runner, emissions.extend)
        sampling = Sampling(len(response) + 1, seed=0, temperature=0.0, logprobs=2)
        engine.submit(
            SequenceWork("gap", Encoded(prompt, len(response) + 1), sampling, (tuple(response),))
        )
        while engine.has_work:
            engine.step()
        best = emissions[-1].logprobs[0].top
        return best[0][2] - best[1][2]


class TransformersReference:
    """transformers' own unbatched forward of the model in a directory; a prefix-LM is told which
    tokens are prompt."""

    def __init__(self, path: Path, eos_ids: frozenset[int]) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, local_files_only=True
        )
        self._model = model.eval()
        self._is_prefix_lm = detect(str(path)) == "hrm-text"
        self._eos_ids = eos_ids

    def answer(self, prompt: Prompt, num_tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        marks = {"token_type_ids": torch.ones_like(ids)} if self._is_prefix_lm else {}
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=sorted(self._eos_ids) or None,
            pad_token_id=0,
            **marks,
        )
        said: list[int] = out[0, len(prompt) :].tolist()
        return said

    def gap(self, prompt: Prompt, response: Sequence[int]) -> float:
        ids = torch.tensor([[*prompt, *response]])
        marks = (
            {"token_type_ids": (torch.arange(ids.shape[1]) < len(prompt)).long()[None]}
            if self._is_prefix_lm
            else {}
        )
        with torch.inference_mode():
            best = self._model(input_ids=ids, use_cache=False, **marks).logits[0, -1].topk(2).values
        return float(best[0] - best[1])


@dataclass
class Load:
    """Prompts sent to one engine: `at` is the step before which each is sent, `said` what a log
    already holds."""

    prompts: Sequence[Prompt]
    num_tokens: int
    at: Sequence[int] = ()
    said: Answers = field(default_factory=list)
    n: int = 1

    def run(self, runner: Runner) -> Answers:
        """Every prompt's response, that of its last choice; Failed answers raise."""
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
        answers = [list(ids) for ids in self.said] or [[] for _ in self.prompts]
        for item in emissions:
            if item.ended is not None and not isinstance(item.ended, Done):
                raise RuntimeError(item.ended.message)
            if item.choice == self.n - 1:
                answers[int(item.key)] += item.ids
        return answers

    def _work(self, index: int, prompt: Prompt) -> SequenceWork:
        sampling = Sampling(self.num_tokens, seed=index, temperature=0.0, n=self.n)
        said = (tuple(self.said[index]),) if self.said else ()
        return SequenceWork(str(index), Encoded(prompt, self.num_tokens), sampling, said)


Way = Callable[[Sequence[Prompt], int, Answers], Answers]


def ways(options: RunnerOptions, kind: str, most_tokens: int) -> dict[str, Way]:
    """Name -> how the prompts are answered, given what the reference said; none has more than
    `most_tokens`."""

    def loaded(**changes: Any) -> Runner:
        return load_sequence_runner(kind, replace(options, **changes))

    plain, cold = loaded(), loaded(prefix_cache=False)
    cut = loaded(step_tokens=24, prefix_cache=False)
    tight = _with_few_pages(loaded(prefix_cache=False), most_tokens)

    def batches(size: int) -> Way:
        def answer(prompts: Sequence[Prompt], count: int, _: Answers) -> Answers:
            parts = [prompts[at : at + size] for at in range(0, len(prompts), size)]
            return [item for part in parts for item in Load(part, count).run(cold)]

        return answer

    return {
        "alone": batches(1),
        "batch 2": batches(2),
        "batch 8": batches(8),
        "batch 16": batches(16),
        "staggered": lambda prompts, count, _: Load(
            prompts, count, at=[3 * i for i in range(len(prompts))]
        ).run(cold),
        "chunked": lambda prompts, count, _: Load(prompts, count).run(cut),
        "preempted": lambda prompts, count, _: Load(prompts, count).run(tight),
        "prefix hit": lambda prompts, count, _: [Load(prompts, count).run(plain) for _ in range(2)][
            1
        ],
        "resumed": lambda prompts, count, said: Load(
            prompts, count, said=[ids[: len(ids) // 2] for ids in said]
        ).run(cold),
        "third choice": lambda prompts, count, _: Load(prompts, count, n=3).run(cold),
    }


def _with_few_pages(runner: Runner, num_tokens: int) -> Runner:
    """The runner with room for little more than `num_tokens`, so that a batch of 16 must give way
    again and again."""
    spec = runner.spec
    if spec.num_pages:
        runner.spec = replace(
            spec, num_pages=min(spec.num_pages, -(-num_tokens // spec.page_size) + 4)
        )
    return runner


def varied_prompts(count: int, vocab_size: int, longest: int, seed: int = 0) -> list[Prompt]:
    """Random token ids of 1 to `longest` tokens; every fourth begins like an earlier one."""
    draw = random.Random(seed)
    prompts: list[Prompt] = []
    for index in range(count):
        length = draw.randint(1, longest)
        ids = tuple(draw.randrange(10, vocab_size) for _ in range(length))
        if index % 4 == 3:
            ids = (prompts[draw.randrange(len(prompts))] + ids)[:longest]
        prompts.append(ids)
    return prompts


def compare(
    name: str, expected: Answers, got: Answers, gap: Callable[[int, list[int]], float]
) -> bool:
    """Print how many answers are equal, and for each that is not the gap at the first
    difference."""
    different = [index for index in range(len(expected)) if expected[index] != got[index]]
    is_fine = True
    for index in different:
        pairs = zip(expected[index], got[index], strict=False)
        at = next(
            (i for i, (one, other) in enumerate(pairs) if one != other),
            min(len(expected[index]), len(got[index])),
        )
        distance = gap(index, expected[index][:at])
        is_fine &= distance < NEAR_TIE
        print(f"  {name}: prompt {index} differs at token {at}, top-2 gap {distance:.2e}")
    print(
        f"{name:>14}: {len(expected) - len(different)} of {len(expected)} "
        f"equal{'' if is_fine else '  WRONG'}"
    )
    return is_fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", required=True, help="directory of an HRM-Text export or a causal LM"
    )
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--longest", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quantize", choices=list(ACCELERATORS), default="none")
    args = parser.parse_args()
    device.use_threads(args.threads)
    options = RunnerOptions(path=args.model, kv_bytes=2**30, quantize=args.quantize)
    return 0 if agrees(options, args.prompts, args.tokens, args.longest) else 1


def agrees(options: RunnerOptions, num_prompts: int, num_tokens: int, longest: int) -> bool:
    """Whether every path agrees with the reference; prints a line for each."""
    kind = detect(options.path)
    runner = load_sequence_runner(kind, replace(options, max_batch=1, prefix_cache=False))
    is_known = kind in ("hrm-text", "causal") and (Path(options.path) / "config.json").is_file()
    reference: Reference = OwnReference(runner)
    if is_known and options.quantize == "none":
        reference = TransformersReference(Path(options.path), runner.eos_ids)
    prompts = varied_prompts(num_prompts, _vocab_size(runner), longest)
    expected = [reference.answer(prompt, num_tokens) for prompt in prompts]
    verdicts = [
        compare(
            name,
            expected,
            answer(prompts, num_tokens, expected),
            lambda i, ids: reference.gap(prompts[i], ids),
        )
        for name, answer in ways(options, kind, longest + num_tokens).items()
    ]
    return all(verdicts)


def _vocab_size(runner: Runner) -> int:
    """The first id that the model refuses."""
    low, high = 10, 2**20
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
