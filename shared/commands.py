"""Commands by Click: flags in sections, examples, and errors in one line that say what to do.

Click's classes are extended where it leaves things out: a flag has the heading under which the help
lists it, a command has examples and a heading of its own in the help of its group.
"""

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any, TextIO

import click
from click.exceptions import NoArgsIsHelpError

from shared.supervised import report_failure

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""The status that a shell reports after SIGINT."""
_HELP_FLAGS = ("-h", "--help")
_WIDEST = 110
_WORDS = "aios.words"


class Flag(click.Option):
    """A flag, which the help of its command lists under the heading `section`."""

    def __init__(self, *names: str, section: str = "Flags", **attributes: Any) -> None:
        super().__init__(names, **attributes)
        self.section = section

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        for text in values:
            # `--model-path --port 80` lacks a path: no value is named like a flag.
            if isinstance(text, str) and text.startswith("--") and text in flags_of(ctx.command):
                raise click.BadOptionUsage(
                    self.opts[0], f"expected a value, got the flag {text}", ctx
                )
        return super().type_cast_value(ctx, value)


class Argument(click.Argument):
    """An argument with a help."""

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__([name], **attributes)


class _Documented(click.Command):
    """A command with a heading in the help of its group, and examples at the end of its own."""

    def __init__(
        self,
        name: str,
        *,
        section: str = "Commands",
        examples: Sequence[str] = (),
        context_settings: Mapping[str, Any] = MappingProxyType({}),
        **attributes: Any,
    ) -> None:
        settings = {"help_option_names": list(_HELP_FLAGS), **context_settings}
        super().__init__(name, context_settings=settings, **attributes)
        self.section = section
        self.examples = tuple(examples)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = "show this help and exit"
        return option

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_paragraphs(self.help or "", formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_flags(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)


class Command(_Documented):
    """A command, whose callback returns the exit status. Flags may be spelt with `_` for each `-`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.ignore_unknown_options:
            args = dashed(args)
        ctx.meta[_WORDS] = tuple(args)
        return _told_of(ctx, super().parse_args, args)


class Group(_Documented, click.Group):
    """A command with commands, which its help lists by their sections."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        # Click would sort them.
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = self.list_commands(ctx)
        own = list(takewhile(lambda word: word not in names, args))
        # The words behind the name of a command are the command's.
        return _told_of(ctx, super().parse_args, [*dashed(own), *args[len(own) :]])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            raise click.UsageError(_no_such("command", name, self.list_commands(ctx)), ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        write_flags(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for section, name, summary in self.summaries(ctx):
            sections.setdefault(section, []).append((_bold(name), summary))
        for section, rows in sections.items():
            with _section(formatter, section):
                formatter.write_dl(rows)

    def summaries(self, ctx: click.Context) -> Iterable[tuple[str, str, str]]:
        """Return the section, the name and the summary of each command."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            assert command is not None
            section = getattr(command, "section", "Commands")
            rows.append((section, name, _plain(command.get_short_help_str(limit=200))))
        return rows


def _told_of(
    ctx: click.Context, parse: Callable[[click.Context, list[str]], list[str]], args: list[str]
) -> list[str]:
    """Parse the words. Errors of usage get the context that Click's parser leaves out of some."""
    try:
        return parse(ctx, args)
    except click.UsageError as error:
        error.ctx = error.ctx or ctx
        raise


def run_command(command: click.Command, argv: Sequence[str], prog: str) -> int:
    """Run the command with these words, and return its exit status.

    Errors of usage are one line on stderr and status 2.
    """
    try:
        status = command.main(
            list(argv),
            prog_name=prog,
            complete_var=completion_variable(prog),
            standalone_mode=False,
            color=has_colour(sys.stdout),
            max_content_width=_WIDEST,
        )
    except NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True, color=has_colour(sys.stderr))
        return EXIT_USAGE
    except click.ClickException as error:
        path = prog
        if isinstance(error, click.UsageError) and error.ctx is not None:
            path = error.ctx.command_path
        reason = problem_of(error)
        print(f"{path}: {reason}", file=sys.stderr)
        report_failure(reason)
        return EXIT_USAGE
    except click.Abort:
        # Roles handle SIGINT themselves. This one came before, or in a tool.
        return EXIT_INTERRUPTED
    return int(status or EXIT_OK)


def completion_variable(prog: str) -> str:
    """Return the variable by which a shell asks the command for completions."""
    return f"_{prog.upper().replace('-', '_').replace(' ', '_')}_COMPLETE"


def completing(words: Sequence[str]) -> Callable[..., list[str]]:
    """Return what completes the value of a flag, or an argument, to one of these words."""

    def complete(context: click.Context, param: click.Parameter, begun: str) -> list[str]:
        return [word for word in words if word.startswith(begun)]

    return complete


def words_of(ctx: click.Context) -> tuple[str, ...]:
    """Return the words of the command, with dashes in flags."""
    words: tuple[str, ...] = ctx.meta.get(_WORDS, ())
    return words


def dashed(argv: Sequence[str]) -> list[str]:
    """Return the words with dashes in flags: `--model-path=a_b` for `--model_path=a_b`.

    Words behind `--` are no flags.
    """
    words = []
    are_flags = True
    for word in argv:
        are_flags = are_flags and word != "--"
        name, equals, value = word.partition("=")
        if are_flags and name.startswith("--"):
            words.append(name.replace("_", "-") + equals + value)
        else:
            words.append(word)
    return words


def flags_of(command: click.Command) -> list[str]:
    """Return the long flags of a command."""
    flags = ["--help"]
    for param in command.params:
        if isinstance(param, click.Option):
            flags += [flag for flag in (*param.opts, *param.secondary_opts) if flag[:2] == "--"]
    return flags


def problem_of(error: click.ClickException) -> str:
    """Return an error of usage as one line that names the flag, and says what to do."""
    match error:
        case click.NoSuchOption(ctx=click.Context() as ctx):
            return no_such_flag(error.option_name, ctx.command)
        case click.MissingParameter(param=click.Parameter() as param):
            return f"{_name_of(param)}: is required; --help tells what it is"
        case click.BadParameter(param=click.Parameter() as param):
            return f"{_name_of(param)}: {_plain(error.message)}; --help tells more"
        case click.BadOptionUsage():
            message = error.message
            if message.endswith("requires an argument."):
                message = "expected a value"
            return f"{error.option_name}: {_plain(message)}; --help tells more"
    if not isinstance(error, click.UsageError):
        return error.message
    if "--help" in error.message:
        return _plain(error.message)
    return f"{_plain(error.message)}; --help tells more"


def no_such_flag(flag: str, command: click.Command) -> str:
    """Return the line on a flag that a command does not have."""
    return _no_such("flag", flag, flags_of(command))


def _no_such(kind: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name}: there is no such {kind}; {hint}--help lists those there are"


def _name_of(param: click.Parameter) -> str:
    if isinstance(param, click.Argument):
        return param.human_readable_name
    return param.opts[0]


def _plain(message: str) -> str:
    text = " ".join(message.split()).rstrip(".")
    return text[:1].lower() + text[1:]


def has_colour(stream: TextIO) -> bool:
    """Return whether text on this stream may be coloured: on a terminal that is not told otherwise.

    The variable NO_COLOR (https://no-color.org) and TERM=dumb tell it.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def write_paragraphs(text: str, formatter: click.HelpFormatter) -> None:
    """Write the text of a help. Indented paragraphs stay as they are."""
    for paragraph in text.strip().split("\n\n"):
        formatter.write_paragraph()
        if paragraph.startswith(" "):
            formatter.write(paragraph + "\n")
        elif paragraph:
            formatter.write_text(" ".join(paragraph.split()))


def write_flags(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the flags of a command, each section under its heading."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None and isinstance(param, click.Option):
            section = getattr(param, "section", "Flags")
            sections.setdefault(section, []).append((_bold(record[0]), record[1]))
    for section, rows in sections.items():
        with _section(formatter, section):
            formatter.write_dl(rows)


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """Write the examples of a command, one a line."""
    if not examples:
        return
    with _section(formatter, "Examples"):
        for example in examples:
            formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def _section(formatter: click.HelpFormatter, name: str) -> Any:
    return formatter.section(_bold(name))


def _bold(text: str) -> str:
    return click.style(text, bold=True)
