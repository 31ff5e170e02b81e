"""The shell of the app: its pages, and what stands beside each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from scripts.ui import (
    page_batches,
    page_chat,
    page_fleet,
    page_generate,
    page_puzzles,
    page_solve,
    page_tasks,
)
from scripts.ui.session import sidebar

# Streamlit would load an icon that goes by its name from another host.
_ICON = str(Path(__file__).parent / "icon.svg")


@dataclass(frozen=True)
class AppPage:
    """A page of the app. Its models are those that do `task`."""

    title: str
    icon: str
    task: str
    show: Callable[[], None]


PAGES = {
    "generate": AppPage("Generate", ":material/edit_note:", "generate", page_generate.show),
    "solve": AppPage("Solve", ":material/calculate:", "generate", page_solve.show),
    "chat": AppPage("Chat", ":material/forum:", "generate", page_chat.show),
    "puzzles": AppPage("Puzzles", ":material/grid_on:", "solve", page_puzzles.show),
    "tasks": AppPage("Tasks", ":material/category:", "", page_tasks.show),
    "batches": AppPage("Batches", ":material/stacks:", "", page_batches.show),
    "fleet": AppPage("Fleet", ":material/monitoring:", "", page_fleet.show),
}
"""All pages, by the paths of their addresses. The first one is also at `/`."""


def main() -> None:
    """Draw the page that the address names."""
    st.set_page_config(page_title="HRM fleet", page_icon=_ICON)
    entries: list[StreamlitPage] = []
    for path, page in PAGES.items():
        entries.append(
            st.Page(
                partial(show_page, page),
                title=page.title,
                icon=page.icon,
                url_path=path,
                default=not entries,
            )
        )
    current = st.navigation(entries, position="hidden")
    # Above the page and not in the sidebar, which on a phone would stay open over the page.
    with st.container(horizontal=True, gap="small"):
        for entry in entries:
            st.page_link(entry, width="content")
    current.run()


def show_page(page: AppPage) -> None:
    """Draw a page, and beside it the sidebar with what it needs."""
    sidebar(page.task)
    page.show()
