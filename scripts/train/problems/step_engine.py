"""A small language for steps of a solution: `cost = n * p; change = paid - cost`.

Each step has one operator and two operands, which are names or whole numbers. Programs are read
once, at import, and then run on the numbers of many problems.
"""

from dataclasses import dataclass

from scripts.train.problems.calculation import calculation, compute


@dataclass(frozen=True)
class Step:
    """`target = left operator right`. An operand is a name, or a number."""

    target: str
    left: str | int
    operator: str
    right: str | int

    def value(self, values: dict[str, int]) -> int:
        """Return the result. Raise ArithmeticError if a division leaves a remainder."""
        return compute(_value(self.left, values), self.operator, _value(self.right, values))


def _value(operand: str | int, values: dict[str, int]) -> int:
    if isinstance(operand, int):
        return operand
    return values[operand]


def parse_steps(text: str) -> tuple[Step, ...]:
    """Read the steps of a program, separated by semicolons."""
    steps = []
    for part in text.split(";"):
        target, _, formula = part.partition("=")
        left, operator, right = formula.split()
        steps.append(Step(target.strip(), operand(left), operator, operand(right)))
    return tuple(steps)


def operand(text: str) -> str | int:
    """Return a number, or the name of one."""
    return int(text) if text.isdigit() else text


def solve(steps: tuple[Step, ...], values: dict[str, int], *, labelled: bool) -> list[str]:
    """Return the lines of all steps, and add their results to `values`.

    A labelled step begins with the words of its target: `the change: 50 - 48 = 2`.
    """
    lines = []
    for step in steps:
        left = _value(step.left, values)
        right = _value(step.right, values)
        label = ""
        if labelled:
            label = step.target.replace("_", " ") + ": "
        lines += calculation(left, step.operator, right, label=label)
        values[step.target] = compute(left, step.operator, right)
    return lines
