"""A small table: what a prompt's length, the batch and the queue cost."""

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
    """One prompt, one token."""
    for length in rig.load.prompt_lengths:
        turns = answers(ours, rig.theirs, draw_prompts(1, length, length, rig.vocab), 1, rig.rounds)
        yield compared(turns, lambda turn: turn.seconds).rates(
            f"prompt of {length}", length, "tok/s"
        )


def _batches(rig: Rig, ours: Ours) -> Iterator[str]:
    """Steps behind the first token, prompts of one length."""
    most, steps = rig.load.prompt_tokens[1], rig.load.steps
    for size in rig.load.batches:
        turns = answers(
            ours, rig.theirs, draw_prompts(size, most, most, rig.vocab), 1 + steps, rig.rounds
        )
        speed = compared(turns, lambda turn: turn.value.behind_first_s)
        yield speed.rates(f"decode, batch of {size}", size * steps, "tok/s")


def _queues(rig: Rig) -> Iterator[str]:
    """A full batch decoding while others wait, against the same with nobody waiting."""
    load = rig.load
    running = draw_prompts(load.concurrent, load.prompt_tokens[1], load.prompt_tokens[1], rig.vocab)
    for waiting in load.queues:
        speed = Comparison()
        for _ in range(rig.rounds):
            queued = rig.ours.decode_steps(running, running[:1] * waiting, load.steps)
            speed.add(queued, rig.ours.decode_steps(running, [], load.steps))
        yield speed.latencies(f"step, {waiting} waiting", ("so", "alone"), load.steps)
