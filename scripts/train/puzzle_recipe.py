"""Recipes of puzzle networks: the sizes of a network, and how it is trained.

The nets are small, so that a core trains hundreds to thousands of rows a second. Inner widths are
multiples of 256, so an expansion that asks for less costs as much. A step costs H * (L + 1) passes
forward and 2 * (L + 1) backward: with short cycles there are more steps, and hard puzzles need
several segments. An HRM finds rows, columns and boxes far sooner with learned positions, as in the
published recipe for Sudoku, than with rotary ones.
"""

from dataclasses import dataclass
from pathlib import Path

from scripts.train.puzzle_nets import Kind, NetConfig, Positions
from scripts.train.recipe_file import read_recipe_file

PUZZLE_RECIPES = Path(__file__).parent / "recipes/puzzles"


@dataclass(frozen=True, kw_only=True)
class PuzzleRecipe:
    """Sizes of a network and of its training, for Sudokus of `size` x `size` cells.

    A batch counts rows, `num_grids` the solved grids of which the training puzzles are made.
    """

    net: Kind
    size: int
    hidden: int
    layers: int
    expansion: float
    heads: int
    h_cycles: int
    l_cycles: int
    batch: int
    lr: float
    num_grids: int
    max_blanks: int | None = None
    halt_max_steps: int = 16
    positions: Positions = "none"


def puzzle_recipe(net: Kind, size: int) -> PuzzleRecipe:
    """Return the recipe of a net for puzzles of a size."""
    return read_recipe_file(PUZZLE_RECIPES / f"{net}-sudoku-{size}x{size}.yaml", PuzzleRecipe)


def net_config(recipe: PuzzleRecipe) -> NetConfig:
    """Return the sizes of the network."""
    return NetConfig(
        kind=recipe.net,
        vocab_size=recipe.size + 2,
        seq_len=recipe.size**2,
        hidden_size=recipe.hidden,
        expansion=recipe.expansion,
        num_heads=recipe.heads,
        num_layers=recipe.layers,
        h_cycles=recipe.h_cycles,
        l_cycles=recipe.l_cycles,
        halt_max_steps=recipe.halt_max_steps,
        positions=recipe.positions,
    )
