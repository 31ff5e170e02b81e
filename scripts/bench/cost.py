"""The rows about cost: of a prompt's length, of the batch and of the queue."""

from collections.abc import Iterator

from scripts.bench.generation import answers
from scripts.bench.measure import Comparison, compared
from scripts.bench.ours import Ours
from scripts.bench.prompts import draw_prompts
from scripts.bench.rig import Rig


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
