"""Random arguments on which well-known functions are tested."""

import random

from scripts.train.problems.python_tasks.inputs import (
    TEST_WORDS,
    dictionary_input,
    some_numbers,
    some_words,
    text_input,
    two_lists_input,
)
from scripts.train.problems.python_tasks.parts import Arguments


def count_input(rng: random.Random) -> Arguments:
    return (rng.choice((0, 1, 2, 3, 5, 8, 10, 13, 20, rng.randrange(25))),)


def positive_input(rng: random.Random) -> Arguments:
    return (rng.choice((1, 2, 3, 4, 6, 7, 9, 28, 97, rng.randrange(1, 100))),)


def positive_pair_input(rng: random.Random) -> Arguments:
    factor = rng.randrange(1, 9)
    return factor * rng.randrange(1, 20), factor * rng.randrange(1, 20)


def signed_input(rng: random.Random) -> Arguments:
    return (rng.choice((0, 1, -1, rng.randrange(-50, 50), rng.randrange(-50, 50))),)


def pair_input(rng: random.Random) -> Arguments:
    first = rng.randrange(-30, 60)
    second = rng.randrange(-30, 60)
    if rng.random() < 0.1:
        second = first
    return first, second


def triple_input(rng: random.Random) -> Arguments:
    return rng.randrange(-20, 40), rng.randrange(-20, 40), rng.randrange(-20, 40)


def sides_input(rng: random.Random) -> Arguments:
    return rng.randrange(1, 12), rng.randrange(1, 12), rng.randrange(1, 12)


def power_input(rng: random.Random) -> Arguments:
    return rng.randrange(-5, 12), rng.randrange(9)


def year_input(rng: random.Random) -> Arguments:
    return (rng.choice((1900, 2000, 2023, 2024, 2100, 2400, rng.randrange(1800, 2200))),)


def numbers_input(rng: random.Random) -> Arguments:
    return (some_numbers(rng, ()),)


def number_lists_input(rng: random.Random) -> Arguments:
    return two_lists_input(rng, ())


def same_length_input(rng: random.Random) -> Arguments:
    first, second = two_lists_input(rng, ())
    length = min(len(first), len(second))
    return first[:length], second[:length]


def numbers_and_number_input(rng: random.Random) -> Arguments:
    numbers = some_numbers(rng, ())
    number = rng.randrange(1, 9)
    if numbers and rng.random() < 0.6:
        number = abs(rng.choice(numbers)) or 1
    return numbers, number


def sorted_list_input(rng: random.Random) -> Arguments:
    numbers = some_numbers(rng, ())
    if rng.random() < 0.5:
        numbers.sort()
    return (numbers,)


def plain_text_input(rng: random.Random) -> Arguments:
    return text_input(rng, ())


def text_and_letter_input(rng: random.Random) -> Arguments:
    return text_input(rng, ("a",))[0], rng.choice("aeotn")


def one_word_input(rng: random.Random) -> Arguments:
    if rng.random() < 0.2:
        word = rng.choice(TEST_WORDS).lower()
        return (word + word[::-1],)
    return (rng.choice(TEST_WORDS).lower(),)


def anagrams_input(rng: random.Random) -> Arguments:
    first = rng.choice(TEST_WORDS).lower()
    second = rng.choice(TEST_WORDS).lower()
    if rng.random() < 0.5:
        letters = list(first)
        rng.shuffle(letters)
        second = "".join(letters)
    return first, second


def word_list_input(rng: random.Random) -> Arguments:
    return (some_words(rng, ()),)


def table_input(rng: random.Random) -> Arguments:
    return dictionary_input(rng, ())


def temperature_input(rng: random.Random) -> Arguments:
    return (rng.choice((0, 32, 100, 212, -40, rng.randrange(-50, 150))),)


def clamp_input(rng: random.Random) -> Arguments:
    low = rng.randrange(-10, 10)
    return rng.randrange(-30, 40), low, low + rng.randrange(1, 20)


def matrix_input(rng: random.Random) -> Arguments:
    rows = rng.randrange(1, 4)
    columns = rng.randrange(1, 4)
    matrix = []
    for _ in range(rows):
        matrix.append([rng.randrange(-9, 20) for _ in range(columns)])
    return (matrix,)


def binary_search_input(rng: random.Random) -> Arguments:
    numbers = sorted(set(some_numbers(rng, ())))
    target = rng.randrange(-40, 100)
    if numbers and rng.random() < 0.7:
        target = rng.choice(numbers)
    return numbers, target
