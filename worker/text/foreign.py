"""The errors of code that comes with a model, such as a tokenizer or a template.

They reach the caller with their own messages.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import FleetError, InvalidRequest

_MAX_MESSAGE_LENGTH = 300
_PANIC = "PanicException"


def words_of(error: BaseException) -> str:
    """Return an error's message in one line.

    The error's class is named before a message that is empty, or that is only a key. A long message
    is cut.
    """
    message = " ".join(str(error).split())
    if not message or isinstance(error, KeyError):
        message = f"{type(error).__name__} {message}".strip()
    if len(message) > _MAX_MESSAGE_LENGTH:
        message = f"{message[:_MAX_MESSAGE_LENGTH]}..."
    return message


def is_foreign(error: BaseException) -> bool:
    """Return whether an error is an Exception, or a panic of Rust code."""
    # Tokenizers are written in Rust. In Python its panics are BaseExceptions, no Exceptions.
    return isinstance(error, Exception) or type(error).__name__ == _PANIC


@contextmanager
def blamed(field: str, problem: str) -> Iterator[None]:
    """Turn any foreign error of the block into InvalidRequest, which names the input `field`.

    Errors of the fleet pass unchanged.
    """
    try:
        yield
    except FleetError:
        raise
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise InvalidRequest(f"{field}: {problem}: {words_of(error)}", field=field) from error
