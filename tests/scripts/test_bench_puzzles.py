"""The bench of puzzle networks runs each part, on a network that has learnt nothing."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts.bench.puzzles import Share, main
from scripts.train.puzzle_nets import PuzzleNet
from scripts.train.puzzle_recipe import net_config, puzzle_recipe
from tests.fixtures.trained_puzzles import written


def write_net(out: Path) -> None:
    torch.manual_seed(0)
    recipe = replace(puzzle_recipe("trm", 4), hidden=32, heads=2, halt_max_steps=4)
    written(out, PuzzleNet(net_config(recipe)).requires_grad_(False), size=4)


def test_each_part_prints_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_net(tmp_path)
    words = ["--model", str(tmp_path), "--count", "6", "--rounds", "1", "--batch", "4"]
    assert main([*words, "--samples", "2", "--noises", "1.0"]) == 0
    out = capsys.readouterr().out
    for pattern in (
        r"   4 segments: exact 0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)",
        r"dynamic \d+ puzzles/s, fixed \d+ puzzles/s: ratio \d+\.\d\d",
        r"fixed: exact .*, 4\.00 segments on average",
        r"engine \d+ puzzles/s, loop \d+ puzzles/s: ratio",
        r"q_halt: 2 samples of noise 1: exact .*, cost [12]\.\d\d",
        r"float32: exact .* cosine 1\.0000 1\.0000 1\.0000",
        r"int8 of all layers: exact .* cosine",
    ):
        assert re.search(pattern, out), (pattern, out)


def test_an_interval_of_wilson() -> None:
    """The values of the formula, computed by hand for 9 of 10 and 500 of 500."""
    low, high = Share(9, 10).interval
    assert low == pytest.approx(0.5958, abs=1e-4)
    assert high == pytest.approx(0.9821, abs=1e-4)
    low, high = Share(500, 500).interval
    assert low == pytest.approx(0.99238, abs=1e-5)
    assert high == pytest.approx(1.0)
