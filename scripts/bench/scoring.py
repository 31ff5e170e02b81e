"""The row about scoring: many contexts with a few continuations each, against one forward per
pair."""

from scripts.bench.measure import Comparison, timed
from scripts.bench.prompts import draw_prompts
from scripts.bench.rig import Rig

Pairs = tuple[list[list[int]], list[list[list[int]]]]
"""Contexts, and the continuations of each."""


def scoring(rig: Rig) -> list[str]:
    """Continuations per second. A round is a few contexts, all of a run's rounds differ; `--rounds`
    plays no part."""
    load = rig.load
    speed, largest_gap = Comparison(), 0.0
    at_once = load.scored_at_once
    for side in (rig.ours, rig.theirs):
        side.score(*_pairs(rig, 1, seed=-1))
    for number in range(load.contexts // at_once):
        pairs = _pairs(rig, at_once, seed=number)
        ours, theirs = timed(rig.ours.score, *pairs), timed(rig.theirs.score, *pairs)
        speed.add(ours.seconds, theirs.seconds)
        gaps = [abs(mine - other) for mine, other in zip(ours.value, theirs.value, strict=True)]
        largest_gap = max(largest_gap, *gaps)
    name = f"scoring {load.context_tokens}+{load.continuations}x{load.continuation_tokens}"
    return [
        speed.rates(name, at_once * load.continuations, "pairs/s"),
        f"  {load.contexts} contexts; log-likelihoods differ by {largest_gap:.2g} at most",
    ]


def _pairs(rig: Rig, count: int, seed: int) -> Pairs:
    load = rig.load
    contexts = draw_prompts(count, load.context_tokens, load.context_tokens, rig.vocab, seed)
    size = load.continuation_tokens
    flat = draw_prompts(count * load.continuations, size, size, rig.vocab, seed + 1000)
    return contexts, [
        flat[i : i + load.continuations] for i in range(0, len(flat), load.continuations)
    ]
