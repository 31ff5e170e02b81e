"""Chats that outlive the reload of their page. They are kept in the memory of the app's process."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

import streamlit as st

from scripts.ui.run import Run

_MOST = 200


@dataclass(frozen=True)
class Message:
    """A message of a chat. `note` says what a reader should know of it, such as that it was cut."""

    role: Literal["user", "assistant"]
    text: str
    note: str = ""


@dataclass
class Conversation:
    """A chat, and the answer that is being written."""

    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    messages: list[Message] = field(default_factory=list)
    run: Run | None = None


class Conversations:
    """The chats of all people that use the app, by their ids. The oldest ones are forgotten."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Conversation] = OrderedDict()

    def find(self, id: str) -> Conversation | None:
        """Return the chat with this id, None if it is not kept."""
        return self._kept.get(id)

    def keep(self, conversation: Conversation) -> None:
        """Keep a chat, as the newest one."""
        self._kept[conversation.id] = conversation
        self._kept.move_to_end(conversation.id)
        if len(self._kept) > _MOST:
            self._kept.popitem(last=False)


@st.cache_resource
def conversations() -> Conversations:
    """Return the chats of this process."""
    return Conversations()
