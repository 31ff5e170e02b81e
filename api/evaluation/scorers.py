"""Scorers: how well an answer fits what its set expects, from 0 (wrong) to 1 (right).

A new one is a function and a row of `SCORERS`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from api.routes.extraction import answer_in

Score = Callable[[Any, Any], float]
"""Returns the score of an answer, the JSON of a path, beside what is expected.

Raises KeyError, IndexError, TypeError or ValueError for an answer of another form.
"""


def contains(answer: Any, expected: Sequence[str]) -> float:
    """Score a text: 1 if one of the expected texts is in it, whatever the case."""
    text = _written(answer).lower()
    return float(any(one.lower() in text for one in expected))


def exact_answer(answer: Any, expected: str) -> float:
    """Score a text: 1 if what is in its box, or else the whole text, is the expected answer."""
    text = _written(answer)
    return float((answer_in(text) or text).strip() == expected)


def label(answer: Any, expected: Sequence[str]) -> float:
    """Score labels: 1 if the likeliest is one of the expected ones, whatever the case."""
    likeliest = max(answer["result"]["labels"], key=lambda one: one["score"])
    return float(str(likeliest["label"]).lower() in [one.lower() for one in expected])


def nearest(answer: Any, expected: int) -> float:
    """Score embeddings: 1 if of all but the first the expected one is nearest to the first."""
    first, *others = [row["embedding"] for row in answer["data"]]
    cosines = [_cosine(first, other) for other in others]
    return float(cosines.index(max(cosines)) + 1 == expected)


def first_ranked(answer: Any, expected: int) -> float:
    """Score a ranking: 1 if the document with this index has the highest score."""
    best = max(answer["results"], key=lambda one: one["relevance_score"])
    return float(best["index"] == expected)


def sudoku(answer: Any, expected: str) -> float:
    """Score a Sudoku: 1 if the grid keeps the givens and the rules. `expected` is the puzzle.

    A puzzle is a character a cell, row by row, with a dot for a blank cell.
    """
    [solution] = answer["solutions"]
    cells = _cells(solution["grid"])
    size = math.isqrt(len(expected))
    if len(cells) != len(expected):
        return 0.0
    for given, cell in zip(expected, cells, strict=True):
        if given not in (".", str(cell)):
            return 0.0
    digits = set(range(1, size + 1))
    return float(all({cells[place] for place in unit} == digits for unit in _units(size)))


def words(answer: Any, expected: str) -> float:
    """Score a text by words: 1 less the word error rate, 0 at the least.

    The rate is the number of words that are to be replaced, added or removed, for each word that is
    expected. Case and punctuation do not count.
    """
    spoken = _plain_words(answer["result"]["text"])
    wanted = _plain_words(expected)
    return max(0.0, 1 - _edits(spoken, wanted) / len(wanted))


def characters(answer: Any, expected: str) -> float:
    """Score a text by characters: 1 less the character error rate, 0 at the least."""
    read = " ".join(answer["result"]["text"].split())
    return max(0.0, 1 - _edits(read, expected) / len(expected))


def spoken_time(answer: Any, expected: Sequence[Sequence[float]]) -> float:
    """Score parts of a sound: the time in both, divided by the time in any of the two (IoU).

    Parts are pairs of seconds, in order. Where none are expected, 1 if there are none.
    """
    found = [(part["start"], part["end"]) for part in answer["result"]["parts"]]
    if not expected:
        return float(not found)
    both = 0.0
    for start, end in found:
        for from_s, to_s in expected:
            both += max(0.0, min(end, to_s) - max(start, from_s))
    either = sum(end - start for start, end in [*found, *expected]) - both
    return float(both / either)


def forecast(answer: Any, expected: Mapping[str, Any]) -> float:
    """Score a forecast by its skill: 1 less its mean error over that of a naive forecast.

    `expected` has the numbers that really `follow`, and the mean error of the `naive` forecast
    that repeats the last number. A forecast that is no better than that one has 0.
    """
    follow = expected["follow"]
    errors = [
        abs(told - real) for told, real in zip(answer["result"]["forecast"], follow, strict=True)
    ]
    return float(max(0.0, 1 - sum(errors) / len(errors) / expected["naive"]))


def form(answer: Any, expected: Mapping[str, Any]) -> float:
    """Score the form of an answer: 1 if the fields at these paths have these values.

    A path is names and indices with dots between. A value is the field's own, or a pair of numbers
    between which it is.
    """
    for path, value in expected.items():
        found = answer
        for step in path.split("."):
            found = found[int(step)] if isinstance(found, list) else found[step]
        if isinstance(value, list):
            if not value[0] <= found <= value[1]:
                return 0.0
        elif found != value:
            return 0.0
    return 1.0


SCORERS: dict[str, Score] = {
    "contains": contains,
    "answer": exact_answer,
    "label": label,
    "nearest": nearest,
    "ranked": first_ranked,
    "sudoku": sudoku,
    "words": words,
    "characters": characters,
    "spoken": spoken_time,
    "forecast": forecast,
    "form": form,
}


def score_of(scorer: str, answer: Any, expected: Any) -> float:
    """Return the score of an answer; one of another form than the scorer reads is wrong."""
    try:
        return SCORERS[scorer](answer, expected)
    except (KeyError, IndexError, TypeError, ValueError):
        return 0.0


def _written(answer: Any) -> str:
    text: str = answer["result"]["text"]
    return text


def _cosine(first: Sequence[float], second: Sequence[float]) -> float:
    product = sum(a * b for a, b in zip(first, second, strict=True))
    return product / (math.hypot(*first) * math.hypot(*second))


def _cells(grid: Any) -> list[int]:
    """Return the digits of a solution that is one text, or rows of texts or numbers."""
    cells = []
    for row in grid:
        cells += [int(cell) for cell in row] if isinstance(row, str | list) else [int(row)]
    return cells


def _units(size: int) -> list[list[int]]:
    """Return the cells of each row, column and box of a Sudoku, numbered row by row.

    Boxes are as nearly square as the size allows, and at least as wide as high.
    """
    height = math.isqrt(size)
    while size % height:
        height -= 1
    width = size // height
    units: dict[tuple[str, int], list[int]] = {}
    for place in range(size * size):
        row, column = divmod(place, size)
        box = row // height * height + column // width
        for unit in (("row", row), ("column", column), ("box", box)):
            units.setdefault(unit, []).append(place)
    return list(units.values())


def _plain_words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _edits(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the Levenshtein distance of two sequences."""
    distances = list(range(len(second) + 1))
    for row, one in enumerate(first, start=1):
        diagonal = distances[0]
        distances[0] = row
        for column, other in enumerate(second, start=1):
            replaced = diagonal + (one != other)
            diagonal = distances[column]
            distances[column] = min(replaced, diagonal + 1, distances[column - 1] + 1)
    return distances[-1]
