"""Random arguments on which composed tasks are tested."""

import random
from collections.abc import Sequence

from scripts.train.problems.python_tasks.parameters import Parameter, words_of
from scripts.train.problems.python_tasks.parts import Arguments


def _near(rng: random.Random, parameters: Sequence[Parameter]) -> list[int]:
    """Return numbers that are on both sides of the conditions with these parameters."""
    numbers = [0, 1, 2, -1]
    integers = [value for value in parameters if isinstance(value, int)]
    numbers += [first * second for first in integers for second in integers]
    for value in parameters:
        number = value
        if isinstance(value, tuple):
            number = value[rng.randrange(2)]
        if isinstance(number, int):
            numbers += [number - 1, number, number + 1, 2 * number, -number]
            numbers += [number * rng.randrange(2, 6), number + 10 * rng.randrange(1, 4)]
    return numbers


def some_numbers(rng: random.Random, parameters: Sequence[Parameter]) -> list[int]:
    near = _near(rng, parameters)
    numbers: list[int] = []
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 6, 9, 12, 16))):
        kind = rng.random()
        if kind < 0.45:
            numbers.append(rng.choice(near))
        elif kind < 0.55:
            numbers.append(-rng.choice(near))
        elif kind < 0.65 and numbers:
            numbers.append(rng.choice(numbers))
        else:
            numbers.append(rng.randrange(-40, 100))
    return numbers


def list_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    return (some_numbers(rng, parameters),)


def two_lists_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    first = some_numbers(rng, parameters)
    second = some_numbers(rng, parameters)
    if first and rng.random() < 0.7:
        second += rng.choices(first, k=rng.randrange(1, 4))
        rng.shuffle(second)
    return first, second


def limit_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    return (rng.choice((1, 2, 5, 9, 10, 17, 21, 30, 44, 60, rng.randrange(1, 60))),)


def limits_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    low = rng.randrange(1, 30)
    return low, low + rng.choice((0, 1, 5, 10, 20, 30))


def number_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    if rng.random() < 0.5:
        return (rng.choice(_near(rng, parameters)),)
    return (rng.randrange(-60, 130),)


def two_numbers_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    first = number_input(rng, parameters)[0]
    second = number_input(rng, parameters)[0]
    if rng.random() < 0.1:
        second = first
    return first, second


def digits_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    if rng.random() < 0.2:
        return (rng.randrange(10),)
    return (int(rng.choice((9, 99, 12345, 10**6, 10**9)) * rng.random()) + 10,)


TEST_WORDS = words_of(
    "level Anna apple banana cat dog Eve echo fig grape house Ivy jungle kayak lemon mouse noon "
    "orange Peter queen river stone tree umbrella violet water Yak zebra a an the to stats civic "
    "wow Otto radar code python bee all eye ocean island yellow idea up it "
    "strawberry programming watermelons Elizabeth noon deed"
)


def some_words(rng: random.Random, parameters: Sequence[Parameter]) -> list[str]:
    letters: list[str] = []
    for value in parameters:
        letter = value
        if isinstance(value, tuple):
            letter = value[0]
        if isinstance(letter, str) and letter.isalpha():
            letters.append(letter)
    words: list[str] = []
    for _ in range(rng.choice((0, 1, 3, 5, 8, 10, 14))):
        word = rng.choice(TEST_WORDS)
        kind = rng.random()
        if letters and kind < 0.25:
            word = rng.choice(letters) + word
        elif letters and kind < 0.5:
            word += rng.choice(letters)
        elif words and kind < 0.6:
            word = rng.choice(words)
        words.append(word)
    return words


def words_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    return (some_words(rng, parameters),)


def text_of_words_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    return (" ".join(some_words(rng, parameters)),)


def text_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    text = " ".join(some_words(rng, parameters))
    while rng.random() < 0.5:
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice("0123456789") + text[place:]
    return (text,)


def dictionary_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    words = some_words(rng, parameters)
    near = _near(rng, parameters)
    data = {}
    for word in words:
        data[word] = rng.choice(near) if rng.random() < 0.5 else rng.randrange(-40, 100)
    return (data,)
