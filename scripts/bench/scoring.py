"""The row about scoring: many contexts with a few continuations each, against one forward per
pair."""

from scripts.bench.measure import Comparison, timed
from scripts.bench.prompts import draw_prompts
from scripts.bench.rig import Rig

# Contexts, and the continuations of each.
Pairs = tuple[list[list[int]], list[list[list[int]]]]


def scoring(rig: Rig) -> list[str]:
    """Measure continuations per second.

    A round is a few contexts, and all rounds of a run differ; `--rounds` plays no part.
    """
    load = rig.load
    at_once = load.scored_at_once
    speed = Comparison()
    largest_gap = 0.0
    contexts, continuations = _pairs(rig, 1, seed=-1)
    rig.ours.score(contexts, continuations)
    rig.theirs.score(contexts, continuations)
    for number in range(load.contexts // at_once):
        contexts, continuations = _pairs(rig, at_once, seed=number)
        ours = timed(rig.ours.score, contexts, continuations)
        theirs = timed(rig.theirs.score, contexts, continuations)
        speed.add(ours.seconds, theirs.seconds)
        for mine, other in zip(ours.value, theirs.value, strict=True):
            largest_gap = max(largest_gap, abs(mine - other))
    name = f"scoring {load.context_tokens}+{load.continuations}x{load.continuation_tokens}"
    return [
        speed.rates(name, at_once * load.continuations, "pairs/s"),
        f"  {load.contexts} contexts; log-likelihoods differ by {largest_gap:.2g} at most",
    ]


def _pairs(rig: Rig, count: int, seed: int) -> Pairs:
    load = rig.load
    length = load.context_tokens
    contexts = draw_prompts(count, length, length, rig.vocab, seed=seed)
    length = load.continuation_tokens
    drawn = draw_prompts(count * load.continuations, length, length, rig.vocab, seed=seed + 1000)
    continuations = []
    for start in range(0, len(drawn), load.continuations):
        continuations.append(drawn[start : start + load.continuations])
    return contexts, continuations
