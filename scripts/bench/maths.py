"""Held-out maths problems for benchmarks, and the share of them that a runner solves."""

from collections.abc import Sequence

from scripts.train.evaluate_text import MAX_TOKENS, solved_by
from scripts.train.problems.problem import Problem
from scripts.train.problems.streams import held_out
from shared.messages import Generate, Sampling
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import Runner

KINDS = ("sum", "difference", "product", "equation")


def problems_of(kind: str, count: int) -> list[Problem]:
    """Return held-out problems of a kind, the same ones each time."""
    return held_out("maths", kind, count)


def responses_to(runner: Runner, problems: Sequence[Problem]) -> list[str]:
    """Return the greedy response to each problem. One engine decodes all of them together."""
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    sampling = Sampling(max_tokens=MAX_TOKENS, seed=0, temperature=0.0)
    for index, problem in enumerate(problems):
        encoded = runner.encode(Generate(problem.prompt, sampling))
        engine.submit(SequenceWork(str(index), encoded, sampling))
    while engine.has_work:
        engine.step()

    texts = [""] * len(problems)
    for emission in emissions:
        texts[int(emission.key)] += emission.text
    return texts


def share_solved(runner: Runner, problems: Sequence[Problem]) -> float:
    """Return the share of problems that are solved greedily."""
    return sum(solved_by(problems, responses_to(runner, problems))) / len(problems)
