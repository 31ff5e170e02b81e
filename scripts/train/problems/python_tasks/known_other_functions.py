"""The table of well-known functions of texts, lists and dictionaries."""

import itertools
import re
import statistics
from collections import Counter

from scripts.train.problems.python_tasks.inputs import some_numbers, some_words, text_of_words_input
from scripts.train.problems.python_tasks.known_inputs import (
    anagrams_input,
    binary_search_input,
    matrix_input,
    number_lists_input,
    numbers_and_number_input,
    numbers_input,
    one_word_input,
    plain_text_input,
    same_length_input,
    sorted_list_input,
    table_input,
    text_and_letter_input,
    word_list_input,
)
from scripts.train.problems.python_tasks.parts import KnownFunction
from scripts.train.problems.python_tasks.reductions import insertion_sorted, without_duplicates


def _median(numbers: list[int]) -> float | None:
    if not numbers:
        return None
    return float(statistics.median(numbers))


def _transposed(matrix: list[list[int]]) -> list[list[int]]:
    columns = []
    for index in range(len(matrix[0])):
        columns.append([row[index] for row in matrix])
    return columns


def _sorted_by_length(words: list[str]) -> list[str]:
    result: list[str] = []
    for length in range(max(map(len, words), default=0) + 1):
        result += [word for word in words if len(word) == length]
    return result


def _chunks(items: list[int], size: int) -> list[list[int]]:
    chunks: list[list[int]] = []
    for index, item in enumerate(items):
        if index % size == 0:
            chunks.append([])
        chunks[-1].append(item)
    return chunks


OTHER_FUNCTIONS: list[KnownFunction] = [
    KnownFunction(
        "reverse_text",
        arguments=("text",),
        phrases=(
            "reverse{s} a string",
            "return{s} a string reversed",
            "reverse{s} a text",
            "return{s} the reverse of a string",
        ),
        body="return @0[::-1]",
        reference=lambda text: "".join(reversed(text)),
        inputs=plain_text_input,
    ),
    KnownFunction(
        "is_palindrome",
        arguments=("text",),
        phrases=(
            "check{s} whether a string is a palindrome",
            "check{s} if a word is a palindrome",
            "return{s} whether a text is a palindrome",
            "test{s} if a string is a palindrome",
            "determine{s} whether a text reads the same backwards",
        ),
        body="return @0 == @0[::-1]",
        reference=lambda text: list(text) == list(reversed(text)),
        inputs=one_word_input,
    ),
    KnownFunction(
        "is_anagram",
        arguments=("first", "second"),
        phrases=(
            "check{s} whether two words are anagrams",
            "check{s} if two strings are anagrams",
            "return{s} whether two strings are anagrams of each other",
            "test{s} whether one word is an anagram of another",
        ),
        body="return sorted(@0) == sorted(@1)",
        reference=lambda first, second: Counter(first) == Counter(second),
        inputs=anagrams_input,
    ),
    KnownFunction(
        "count_letter",
        arguments=("text", "letter"),
        phrases=(
            "count{s} how often a letter occurs in a text",
            "count{s} the occurrences of a letter in a string",
            "return{s} how many times a character appears in a string",
        ),
        body="return @0.count(@1)",
        reference=lambda text, letter: sum(1 for c in text if c == letter),
        inputs=text_and_letter_input,
    ),
    KnownFunction(
        "remove_letter",
        arguments=("text", "letter"),
        phrases=(
            "remove{s} a letter from a text",
            "remove{s} all occurrences of a letter from a string",
            "delete{s} a given letter from a string",
        ),
        body='return @0.replace(@1, "")',
        reference=lambda text, letter: "".join(c for c in text if c != letter),
        inputs=text_and_letter_input,
    ),
    KnownFunction(
        "count_vowels",
        arguments=("text",),
        phrases=(
            "count{s} the vowels in a string",
            "count{s} the vowels in a text",
            "return{s} the number of vowels in a string",
            "return{s} how many vowels a text has",
        ),
        body='return sum(1 for c in @0 if c in "aeiouAEIOU")',
        reference=lambda text: len(re.findall("[aeiou]", text.lower())),
        inputs=plain_text_input,
    ),
    KnownFunction(
        "count_words",
        arguments=("text",),
        phrases=(
            "count{s} the words in a text",
            "count{s} the words in a string",
            "return{s} the number of words in a sentence",
            "return{s} how many words a text has",
        ),
        body="return len(@0.split())",
        reference=lambda text: len(re.findall(r"\S+", text)),
        inputs=plain_text_input,
    ),
    KnownFunction(
        "reverse_words",
        arguments=("text",),
        phrases=(
            "reverse{s} the order of the words in a text",
            "reverse{s} the words in a sentence",
            "return{s} the words of a string in reverse order as a string",
        ),
        body='return " ".join(@0.split()[::-1])',
        reference=lambda text: " ".join(reversed(re.findall(r"\S+", text))),
        inputs=plain_text_input,
    ),
    KnownFunction(
        "capitalize_words",
        arguments=("text",),
        phrases=(
            "capitalize{s} each word of a text",
            "capitalize{s} the first letter of every word in a string",
            "capitalize{s} every word of a sentence",
        ),
        body='return " ".join(word.capitalize() for word in @0.split())',
        reference=lambda text: " ".join(
            w[:1].upper() + w[1:].lower() for w in re.findall(r"\S+", text)
        ),
        inputs=plain_text_input,
    ),
    KnownFunction(
        "initials",
        arguments=("name",),
        phrases=(
            "return{s} the initials of a name",
            "return{s} the first letters of the words of a name in upper case",
        ),
        body='return "".join(word[0].upper() for word in @0.split())',
        reference=lambda name: "".join(re.findall(r"\b\w", name)).upper(),
        inputs=lambda rng: text_of_words_input(rng, ()),
    ),
    KnownFunction(
        "greet",
        arguments=("name",),
        phrases=(
            "return{s} a greeting for a name",
            "greet{s} a person by name",
            "return{s} Hello and the given name",
        ),
        body='return f"Hello, {@0}!"',
        reference=lambda name: "Hello, " + name + "!",
        inputs=one_word_input,
    ),
    KnownFunction(
        "hello_world",
        arguments=(),
        phrases=('return{s} the text "Hello, world!"', 'return{s} "Hello, world!"'),
        body='return "Hello, world!"',
        reference=lambda: "Hello, world!",
        inputs=lambda rng: (),
    ),
    KnownFunction(
        "is_unique",
        arguments=("text",),
        phrases=(
            "check{s} whether all characters of a string are different",
            "return{s} whether a text has no repeated characters",
        ),
        body="return len(set(@0)) == len(@0)",
        reference=lambda text: all(text.count(c) == 1 for c in text),
        inputs=one_word_input,
    ),
    KnownFunction(
        "letter_counts",
        arguments=("text",),
        phrases=(
            "count{s} how often each letter occurs in a text",
            "count{s} the frequency of each character in a string",
            "return{s} a dictionary with the count of each character",
        ),
        body="return dict(Counter(@0))",
        reference=lambda text: {c: text.count(c) for c in text},
        inputs=plain_text_input,
        imports="from collections import Counter",
    ),
    KnownFunction(
        "count_items",
        arguments=("items",),
        phrases=(
            "count{s} how often each item occurs in a list",
            "return{s} a dictionary with the count of each item of a list",
            "count{s} the occurrences of each element in a list",
        ),
        body="return dict(Counter(@0))",
        reference=lambda items: {item: items.count(item) for item in items},
        inputs=word_list_input,
        imports="from collections import Counter",
    ),
    KnownFunction(
        "invert",
        arguments=("data",),
        phrases=(
            "invert{s} a dictionary",
            "swap{s} the keys and values of a dictionary",
            "return{s} a dictionary with keys and values exchanged",
        ),
        body="return {value: key for key, value in @0.items()}",
        reference=lambda data: dict(zip(data.values(), data.keys(), strict=True)),
        inputs=table_input,
    ),
    KnownFunction(
        "sorted_keys",
        arguments=("data",),
        phrases=(
            "return{s} the sorted keys of a dictionary",
            "return{s} the keys of a dictionary in sorted order",
            "sort{s} the keys of a dictionary",
        ),
        body="return sorted(@0)",
        reference=lambda data: insertion_sorted(list(data)),
        inputs=table_input,
    ),
    KnownFunction(
        "best_key",
        arguments=("data",),
        phrases=(
            "return{s} the key with the largest value of a dictionary",
            "find{s} the key with the highest value in a dictionary",
            "return{s} the key of a dictionary whose value is the largest",
        ),
        body="return max(@0, key=@0.get, default=None)",
        reference=lambda data: next((k for k in data if data[k] == max(data.values())), None),
        inputs=table_input,
    ),
    KnownFunction(
        "merge",
        arguments=("first", "second"),
        phrases=(
            "merge{s} two dictionaries",
            "return{s} the union of two dictionaries",
            "combine{s} two dictionaries into one",
        ),
        body="return {**@0, **@1}",
        reference=lambda first, second: dict([*first.items(), *second.items()]),
        inputs=lambda rng: (table_input(rng)[0], table_input(rng)[0]),
    ),
    KnownFunction(
        "to_dictionary",
        arguments=("keys", "values"),
        phrases=(
            "make{s} a dictionary of a list of keys and a list of values",
            "combine{s} two lists into a dictionary",
        ),
        body="return dict(zip(@0, @1))",
        reference=lambda keys, values: {k: values[i] for i, k in enumerate(keys[: len(values)])},
        inputs=lambda rng: (some_words(rng, ()), some_numbers(rng, ())),
    ),
    KnownFunction(
        "dot_product",
        arguments=("first", "second"),
        phrases=(
            "return{s} the dot product of two lists",
            "compute{s} the dot product of two vectors",
            "calculate{s} the dot product of two lists of numbers",
        ),
        body="return sum(x * y for x, y in zip(@0, @1))",
        reference=lambda first, second: sum(first[i] * second[i] for i in range(len(first))),
        inputs=same_length_input,
    ),
    KnownFunction(
        "add_lists",
        arguments=("first", "second"),
        phrases=(
            "add{s} two lists element by element",
            "return{s} the elementwise sum of two lists",
            "add{s} the elements of two lists pairwise",
        ),
        body="return [x + y for x, y in zip(@0, @1)]",
        reference=lambda first, second: [first[i] + second[i] for i in range(len(first))],
        inputs=same_length_input,
    ),
    KnownFunction(
        "concatenate",
        arguments=("first", "second"),
        phrases=(
            "concatenate{s} two lists",
            "join{s} two lists",
            "append{s} one list to another",
        ),
        body="return @0 + @1",
        reference=lambda first, second: [*first, *second],
        inputs=number_lists_input,
    ),
    KnownFunction(
        "common_elements",
        arguments=("first", "second"),
        phrases=(
            "return{s} the common elements of two lists",
            "find{s} the elements that two lists have in common",
            "return{s} the elements of the first list that are in the second",
        ),
        body="return [x for x in @0 if x in @1]",
        reference=lambda first, second: [x for x in first if second.count(x)],
        inputs=number_lists_input,
    ),
    KnownFunction(
        "merge_unique",
        arguments=("first", "second"),
        phrases=(
            "merge{s} two lists without duplicates",
            "combine{s} two lists and remove{s} duplicates",
            "return{s} the union of two lists without duplicates",
        ),
        body="return list(dict.fromkeys(@0 + @1))",
        reference=lambda first, second: without_duplicates([*first, *second]),
        inputs=number_lists_input,
    ),
    KnownFunction(
        "pairs",
        arguments=("first", "second"),
        phrases=(
            "pair{s} the elements of two lists",
            "return{s} a list of pairs of the elements of two lists",
            "zip{s} two lists into a list of pairs",
        ),
        body="return list(zip(@0, @1))",
        reference=lambda first, second: [(x, second[i]) for i, x in enumerate(first)],
        inputs=same_length_input,
    ),
    KnownFunction(
        "sort_numbers",
        arguments=("numbers",),
        phrases=(
            "sort{s} a list",
            "sort{s} a list of numbers",
            "return{s} a sorted copy of a list",
        ),
        body="return sorted(@0)",
        reference=insertion_sorted,
        inputs=numbers_input,
    ),
    KnownFunction(
        "reverse_list",
        arguments=("items",),
        phrases=(
            "reverse{s} a list",
            "return{s} a list in reverse order",
            "return{s} a reversed list",
        ),
        body="return @0[::-1]",
        reference=lambda items: list(reversed(items)),
        inputs=numbers_input,
    ),
    KnownFunction(
        "find_maximum",
        arguments=("numbers",),
        phrases=(
            "find{s} the maximum in a list",
            "return{s} the largest number in a list",
            "find{s} the biggest number in a list",
            "return{s} the maximum of a list",
        ),
        body="return max(@0, default=None)",
        reference=lambda numbers: insertion_sorted(numbers)[-1] if numbers else None,
        inputs=numbers_input,
    ),
    KnownFunction(
        "find_minimum",
        arguments=("numbers",),
        phrases=(
            "find{s} the minimum in a list",
            "return{s} the smallest number in a list",
            "return{s} the minimum of a list",
        ),
        body="return min(@0, default=None)",
        reference=lambda numbers: insertion_sorted(numbers)[0] if numbers else None,
        inputs=numbers_input,
    ),
    KnownFunction(
        "sum_list",
        arguments=("numbers",),
        phrases=(
            "sum{s} a list of numbers",
            "return{s} the sum of a list",
            "add{s} up all numbers in a list",
            "compute{s} the sum of a list of numbers",
        ),
        body="return sum(@0)",
        reference=sum,
        inputs=numbers_input,
    ),
    KnownFunction(
        "median",
        arguments=("numbers",),
        phrases=(
            "return{s} the median of a list of numbers",
            "compute{s} the median of a list",
            "find{s} the median of a list",
        ),
        body="if not @0:\n    return None\nvalues = sorted(@0)\nmiddle = len(values) // 2\n"
        "return (values[middle] + values[~middle]) / 2",
        reference=_median,
        inputs=numbers_input,
    ),
    KnownFunction(
        "is_sorted",
        arguments=("numbers",),
        phrases=(
            "check{s} whether a list is sorted",
            "return{s} whether a list is in ascending order",
            "test{s} if a list is sorted",
        ),
        body="return @0 == sorted(@0)",
        reference=lambda numbers: numbers == insertion_sorted(numbers),
        inputs=sorted_list_input,
    ),
    KnownFunction(
        "is_empty",
        arguments=("items",),
        phrases=("check{s} whether a list is empty", "return{s} True if a list is empty"),
        body="return len(@0) == 0",
        reference=lambda items: items == [],
        inputs=lambda rng: (rng.choice(([], [], some_numbers(rng, ()))),),
    ),
    KnownFunction(
        "contains",
        arguments=("numbers", "x"),
        phrases=(
            "check{s} whether a list contains a number",
            "return{s} whether a number is in a list",
            "test{s} if @1 is in a list",
        ),
        body="return @1 in @0",
        reference=lambda numbers, x: numbers.count(x) > 0,
        inputs=numbers_and_number_input,
    ),
    KnownFunction(
        "count_value",
        arguments=("numbers", "x"),
        phrases=(
            "count{s} how often a number occurs in a list",
            "count{s} the occurrences of @1 in a list",
            "return{s} how many times a value occurs in a list",
        ),
        body="return @0.count(@1)",
        reference=lambda numbers, x: sum(1 for y in numbers if y == x),
        inputs=numbers_and_number_input,
    ),
    KnownFunction(
        "rotate",
        arguments=("numbers", "k"),
        phrases=(
            "rotate{s} a list to the left by @1 places",
            "rotate{s} a list by @1 positions to the left",
        ),
        body="if not @0:\n    return []\n@1 %= len(@0)\nreturn @0[@1:] + @0[:@1]",
        reference=lambda numbers, k: [numbers[(i + k) % len(numbers)] for i in range(len(numbers))],
        inputs=numbers_and_number_input,
    ),
    KnownFunction(
        "chunks",
        arguments=("items", "size"),
        phrases=(
            "split{s} a list into chunks of a given size",
            "split{s} a list into parts of length @1",
        ),
        body="return [@0[i:i + @1] for i in range(0, len(@0), @1)]",
        reference=_chunks,
        inputs=lambda rng: (some_numbers(rng, ()), rng.randrange(1, 5)),
    ),
    KnownFunction(
        "binary_search",
        arguments=("numbers", "target"),
        phrases=(
            "find{s} a number in a sorted list by binary search",
            "implement{s} binary search",
            "return{s} the index of a number in a sorted list, or -1",
        ),
        body="low, high = 0, len(@0)\nwhile low < high:\n    middle = (low + high) // 2\n"
        "    if @0[middle] < @1:\n        low = middle + 1\n    else:\n        high = middle\n"
        "return low if low < len(@0) and @0[low] == @1 else -1",
        reference=lambda numbers, x: numbers.index(x) if x in numbers else -1,
        inputs=binary_search_input,
    ),
    KnownFunction(
        "bubble_sort",
        arguments=("numbers",),
        phrases=(
            "sort{s} a list with bubble sort",
            "implement{s} bubble sort",
            "sort{s} a list of numbers by bubble sort",
        ),
        body="for i in range(len(@0)):\n    for j in range(len(@0) - 1 - i):\n"
        "        if @0[j] > @0[j + 1]:\n"
        "            @0[j], @0[j + 1] = @0[j + 1], @0[j]\nreturn @0",
        reference=insertion_sorted,
        inputs=numbers_input,
    ),
    KnownFunction(
        "flatten",
        arguments=("lists",),
        phrases=(
            "flatten{s} a list of lists",
            "turn{s} a list of lists into one list",
            "flatten{s} a nested list",
        ),
        body="return [x for items in @0 for x in items]",
        reference=lambda lists: list(itertools.chain(*lists)),
        inputs=matrix_input,
    ),
    KnownFunction(
        "transpose",
        arguments=("matrix",),
        phrases=("transpose{s} a matrix", "return{s} the transpose of a matrix"),
        body="return [list(row) for row in zip(*@0)]",
        reference=_transposed,
        inputs=matrix_input,
    ),
    KnownFunction(
        "sum_matrix",
        arguments=("matrix",),
        phrases=(
            "return{s} the sum of all numbers in a matrix",
            "add{s} up all elements of a matrix",
        ),
        body="return sum(sum(row) for row in @0)",
        reference=lambda matrix: sum(itertools.chain(*matrix)),
        inputs=matrix_input,
    ),
    KnownFunction(
        "most_common",
        arguments=("items",),
        phrases=(
            "return{s} the most common item of a list",
            "find{s} the most frequent element in a list",
        ),
        body="return max(@0, key=@0.count, default=None)",
        reference=lambda items: Counter(items).most_common(1)[0][0] if items else None,
        inputs=word_list_input,
    ),
    KnownFunction(
        "sort_by_length",
        arguments=("words",),
        phrases=("sort{s} words by their length", "sort{s} a list of strings by length"),
        body="return sorted(@0, key=len)",
        reference=_sorted_by_length,
        inputs=word_list_input,
    ),
]
