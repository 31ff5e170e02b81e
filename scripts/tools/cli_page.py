"""Generate the reference of docs/cli.md: the commands, their arguments and flags, and examples.

    python -m scripts.tools.cli_page

Run this after a command was added or changed. A test compares the page with the output.
"""

from collections.abc import Iterator

import click

from scripts.cli.aios import COMMANDS, PROG, app
from scripts.cli.fleet_tool import FLEET, fleet_flags
from scripts.tools.generated_pages import code, page_with, table_of
from shared.settings.command_line import PROCESS, settings_flags
from shared.settings.sections import SECTIONS
from shared.shipped import REPO_ROOT

PAGE = REPO_ROOT / "docs" / "cli.md"
MARK = "made by python -m scripts.tools.cli_page"
_OF_FLEETS = {(param.name, *param.opts) for param in fleet_flags()}
_SECTIONS_OF_SETTINGS = {PROCESS, *SECTIONS.values()}
_OF_SETTINGS = {(param.name, *param.opts) for param in settings_flags()}


def reference() -> str:
    """Return a table of all commands, and a part for each."""
    rows = []
    for name, entry in COMMANDS.items():
        rows.append(
            [f"[`{PROG} {name}`](#{_anchor(f'{PROG} {name}')})", entry.section, entry.summary]
        )
    parts = [table_of(["command", "", "does"], rows)]
    for path, command in commands_of(PROG, app):
        if command is not app:
            parts.append(_part(path, command))
    return "\n".join(parts)


def commands_of(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and all that lie in it, each with the words by which it is called."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands_of(f"{path} {name}", inner)


def _part(path: str, command: click.Command) -> str:
    """Return the part of the page on one command."""
    context = click.Context(command, info_name=path)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"### {path}", "", f"`{path} {usage}`", ""]
    for paragraph in (command.help or "").strip().split("\n\n"):
        lines += [" ".join(paragraph.split()), ""]

    rows = []
    of_fleets = []
    has_settings = False
    for param in command.params:
        name = (param.name, *param.opts)
        section = getattr(param, "section", "")
        # Commands that speak HTTP have a --port of their own for this.
        if section == FLEET and name in _OF_FLEETS and not param.expose_value:
            of_fleets.append(param.opts[0])
        elif section in _SECTIONS_OF_SETTINGS and name in _OF_SETTINGS:
            has_settings = True
        else:
            rows.append(_row(param, context))
    if rows:
        lines += [table_of(["argument or flag", ""], rows)]
    if has_settings:
        lines += ["It also takes all [settings](settings.md).", ""]
    if of_fleets:
        lines += [f"Which fleet, and how it prints: {code(*of_fleets)}.", ""]

    examples = getattr(command, "examples", ())
    if examples:
        lines += ["```sh", *examples, "```", ""]
    return "\n".join(lines)


def _row(param: click.Parameter, context: click.Context) -> list[str]:
    names, text = param.get_help_record(context) or (param.human_readable_name, "")
    return [code(names), text]


def _anchor(heading: str) -> str:
    return heading.replace(" ", "-")


def page() -> str:
    """Return docs/cli.md as it should be."""
    return page_with(reference(), PAGE.read_text(encoding="utf-8"), MARK)


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
