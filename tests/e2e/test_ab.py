"""A111: equal seeds give equal texts in every dialect, sampled texts too."""

import pytest

from scripts.cli.ab.asking import ask_sides
from scripts.cli.ab.questions import Question
from scripts.cli.ab.sides import Sampling, Side
from tests.fixtures.e2e.serving import serving

# Prompts whose answers the model is not sure of: a sure answer is equal with every seed.
QUESTIONS = [
    Question("Solve for y: y * y = x"),
    Question("Compute: 99999 * 88888"),
    Question("7 7 7 7", reference="= 7"),
    Question("zzz qqq"),
]


@pytest.mark.slow
async def test_equal_seeds_give_equal_texts_in_every_dialect() -> None:
    with serving("--threads", "1") as fleet:
        sides = [
            Side("one", "aios", fleet.url),
            Side("two", "openai", f"{fleet.url}/v1"),
            Side("three", "tgi", fleet.url),
        ]
        texts = []
        for seed in (7, 8):
            sampling = Sampling(32, temperature=2.0, seed=seed)
            found = await ask_sides(sides, QUESTIONS, sampling, concurrency=4)
            texts.append([[answer.text for answer in side.answers] for side in found])

    likelihoods = [side.likelihoods for side in found]
    assert [likelihood is None for likelihood in likelihoods[0]] == [True, True, False, True]
    # A PrefixLM has no log-probabilities inside its prompt, and TGI no such request.
    assert likelihoods[1:] == [[None] * 4] * 2

    first, *others = texts[0]
    assert others == [first, first]
    assert texts[1][0] != first, "the seed matters"
