"""The text of a model, drawn without trust in it."""

import re

import streamlit as st

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)(?:^```\s*$|\Z)", re.MULTILINE | re.DOTALL)


def show_text(text: str) -> None:
    """Draw a text in Markdown, and its fenced blocks as code, also one that is not closed yet.

    Pictures are not drawn, as the browser would load them from wherever the text says.
    """
    end = 0
    for block in _FENCE.finditer(text):
        _show_prose(text[end : block.start()])
        st.code(block[2].rstrip("\n"), language=block[1] or None, wrap_lines=True)
        end = block.end()
    _show_prose(text[end:])


def _show_prose(text: str) -> None:
    if text.strip():
        # Two spaces before the end of a line keep it in Markdown.
        st.markdown(without_pictures(text).replace("\n", "  \n"))


def without_pictures(text: str) -> str:
    """Return a text in Markdown whose pictures are shown as they are written."""
    return text.replace("![", "!\\[")
