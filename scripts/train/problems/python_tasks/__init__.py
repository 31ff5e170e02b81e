"""Small Python coding tasks in plain words, with solutions and tests that do without these.

Most tasks are composed of parts: a source of elements, filters, maps and a reduction. "Return the
sum of the squares of the even numbers in a list" has the parts `list`, `even`, `square` and `sum`.
A part knows its wordings, its code and its meaning. The meaning is a function of its own, so that
the tests of a task never run the code they are to judge.

The key of a task names its parts without their parameters: `each: list | even | square | sum`.
A held-out combination therefore never occurs in training, whatever its parameters and wording, but
each of its parts does. Well-known single functions, such as the factorial, are never held out.

Wordings have slots. `{s}` ends a verb ("return{s}"), and `@0` is the name of the first argument.
"""
