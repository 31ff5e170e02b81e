"""A111: equal seeds give equal texts in every dialect, sampled texts too."""

import pytest

from scripts.bench.ab import Sampling, Side, agreement, compare
from tests.fixtures.e2e.serving import serving

# Prompts whose answers the model is not sure of: a sure answer is equal with every seed.
PROMPTS = [
    "Solve for y: y * y = x",
    "Compute: 99999 * 88888",
    "7 7 7 7",
    "zzz qqq",
]


@pytest.mark.slow
async def test_equal_seeds_give_equal_texts_in_every_dialect() -> None:
    with serving("--threads", "1") as fleet:
        sides = [Side("aios", fleet.url), Side("openai", f"{fleet.url}/v1"), Side("tgi", fleet.url)]
        answers = await compare(sides, PROMPTS, Sampling(32, temperature=2.0, seed=7), 4)
        [other_seed] = await compare(sides[:1], PROMPTS, Sampling(32, temperature=2.0, seed=8), 4)

    first, *others = answers
    for answers_of_side in others:
        assert agreement(PROMPTS, first, answers_of_side) == {"compared": 4, "equal": 4}
    assert agreement(PROMPTS, first, other_seed)["equal"] < 4, "the seed matters"
