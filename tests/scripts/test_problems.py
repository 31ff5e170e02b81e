"""The generated problems: answers, steps, wordings, and what is held out.

Answers are computed again from the problem's key, by other means than those of the generators.
"""

import random
import re
from fractions import Fraction
from functools import cache
from itertools import islice

import pytest

from scripts.train.problems import vocabulary, word_problems
from scripts.train.problems.arithmetic import sum_problem
from scripts.train.problems.derivatives import derivative_problem
from scripts.train.problems.equations import equation_problem, one_sided
from scripts.train.problems.other import MAKERS as OTHER_MAKERS
from scripts.train.problems.other import REFUSAL
from scripts.train.problems.problem import Maker, Problem, is_held_out
from scripts.train.problems.step_engine import Step
from scripts.train.problems.streams import MAKERS as ALL_MAKERS
from scripts.train.problems.streams import MATHS_MAKERS, WEIGHTS, held_out, training_stream

MAKERS = MATHS_MAKERS | OTHER_MAKERS

MATHS_KINDS = (
    "sum",
    "difference",
    "product",
    "quotient",
    "expression",
    "equation",
    "fraction",
    "percentage",
    "derivative",
    "word_problem",
)
ARITHMETIC_KINDS = MATHS_KINDS[:5]
NUMERIC = re.compile(r"[-+*/(). 0-9]+")


@cache
def drawn(kind: str) -> list[Problem]:
    rng = random.Random(f"test/{kind}")
    return [MAKERS[kind](rng) for _ in range(2_000)]


def value_of(text: str, variable: str = "", value: Fraction | int = 0) -> Fraction:
    """Evaluate an expression, with `2x` and `2(x + 1)` as products."""
    code = text.strip().replace("^", "**")
    if variable:
        code = re.sub(rf"(\d|\))\s*(?={variable}|\()", r"\1*", code)
    code = re.sub(r"(?<!\*\*)(?<![\d.])(\d+(\.\d+)?)", r"Fraction('\1')", code)
    # The text comes from the generators of this repository.
    result = eval(code, {"Fraction": Fraction, variable: Fraction(value)})
    return Fraction(result)


def side_value(side: str) -> Fraction | None:
    """Return the value of a side of a statement, or None if it has words or variables."""
    side = side.removesuffix(" cents").strip()
    if side.endswith(" dollars"):
        return value_of(side.removesuffix(" dollars")) * 100
    part = re.fullmatch(r"(\d+)% of (\d+)", side)
    if part:
        return Fraction(int(part[1]) * int(part[2]), 100)
    division = re.fullmatch(r"(\d+) (?:r|remainder) (\d+)", side)
    if division or not NUMERIC.fullmatch(side):
        return None
    return value_of(side)


def statements(response: str) -> list[str]:
    """Return all parts of a response that claim an equality, without labels."""
    found = []
    for line in response.split("\n")[:-1]:
        text = re.sub(r"^[^=:]*: ", "", line)
        found += [part for part in re.split(r", so |, ", text) if " = " in part]
    return found


def is_true(statement: str) -> bool:
    """Return whether all sides are equal. A statement with words or variables passes."""
    division = re.fullmatch(r"(\d+) / (\d+) = (\d+) (?:r|remainder) (\d+)", statement)
    if division:
        dividend, divisor, quotient, remainder = (int(number) for number in division.groups())
        return divmod(dividend, divisor) == (quotient, remainder)
    values = [side_value(side) for side in statement.split(" = ")]
    if None in values:
        return True
    return len(set(values)) == 1


def root_of(equation: str, variable: str) -> Fraction:
    """Return the solution of a linear equation, from its values at three points."""
    left, right = equation.split("=")
    at = []
    for point in (0, 1, 2):
        at.append(value_of(left, variable, point) - value_of(right, variable, point))
    slope = at[1] - at[0]
    assert slope == at[2] - at[1], f"{equation} is not linear"
    return -at[0] / slope


def variable_of(problem: Problem) -> str:
    """Return the variable of an equation, which the last step names."""
    variable, _, _ = problem.response.split("\n")[-2].rpartition(" = ")
    return variable[-1]


def numbers_in(text: str) -> list[str]:
    return sorted(re.findall(r"\d+", text))


def test_every_kind_has_a_weight() -> None:
    for domain, makers in ALL_MAKERS.items():
        assert set(WEIGHTS[domain]) == set(makers)


@pytest.mark.parametrize("kind", MAKERS)
def test_fields_fit_together(kind: str) -> None:
    for problem in drawn(kind):
        assert problem.kind == kind
        assert problem.key
        assert problem.prompt.strip()
        if kind != "other":
            assert problem.response.split("\n")[-1] == f"\\boxed{{{problem.answer}}}"


@pytest.mark.parametrize("kind", MAKERS)
def test_prompts_and_responses_are_short(kind: str) -> None:
    assert max(len(problem.prompt) for problem in drawn(kind)) <= 300
    assert max(len(problem.response) for problem in drawn(kind)) <= 320


@pytest.mark.parametrize("kind", MAKERS)
def test_a_seed_gives_the_same_problems(kind: str) -> None:
    first = random.Random(7)
    second = random.Random(7)
    for _ in range(100):
        assert MAKERS[kind](first) == MAKERS[kind](second)
    assert held_out("maths", kind, 20, seed=3) == held_out("maths", kind, 20, seed=3)


@pytest.mark.parametrize("kind", MATHS_KINDS)
def test_every_statement_is_true(kind: str) -> None:
    for problem in drawn(kind):
        for statement in statements(problem.response):
            assert is_true(statement), problem


def test_the_check_of_statements_finds_errors() -> None:
    assert not is_true("7 + 5 = 13")
    assert not is_true("23 / 8 = 2 r 6")
    assert not is_true("15% of 80 = 11")
    assert not is_true("250 cents = 2.05 dollars")


@pytest.mark.parametrize("kind", ("sum", "product"))
def test_columns_write_the_last_digit_and_carry_the_rest(kind: str) -> None:
    num_carries = 0
    for problem in drawn(kind):
        for total, digit, carry in re.findall(r"= (\d+), write (\d), carry (\d)", problem.response):
            assert divmod(int(total), 10) == (int(carry), int(digit))
            num_carries += 1
    assert num_carries > 500


@pytest.mark.parametrize("kind", ARITHMETIC_KINDS)
def test_arithmetic_answers(kind: str) -> None:
    for problem in drawn(kind):
        quotient, _, remainder = problem.answer.partition(" remainder ")
        if remainder:
            dividend, divisor = problem.key.split(" / ")
            assert divmod(int(dividend), int(divisor)) == (int(quotient), int(remainder))
        else:
            assert value_of(problem.key) == int(problem.answer), problem
        assert numbers_in(problem.prompt) == numbers_in(problem.key)


def test_equations_are_solved() -> None:
    answers = set()
    for problem in drawn("equation"):
        assert root_of(problem.key, "x") == Fraction(problem.answer), problem
        answers.add(problem.answer)
    assert any("/" in answer for answer in answers)
    assert any(answer.startswith("-") for answer in answers)


def test_equations_in_prompts_have_the_same_solution() -> None:
    # A side is made of numbers, signs and letters that stand alone.
    side = r"(?:[-+*/() 0-9]|(?<![A-Za-z])[a-z](?![A-Za-z]))+"
    pattern = re.compile(f"{side}={side}")
    for problem in drawn("equation"):
        variable = variable_of(problem)
        found = pattern.findall(re.sub(r", [a-z] =( \?)?$", "", problem.prompt))
        assert len(found) == 1
        assert root_of(found[0], variable) == Fraction(problem.answer), problem


def test_each_line_of_an_equation_keeps_the_solution() -> None:
    for problem in drawn("equation"):
        variable = variable_of(problem)
        for statement in statements(problem.response):
            if " r " in statement:
                continue
            left, right = statement.split(" = ")
            solution = Fraction(problem.answer)
            assert value_of(left, variable, solution) == value_of(right, variable, solution)


def test_fractions_are_computed_and_reduced() -> None:
    for problem in drawn("fraction"):
        body = problem.key.removeprefix("simplify ")
        # Without brackets, a/b / c/d would be computed from left to right.
        expected = value_of(re.sub(r"(\d+/\d+)", r"(\1)", body).replace(" of ", " * "))
        assert str(expected) == problem.answer, problem


def test_percentages() -> None:
    for problem in drawn("percentage"):
        numbers = [int(number) for number in re.findall(r"\d+", problem.key)]
        if problem.key.startswith("what percent"):
            expected = Fraction(100 * numbers[1], numbers[0])
        elif problem.key.startswith("increase"):
            expected = numbers[0] * (1 + Fraction(numbers[1], 100))
        elif problem.key.startswith("decrease"):
            expected = numbers[0] * (1 - Fraction(numbers[1], 100))
        else:
            expected = Fraction(numbers[0] * numbers[1], 100)
        assert Fraction(problem.answer) == expected, problem
        assert numbers_in(problem.prompt) == numbers_in(problem.key)


def test_derivatives() -> None:
    sympy = pytest.importorskip("sympy")
    x = sympy.Symbol("x")

    def read(text: str) -> object:
        code = re.sub(r"(\d)(?=x)", r"\1*", text.replace("^", "**"))
        return sympy.Poly(eval(code, {"x": x}), x)

    for problem in drawn("derivative"):
        answer = re.sub(r"[a-z]", "x", problem.answer)
        assert read(problem.key).diff(x) == read(answer), problem  # type: ignore[attr-defined]


def test_word_problems_end_with_their_answer() -> None:
    for problem in drawn("word_problem"):
        last = problem.response.split("\n")[-2].removesuffix(" dollars")
        assert last.endswith(f" = {problem.answer}"), problem
        assert is_true(re.sub(r"^[^=:]*: ", "", problem.response.split("\n")[-2]))
        assert len(statements(problem.response)) >= 1


def test_word_problems_name_their_numbers() -> None:
    for problem in drawn("word_problem"):
        words = problem.prompt.lower()
        for number in problem.key.split(": ")[1].split():
            value = int(number)
            forms = [number, f"{value // 100}.{value % 100:02d}"]
            if value < len(vocabulary.NUMBER_WORDS):
                forms.append(vocabulary.NUMBER_WORDS[value])
            assert any(form in words for form in forms), problem


def test_every_template_makes_true_problems_in_each_wording() -> None:
    assert len(word_problems.TEMPLATES) >= 110
    names = {template.name for template in word_problems.TEMPLATES}
    assert len(names) == len(word_problems.TEMPLATES)

    rng = random.Random(1)
    for template in word_problems.TEMPLATES:
        assert len(template.wordings) >= 2
        for _ in range(30):
            problem = word_problems.word_problem(rng, template)
            assert "{" not in problem.prompt
            assert len(problem.prompt) <= 300
            assert len(problem.response) <= 320, problem
            for statement in statements(problem.response):
                assert is_true(statement), problem


def test_every_wording_names_the_numbers_that_the_steps_need() -> None:
    for template in word_problems.TEMPLATES:
        shown = set(template.shown)
        drawn_numbers = set()
        for draw in template.draws:
            drawn_numbers.add(draw.target if isinstance(draw, Step) else draw.name)
        for wording in template.wordings:
            assert wording.fields & drawn_numbers == shown, template.name

        known = set(shown)
        for step in template.steps:
            for number in (step.left, step.right):
                assert isinstance(number, int) or number in known, template.name
            known.add(step.target)


def test_only_temperatures_are_negative() -> None:
    for problem in drawn("word_problem"):
        if "-" in problem.answer:
            assert problem.key.startswith("temperature_fall")


def test_word_problems_are_diverse() -> None:
    rng = random.Random(2)
    problems = [MAKERS["word_problem"](rng) for _ in range(20_000)]
    assert len({problem.key for problem in problems}) > 15_000
    reached = {problem.key.split(":")[0] for problem in problems}
    assert reached == {template.name for template in word_problems.TEMPLATES}
    assert len(set(vocabulary.WOMEN + vocabulary.MEN)) >= 150


def test_other_questions_are_declined() -> None:
    for problem in drawn("other"):
        assert problem.response == REFUSAL
        assert problem.answer == ""
    assert len({problem.key for problem in drawn("other")}) > 1_700


def test_no_question_is_both_solved_and_declined() -> None:
    declined = {problem.prompt for problem in drawn("other")}
    for kind in MATHS_KINDS:
        assert declined.isdisjoint(problem.prompt for problem in drawn(kind))


@pytest.mark.parametrize("seed", (0, 1))
def test_training_never_shows_what_is_held_out(seed: int) -> None:
    kinds = set()
    for problem in islice(training_stream("maths", seed), 50_000):
        assert not is_held_out(problem.key)
        kinds.add(problem.kind)
    assert kinds == set(MAKERS)


@pytest.mark.parametrize("kind", MAKERS)
def test_held_out_problems_are_distinct(kind: str) -> None:
    problems = held_out("maths", kind, 100)
    assert len({problem.key for problem in problems}) == 100
    for problem in problems:
        assert is_held_out(problem.key)
        assert problem.kind == kind


def test_the_stream_depends_on_its_seed_only() -> None:
    first = list(islice(training_stream("maths", 5), 200))
    assert first == list(islice(training_stream("maths", 5), 200))
    assert first != list(islice(training_stream("maths", 6), 200))


def test_documented_prompts_are_drawn() -> None:
    makers: dict[str, Maker] = {
        "Solve for x: 2x + 3 = 9": lambda rng: equation_problem(rng, one_sided(rng, 2, 3, 9)),
        "Solve for x: 4x - 2 = 10": lambda rng: equation_problem(rng, one_sided(rng, 4, -2, 10)),
        "Compute: 347 + 285": lambda rng: sum_problem(rng, 347, 285),
        "Find the derivative of f(x) = x^3 + 2x^2 - 5x + 3": lambda rng: derivative_problem(
            rng, [(1, 3), (2, 2), (-5, 1), (3, 0)]
        ),
    }
    for prompt, make in makers.items():
        rng = random.Random(0)
        problems = [make(rng) for _ in range(1_000)]
        assert prompt in {problem.prompt for problem in problems}
        assert not is_held_out(problems[0].key)
