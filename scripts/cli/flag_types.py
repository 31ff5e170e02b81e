"""The types of flags that several commands have, for argparse."""

import argparse


def count(text: str) -> int:
    """Return a number above 0. Raise ArgumentTypeError."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return int(text)


def http_url(text: str) -> str:
    """Return the URL of a server. Raise ArgumentTypeError."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"expected a URL as http://HOST:8000, got {text!r}")
    return text
