"""Rows about scoring, shared prefixes and cost.

Scoring has many contexts with a few continuations each; the other side runs a forward pass for each
pair. Shared prefixes are measured by the time to the first token of a causal model that has
computed the beginning of the prompt before. Cost is that of the length of a prompt, of the size of
a batch, and of the length of the queue.
"""

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

    A round has a few contexts, which differ in all rounds. Their number follows from the load, not
    from `--rounds`.
    """
    load = rig.load
    at_once = load.scored_at_once
    speed = Comparison()
    largest_gap = 0.0
    # The first call of each side is slow and does not count.
    contexts, continuations = _pairs(rig, 1, seed=-1)
    rig.ours.score(contexts, continuations)
    rig.theirs.score(contexts, continuations)
    for number in range(load.contexts // at_once):
        contexts, continuations = _pairs(rig, at_once, seed=number)
        ours = timed(rig.ours.score, contexts, continuations)
        theirs = timed(rig.theirs.score, contexts, continuations)
        speed.add(ours.seconds, theirs.seconds)
        for our_score, their_score in zip(ours.value, theirs.value, strict=True):
            largest_gap = max(largest_gap, abs(our_score - their_score))
    name = f"scoring {load.context_tokens}+{load.continuations}x{load.continuation_tokens}"
    return [
        speed.rates(name, at_once * load.continuations, "pairs/s"),
        f"  {load.contexts} contexts; log-likelihoods differ by {largest_gap:.2g} at most",
    ]


def _pairs(rig: Rig, count: int, seed: int) -> Pairs:
    """Draw `count` contexts, and the continuations of each."""
    load = rig.load
    length = load.context_tokens
    contexts = draw_prompts(count, length, length, rig.vocab, seed=seed)
    length = load.continuation_tokens
    texts = draw_prompts(count * load.continuations, length, length, rig.vocab, seed=seed + 1000)
    continuations = []
    for start in range(0, len(texts), load.continuations):
        continuations.append(texts[start : start + load.continuations])
    return contexts, continuations


TAIL_TOKENS = 16


def prefix(rig: Rig) -> list[str]:
    """Measure the time to the first token of two requests that share all but their tails.

    Each round has another prefix, so that its first request is cold.
    """
    ours, theirs = rig.causal()
    size = rig.load.shared_prefix
    within = Comparison()
    across = Comparison()
    num_equal = 0
    # One more round comes first, which does not count.
    for number in (rig.rounds, *range(rig.rounds)):
        [shared] = draw_prompts(1, size, size, rig.vocab, seed=number)
        first, second = draw_prompts(2, TAIL_TOKENS, TAIL_TOKENS, rig.vocab, seed=number + 1000)
        cold = timed(ours.generate, [shared + first], [1])
        hit = timed(ours.generate, [shared + second], [1])
        batch = timed(theirs.generate, [shared + second], 1)
        if number < rig.rounds:
            within.add(hit.seconds, cold.seconds)
            across.add(hit.seconds, batch.seconds)
            if hit.value[0].ids == batch.value.ids[0]:
                num_equal += 1
    name = f"prefix {size}+{TAIL_TOKENS} TTFT"
    return [
        within.latencies(name, ("hit", "cold")),
        across.latencies(name, ("hit", "theirs")),
        f"  first tokens equal: {num_equal} of {rig.rounds}",
    ]


def cost(rig: Rig) -> list[str]:
    """Measure how the cost grows with the length of a prompt, the batch and the queue."""
    wide = rig.wide()
    return [*_lengths(rig, wide), *_batches(rig, wide), *_queues(rig)]


def _lengths(rig: Rig, ours: Ours) -> Iterator[str]:
    """Yield a row for each length of a prompt, with answers of one token."""
    for length in rig.load.prompt_lengths:
        prompts = draw_prompts(1, length, length, rig.vocab)
        turns = answers(ours, rig.theirs, prompts, 1, rig.rounds)
        speed = compared(turns, lambda turn: turn.seconds)
        yield speed.rates(f"prompt of {length}", length, "tok/s")


def _batches(rig: Rig, ours: Ours) -> Iterator[str]:
    """Yield a row for each size of a batch, with the time of the steps behind the first token.

    All prompts have the same length.
    """
    length = rig.load.prompt_tokens[1]
    steps = rig.load.steps
    for size in rig.load.batches:
        prompts = draw_prompts(size, length, length, rig.vocab)
        turns = answers(ours, rig.theirs, prompts, 1 + steps, rig.rounds)
        speed = compared(turns, lambda turn: turn.value.behind_first_s)
        yield speed.rates(f"decode, batch of {size}", size * steps, "tok/s")


def _queues(rig: Rig) -> Iterator[str]:
    """Yield a row for each number of waiting requests.

    It has the time of a decode step of a full batch while they wait, and without them.
    """
    load = rig.load
    length = load.prompt_tokens[1]
    running = draw_prompts(load.concurrent, length, length, rig.vocab)
    for num_waiting in load.queues:
        waiting = running[:1] * num_waiting
        speed = Comparison()
        for _ in range(rig.rounds):
            queued_s = rig.ours.decode_steps(running, waiting, load.steps)
            alone_s = rig.ours.decode_steps(running, [], load.steps)
            speed.add(queued_s, alone_s)
        yield speed.latencies(f"step, {num_waiting} waiting", ("so", "alone"), parts=load.steps)
