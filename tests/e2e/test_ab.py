"""A111: with equal seeds the sample model says the same in every dialect, sampled too."""

import pytest

from scripts.bench.ab import Sampling, Side, agreement, compare
from tests.fixtures.e2e.serving import serving

# None that it is sure of.
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
        [other] = await compare(sides[:1], PROMPTS, Sampling(32, temperature=2.0, seed=8), 4)
    for of in answers[1:]:
        assert agreement(PROMPTS, answers[0], of) == {"compared": 4, "equal": 4}
    assert agreement(PROMPTS, answers[0], other)["equal"] < 4, "the seed matters"
