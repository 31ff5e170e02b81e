"""The tasks whose answer is a text that a network writes in one call, and their result."""

from shared.tasks.results import OtherResult
from shared.tasks.specs import OtherTask


class Summarize(OtherTask, frozen=True, omit_defaults=True, tag="summarization"):
    """Return a shorter text. `max_tokens` None leaves its length to the network's own settings."""

    text: str
    max_tokens: int | None = None


class Translate(OtherTask, frozen=True, omit_defaults=True, tag="translation"):
    """Return a text in another language.

    A network of several languages needs the codes that its tokenizer or its config knows.
    """

    text: str
    source: str | None = None
    target: str | None = None
    max_tokens: int | None = None


class DescribeImage(OtherTask, frozen=True, omit_defaults=True, tag="image-to-text"):
    """Return what a picture shows, or what is written in it. `image` is the id of an artifact.

    The answer begins with `prompt`, where one is given.
    """

    image: str
    prompt: str | None = None
    max_tokens: int | None = None


class Written(OtherResult, frozen=True, tag="summarization"):
    """A text that a network has written: a summary, a translation, a caption."""

    text: str
