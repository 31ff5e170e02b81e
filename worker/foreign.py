"""The seam to code that comes with a model, a tokenizer or a template: whatever it raises is said
in its own words."""

from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import FleetError, InvalidRequest

_MOST_WORDS = 300
_PANIC = "PanicException"


def words_of(error: BaseException) -> str:
    """What an error says, in one line; its name where it says nothing, or no more than a key."""
    said = " ".join(str(error).split())
    if not said or isinstance(error, KeyError):
        said = f"{type(error).__name__} {said}".strip()
    return said if len(said) <= _MOST_WORDS else f"{said[:_MOST_WORDS]}..."


def is_foreign(error: BaseException) -> bool:
    """Whether it may be taken for the other side's. Rust's panics are no Exception for Python."""
    return isinstance(error, Exception) or type(error).__name__ == _PANIC


@contextmanager
def blamed(field: str, problem: str) -> Iterator[None]:
    """Whatever is raised inside is the fault of the input `field`. Raises InvalidRequest in its
    place."""
    try:
        yield
    except FleetError:
        raise
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise InvalidRequest(f"{field}: {problem}: {words_of(error)}", field=field) from error
