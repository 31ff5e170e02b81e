"""A chat template that can neither hang its worker nor fill its memory, whatever stands in it and
in the dialogue.

The environment is transformers' own, a sandbox that bounds ranges. Here every operation that makes
something much longer than what it is given is measured first, and a watch ends what computes for
too long.
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
"""Of computing, for one dialogue: templates take milliseconds."""
_LOOK_S = 0.1
_MOST_ADDED = 1 << 20
_MOST_TIMES = 8
"""Characters that a template may make of a dialogue: so many times what there is, and so many
more."""
_MOST_BITS = 4096
"""Of whole numbers."""
_WIDTH = re.compile(r"[0-9]{6,}")
_PRINTF_WIDTH = re.compile(r"[0-9]{6,}|\*")
"""In formats: a width that would make much of little. A star takes it from the arguments."""

_most: ContextVar[int] = ContextVar("most", default=_MOST_ADDED)


class OutOfTime(BaseException):
    """Raised inside a template that computes for too long. No Exception: nothing on the way may
    hold it up."""


class TooMuch(TemplateError):
    """A template makes or computes more than any dialogue needs."""


class BoundedTemplate:
    """Raises what Jinja raises for a template that it cannot read."""

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
        environment.filters = {
            name: _checked_filter(name, own) for name, own in environment.filters.items()
        }
        self._template: Template = environment.from_string(source)

    def render(self, num_characters: int, **values: Any) -> str:
        """What the template makes of a dialogue of `num_characters`. Raises whatever it raises, and
        TooMuch."""
        token = _most.set(_MOST_ADDED + _MOST_TIMES * num_characters)
        try:
            with _watch(_TIME_LIMIT_S):
                return self._written(values)
        except OutOfTime:
            raise TooMuch(f"it computes for more than {_TIME_LIMIT_S:g} s") from None
        finally:
            _most.reset(token)

    def _written(self, values: dict[str, Any]) -> str:
        pieces = []
        size = 0
        for piece in self._template.generate(**values):
            size += len(piece)
            _check(size)
            pieces.append(piece)
        return "".join(pieces)


class _CodeGenerator(CodeGenerator):
    """Writes the `~` of templates as a call of ours. Constants are joined then too, not when the
    template is read."""

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


def _checked_filter(name: str, own: Any) -> Any:
    """A filter whose arguments are measured; how Jinja calls it is written on the function
    itself."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if name == "format":
            _check_formats(given, _PRINTF_WIDTH)
        _check_arguments(name, given)
        return own(*args, **kwargs)

    checked.__dict__.update(getattr(own, "__dict__", {}))
    return checked


def _check_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Of a call that a template makes. Ranges are bounded by the sandbox."""
    name = getattr(function, "__name__", "")
    method = getattr(function, "__wrapped__", function)  # the sandbox has a `str.format` of its own
    owner = getattr(method, "__self__", None)
    given = [*args, *kwargs.values()]
    if isinstance(owner, str | bytes):
        given.insert(0, owner)
    if name in ("format", "format_map"):
        _check_formats(given, _WIDTH)
    if name != safe_range.__name__:
        _check_arguments(name, given)


def _check_formats(given: list[Any], width: re.Pattern[str]) -> None:
    if given and isinstance(given[0], str):
        _check_format(given[0], width)


def _check_arguments(name: str, given: list[Any]) -> None:
    """Of a filter or of a method of a text, the text among them."""
    for value in given:
        if isinstance(value, int):
            _check(abs(value))
    texts = [value for value in given if isinstance(value, str)]
    if name == "replace" and len(texts) >= 3:
        text, old, new = texts[:3]
        count = text.count(old) if old else len(text) + 1
        _check(len(text) + count * len(new))
    if name == "join":
        lists = [value for value in given if isinstance(value, list | tuple | range)]
        count = sum(map(len, lists))
        size = count * sum(map(len, texts))
        for items in lists:
            size += sum(map(_length, items))
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
    """Seconds that a thread has computed, where the system tells; else those that pass."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    number = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(number)
