"""Pages of the docs in which a table is written by a tool, between two marks."""

END = "<!-- end of the table -->\n"


def page_with(table: str, page: str, mark: str) -> str:
    """Return the page with this table behind the comment `mark`.

    Raise ValueError if the page has no place for it.
    """
    begin = f"<!-- {mark} -->\n"
    before, separator, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not separator or not end:
        raise ValueError(f"expected a table between {begin.strip()} and {END.strip()}")
    return f"{before}{begin}{table}{end}{after}"


def table_of(titles: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown. A bar within a cell is written as Markdown wants it."""
    lines = [_line(titles), "|" + "---|" * len(titles)]
    for row in rows:
        lines.append(_line(row))
    return "\n".join(lines) + "\n"


def code(*words: str) -> str:
    """Return the words set as code, or a dash for none."""
    return " ".join(f"`{word}`" for word in words) or "-"


def _line(cells: list[str]) -> str:
    line = ""
    for cell in cells:
        shown = cell.replace("|", r"\|")
        if shown:
            line += f"| {shown} "
        else:
            line += "| "
    return f"{line}|"
