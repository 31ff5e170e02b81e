"""The shell of the app: its pages, and what stands beside each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from scripts.ui import (
    page_batches,
    page_chat,
    page_compare,
    page_fleet,
    page_generate,
    page_inside,
    page_puzzles,
    page_solve,
    page_tasks,
)
from scripts.ui.config import AppConfig, app_config
from scripts.ui.plugin_parts import PAGES_GROUP, PluginParts, plugin_parts
from scripts.ui.session import sidebar
from shared.settings.layers import SettingsError

# Streamlit would load an icon that goes by its name from another host.
_ICON = str(Path(__file__).parent / "icon.svg")
_STYLE = Path(__file__).parent / "app.css"


@dataclass(frozen=True)
class AppPage:
    """A page of the app. A person chooses one of the models that do `task`, if there is one."""

    title: str
    icon: str
    task: str
    show: Callable[[], None]


PAGES = {
    "generate": AppPage("Generate", ":material/edit_note:", "generate", page_generate.show),
    "solve": AppPage("Solve", ":material/calculate:", "generate", page_solve.show),
    "chat": AppPage("Chat", ":material/forum:", "generate", page_chat.show),
    "compare": AppPage("Compare", ":material/compare_arrows:", "", page_compare.show),
    "puzzles": AppPage("Puzzles", ":material/grid_on:", "solve", page_puzzles.show),
    "inside": AppPage("Inside the model", ":material/neurology:", "generate", page_inside.show),
    "tasks": AppPage("Tasks", ":material/category:", "", page_tasks.show),
    "batches": AppPage("Batches", ":material/stacks:", "", page_batches.show),
    "fleet": AppPage("Fleet", ":material/monitoring:", "", page_fleet.show),
}
"""All pages, by the paths of their addresses. The first one is also at `/`."""


def main() -> None:
    """Draw the page that the address names."""
    try:
        title = app_config().title
    except SettingsError as error:
        st.error(str(error))
        return
    st.set_page_config(page_title=title or "HRM fleet", page_icon=_ICON)
    st.html(_STYLE)
    entries: list[StreamlitPage] = []
    for path, page in shown_pages().items():
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
    if title:
        st.caption(title)
    # Above the page and not in the sidebar, which on a phone would stay open over the page.
    with st.container(horizontal=True, gap="small"):
        for entry in entries:
            st.page_link(entry, width="content")
    for problem in problems():
        st.warning(problem, icon=":material/extension_off:")
    current.run()


def show_page(page: AppPage) -> None:
    """Draw a page, and beside it the sidebar with what it needs."""
    sidebar(page.task)
    page.show()


def shown_pages() -> dict[str, AppPage]:
    """Return the pages that are shown, by their paths: those of the configuration, or all."""
    known = {**PAGES, **_plugin_pages().parts}
    chosen = {path: known[path] for path in app_config().pages if path in known}
    return chosen or known


@cache
def _plugin_pages() -> PluginParts[AppPage]:
    return plugin_parts(PAGES_GROUP, AppPage, taken=PAGES)


def problems() -> list[str]:
    """Return what is wrong with the configuration and with plugins, beside what is shown."""
    parts = (_plugin_pages(), page_solve.plugin_subjects())
    found = config_problems(app_config())
    for part in parts:
        found += part.problems
    return found


def config_problems(config: AppConfig) -> list[str]:
    """Return what is wrong with the names in a configuration, and with its puzzles."""
    found = []
    pages = {**PAGES, **_plugin_pages().parts}
    for path in config.pages:
        if path not in pages:
            found.append(f"pages: expected some of {', '.join(pages)}, got {path!r}")
    subjects = [subject.name for subject in page_solve.SUBJECTS]
    subjects += page_solve.plugin_subjects().parts
    for name in config.solve:
        if name not in subjects:
            found.append(f"solve: expected some of {', '.join(subjects)}, got {name!r}")
    return found + page_puzzles.example_problems(config.puzzles)
