"""The keys of callers on the page *Fleet*: an operator sees, makes and revokes them there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import streamlit as st

from scripts.ui.client import Body, NotAllowed, ServerError
from scripts.ui.session import client, show_error
from shared.access import BudgetPeriod
from shared.messages import PRIORITIES

_DAY_S = 86_400


@dataclass
class KeysState:
    """The outcome of the last change: the key that was made, which is shown once, or an error."""

    made: str = ""
    error: str = ""


def draw_keys(models: list[str]) -> None:
    """Draw the keys that hold, if an admin's key opens them, and what can be done about them.

    `models` are the ids of all models.
    """
    state: KeysState = st.session_state.setdefault("fleet_keys", KeysState())
    try:
        keys = client().get("/v1/keys")["data"]
    except NotAllowed:
        return
    except ServerError as error:
        show_error(str(error))
        return
    st.subheader("Keys")
    show_error(state.error)
    if state.made:
        st.success("This is the new key. It is shown once: copy it now.", icon=":material/key:")
        st.code(state.made, language=None, wrap_lines=True)
    if keys:
        rows = [_row(key) for key in keys]
        st.dataframe(rows, hide_index=True, alt="Table of keys")
        _revoking(state, keys)
    else:
        st.caption("No key was made here, or all were revoked or have expired.")
    _making(state, models)
    st.caption("Keys in the settings of a front are not listed: they hold as long as it has them.")


def _row(key: Body) -> Body:
    """Return the row of a key. A limit that it does not have is left empty."""
    budget = key["budget"]
    if budget is not None:
        budget = f"{budget['used']:,} of {budget['tokens']:,} a {budget['period']}"
    return {
        "name": key["name"],
        "id": key["id"],
        "tenant": key["tenant"],
        "best class": key["best_priority"],
        "rate": key["rate"],
        "open jobs": key["concurrency"],
        "tokens": budget,
        "models": ", ".join(key["models"]) or "all",
        "admin": key["is_admin"],
        "made": key["created_at"],
        "until": key["expires_at"],
    }


def _revoking(state: KeysState, keys: list[Body]) -> None:
    labels = {key["id"]: f"{key['name']} ({key['id']})" for key in keys}
    key_id = st.selectbox(
        "Key to revoke",
        list(labels),
        index=None,
        format_func=lambda id: labels.get(id, id),
        key="revoked_key",
    )
    if st.button("Revoke", icon=":material/key_off:", help="It opens nothing from then on."):
        if key_id is None:
            state.error = "Choose the key to revoke."
        else:
            _change(state, lambda: client().delete(f"/v1/keys/{key_id}"))
        st.rerun()


def _making(state: KeysState, models: list[str]) -> None:
    """Draw the fields of a new key. Each that is empty leaves that to the fleet's settings."""
    with st.expander("Make a key", icon=":material/add:"):
        left, right = st.columns(2)
        body: Body = {
            "name": left.text_input("Name", key="key_name", placeholder="whose it is"),
            "tenant": right.text_input("Tenant", key="key_tenant", placeholder="as the name")
            or None,
            "best_priority": left.selectbox("Best class", PRIORITIES, key="key_class"),
            "rate": right.text_input("Rate", key="key_rate", placeholder="10/60: ten a minute")
            or None,
            "concurrency": left.number_input("Open jobs", 1, None, None, key="key_jobs"),
            "models": right.multiselect(
                "Models", models, key="key_models", placeholder="all of them"
            ),
        }
        tokens = left.number_input("Tokens", 1, None, None, key="key_tokens")
        period = right.selectbox("in each", get_args(BudgetPeriod), index=1, key="key_period")
        if tokens is not None:
            body["budget"] = {"tokens": tokens, "period": period}
        days = left.number_input("Days until it expires", 1, 10_000, None, key="key_days")
        if days is not None:
            body["expires_in_s"] = days * _DAY_S
        body["is_admin"] = st.checkbox("It opens what is for operators, too", key="key_is_admin")
        if st.button("Make the key", type="primary", icon=":material/key:"):
            _change(state, lambda: _make(state, body))
            st.rerun()


def _change(state: KeysState, change: Callable[[], object]) -> None:
    state.made = ""
    state.error = ""
    try:
        change()
    except ServerError as error:
        state.error = str(error)


def _make(state: KeysState, body: Body) -> None:
    state.made = client().post("/v1/keys", body)["key"]
