"""Measure the share of held-out problems that a sample model solves exactly.

Its answers are decoded greedily by the worker's engine.

python -m scripts.train.eval_sample --model-path models/sample-hrm-text --count 500
"""

import argparse

from scripts.train.sample_problems import KINDS, Problem, held_out
from shared.messages import Generate, Sampling
from shared.settings.settings import SAMPLE_MODEL
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import Runner, RunnerOptions
from worker.hardware.device import use_threads
from worker.runners.registry import load_sequence_runner

_LONGEST_ANSWER = 128


def answers(runner: Runner, problems: list[Problem]) -> list[str]:
    """Return the response to each problem at temperature 0, in their order.

    One engine decodes all of them together.
    """
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    sampling = Sampling(max_tokens=_LONGEST_ANSWER, seed=0, temperature=0.0)
    for index, problem in enumerate(problems):
        encoded = runner.encode(Generate(problem.prompt, sampling))
        engine.submit(SequenceWork(str(index), encoded, sampling))
    while engine.has_work:
        engine.step()

    texts = [""] * len(problems)
    for emission in emissions:
        texts[int(emission.key)] += emission.text
    return texts


def exact_share(runner: Runner, problems: list[Problem]) -> float:
    """Return the share of problems to which the last line of the response is the right answer."""
    num_right = 0
    for text, problem in zip(answers(runner, problems), problems, strict=True):
        if text.rsplit("\n", 1)[-1] == problem.answer:
            num_right += 1
    return num_right / len(problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", default=str(SAMPLE_MODEL))
    parser.add_argument("--count", type=int, default=500, help="problems of each kind")
    args = parser.parse_args()
    use_threads(1)
    runner = load_sequence_runner("hrm-text", RunnerOptions(path=args.model_path, max_batch=32))
    print(f"{args.count} held-out problems of each kind, exact:")
    for kind in KINDS:
        print(f"  {kind:10} {exact_share(runner, held_out(kind, args.count)):.3f}", flush=True)


if __name__ == "__main__":
    main()
