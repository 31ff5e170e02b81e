"""Answers that are no JSON."""

from pydantic import RootModel


class PlainText(RootModel[str]):
    """An answer that is plain text. Where answers are told of in JSON, it is a string."""
