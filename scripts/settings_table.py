"""The table of all settings in docs/settings.md, from the settings themselves.

python -m scripts.settings_table --write    # after a setting was added or changed; a test compares the two
"""

import argparse
from typing import get_args

from pydantic.fields import FieldInfo

from shared.cli import FLAG_ALIASES, shown
from shared.setting_layers import env_names, flag_name, switch_flags, switch_names
from shared.setting_text import choices_of
from shared.settings import REPO_ROOT, Settings

PAGE = REPO_ROOT / "docs" / "settings.md"
_BEGIN = "<!-- made by python -m scripts.settings_table -->\n"
_END = "<!-- end of the table -->\n"


def table() -> str:
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return "\n".join(["| setting | variables | default | |", "|---|---|---|---|", *rows, ""])


def page_with(table: str, page: str) -> str:
    """The page with this table in place of its own. Raises ValueError where it has no place for one."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name}: expected the table between {_BEGIN.strip()} and {_END.strip()}")
    return f"{before}{begin}{table}{end}{after}"


def _row(name: str, field: FieldInfo) -> str:
    flags = [flag_name(name), *FLAG_ALIASES.get(name, []), *switch_flags(name)]
    if field.annotation is bool:
        flags.append(flag_name(name).replace("--", "--no-", 1))
    variables = (*env_names(name), *switch_names(name))
    choices = (["a number"] if int in get_args(field.annotation) else []) + list(choices_of(field.annotation))
    told = f"{field.description}: {', '.join(choices)}" if choices else str(field.description)
    return f"| {_code(flags)} | {_code(variables)} | `{shown(field.default)}` | {told.replace('|', chr(92) + '|')} |"


def _code(words: list[str] | tuple[str, ...]) -> str:
    return " ".join(f"`{word}`" for word in words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into docs/settings.md")
    if parser.parse_args().write:
        PAGE.write_text(page_with(table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
