"""A chat template that can neither hang its worker nor fill its memory, whatever stands in it and
in the dialogue.

The environment is transformers' own, a sandbox that bounds ranges. Beyond that, every operation
that could make something much longer than its arguments is measured first, and a watch ends what
computes for too long.
"""

import ctypes
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import add, mod, mul
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.compiler import CodeGenerator, Frame
from jinja2.nodes import Concat
from jinja2.runtime import str_join
from jinja2.sandbox import SandboxedEnvironment, safe_range
from transformers.utils.chat_template_utils import _compile_jinja_template

_TIME_LIMIT_S = 1.0
"""The time of computing for one dialogue: templates take milliseconds."""
_LOOK_S = 0.1
_MOST_ADDED = 1 << 20
_MOST_TIMES = 8
"""The characters that a template may make of a dialogue: so many times its own, and so many
more."""
_MOST_BITS = 4096
"""The size of whole numbers."""
_WIDTH = re.compile(r"[0-9]{6,}")
_PRINTF_WIDTH = re.compile(r"[0-9]{6,}|\*")
"""Widths in formats that would make much of little. A star takes the width from the arguments."""

_most: ContextVar[int] = ContextVar("most", default=_MOST_ADDED)


class OutOfTime(BaseException):
    """The end of a template that computes for too long.

    It is no Exception, so that nothing on its way holds it up.
    """


class TooMuch(TemplateError):
    """The end of a template that makes or computes more than any dialogue needs."""


class BoundedTemplate:
    """A template with bounds. Raises what Jinja raises for one that it cannot read."""

    def __init__(self, source: str) -> None:
        environment: Any = _compile_jinja_template("").environment.overlay()
        call = environment.call

        def checked_call(context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            _check_call(function, args, kwargs)
            return call(context, function, *args, **kwargs)

        environment.call = checked_call
        environment.code_generator_class = _CodeGenerator
        environment.joined = _joined
        environment.intercepted_binops = frozenset(_OPERATORS)
        environment.binop_table = {**SandboxedEnvironment.default_binop_table, **_OPERATORS}
        filters: dict[str, Any] = {}
        for name, function in environment.filters.items():
            filters[name] = _checked_filter(name, function)
        environment.filters = filters
        self._template: Template = environment.from_string(source)

    def render(self, num_characters: int, **values: Any) -> str:
        """Return the text that the template makes of a dialogue of `num_characters`. Raise whatever
        it raises, and TooMuch."""
        token = _most.set(_MOST_ADDED + _MOST_TIMES * num_characters)
        try:
            with _watch(_TIME_LIMIT_S):
                return self._written(values)
        except OutOfTime:
            raise TooMuch(f"it computes for more than {_TIME_LIMIT_S:g} s") from None
        finally:
            _most.reset(token)

    def _written(self, values: dict[str, Any]) -> str:
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(**values):
            size += len(piece)
            _check(size)
            pieces.append(piece)
        return "".join(pieces)


class _CodeGenerator(CodeGenerator):
    """A code generator that writes the `~` of templates as a call of `_joined`.

    Constants are joined then, too, not when the template is read.
    """

    def visit_Concat(self, node: Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


def _joined(parts: tuple[Any, ...]) -> str:
    _check(sum(len(part) for part in parts if isinstance(part, str)))
    return str_join(parts)


def _check(size: int) -> None:
    if size > _most.get():
        raise TooMuch(f"it makes a text of more than {_most.get()} characters of them")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _plus(left: Any, right: Any) -> Any:
    _check(_length(left) + _length(right))
    return add(left, right)


def _times(left: Any, right: Any) -> Any:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, int):
            _check(abs(one) * _length(other))
    if isinstance(left, int) and isinstance(right, int):
        _check_number(left.bit_length() + right.bit_length())
    return mul(left, right)


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int):
        _check_number(base.bit_length() * abs(exponent))
    return base**exponent


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        _check_format(left, _PRINTF_WIDTH)
    return mod(left, right)


def _check_number(bits: int) -> None:
    if bits > _MOST_BITS:
        raise TooMuch(f"it makes a number of more than {_MOST_BITS} bits")


def _check_format(pattern: str, width: re.Pattern[str]) -> None:
    if width.search(pattern):
        raise TooMuch(f"it asks for a width that is too large: {pattern[:80]!r}")


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": _plus,
    "*": _times,
    "**": _power,
    "%": _modulo,
}


def _checked_filter(name: str, function: Any) -> Any:
    """Return a filter whose arguments are measured."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        arguments = [*args, *kwargs.values()]
        if name == "format":
            _check_formats(arguments, _PRINTF_WIDTH)
        _check_arguments(name, arguments)
        return function(*args, **kwargs)

    # Jinja reads off the function itself whether to pass it the environment or the context.
    checked.__dict__.update(getattr(function, "__dict__", {}))
    return checked


def _check_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Measure the arguments of a call that a template makes."""
    name = getattr(function, "__name__", "")
    method = getattr(function, "__wrapped__", function)  # the sandbox has a `str.format` of its own
    owner = getattr(method, "__self__", None)
    arguments = [*args, *kwargs.values()]
    if isinstance(owner, str | bytes):
        arguments.insert(0, owner)
    if name in ("format", "format_map"):
        _check_formats(arguments, _WIDTH)
    # Ranges are bounded by the sandbox.
    if name != safe_range.__name__:
        _check_arguments(name, arguments)


def _check_formats(arguments: list[Any], width: re.Pattern[str]) -> None:
    if arguments and isinstance(arguments[0], str):
        _check_format(arguments[0], width)


def _check_arguments(name: str, arguments: list[Any]) -> None:
    """Measure the arguments of a filter or of a method of a text, the text among them."""
    # A number may be a width, or how often something is repeated.
    for value in arguments:
        if isinstance(value, int):
            _check(abs(value))

    texts = [value for value in arguments if isinstance(value, str)]
    if name == "replace" and len(texts) >= 3:
        text, old, new = texts[:3]
        # An empty text is found between all characters, and at both ends.
        count = text.count(old) if old else len(text) + 1
        _check(len(text) + count * len(new))
    if name == "join":
        lists = [value for value in arguments if isinstance(value, list | tuple | range)]
        count = sum(map(len, lists))
        size = count * sum(map(len, texts))
        for values in lists:
            size += sum(map(_length, values))
        _check(size)


@contextmanager
def _watch(limit_s: float) -> Iterator[None]:
    """Raise OutOfTime in this thread once it has computed for `limit_s`."""
    over = threading.Event()
    lock = threading.Lock()
    thread = threading.get_ident()
    clock = _clock_of(thread)
    begun_s = clock()

    def look() -> None:
        while not over.wait(_LOOK_S):
            if clock() - begun_s < limit_s:
                continue
            # With the lock, so that it is not raised behind the template's end.
            with lock:
                if not over.is_set():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(OutOfTime)
                    )
            return

    threading.Thread(target=look, name="template-watch", daemon=True).start()
    try:
        yield
    finally:
        with lock:
            over.set()


def _clock_of(thread: int) -> Callable[[], float]:
    """Return a clock of the seconds that a thread has computed, or where the system does not tell,
    of those that pass."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    number = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(number)
