"""Generated Sudokus have one solution, and no image of a held-out one is trained on."""

import itertools
import random
from collections.abc import Sequence
from functools import cache

import pytest

from scripts.train.sudoku_puzzles import (
    SIZES,
    Layout,
    Puzzle,
    count_solutions,
    held_out,
    is_held_out,
    training_stream,
)

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}


@cache
def all_grids_of_4() -> tuple[tuple[int, ...], ...]:
    """Return all complete grids of size 4, told by trying all four rows."""
    rows = list(itertools.permutations((1, 2, 3, 4)))
    grids = []
    for four in itertools.product(rows, repeat=4):
        columns_are_full = all(len(set(column)) == 4 for column in zip(*four, strict=True))
        boxes_are_full = True
        for top, left in itertools.product((0, 2), (0, 2)):
            box = {*four[top][left : left + 2], *four[top + 1][left : left + 2]}
            boxes_are_full = boxes_are_full and len(box) == 4
        if columns_are_full and boxes_are_full:
            grids.append(tuple(itertools.chain(*four)))
    return tuple(grids)


def solutions_of_4(givens: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the solutions of a puzzle of size 4, among all grids."""
    found = []
    for grid in all_grids_of_4():
        if all(given in (0, digit) for given, digit in zip(givens, grid, strict=True)):
            found.append(grid)
    return found


def units_of(size: int) -> list[list[int]]:
    """Return the cells of all rows, columns and boxes."""
    height, width = BOXES[size]
    units = []
    for line in range(size):
        units.append([line * size + other for other in range(size)])
        units.append([other * size + line for other in range(size)])
    for top in range(0, size, height):
        for left in range(0, size, width):
            rows = range(top, top + height)
            columns = range(left, left + width)
            units.append([row * size + column for row in rows for column in columns])
    return units


def exact_covers(size: int, givens: Sequence[int], limit: int) -> int:
    """Return the number of solutions, up to `limit`, by a search over places of digits.

    It places that digit of a row, column or box that has the fewest cells left. The generator
    looks at the digits of cells instead.
    """
    units = units_of(size)
    peers: list[set[int]] = [set() for _ in range(size**2)]
    for unit in units:
        for cell in unit:
            peers[cell].update(unit)

    def count(places: frozenset[tuple[int, int]], open_needs: frozenset[tuple[int, int]]) -> int:
        if not open_needs:
            return 1
        options = []
        for number, digit in open_needs:
            options.append([(cell, digit) for cell in units[number] if (cell, digit) in places])
        total = 0
        for cell, digit in min(options, key=len):
            left = {
                (other, value)
                for other, value in places
                if other != cell and (value != digit or other not in peers[cell])
            }
            met = {(number, digit) for number, unit in enumerate(units) if cell in unit}
            total += count(frozenset(left), open_needs - met)
            if total >= limit:
                break
        return total

    digits = range(1, size + 1)
    places = set()
    for cell, given in enumerate(givens):
        for digit in digits:
            if given in (0, digit):
                places.add((cell, digit))
    needs = frozenset(itertools.product(range(len(units)), digits))
    return count(frozenset(places), needs)


def training_puzzles(size: int, num_grids: int, seed: int = 0) -> list[Puzzle]:
    stream = itertools.islice(training_stream(size, seed), num_grids)
    return list(itertools.chain.from_iterable(stream))


@pytest.mark.parametrize(
    ("size", "height", "width"), [(4, 2, 2), (6, 2, 3), (9, 3, 3), (8, 2, 4), (12, 3, 4)]
)
def test_boxes_are_as_square_as_the_size_allows(size: int, height: int, width: int) -> None:
    layout = Layout(size)
    assert (layout.box_height, layout.box_width) == (height, width)
    for kind in range(3):
        numbers = [unit[kind] for unit in layout.units]
        for number in range(size):
            assert numbers.count(number) == size
    top_left = [cell for cell in range(size**2) if layout.units[cell][2] == 0]
    assert top_left == [row * size + column for row in range(height) for column in range(width)]


def test_puzzles_of_size_4_have_their_solution_and_no_other() -> None:
    assert len(all_grids_of_4()) == 288
    for puzzle in training_puzzles(4, 60) + held_out(4, 60):
        assert solutions_of_4(puzzle.givens) == [puzzle.solution]


@pytest.mark.parametrize(("size", "num_grids"), [(4, 20), (6, 8), (9, 1)])
def test_another_solver_finds_one_solution(size: int, num_grids: int) -> None:
    for puzzle in training_puzzles(size, num_grids):
        for given, digit in zip(puzzle.givens, puzzle.solution, strict=True):
            assert given in (0, digit)
        for unit in units_of(size):
            assert {puzzle.solution[cell] for cell in unit} == set(range(1, size + 1))
        assert exact_covers(size, puzzle.givens, limit=2) == 1


def test_solutions_are_counted_up_to_the_limit() -> None:
    rng = random.Random(0)
    counts = set()
    for _ in range(200):
        givens = [0] * 16
        for cell in rng.sample(range(16), 5):
            givens[cell] = rng.randint(1, 4)
        expected = min(3, len(solutions_of_4(givens)))
        assert count_solutions(4, givens, limit=3) == expected
        counts.add(expected)
    assert counts == {0, 1, 2, 3}


def test_the_hardest_puzzles_can_lose_no_given() -> None:
    hardest: dict[tuple[int, ...], Puzzle] = {}
    for puzzle in training_puzzles(4, 200):
        best = hardest.get(puzzle.solution, puzzle)
        hardest[puzzle.solution] = max(best, puzzle, key=lambda each: each.num_blanks)

    num_minimal = 0
    for puzzle in hardest.values():
        fewer_givens = []
        for cell, given in enumerate(puzzle.givens):
            if given:
                fewer_givens.append((*puzzle.givens[:cell], 0, *puzzle.givens[cell + 1 :]))
        if all(count_solutions(4, givens) == 2 for givens in fewer_givens):
            num_minimal += 1
    assert num_minimal > len(hardest) / 4


@pytest.mark.parametrize("size", SIZES)
def test_puzzles_are_of_all_difficulties(size: int) -> None:
    blanks = {puzzle.num_blanks for puzzle in training_puzzles(size, 10)}
    assert max(blanks) >= 3 * min(blanks)
    assert len(blanks) >= size
    for puzzle in held_out(size, 5, max_blanks=5):
        assert 1 <= puzzle.num_blanks <= 5


@pytest.mark.parametrize(("size", "count"), [(4, 200), (6, 50), (9, 5)])
def test_training_has_no_held_out_puzzle(size: int, count: int) -> None:
    trained = {puzzle.givens for puzzle in training_puzzles(size, count)}
    measured = held_out(size, count)
    assert len({puzzle.givens for puzzle in measured}) == count
    for puzzle in measured:
        assert is_held_out(size, puzzle.givens)
        assert puzzle.givens not in trained
    for givens in trained:
        assert not is_held_out(size, givens)


def test_the_same_seed_gives_the_same_puzzles() -> None:
    assert training_puzzles(6, 5, seed=1) == training_puzzles(6, 5, seed=1)
    assert training_puzzles(6, 5, seed=1) != training_puzzles(6, 5, seed=2)
    assert held_out(6, 5) == held_out(6, 5)
    assert held_out(6, 5, seed=1) != held_out(6, 5, seed=2)


def test_a_puzzle_is_written_in_digits_and_dots() -> None:
    puzzle = Puzzle(4, (1, 0, 0, 4) + (0,) * 12, (1, 2, 3, 4) * 4)
    assert puzzle.text == "1..4" + "." * 12
    assert puzzle.num_blanks == 14
