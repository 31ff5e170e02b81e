"""The text models that ship solve held-out problems, as their cards say, and decline others."""

import json
from pathlib import Path

import pytest

from scripts.train.evaluate_text import domain_of, evaluate
from scripts.train.problems.streams import MAKERS, OTHER

MODELS = Path(__file__).parents[2] / "models"
COUNT = 60
"""Problems of each kind, the same ones each time."""
BARS = {
    "hrm-text-math": {
        "sum": 0.95,
        "difference": 0.95,
        "product": 0.95,
        "quotient": 0.93,
        "equation": 0.93,
        "fraction": 0.8,
        "derivative": 0.95,
        "word_problem": 0.95,
        OTHER: 0.9,
    },
    "hrm-text-code": {"code": 0.8, OTHER: 0.9},
    "baseline-math": {"product": 0.9, "equation": 0.9, "word_problem": 0.9, OTHER: 0.9},
    "baseline-code": {"code": 0.7, OTHER: 0.9},
    "actv1-math": {"short_sum": 0.9, "short_difference": 0.9, "short_product": 0.75},
}


@pytest.mark.parametrize("name", BARS)
def test_held_out_problems_are_solved(name: str) -> None:
    path = MODELS / name
    bars = BARS[name]
    shares = evaluate(path, domain_of(path), COUNT, kinds=tuple(bars))
    for kind, bar in bars.items():
        assert shares[kind].value >= bar, f"{kind}: {shares[kind]}"


@pytest.mark.parametrize("name", BARS)
def test_the_card_tells_what_was_measured(name: str) -> None:
    path = MODELS / name
    card = (path / "README.md").read_text()
    held_out = json.loads((path / "held_out.json").read_text())
    assert held_out["greedy"].keys() == MAKERS[domain_of(path)].keys()
    for way in ("greedy", "sampled"):
        for share in held_out[way].values():
            assert f"{share['count'] / share['total']:.3f} ({share['low']:.3f}" in card
    if OTHER not in held_out["greedy"]:
        return
    area = json.loads((path / "domain.json").read_text())["area"]
    assert f"{area:.4f}" in card
    prompting = json.loads((path / "prompting.json").read_text())
    assert prompting["refusal"] in card
