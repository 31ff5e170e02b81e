"""How many held-out problems a sample model gets exactly right, decoded greedily by the product's
own engine.

python -m scripts.eval_sample --model-path models/sample-hrm-text --count 500
"""

import argparse

from scripts.sample_problems import KINDS, Problem, held_out
from shared.messages import Generate, Sampling
from shared.settings import SAMPLE_MODEL
from worker.device import use_threads
from worker.engine import Engine
from worker.registry import load_sequence_runner
from worker.request import Emission, SequenceWork
from worker.runners.base import Runner, RunnerOptions

_LONGEST_ANSWER = 128


def answers(runner: Runner, problems: list[Problem]) -> list[str]:
    """The whole response to each problem, temperature 0, all of them through one engine."""
    said: list[Emission] = []
    engine = Engine(runner, said.extend)
    sampling = Sampling(max_tokens=_LONGEST_ANSWER, seed=0, temperature=0.0)
    for index, problem in enumerate(problems):
        engine.submit(
            SequenceWork(str(index), runner.encode(Generate(problem.prompt, sampling)), sampling)
        )
    while engine.has_work:
        engine.step()
    texts = [""] * len(problems)
    for emission in said:
        texts[int(emission.key)] += emission.text
    return texts


def exact_share(runner: Runner, problems: list[Problem]) -> float:
    """Share of problems whose last line is the right answer."""
    given = [text.rsplit("\n", 1)[-1] for text in answers(runner, problems)]
    right = sum(line == problem.answer for line, problem in zip(given, problems, strict=True))
    return right / len(problems)


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
