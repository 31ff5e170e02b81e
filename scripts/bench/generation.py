"""Rows about generation: throughput of a batch, one stream, prefill, and requests that come one
after another."""

import random
import statistics
from collections.abc import Sequence

from scripts.bench.measure import Comparison, Timed, compared, take_turns, timed
from scripts.bench.ours import Ours, Said
from scripts.bench.prompts import agreement, draw_prompts
from scripts.bench.rig import Rig
from scripts.bench.theirs import Batch, Theirs

Turns = dict[str, list[Timed[Batch]]]


def decode(rig: Rig) -> list[str]:
    """All prompts at once: tokens per second over all, prefill included, and of the steps behind
    the first token."""
    prompts = draw_prompts(rig.load.concurrent, *rig.load.prompt_tokens, rig.vocab)
    return _batch_rows(f"decode x{len(prompts)}", rig, prompts)


def single(rig: Rig) -> list[str]:
    """One prompt alone."""
    return _batch_rows("single", rig, draw_prompts(1, *rig.load.prompt_tokens, rig.vocab, seed=1))


def prefill(rig: Rig) -> list[str]:
    """One token for each prompt: prompt tokens per second."""
    prompts = draw_prompts(rig.load.concurrent, *rig.load.prompt_tokens, rig.vocab)
    turns = answers(rig.ours, rig.theirs, prompts, 1, rig.rounds)
    speed = compared(turns, lambda turn: turn.seconds)
    return [
        speed.rates(f"prefill x{len(prompts)}", sum(map(len, prompts)), "tok/s"),
        _agreement(rig, prompts, turns),
    ]


def staggered(rig: Rig) -> list[str]:
    """Requests of mixed lengths that come one after another, from the first arrival to the last
    answer.

    A static batch begins when its last member has come, and all of it lasts as long as its longest
    answer.
    """
    load = rig.load
    prompts = draw_prompts(load.concurrent, *load.prompt_tokens, rig.vocab, seed=2)
    least, most = load.staggered_tokens
    lengths = [least + (most - least) * i // max(1, len(prompts) - 1) for i in range(len(prompts))]
    random.Random(0).shuffle(lengths)
    at_s = [load.interval_s * i for i in range(len(prompts))]
    total, waits = Comparison(), Comparison()
    rig.theirs.generate(prompts, 2)
    for _ in range(rig.rounds):
        turn = timed(rig.ours.arrivals, prompts, lengths, at_s)
        batch = timed(rig.theirs.generate, prompts, most)
        total.add(turn.seconds, at_s[-1] + batch.seconds)
        waits.add(
            _mean_wait(turn.value, turn.seconds, at_s),
            at_s[-1] + batch.seconds - statistics.mean(at_s),
        )
    cut = [ids[:length] for ids, length in zip(batch.value.ids, lengths, strict=True)]
    name = f"staggered x{len(prompts)}"
    return [
        total.rates(f"{name} all", sum(lengths), "tok/s"),
        waits.latencies(f"{name} mean answer"),
        agreement(rig.theirs, prompts, [said.ids for said in turn.value], cut),
    ]


def _mean_wait(said: Sequence[Said], seconds: float, at_s: Sequence[float]) -> float:
    """Mean seconds from arrival to the end of the answer; the turn of `seconds` ended with its last
    answer."""
    ends = [item.ended_at for item in said]
    begun = max(ends) - seconds
    return statistics.mean(end - begun - at for end, at in zip(ends, at_s, strict=True))


def _batch_rows(name: str, rig: Rig, prompts: list[list[int]]) -> list[str]:
    """Rows of one batch that starts together: all of it, and the steps behind its first tokens."""
    turns = answers(rig.ours, rig.theirs, prompts, rig.load.new_tokens, rig.rounds)
    tokens = len(prompts) * rig.load.new_tokens
    rest = compared(turns, lambda turn: turn.value.behind_first_s)
    return [
        compared(turns, lambda turn: turn.seconds).rates(name, tokens, "tok/s"),
        rest.rates(f"{name} behind 1st token", tokens - len(prompts), "tok/s"),
        _agreement(rig, prompts, turns),
    ]


def answers(
    ours: Ours, theirs: Theirs, prompts: list[list[int]], length: int, rounds: int
) -> Turns:
    """Both sides answer the same prompts with `length` tokens each, all asked for at once."""
    return take_turns(
        rounds,
        ours=lambda: _as_batch(ours.generate(prompts, [length] * len(prompts))),
        theirs=lambda: theirs.generate(prompts, length),
    )


def _agreement(rig: Rig, prompts: list[list[int]], turns: Turns) -> str:
    return agreement(rig.theirs, prompts, turns["ours"][0].value.ids, turns["theirs"][0].value.ids)


def _as_batch(said: Sequence[Said]) -> Batch:
    """A batch's first token is there when its last row has one, as in a static batch."""
    first_at, ended_at = max(item.first_at for item in said), max(item.ended_at for item in said)
    return Batch([item.ids for item in said], first_at, ended_at)
