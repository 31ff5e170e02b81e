"""The texts that pages of the web app draw themselves, and an app that people have changed."""

import math
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from streamlit.testing.v1 import AppTest

from scripts.cli.aios import main
from scripts.cli.serve import fleet_roles
from scripts.ui import client as client_module
from scripts.ui import config as config_module
from scripts.ui import page_solve, shell
from scripts.ui.config import Theme, parse_config, theme_flags
from scripts.ui.differences import differences, marked
from scripts.ui.page_compare import Answer, final_answer, num_agreeing, prompts_of
from scripts.ui.page_inside import depth_of
from scripts.ui.token_colours import LEVELS, Token, coloured, legend, level_of, title_of, tokens_of
from shared import plugins
from shared.settings.layers import SettingsError
from shared.settings.settings import Settings
from tests.fixtures.e2e.app_pages import page_of, text_of


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Forget plugins and configurations before and after, and return a folder for plugins."""
    caches = (
        plugins.plugins,
        plugins.entries,
        config_module._kept,
        shell._plugin_pages,
        page_solve.plugin_subjects,
    )
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("AIOS_PLUGINS", str(tmp_path))
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_both_texts_can_be_read_from_their_differences() -> None:
    """Without what was added the reference is left, without what was removed the text."""
    draw = random.Random(7)
    words = ["a", "b", "<b>", " ", "\n", "&amp;", "\u00e4\u00df", "12", "."]
    for _ in range(50):
        reference, text = ("".join(draw.choices(words, k=draw.randrange(30))) for _ in range(2))
        pieces = differences(reference, text)
        assert "".join(piece.text for piece in pieces if piece.kind != "added") == reference
        assert "".join(piece.text for piece in pieces if piece.kind != "removed") == text
        assert text_of(marked(pieces), "del") == text
    assert [piece.kind for piece in differences("one two", "one three")] == [
        "same",
        "removed",
        "added",
    ]


def test_the_text_of_a_model_is_no_html() -> None:
    evil = "<img src=x onerror=alert(1)>\"'</div>"
    block = marked(differences("", evil))
    assert "<img" not in block
    assert text_of(block) == evil
    block = coloured([Token(evil, -1.0, {evil: -1.0, "b": -2.0})])
    assert "<img" not in block
    assert block.count('"') == 6
    assert text_of(block) == evil


def test_tokens_are_coloured_by_their_probability() -> None:
    assert [level_of(p).name for p in (1.0, 0.9, 0.5, 0.1, 0.01, 0.0)] == [
        "90 % and more",
        "90 % and more",
        "50 to 90 %",
        "10 to 50 %",
        "1 to 10 %",
        "below 1 %",
    ]
    for level in LEVELS:
        assert level.name in legend()
    logprobs = {
        "tokens": ["a", "token_id:2"],
        "token_logprobs": [None, math.log(0.25)],
        "top_logprobs": [None, {"b": math.log(0.75), "token_id:2": math.log(0.25)}],
    }
    given, scored = tokens_of(logprobs)
    assert title_of(given) == "given, not predicted"
    assert title_of(scored) == "-1.386 nats, 25 %\n'b' 75 %\n'token_id:2' 25 %"
    assert tokens_of(None) == []


def test_prompts_answers_and_depths_are_read() -> None:
    assert prompts_of(" a \n\nb\\nc\na") == ["a", "b\nc"]
    assert final_answer(r"so \boxed{1} or \boxed{2}") == "2"
    assert final_answer(" text ") == "text"
    refused = Answer("m", "p", refusal="no")
    assert (refused.brief, num_agreeing([refused, refused])) == ("(no)", 0)
    assert depth_of("low") == {"effort": "low"}
    assert depth_of("2x1") == {"cycles": "2x1"}
    assert depth_of("4") == {"max_steps": 4}


def test_one_model_cannot_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def front(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/readyz":
            return httpx.Response(200, json={})
        model = {"model_id": "alone", "description": "", "tasks": ["generate"]}
        return httpx.Response(200, json={"models": [model]})

    http = httpx.Client(transport=httpx.MockTransport(front))
    monkeypatch.setattr(client_module, "_HTTP", http)
    monkeypatch.setenv("API_URL", "http://one-model")
    page = page_of("compare")
    assert "one model for text, alone" in page.info[0].value
    [button] = [button for button in page.button if button.label == "Compare"]
    assert button.disabled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title: ''", "title: expected at least 1 character"),
        ("colour: red", "colour: unknown key"),
        (
            "theme: {primaryColor: '12'}",
            "theme.primaryColor: expected a colour, as #2f5d8a or navy, got '12'",
        ),
        ("theme: {dark: {font: serif}}", "theme.dark.font: unknown key"),
        ("theme: {font: 'https://fonts'}", "theme.font: expected 'sans-serif', 'serif' or"),
        ("solve: {maths: Compute}", "solve.maths: expected a valid list"),
        ("pages: [", "expected a readable YAML file"),
        ("- a", "expected a mapping"),
    ],
)
def test_a_wrong_file_is_told_by_its_key(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=rf"^own\.yaml: {words}"):
        parse_config(text, "own.yaml")


def test_an_empty_file_changes_nothing() -> None:
    config = parse_config("", "own.yaml")
    assert config.pages == []
    assert theme_flags(config.theme) == []


def test_a_colour_is_for_both_modes() -> None:
    theme = Theme.model_validate(
        {"primaryColor": "#aa0000", "font": "serif", "dark": {"primaryColor": "#ffaaaa"}}
    )
    assert theme_flags(theme) == [
        "--theme.font=serif",
        "--theme.light.primaryColor=#aa0000",
        "--theme.dark.primaryColor=#ffaaaa",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "own.yaml: expected a readable YAML file: it does not exist"),
        ("theme: 1", "own.yaml: theme: expected a valid dictionary"),
        ("pages: [solve, tea]", "own.yaml: pages: expected some of generate, solve, "),
        ("solve: {tea: [a]}", "own.yaml: solve: expected some of maths, coding, got 'tea'"),
        ("puzzles: {tea: {a: b}}", "own.yaml: puzzles: expected sudoku or maze, got 'tea'"),
        ("puzzles: {sudoku: {a: '12'}}", "own.yaml: puzzles.sudoku.a: A Sudoku has 81 or"),
    ],
)
def test_a_start_with_a_wrong_file_is_refused(
    text: str | None,
    words: str,
    tmp_path: Path,
    fresh: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Status 2, and one sentence with the file and the key."""
    file = tmp_path / "own.yaml"
    if text is not None:
        file.write_text(text)
    assert main(["ui", "--server-url", "http://front", "--config", str(file)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"aios ui: {tmp_path}/{words}")
    assert printed.count("\n") == 1


def test_the_app_gets_its_file_and_its_colours(
    tmp_path: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("theme: {textColor: black}")
    became = []

    def execve(path: str, command: list[str], env: dict[str, str]) -> None:
        became.append((command, env))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv("AIOS_UI_CONFIG", str(file))
    with pytest.raises(SystemExit):
        main(["ui", "--server-url", "http://front"])
    settings = Settings(ui=True, ui_config=str(file))
    *_, role = fleet_roles(settings, [{}])
    for command, env in (*became, (role.argv, role.env)):
        assert "--theme.light.textColor=black" in command
        assert "--theme.dark.textColor=black" in command
        assert env["AIOS_UI_CONFIG"] == str(file)
    assert role.env["AIOS_PLUGINS"] == str(fresh)


def put_plugin(folder: Path, name: str, manifest: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "plugin.toml").write_text(manifest)
    (folder / name / "parts.py").write_text(code)


def test_a_plugin_that_does_not_work_is_told_and_the_app_goes_on(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_URL", "http://127.0.0.1:1")
    put_plugin(fresh, "broken", '[ui_pages]\nnotes = "broken.parts:PAGE"\n', "1 / 0\n")
    put_plugin(fresh, "wrong", '[ui_subjects]\nriddles = "wrong.parts:IT"\n', "IT = 1\n")
    put_plugin(fresh, "taken", '[ui_pages]\nchat = "wrong.parts:IT"\n', "")
    page = AppTest.from_function(_main, default_timeout=60).run()
    assert not page.exception
    assert page.title[0].value == "Generate"
    told = [warning.value for warning in page.warning]
    for words in (
        "aios.ui_pages: 'notes' of broken cannot be loaded: ZeroDivisionError",
        "aios.ui_pages: 'chat' is a part of the app; choose another name.",
        "aios.ui_subjects: 'riddles': expected a Subject.",
    ):
        assert any(words in warning for warning in told)


def _main() -> None:
    from scripts.ui.shell import main

    main()


def test_own_examples_take_the_place_of_the_app_s(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own.yaml"
    puzzle = "2143...3..42..263.643.2132.4654.5..."
    file.write_text(
        f"pages: [puzzles, solve]\nsolve: {{maths: [1 + 1]}}\npuzzles: {{sudoku: {{Monday: {puzzle}}}}}"
    )
    monkeypatch.setenv("AIOS_UI_CONFIG", str(file))
    monkeypatch.setenv("API_URL", "http://127.0.0.1:1")
    assert list(shell.shown_pages()) == ["puzzles", "solve"]
    page = page_of("solve")
    maths, coding = page.get("button_group")
    assert [option.content for option in maths.proto.options] == ["1 + 1"]
    assert len(coding.proto.options) == 4

    page = page_of("puzzles")
    _, examples = page.get("button_group")
    examples.set_value("Monday").run()
    [text] = [field for field in page.text_input if field.label == "As text"]
    assert text.value == puzzle
