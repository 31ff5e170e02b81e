"""Rows about scoring (many contexts with a few continuations each, against one forward per pair),
about shared prefixes (time to the first token when a causal model has seen a prompt's beginning
before), and about cost: of a prompt's length, of the batch and of the queue."""

from collections.abc import Iterator

from scripts.bench.generation import answers
from scripts.bench.measure import Comparison, compared, timed
from scripts.bench.ours import Ours
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


TAIL_TOKENS = 16


def prefix(rig: Rig) -> list[str]:
    """Measure the time to the first token of two requests that share all but their tails.

    Each round has a prefix of its own, so the first request is cold.
    """
    ours, theirs = rig.causal()
    size = rig.load.shared_prefix
    within = Comparison()
    across = Comparison()
    num_equal = 0
    for number in (rig.rounds, *range(rig.rounds)):  # the first one is thrown away
        [shared] = draw_prompts(1, size, size, rig.vocab, seed=number)
        first, second = draw_prompts(2, TAIL_TOKENS, TAIL_TOKENS, rig.vocab, seed=number + 1000)
        cold = timed(ours.generate, [shared + first], [1])
        hit = timed(ours.generate, [shared + second], [1])
        batch = timed(theirs.generate, [shared + second], 1)
        if number < rig.rounds:
            within.add(hit.seconds, cold.seconds)
            across.add(hit.seconds, batch.seconds)
            num_equal += hit.value[0].ids == batch.value.ids[0]
    name = f"prefix {size}+{TAIL_TOKENS} TTFT"
    return [
        within.latencies(name, ("hit", "cold")),
        across.latencies(name, ("hit", "theirs")),
        f"  first tokens equal: {num_equal} of {rig.rounds}",
    ]


def cost(rig: Rig) -> list[str]:
    wide = rig.wide()
    return [*_lengths(rig, wide), *_batches(rig, wide), *_queues(rig)]


def _lengths(rig: Rig, ours: Ours) -> Iterator[str]:
    """Yield a row for each length of a prompt, which is answered with one token."""
    for length in rig.load.prompt_lengths:
        prompts = draw_prompts(1, length, length, rig.vocab)
        turns = answers(ours, rig.theirs, prompts, 1, rig.rounds)
        speed = compared(turns, lambda turn: turn.seconds)
        yield speed.rates(f"prompt of {length}", length, "tok/s")


def _batches(rig: Rig, ours: Ours) -> Iterator[str]:
    """Yield a row for each size of a batch: the steps behind the first token, with prompts of one
    length."""
    length = rig.load.prompt_tokens[1]
    steps = rig.load.steps
    for size in rig.load.batches:
        prompts = draw_prompts(size, length, length, rig.vocab)
        turns = answers(ours, rig.theirs, prompts, 1 + steps, rig.rounds)
        speed = compared(turns, lambda turn: turn.value.behind_first_s)
        yield speed.rates(f"decode, batch of {size}", size * steps, "tok/s")


def _queues(rig: Rig) -> Iterator[str]:
    """Yield a row for each number of waiting requests: a full batch decodes beside them, and
    without them."""
    load = rig.load
    length = load.prompt_tokens[1]
    running = draw_prompts(load.concurrent, length, length, rig.vocab)
    for num_waiting in load.queues:
        waiting = running[:1] * num_waiting
        speed = Comparison()
        for _ in range(rig.rounds):
            queued = rig.ours.decode_steps(running, waiting, load.steps)
            alone = rig.ours.decode_steps(running, [], load.steps)
            speed.add(queued, alone)
        yield speed.latencies(f"step, {num_waiting} waiting", ("so", "alone"), parts=load.steps)
