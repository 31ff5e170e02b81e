"""The page *Chat*: a conversation that can be stopped, and goes on after a reload.

The address has the chat's id and, while an answer is written, the id of its job. So the answer is
found again even if the app was started anew meanwhile.
"""

from dataclasses import dataclass, field

import streamlit as st

from scripts.ui.answer_text import show_text
from scripts.ui.client import Body, ServerError
from scripts.ui.conversations import Conversation, Message, conversations
from scripts.ui.run import Run
from scripts.ui.session import LINK, client, draw_live, show_error, stop, submitted, with_model


@dataclass
class ChatState:
    """The chat that the page shows, and an error of the last request."""

    conversation: Conversation = field(default_factory=Conversation)
    error: str = ""

    @property
    def run(self) -> Run | None:
        return self.conversation.run


def show() -> None:
    """Draw the page."""
    state = _state()
    conversation = state.conversation
    _take_answer(conversation)
    st.title("Chat")
    _settings(state)

    for message in conversation.messages:
        _show_message(message)
    draw_live(conversation.run, _show_answer)

    is_running = conversation.run is not None
    if is_running and st.button("Stop", icon=":material/stop:"):
        state.error = stop(state.run)
    show_error(state.error)
    text = st.chat_input("Message", disabled=is_running)
    if text:
        _send(state, text)
    _write_address(conversation)


def _state() -> ChatState:
    """Return the state of the page: of this session, or of the chat that the address names."""
    if "chat" in st.session_state:
        kept: ChatState = st.session_state["chat"]
        return kept
    state = ChatState()
    chat_id = st.query_params.get("chat")
    if chat_id:
        found = conversations().find(chat_id)
        if found is not None:
            state.conversation = found
        else:
            _begin_anew(state)
    st.session_state["chat"] = state
    return state


def _begin_anew(state: ChatState) -> None:
    """Begin a chat in the place of one that is not kept. Its last answer may still be found."""
    state.error = "This chat is not kept any more."
    job_id = st.query_params.get("job")
    if job_id:
        state.conversation.run = Run(client(), job_id)
        conversations().keep(state.conversation)


def _write_address(conversation: Conversation) -> None:
    if conversation.messages or conversation.run is not None:
        st.query_params["chat"] = conversation.id
    if conversation.run is not None:
        st.query_params["job"] = conversation.run.job_id
    else:
        st.query_params.pop("job", None)


def _settings(state: ChatState) -> None:
    with st.expander("Settings", icon=":material/tune:"):
        st.text_area("System prompt", key="system", height=80, **LINK)
        left, right = st.columns(2)
        left.slider("Temperature", 0.0, 2.0, 0.7, 0.05, key="chat_temperature", **LINK)
        right.slider("Most tokens", 16, 2048, 256, key="chat_max_tokens", **LINK)
    can_leave = state.conversation.messages and state.run is None
    if can_leave and st.button("New chat", icon=":material/add_comment:"):
        st.query_params.pop("chat", None)
        st.session_state["chat"] = ChatState()
        st.rerun()


def _show_message(message: Message) -> None:
    with st.chat_message(message.role):
        show_text(message.text)
        if message.note:
            st.caption(message.note)


def _show_answer(run: Run) -> None:
    text = text_of(run)
    with st.chat_message("assistant"):
        if text:
            show_text(text)
        else:
            st.caption("Waiting for the first word ...")


def text_of(run: Run) -> str:
    """Return the answer of a run so far."""
    text = ""
    for frame in run.frames:
        for choice in frame.get("choices", ()):
            text += choice["delta"].get("content") or ""
    return text


def _take_answer(conversation: Conversation) -> None:
    """Make a message of an answer that has ended."""
    run = conversation.run
    if run is None or not run.is_done:
        return
    conversation.run = None
    note = _speed(run)
    if run.is_cancelled:
        note = "Stopped."
    elif run.error:
        note = run.error
    conversation.messages.append(Message("assistant", text_of(run), note))


def _speed(run: Run) -> str:
    usage = run.job.get("usage") or {}
    timings = run.job.get("timings") or {}
    tokens = usage.get("completion_tokens")
    total_s = timings.get("total_s")
    if not tokens or total_s is None:
        return ""
    return f"{tokens} tokens in {total_s:.2f} s"


def _send(state: ChatState, text: str) -> None:
    """Submit the chat with a new message of the person."""
    conversation = state.conversation
    message = Message("user", text)
    messages = []
    if st.session_state["system"]:
        messages.append({"role": "system", "content": st.session_state["system"]})
    for said in (*conversation.messages, message):
        messages.append({"role": said.role, "content": said.text})
    body: Body = {
        "messages": messages,
        "temperature": st.session_state["chat_temperature"],
        "max_tokens": st.session_state["chat_max_tokens"],
        "stream": True,
    }
    try:
        run = submitted("/v1/chat/completions", with_model(body, "generate"))
    except ServerError as error:
        state.error = str(error)
        st.rerun()
    state.error = ""
    conversation.messages.append(message)
    conversation.run = run
    conversations().keep(conversation)
    st.rerun()
