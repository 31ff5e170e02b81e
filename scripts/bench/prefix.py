"""The row about shared prefixes: time to the first token when a causal model has seen a prompt's
beginning before."""

from scripts.bench.measure import Comparison, timed
from scripts.bench.prompts import draw_prompts
from scripts.bench.rig import Rig

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
