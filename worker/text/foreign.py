"""The seam to code that comes with a model, a tokenizer or a template: its errors reach the caller
in its own words."""

from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import FleetError, InvalidRequest

_MOST_WORDS = 300
_PANIC = "PanicException"


def words_of(error: BaseException) -> str:
    """Return an error's message in one line, with its name where the message is empty, or no more
    than a key."""
    message = " ".join(str(error).split())
    if not message or isinstance(error, KeyError):
        message = f"{type(error).__name__} {message}".strip()
    if len(message) > _MOST_WORDS:
        message = f"{message[:_MOST_WORDS]}..."
    return message


def is_foreign(error: BaseException) -> bool:
    """Return whether an error may be taken for the other side's."""
    # Panics of Rust, in which tokenizers are written, are no Exception for Python.
    return isinstance(error, Exception) or type(error).__name__ == _PANIC


@contextmanager
def blamed(field: str, problem: str) -> Iterator[None]:
    """Blame the input `field` for whatever is raised inside: raise InvalidRequest in its place."""
    try:
        yield
    except FleetError:
        raise
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise InvalidRequest(f"{field}: {problem}: {words_of(error)}", field=field) from error
