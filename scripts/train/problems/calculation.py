"""The written working of one calculation, for use within longer solutions.

A small calculation is one line: `47 + 38 = 85`. A larger one announces itself, shows the columns
from the ones up, and then gives the result:

    347 + 285
    7 + 5 = 12, 4 + 8 + 1 = 13, 3 + 2 + 1 = 6
    347 + 285 = 632

A carry is added at the end of the next column. A borrow is written as the minuend's digit plus ten,
and is subtracted first in the next column: `632 - 285` is `12 - 5 = 7, 13 - 1 - 8 = 4, ...`.
"""

# Sums and products up to this one are known by heart, and so are tables up to 12.
BY_HEART = 100
TABLE = 12

TIMES_SIGN = "\N{MULTIPLICATION SIGN}"


def digits(value: int) -> list[int]:
    """Return the digits of a number that is not negative, from the ones up."""
    return [int(digit) for digit in reversed(str(value))]


def sum_columns(a: int, b: int) -> list[tuple[str, int]]:
    """Return the text and the total of each column of `a + b`, neither of which is negative."""
    columns = []
    carry = 0
    a_digits = digits(a)
    b_digits = digits(b)
    for place in range(max(len(a_digits), len(b_digits))):
        terms = a_digits[place : place + 1] + b_digits[place : place + 1]
        if carry:
            terms.append(carry)
        total = sum(terms)
        text = str(total)
        if len(terms) == 2:
            text = f"{terms[0]} + {terms[1]} = {total}"
        elif len(terms) == 3:
            text = f"{terms[0]} + {terms[1]} + {terms[2]} = {total}"
        columns.append((text, total))
        carry = int(total > 9)
    return columns


def difference_columns(a: int, b: int) -> list[tuple[str, bool]]:
    """Return the text of each column of `a - b`, and whether it borrows. `0 <= b <= a`."""
    columns = []
    borrow = 0
    a_digits = digits(a)
    b_digits = digits(b)
    for place, top in enumerate(a_digits):
        below = b_digits[place] if place < len(b_digits) else 0
        rest = top - borrow - below
        borrows = rest < 0
        text = str(top)
        if borrows:
            text = str(top + 10)
            rest += 10
        if borrow:
            text += " - 1"
        if place < len(b_digits):
            text += f" - {below}"
        if len(text) > 2:
            text += f" = {rest}"
        columns.append((text, borrows))
        borrow = int(borrows)
    return columns


def product_columns(a: int, digit: int) -> list[tuple[str, int]]:
    """Return the text and the total of each column of `a * digit`, neither of them negative."""
    columns = []
    carry = 0
    for top in digits(a):
        total = top * digit + carry
        text = f"{top} * {digit}"
        if carry:
            text += f" + {carry}"
        columns.append((f"{text} = {total}", total))
        carry = total // 10
    return columns


def division_steps(dividend: int, divisor: int) -> list[tuple[int, int, int]]:
    """Return the part of the dividend, the quotient's digit and the remainder of each step.

    The first part has as few digits as a quotient over zero takes.
    """
    text = str(dividend)
    end = 1
    while end < len(text) and int(text[:end]) < divisor:
        end += 1
    steps = []
    part = int(text[:end])
    while True:
        digit, remainder = divmod(part, divisor)
        steps.append((part, digit, remainder))
        if end == len(text):
            return steps
        part = remainder * 10 + int(text[end])
        end += 1


def bracket(value: int) -> str:
    """Return a number as it stands behind an operator: a negative one is put in brackets."""
    return f"({value})" if value < 0 else str(value)


def compute(a: int, operator: str, b: int) -> int:
    """Return the result. Raise ArithmeticError if a division leaves a remainder.

    `a % b` is a percent of b.
    """
    if operator == "+":
        return a + b
    if operator == "-":
        return a - b
    if operator == "*":
        return a * b
    if operator == "%":
        a *= b
        b = 100
    quotient, remainder = divmod(a, b)
    if remainder:
        raise ArithmeticError(f"{a} / {b} leaves a remainder")
    return quotient


def working(a: int, operator: str, b: int) -> list[str]:
    """Return the lines between a calculation and its result. There are none if it is by heart."""
    if operator == "*":
        return _product_working(abs(a), abs(b))
    if operator == "/":
        return _quotient_working(abs(a), abs(b))
    if operator == "-":
        b = -b
    return _sum_working(a, b)


def calculation(a: int, operator: str, b: int, label: str = "") -> list[str]:
    """Return the lines of `a operator b`, the last of which ends with the result."""
    if operator == "%":
        return [f"{label}{a}% of {b}", *percent_steps(a, b)]
    text = f"{a} {operator} {bracket(b)}"
    lines = working(a, operator, b)
    result = f"{text} = {compute(a, operator, b)}"
    if not lines:
        return [f"{label}{result}"]
    return [f"{label}{text}", *lines, result]


def hundredths(value: int) -> str:
    """Return `value / 100` as text, with no more decimals than it takes: `37.5`."""
    whole, rest = divmod(value, 100)
    if rest == 0:
        return str(whole)
    return f"{whole}.{rest:02d}".rstrip("0")


def percent_steps(percent: int, number: int) -> list[str]:
    """Return the lines of a part of a number. Zeros are cancelled before the product."""
    a = number
    b = percent
    divisor = 100
    while divisor > 1 and a % 10 == 0:
        a //= 10
        divisor //= 10
    while divisor > 1 and b % 10 == 0:
        b //= 10
        divisor //= 10

    lines = []
    if divisor < 100:
        line = f"{number} * {percent} / 100 = {a} * {b}"
        if divisor > 1:
            line += f" / {divisor}"
        lines.append(line)
    lines += calculation(a, "*", b)
    result = hundredths(number * percent)
    if divisor > 1:
        lines.append(f"{a * b} / {divisor} = {result}")
    lines.append(f"{percent}% of {number} = {result}")
    return lines


def _sum_working(a: int, b: int) -> list[str]:
    big = max(abs(a), abs(b))
    small = min(abs(a), abs(b))
    if small == 0 or big % 100 == small % 100 == 0:
        return []
    if a * b > 0:
        if big + small <= BY_HEART:
            return []
        return [", ".join(text for text, _ in sum_columns(big, small))]
    if big <= BY_HEART:
        return []
    return [", ".join(text for text, _ in difference_columns(big, small))]


def _product_working(a: int, b: int) -> list[str]:
    if a < b or (b >= 10 and a % 10 == 0 and b % 10):
        a, b = b, a
    if a * b <= BY_HEART or max(a, b) <= TABLE or b in (10, 100) or a in (100, 1000):
        return []
    if b < 10 and a % 10 == 0 and a // 10 <= TABLE:
        return []
    if b < 10:
        return [", ".join(text for text, _ in product_columns(a, b))]
    lines = long_product(a, b)
    if b % 10 == 0:
        return lines[:-1]
    return lines


def long_product(a: int, b: int) -> list[str]:
    """Return the lines of `a * b`, where b has two digits: by its tens, by its ones, the sum."""
    tens, ones = divmod(b, 10)
    by_tens = a * tens * 10
    lines = []
    if ones:
        lines.append(f"{a} * {b} = {a} * {tens * 10} + {a} * {ones}")
    if tens > 1:
        lines += working(a, "*", tens)
    lines.append(f"{a} * {tens} = {a * tens}, so {a} * {tens * 10} = {by_tens}")
    if ones:
        lines += working(a, "*", ones)
        lines.append(f"{a} * {ones} = {a * ones}")
        lines += calculation(by_tens, "+", a * ones)
    return lines


def _quotient_working(a: int, b: int) -> list[str]:
    if b in (1, 10) or a // b <= TABLE or a % b:
        return []
    parts = []
    for part, digit, remainder in division_steps(a, b):
        text = f"{part} / {b} = {digit}"
        if remainder:
            text += f" r {remainder}"
        parts.append(text)
    return [", ".join(parts)]
