"""The maker of problems: it draws a task and the words of the request, and writes the response."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.train.problems.problem import Maker, Problem
from scripts.train.problems.python_tasks.parameters import Parameter, words_of
from scripts.train.problems.python_tasks.parts import Task
from scripts.train.problems.python_tasks.tasks import draw_key, task_of
from scripts.train.problems.python_tasks.wording import first_wording, infinitive, third_person

# The longest response, in characters. Only one task in some thousands needs more.
MAX_RESPONSE = 420


@dataclass(frozen=True)
class PythonProblem(Problem):
    """A coding task. The answer is the code.

    `parameters` has one entry for each part of the key, None for a part without a parameter.
    `function_name` is the name that the prompt demands, empty if it demands none.
    """

    parameters: tuple[Parameter, ...]
    function_name: str


_NAME_VERBS = words_of(
    "total count find get compute make pick solve process do calc collect handle run build check "
    "extract list select take show give filter map fetch keep scan work apply gather evaluate "
    "determine create return my the new simple quick main"
)
_NAME_NOUNS = words_of(
    "even odd values numbers items result squares words letters data list total score sum digits "
    "answer things elements text output entries points best all it task code part vowels chars "
    "names sales prices cats stars keys pairs max min average count large small good special "
    "sequence length lines string first last"
)
_NAME_ENDS = ("in_list", "only", "fast", "now", "value", "of_list", "list", "2", "for_me", "func")
_SINGLE_NAMES = words_of(
    "f g foo bar solve func func1 calculate compute process helper main_task solution answer "
    "my_function run test_it work transform convert analyze evaluate task result do_it magic"
)
_OTHER_ARGUMENTS = {
    "numbers": ("numbers", "values", "nums", "items", "data", "array", "lst"),
    "words": ("words", "strings", "items", "names", "texts"),
    "text": ("text", "s", "string", "sentence", "line"),
    "n": ("n", "number", "num", "m"),
    "data": ("data", "table", "scores", "prices", "counts"),
    "items": ("items", "values", "lst", "elements"),
}

# The description is in the third person behind {does}, the infinitive behind {do}.
_WORDINGS = (
    "Write a function that {does}",
    "Write a function that {does}",
    "Write a function that {does}",
    "Write a Python function that {does}",
    "Write a function to {do}",
    "Write a function to {do}",
    "Write a function to {do}",
    "Write a Python function to {do}",
    "Define a function which {does}",
    "Define a function that {does}",
    "Implement a function that {does}",
    "Implement a Python function to {do}",
    "Create a Python function that {does}",
    "Create a function to {do}",
    "I need a function that {does}",
    "Please write a function that {does}",
    "Please write Python code to {do}",
    "Give me a Python function that {does}",
    "Can you write a function that {does}?",
    "How do I {do} in Python?",
    "Write Python code to {do}",
    "Code a function that {does}",
)

_NAMED_WORDINGS = (
    "Write a function `{signature}` that {does}",
    "Write a function {signature} that {does}",
    "Write a Python function `{signature}` that {does}",
    "Define `{signature}` so that it {does}",
    "Implement the function `{signature}`, which {does}",
    "Please write a function `{signature}` that {does}",
    "Write a function named {name} that {does}",
    "Write a function called {name} that {does}",
    "Write a Python function called `{name}` that {does}",
    "Create a function named `{name}` that {does}",
    "Define a function `{name}` which {does}",
    "I need a function called {name} that {does}",
    "Write `{name}`, a Python function to {do}",
    "Write a function to {do}. Call it {name}",
    "Write a function that {does}. Name it `{name}`",
)

_NAMED_SHARE = 1 / 3


def _invented_name(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.12:
        return rng.choice(_SINGLE_NAMES)
    name = f"{rng.choice(_NAME_VERBS)}_{rng.choice(_NAME_NOUNS)}"
    if kind > 0.8:
        name += "_" + rng.choice((*_NAME_ENDS, *_NAME_NOUNS))
    return name


def _python_problem(rng: random.Random) -> Problem:
    """Draw a problem whose response is not too long."""
    while True:
        problem = _draw_problem(rng)
        if len(problem.response) < MAX_RESPONSE:
            return problem


def _draw_problem(rng: random.Random) -> PythonProblem:
    """Draw a task and a wording of the request, and write the response."""
    key, parameters = draw_key(rng)
    task = task_of(key, parameters)
    arguments = list(task.arguments)
    name = task.default_name
    demanded_name = ""
    wording = rng.choice(_WORDINGS)
    if rng.random() < _NAMED_SHARE:
        wording = rng.choice(_NAMED_WORDINGS)
        if rng.random() < 0.75:
            name = _invented_name(rng)
        demanded_name = name
        if "{signature}" in wording and rng.random() < 0.5:
            for index, argument in enumerate(arguments):
                arguments[index] = rng.choice(_OTHER_ARGUMENTS.get(argument, (argument,)))

    signature = f"{name}({', '.join(arguments)})"
    description = task.describe(rng.choice)
    prompt = wording.format(
        signature=signature,
        name=name,
        does=third_person(description),
        do=infinitive(description),
    )
    if not prompt.endswith("?") and rng.random() < 0.75:
        prompt += "."
    if rng.random() < 0.04:
        prompt = prompt[0].lower() + prompt[1:]

    sentence = f"This function {third_person(task.describe(first_wording))}."
    code = _code(task, signature)
    response = f"{sentence}\n\n```python\n{code}\n```"
    return PythonProblem(
        kind="code",
        key=key,
        prompt=_with_arguments(prompt, arguments),
        response=_with_arguments(response, arguments),
        answer=_with_arguments(code, arguments),
        parameters=tuple(parameters),
        function_name=demanded_name,
    )


def _code(task: Task, signature: str) -> str:
    body = task.body.replace("\n", "\n    ")
    code = f"def {signature}:\n    {body}"
    if task.imports:
        code = f"{task.imports}\n\n{code}"
    return code


def _with_arguments(text: str, arguments: Sequence[str]) -> str:
    for index, argument in enumerate(arguments):
        text = text.replace(f"@{index}", argument)
    return text


MAKERS: dict[str, Maker] = {"code": _python_problem}
