"""Hooks of mkdocs: pages that lie outside `docs`, and links between these and the others.

The files are read on a code host as well, where a link is a path in the repository. In the site a
link to a file that is no page becomes the name of that file.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
OUTSIDE = {
    "README.md": "start.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "deploy/README.md": "deploy.md",
    "deploy/examples/simplefoundation/README.md": "simplefoundation.md",
}
"""The pages of the site that lie outside `docs`, by their paths in the repository."""
_LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
_SEARCH = 'data-md-component="search" role="dialog"'
_SCHEME = re.compile(r"[a-z]+:")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside `docs`."""
    for path, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return a page whose links are those of the site."""
    return with_links_of_site(markdown, page.file.src_uri)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Return the HTML of a page in which the theme's dialog of the search has a name."""
    return output.replace(_SEARCH, f'{_SEARCH} aria-label="Search"')


def with_links_of_site(markdown: str, name: str) -> str:
    """Return the text of the page `name` with the site's links in place of the repository's."""
    source = next((path for path, page in OUTSIDE.items() if page == name), f"{DOCS}/{name}")
    folder = os.path.dirname(source)

    def link_of_site(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        if _SCHEME.match(target):
            return match[0]
        path = os.path.normpath(os.path.join(folder, target))
        if path in OUTSIDE:
            page = OUTSIDE[path]
        elif path.startswith(f"{DOCS}/"):
            page = path.removeprefix(f"{DOCS}/")
        else:
            return f"{text} (`{path}`)" if (ROOT / path).exists() else match[0]
        relative = os.path.relpath(page, os.path.dirname(name) or ".")
        return f"[{text}]({relative}{anchor or ''})"

    return _LINK.sub(link_of_site, markdown)
