"""Manners of every command: its help, its errors in one line, and its exit status."""

import io
import subprocess
import sys
from pathlib import Path

import click
import pytest

from scripts.cli.aios import COMMANDS, PROG, app, main
from scripts.tools.cli_page import commands_of
from shared.commands import Command, Flag, Group, dashed, run_command
from shared.settings.sections import SECTIONS, sections_of
from shared.settings.settings import Settings

TREE = dict(commands_of(PROG, app))
LEAVES = {path: one for path, one in TREE.items() if not isinstance(one, click.Group)}
OURS = {path: one for path, one in LEAVES.items() if path != "aios lm-eval"}
"""All but the harness's, which reads its words itself."""
NOWHERE = ("--redis-url", "redis://127.0.0.1:1")


@pytest.fixture(autouse=True)
def without_a_fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no fleet run here, whatever others do on this machine."""
    monkeypatch.setenv("AIOS_RUN_DIR", str(tmp_path / "run"))
    for name in ("AIOS_REDIS_URL", "API_URL"):
        monkeypatch.delenv(name, raising=False)


def words_of(path: str) -> list[str]:
    return path.split()[1:]


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line that a command has printed."""
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    return line


@pytest.mark.parametrize("path", [path for path in TREE if path != "aios lm-eval"])
def test_every_command_has_a_help_with_examples(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words_of(path), "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"Usage: {path}")
    assert "\nExamples:\n  " in printed
    assert "\x1b" not in printed, "colours are for terminals"
    for param in TREE[path].params:
        if isinstance(param, click.Option):
            assert param.opts[0] in printed
            assert param.help, param.opts
    for example in TREE[path].examples:  # type: ignore[attr-defined]
        assert PROG in example


def test_groups_and_settings_stand_in_sections(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    root = capsys.readouterr().out
    for entry in COMMANDS.values():
        assert f"\n{entry.section}:\n" in root
    main(["models", "--help"])
    assert "\nCatalogue:\n  add " in capsys.readouterr().out
    main(["serve", "hrm", "--help"])
    settings = " ".join(capsys.readouterr().out.split())
    for section in SECTIONS.values():
        assert f" {section}: --" in settings
    assert "Redis and processes: --redis-url URL" in settings
    assert "(default 16) [env: AIOS_MAX_BATCH_SIZE]" in settings


def test_every_section_of_settings_begins_with_a_setting() -> None:
    names = list(Settings.model_fields)
    assert set(SECTIONS) <= set(names)
    assert names[0] in SECTIONS
    in_order = list(dict.fromkeys(sections_of(names).values()))
    assert in_order == list(SECTIONS.values())


@pytest.mark.parametrize("path", OURS)
def test_a_wrong_flag_is_one_line(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words_of(path), "--halp"]) == 2
    line = error_of(capsys)
    assert line.startswith(f"{path}: --halp: there is no such flag; did you mean --help? ")


@pytest.mark.parametrize("path", OURS)
def test_a_missing_or_needless_argument_is_one_line(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    required = [param for param in OURS[path].params if param.required]
    if required:
        assert main(words_of(path)) == 2
        assert ": is required; --help tells what it is" in error_of(capsys)
        return
    if any(param.nargs == -1 for param in OURS[path].params):
        return
    assert main([*words_of(path), "needless"]) == 2
    assert "got unexpected extra argument (needless)" in error_of(capsys)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["statos"], "aios: statos: there is no such command; did you mean status? "),
        (["models", "lost"], "aios models: lost: there is no such command; did you mean list? "),
        (["nonsense"], "aios: nonsense: there is no such command; --help lists "),
        (["serve", "other"], "aios serve: other: there is no such command; "),
        (
            ["keys", "--prot", "1", "list"],
            "aios keys: --prot: there is no such flag; did you mean ",
        ),
        (["status", "--port", "x"], "aios status: --port: 'x' is not a valid integer; "),
        (["status", "--port"], "aios status: --port: expected a value; "),
        (["serve", "hrm", "--model-path", "--port", "1"], "--model-path: expected a value, got "),
        (["models", "add", "a", "/b", "--option", "x", *NOWHERE], "models: option: expected name="),
        (["usage", "--end", "soon"], "aios usage: --end: expected a day as 2026-10-31, got 'soon'"),
        (
            ["eval", "run", "--url", "http://127.0.0.1:1"],
            "; start the fleet, or name another by --",
        ),
        (["completion", "csh"], "aios completion: SHELL: 'csh' is not one of 'bash', 'zsh', "),
        (["models", "add", "a", "hf://org/name", *NOWHERE], "aios models: workers fetch only "),
        (["models", "fetch", "nothing"], "aios models fetch: there is no model 'nothing' to fetch"),
        (["eval", "latest", "--reports", "/no/where"], "aios eval: no report in /no/where; "),
    ],
)
def test_a_mistake_is_told_with_what_to_do(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) in (1, 2)
    assert problem in error_of(capsys)


@pytest.mark.parametrize(
    "line",
    [
        "status",
        "top",
        "usage",
        "models list",
        "models add a /b",
        "models load a",
        "keys list",
        "keys create a",
        "keys revoke 0123456789ab",
        "dead list",
        "dead retry a",
        "ab report a",
        "ab run --models a,b --questions {file}",
        "eval run",
        "puzzles solve {file}",
        "jobs --once",
        "api",
        "worker",
    ],
)
def test_without_a_fleet_it_says_how_one_is_named(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "puzzles.txt"
    file.write_text("." * 81 + "\n")
    assert main(line.format(file=file).split()) == 2
    assert "expected a URL in --" in error_of(capsys)


@pytest.mark.parametrize(
    "line",
    ["usage", "models list", "models load a", "keys list", "keys create a", "ab report a"],
)
def test_without_redis_it_says_so(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line.split(), *NOWHERE]) == 1
    assert error_of(capsys).endswith("start the fleet, or name its Redis by --redis-url")


def test_words_behind_two_dashes_are_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert dashed(["--a_b=c_d", "e_f", "--", "--g_h"]) == ["--a-b=c_d", "e_f", "--", "--g_h"]
    assert main(["models", "add", *NOWHERE, "--", "a", "hf://org/name"]) == 1
    assert "workers fetch only" in error_of(capsys)


def test_a_package_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image of a front has no httpx."""
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "scripts.cli.eval")
    assert main(["eval", "run"]) == 2
    assert error_of(capsys).startswith("aios: eval needs httpx, which is not installed; pip ")


def test_words_of_another_program_stay_as_they_are() -> None:
    passed: list[str] = []

    def run(words: tuple[str, ...]) -> None:
        passed.extend(words)

    other = Command(
        "other",
        callback=run,
        context_settings={"ignore_unknown_options": True},
        add_help_option=False,
        params=[click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)],
    )
    words = ["--model_args", "a_b", "--help"]
    assert run_command(Group("tool", commands={"other": other}), ["other", *words], "tool") == 0
    assert passed == words


def test_the_status_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    def number(n: int) -> int:
        return n

    group = Group(
        "tool",
        commands={
            "wait": Command("wait", callback=interrupted),
            "end": Command("end", callback=number, params=[Flag("--n", type=int, default=0)]),
        },
    )
    assert run_command(group, ["wait"], "tool") == 130
    assert run_command(group, ["end", "--n", "3"], "tool") == 3
    assert run_command(group, ["end"], "tool") == 0
    assert run_command(group, [], "tool") == 2
    assert "Usage: tool" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("name", "value", "is_coloured"),
    [("TERM", "xterm", True), ("NO_COLOR", "1", False), ("TERM", "dumb", False)],
)
def test_a_terminal_gets_a_coloured_help(
    name: str, value: str, is_coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(name, value)
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["--help"]) == 0
    assert ("\x1b[1mServe\x1b[0m" in shown.getvalue()) is is_coloured
    assert "Serve" in shown.getvalue()


def test_the_help_loads_no_command() -> None:
    code = (
        "import sys; from scripts.cli.aios import main; main(['--help']); "
        "print({'torch', 'pydantic', 'redis', 'httpx', 'yaml'} & set(sys.modules))"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.splitlines()[-1] == "set()"
