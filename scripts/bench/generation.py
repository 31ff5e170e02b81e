"""Rows about generation: a batch, one stream, prefill, and staggered requests."""

import random
import statistics
from collections.abc import Sequence

from scripts.bench.measure import Comparison, Timed, compared, take_turns, timed
from scripts.bench.ours import Ours, Response
from scripts.bench.prompts import agreement, draw_prompts
from scripts.bench.rig import Rig
from scripts.bench.theirs import Batch, Theirs

Turns = dict[str, list[Timed[Batch]]]


def decode(rig: Rig) -> list[str]:
    """Measure a batch of all prompts.

    One row has the tokens per second with prefill, the other those of the steps behind the first
    token.
    """
    prompts = draw_prompts(rig.load.concurrent, *rig.load.prompt_tokens, rig.vocab)
    return _batch_rows(f"decode x{len(prompts)}", rig, prompts)


def single(rig: Rig) -> list[str]:
    """Measure one prompt alone, with the same rows as `decode`."""
    return _batch_rows("single", rig, draw_prompts(1, *rig.load.prompt_tokens, rig.vocab, seed=1))


def prefill(rig: Rig) -> list[str]:
    """Measure prompt tokens per second, with answers of one token."""
    prompts = draw_prompts(rig.load.concurrent, *rig.load.prompt_tokens, rig.vocab)
    num_tokens = sum(len(prompt) for prompt in prompts)
    turns = answers(rig.ours, rig.theirs, prompts, length=1, rounds=rig.rounds)
    speed = compared(turns, lambda turn: turn.seconds)
    return [
        speed.rates(f"prefill x{len(prompts)}", num_tokens, "tok/s"),
        _agreement(rig, prompts, turns),
    ]


def staggered(rig: Rig) -> list[str]:
    """Measure requests of mixed lengths that arrive one after the other.

    The time is that from the first arrival to the last answer.
    """
    load = rig.load
    prompts = draw_prompts(load.concurrent, *load.prompt_tokens, rig.vocab, seed=2)
    least, most = load.staggered_tokens
    lengths = []
    at_s = []
    for number in range(len(prompts)):
        lengths.append(least + (most - least) * number // max(1, len(prompts) - 1))
        at_s.append(load.interval_s * number)
    random.Random(0).shuffle(lengths)

    total = Comparison()
    waits = Comparison()
    # The first call of transformers is slow and does not count.
    rig.theirs.generate(prompts, 2)
    for _ in range(rig.rounds):
        turn = timed(rig.ours.arrivals, prompts, lengths, at_s)
        batch = timed(rig.theirs.generate, prompts, most)
        # A static batch starts when its last member has arrived, and all its answers take as long
        # as the longest one.
        batch_end_s = at_s[-1] + batch.seconds
        total.add(turn.seconds, batch_end_s)
        mean_wait_s = _mean_wait(turn.value, turn.seconds, at_s)
        waits.add(mean_wait_s, batch_end_s - statistics.mean(at_s))

    our_ids = []
    their_ids = []
    for number, length in enumerate(lengths):
        our_ids.append(turn.value[number].ids)
        their_ids.append(batch.value.ids[number][:length])
    name = f"staggered x{len(prompts)}"
    return [
        total.rates(f"{name} all", sum(lengths), "tok/s"),
        waits.latencies(f"{name} mean answer"),
        agreement(rig.theirs, prompts, our_ids, their_ids),
    ]


def _mean_wait(responses: Sequence[Response], seconds: float, at_s: Sequence[float]) -> float:
    """Return the mean seconds from arrivals to the ends of responses.

    The turn took `seconds` in all, and ended with its last response.
    """
    started = max(response.ended_at for response in responses) - seconds
    waits = []
    for response, arrived_s in zip(responses, at_s, strict=True):
        waits.append(response.ended_at - started - arrived_s)
    return statistics.mean(waits)


def _batch_rows(name: str, rig: Rig, prompts: list[list[int]]) -> list[str]:
    """Return the rows of a batch: its whole time, and that of the steps behind the first tokens."""
    turns = answers(rig.ours, rig.theirs, prompts, rig.load.new_tokens, rig.rounds)
    tokens = len(prompts) * rig.load.new_tokens
    whole = compared(turns, lambda turn: turn.seconds)
    rest = compared(turns, lambda turn: turn.value.behind_first_s)
    return [
        whole.rates(name, tokens, "tok/s"),
        rest.rates(f"{name} behind 1st token", tokens - len(prompts), "tok/s"),
        _agreement(rig, prompts, turns),
    ]


def answers(
    ours: Ours, theirs: Theirs, prompts: list[list[int]], length: int, rounds: int
) -> Turns:
    """Return the turns in which both sides answer a batch of prompts with `length` tokens each."""
    return take_turns(
        rounds,
        ours=lambda: _as_batch(ours.generate(prompts, [length] * len(prompts))),
        theirs=lambda: theirs.generate(prompts, length),
    )


def _agreement(rig: Rig, prompts: list[list[int]], turns: Turns) -> str:
    return agreement(rig.theirs, prompts, turns["ours"][0].value.ids, turns["theirs"][0].value.ids)


def _as_batch(responses: Sequence[Response]) -> Batch:
    """Return responses as a batch.

    As in a static batch, the first tokens have come when the last row has one.
    """
    first_at = max(response.first_at for response in responses)
    ended_at = max(response.ended_at for response in responses)
    return Batch([response.ids for response in responses], first_at, ended_at)
