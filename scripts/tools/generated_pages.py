"""Pages of the docs with a generated table, which stands between two comments."""

END = "<!-- end of the table -->\n"


def page_with(table: str, page: str, comment: str) -> str:
    """Return the page with this table between the HTML comment `comment` and END.

    Raise ValueError if the page does not have both comments.
    """
    begin = f"<!-- {comment} -->\n"
    before, separator, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not separator or not end:
        raise ValueError(f"expected a table between {begin.strip()} and {END.strip()}")
    return f"{before}{begin}{table}{end}{after}"


def table_of(titles: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table. Bars within cells are escaped."""
    lines = [_line(titles), "|" + "---|" * len(titles)]
    for row in rows:
        lines.append(_line(row))
    return "\n".join(lines) + "\n"


def code(*words: str) -> str:
    """Return the words as Markdown code, or a dash if there are none."""
    return " ".join(f"`{word}`" for word in words) or "-"


def _line(cells: list[str]) -> str:
    line = ""
    for cell in cells:
        escaped = cell.replace("|", r"\|")
        if escaped:
            line += f"| {escaped} "
        else:
            line += "| "
    return f"{line}|"
