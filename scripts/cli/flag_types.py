"""The types of flags that several commands have, for Click."""


def count(text: str) -> int:
    """Return a number above 0. Raise ValueError."""
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"expected a number above 0, got {text!r}")
    return int(text)


def http_url(text: str) -> str:
    """Return the URL of a server. Raise ValueError."""
    if not text.startswith(("http://", "https://")):
        raise ValueError(f"expected a URL as http://HOST:8000, got {text!r}")
    return text
