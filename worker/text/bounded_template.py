"""A chat template that can neither hang its worker nor fill its memory.

This holds for any template and any dialogue. The environment is transformers' own, a sandbox that
bounds ranges. Beyond that, every operation whose result could be much longer than its arguments is
measured first, and a watch ends templates that compute for too long.
"""

import ctypes
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.compiler import CodeGenerator, Frame
from jinja2.nodes import Concat
from jinja2.runtime import str_join
from jinja2.sandbox import SandboxedEnvironment, safe_range
from transformers.utils.chat_template_utils import _compile_jinja_template

_TIME_LIMIT_S = 1.0
"""The computing time for one dialogue. Ordinary templates take milliseconds."""
_CHECK_EVERY_S = 0.1
_MAX_ADDED = 1 << 20
_MAX_FACTOR = 8
"""The largest text of a dialogue: `_MAX_FACTOR` times its characters, and `_MAX_ADDED` more."""
_MAX_BITS = 4096
"""The largest size of whole numbers."""
_WIDTH = re.compile(r"[0-9]{6,}")
_PRINTF_WIDTH = re.compile(r"[0-9]{6,}|\*")
"""Widths in formats that would pad a short text to a very long one.

A star takes the width from the arguments.
"""

_max_length: ContextVar[int] = ContextVar("max_length", default=_MAX_ADDED)


class TemplateTimeout(BaseException):
    """The end of a template that computes for too long.

    It is no Exception, so that no handler of Exceptions in a template's code catches it.
    """


class TemplateLimitExceeded(TemplateError):
    """The end of a template that writes or computes more than any dialogue needs."""


class BoundedTemplate:
    """A template with bounds. Raises Jinja's error for a source that Jinja cannot read."""

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
        """Return the template's text for a dialogue of `num_characters` characters.

        Raise TemplateLimitExceeded, and any error of the template itself.
        """
        token = _max_length.set(_MAX_ADDED + _MAX_FACTOR * num_characters)
        try:
            with _watch(_TIME_LIMIT_S):
                return self._written(values)
        except TemplateTimeout:
            raise TemplateLimitExceeded(f"it computes for more than {_TIME_LIMIT_S:g} s") from None
        finally:
            _max_length.reset(token)

    def _written(self, values: dict[str, Any]) -> str:
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(**values):
            size += len(piece)
            _check(size)
            pieces.append(piece)
        return "".join(pieces)


class _CodeGenerator(CodeGenerator):
    """A code generator that turns the `~` of templates into a call of `_joined`.

    So constants are joined when the template is rendered, not when it is read.
    """

    def visit_Concat(self, node: Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


def _joined(parts: tuple[Any, ...]) -> str:
    """Return the parts as one text."""
    size = 0
    for part in parts:
        if isinstance(part, str):
            size += len(part)
    _check(size)
    return str_join(parts)


def _check(size: int) -> None:
    """Raise TemplateLimitExceeded if a text of `size` characters is too long."""
    max_length = _max_length.get()
    if size > max_length:
        raise TemplateLimitExceeded(f"it makes a text of more than {max_length} characters")


def _length(value: Any) -> int:
    """Return the length of a text or a list, 0 for any other value."""
    if isinstance(value, str | bytes | list | tuple):
        return len(value)
    return 0


def _plus(left: Any, right: Any) -> Any:
    _check(_length(left) + _length(right))
    return left + right


def _times(left: Any, right: Any) -> Any:
    if isinstance(left, int):
        _check(abs(left) * _length(right))
    if isinstance(right, int):
        _check(abs(right) * _length(left))
    if isinstance(left, int) and isinstance(right, int):
        _check_number(left.bit_length() + right.bit_length())
    return left * right


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int):
        _check_number(base.bit_length() * abs(exponent))
    return base**exponent


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        _check_format(left, _PRINTF_WIDTH)
    return left % right


def _check_number(num_bits: int) -> None:
    if num_bits > _MAX_BITS:
        raise TemplateLimitExceeded(f"it makes a number of more than {_MAX_BITS} bits")


def _check_format(pattern: str, width: re.Pattern[str]) -> None:
    if width.search(pattern):
        raise TemplateLimitExceeded(f"it asks for a width that is too large: {pattern[:80]!r}")


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": _plus,
    "*": _times,
    "**": _power,
    "%": _modulo,
}


def _checked_filter(name: str, function: Any) -> Any:
    """Return a filter whose arguments are measured before each call."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        arguments = [*args, *kwargs.values()]
        if name == "format":
            _check_formats(arguments, _PRINTF_WIDTH)
        _check_arguments(name, arguments)
        return function(*args, **kwargs)

    # Attributes of a filter tell Jinja whether to pass it the environment or the context.
    checked.__dict__.update(getattr(function, "__dict__", {}))
    return checked


def _check_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Measure the arguments of a call that a template makes."""
    name = getattr(function, "__name__", "")
    # The sandbox wraps `str.format`.
    method = getattr(function, "__wrapped__", function)
    text = getattr(method, "__self__", None)
    arguments = [*args, *kwargs.values()]
    # The text of a method is an argument like the others.
    if isinstance(text, str | bytes):
        arguments.insert(0, text)
    if name in ("format", "format_map"):
        _check_formats(arguments, _WIDTH)
    # Ranges are bounded by the sandbox.
    if name != safe_range.__name__:
        _check_arguments(name, arguments)


def _check_formats(arguments: list[Any], width: re.Pattern[str]) -> None:
    if arguments and isinstance(arguments[0], str):
        _check_format(arguments[0], width)


def _check_arguments(name: str, arguments: list[Any]) -> None:
    """Measure the arguments of a filter, or of a method of a text, whose text is the first one."""
    # A number may be a width, or a number of repetitions.
    for value in arguments:
        if isinstance(value, int):
            _check(abs(value))

    texts = [value for value in arguments if isinstance(value, str)]
    if name == "replace" and len(texts) >= 3:
        text, old, new = texts[:3]
        # An empty `old` is found between all characters and at both ends: str.count knows that.
        count = text.count(old)
        _check(len(text) + count * len(new))
    if name == "join":
        num_members = 0
        size = 0
        for value in arguments:
            if isinstance(value, list | tuple | range):
                num_members += len(value)
                size += sum(_length(member) for member in value)
        # The separator may be any of the texts.
        size += num_members * sum(len(text) for text in texts)
        _check(size)


@contextmanager
def _watch(limit_s: float) -> Iterator[None]:
    """Raise TemplateTimeout in this thread once the block has computed for `limit_s`."""
    ended = threading.Event()
    lock = threading.Lock()
    thread = threading.get_ident()
    clock = _clock_of(thread)
    begun_s = clock()

    def watch() -> None:
        while not ended.wait(_CHECK_EVERY_S):
            if clock() - begun_s < limit_s:
                continue
            # With the lock, so that the error is not raised after the end of the block.
            with lock:
                if not ended.is_set():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(TemplateTimeout)
                    )
            return

    threading.Thread(target=watch, name="template-watch", daemon=True).start()
    try:
        yield
    finally:
        with lock:
            ended.set()


def _clock_of(thread: int) -> Callable[[], float]:
    """Return a clock of the seconds for which a thread has computed.

    Where the system has no such clock it is one of the seconds that pass.
    """
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    clock_id = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(clock_id)
