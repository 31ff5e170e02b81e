"""Answers and code as solutions state them."""

import time

import pytest

from api.routes.extraction import answer_in, code_in

ANSWERS = [
    (r"so \boxed{3}", "3"),
    (r"so \boxed{\frac{1}{2}} and no more", r"\frac{1}{2}"),
    (r"\boxed{\sqrt{x^{2}+\frac{a}{b}}}", r"\sqrt{x^{2}+\frac{a}{b}}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"first \boxed{1}, no: \boxed{2}.", "2"),
    (r"\boxed{1} and then \boxed{2 + {3", "1"),
    (r"\boxed {4}", "4"),
    (r"\boxed 5", "5"),
    (r"\fbox{6}", None),
    (r"\fboxed{6}", "6"),
    (r"$\boxed{$7$}$", "7"),
    (r"\boxed{}", None),
    (r"x = 9, so the answer is 8 and \boxed{3}", "3"),
    ("The answer is 3.", "3"),
    ("the answer is 3.5. That was easy.", "3.5"),
    ("THE ANSWER IS: **42**", "42"),
    ("Final answer: $x^2$", "x^2"),
    ("The answer to the problem is 12 apples!", "12 apples"),
    ("Answer = 7", "7"),
    ("The answer is \\(\\frac{1}{2}\\).", r"\frac{1}{2}"),
    ("The answer is 1.\nNo, the answer is 2.", "2"),
    ("#### 1,024", "1,024"),
    ("The answer is", None),
    ("2x = 6\nx = 6 / 2\nx = 3", "3"),
    ("2x = 6\nx = 3.", "3"),
    ("Compute:\n= 632", "632"),
    ("a = b = 5", "5"),
    ("x=-3", "-3"),
    ("y = 3 apples, I think", "3 apples, I think"),
    ("if x == 3", None),
    ("x <= 3", None),
    ("x != 3", None),
    ("nothing here", None),
    ("", None),
]


@pytest.mark.parametrize(("solution", "answer"), ANSWERS)
def test_answers(solution: str, answer: str | None) -> None:
    assert answer_in(solution) == answer


CODES = [
    ("```python\nprint(1)\n```", "print(1)"),
    ("text\n```\na\n```\nmore\n```js\nb\n\nc\n```\nend", "b\n\nc"),
    ("```python\ndef f():\n    return 1", "def f():\n    return 1"),
    ("```\na\n```\nand\n```py\ncut", "cut"),
    ("~~~\na\n~~~", "a"),
    ("````md\n```\ninner\n```\n````", "```\ninner\n```"),
    ("  ```\n  a\n  ```", "  a"),
    ("```\n```", ""),
    ("use `x` here", None),
    ("no code", None),
    ("", None),
]


@pytest.mark.parametrize(("solution", "code"), CODES)
def test_code(solution: str, code: str | None) -> None:
    assert code_in(solution) == code


@pytest.mark.parametrize(
    "part",
    ["\\boxed{", "{", "the answer is ", "answer to ", "x = ", "= ", "```\n", "$", "**", "\n"],
)
def test_long_texts_take_no_long_time(part: str) -> None:
    """A model may write anything, so the time may not grow far faster than the text."""
    # Of this thread alone: other work on the machine does not count.
    started_s = time.thread_time()
    answer_in(part * 2000)
    code_in(part * 2000)
    assert time.thread_time() - started_s < 2


@pytest.mark.parametrize("text", ["={0}=", "= {1}a", "answer to{0}\n", "x{0}= a{0}=", "= **{0}a"])
def test_long_runs_of_one_sign_take_no_long_time(text: str) -> None:
    """The computing time is in proportion to the text.

    No sign may match two parts of a pattern in turn.
    """
    long = text.format(" " * 1200, "$" * 1200)
    started_s = time.process_time()
    answer_in(long)
    code_in(long)
    assert time.process_time() - started_s < 1
