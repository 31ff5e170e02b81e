"""Choose when a text model is to say that a problem is outside its domain.

    python -m scripts.train.calibrate_domain models/hrm-text-math

The model's probability of the text by which it declines problems is measured for held-out problems
of its domain and for others. `domain.json` gets the curve (ROC): the share of the others that are
told from the domain, for several shares of the domain that are declined by mistake. `prompting.json`
gets the text and the threshold: the highest share of the others at no more than `--most-mistakes`.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.train.evaluate_text import domain_of, template_of
from scripts.train.problems.other import REFUSAL
from scripts.train.problems.streams import MAKERS, OTHER, held_out
from worker.llm import LLM

_MISTAKES = (0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
_DIGITS = 4


@dataclass(frozen=True)
class Point:
    """A threshold, and what it does: a problem is declined whose probability is above it."""

    threshold: float
    mistakes: float
    told: float


@dataclass(frozen=True)
class Curve:
    """The quality of a score that tells other problems from those of the domain.

    `area` under the curve is the chance that one of the others has the higher score, where equal
    scores count half.
    """

    problems: int
    others: int
    area: float
    points: list[Point]


def curve_of(own: Sequence[float], others: Sequence[float]) -> Curve:
    """Return the curve of two samples of scores."""
    own = sorted(own)
    wins = 0.0
    for score in others:
        below = sum(value < score for value in own)
        equal = sum(value == score for value in own)
        wins += below + equal / 2
    points = []
    for mistakes in _MISTAKES:
        # As many of the highest scores may be declined as the share allows.
        allowed = math.floor(mistakes * len(own))
        threshold = own[len(own) - 1 - allowed]
        points.append(
            Point(
                threshold=threshold,
                mistakes=sum(value > threshold for value in own) / len(own),
                told=sum(score > threshold for score in others) / len(others),
            )
        )
    return Curve(len(own), len(others), wins / (len(own) * len(others)), points)


def refusals(path: Path, prompts: Sequence[str]) -> list[float]:
    """Return a model's probability of declining each prompt."""
    template = template_of(path)
    contexts = [template.replace("{problem}", prompt) for prompt in prompts]
    with LLM(path, max_batch_size=64, threads=1) as llm:
        scores = llm.score(contexts, [REFUSAL] * len(contexts))
    return [math.exp(min(0.0, score.log_likelihood)) for score in scores]


def calibrate(path: Path, count: int, most_mistakes: float) -> Curve:
    """Measure a model on so many problems of its domain and as many others. Write what was chosen."""
    domain = domain_of(path)
    kinds = [kind for kind in MAKERS[domain] if kind != OTHER]
    own = []
    for kind in kinds:
        for problem in held_out(domain, kind, count // len(kinds), seed=1):
            own.append(problem.prompt)
    others = [problem.prompt for problem in held_out(domain, OTHER, count, seed=1)]

    scores = refusals(path, own + others)
    curve = curve_of(scores[: len(own)], scores[len(own) :])
    (path / "domain.json").write_text(json.dumps(asdict(curve), indent=2) + "\n")
    threshold = 1.0
    for point in curve.points:
        if point.mistakes <= most_mistakes:
            threshold = point.threshold
    file = path / "prompting.json"
    prompting = json.loads(file.read_text())
    prompting |= {"refusal": REFUSAL, "most_refusal": float(f"{threshold:.{_DIGITS}g}")}
    file.write_text(json.dumps(prompting, indent=2) + "\n")
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="directory of a model")
    parser.add_argument(
        "--count", type=int, default=2000, help="problems of the domain, and others"
    )
    parser.add_argument("--most-mistakes", type=float, default=0.001, choices=_MISTAKES)
    args = parser.parse_args()
    curve = calibrate(args.path, args.count, args.most_mistakes)
    for point in curve.points:
        print(
            f"declined by mistake {point.mistakes:.4f}, told of the others {point.told:.4f}, "
            f"above {point.threshold:.{_DIGITS}g}"
        )
    print(f"area under the curve: {curve.area:.4f}")


if __name__ == "__main__":
    main()
