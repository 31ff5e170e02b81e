"""docs/cli.md names every command, as it is."""

from scripts.cli.aios import COMMANDS
from scripts.tools.cli_page import PAGE, page, reference


def test_it_is_that_of_today() -> None:
    """The page is up to date; `python -m scripts.tools.cli_page` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_commands_and_their_flags_are_there() -> None:
    text = reference()
    for name in COMMANDS:
        assert f"\n### aios {name}\n" in text
    create = text.partition("### aios keys create\n")[2].partition("###")[0]
    assert "| `--rate TIMES/SECONDS` | requests for work, as 10/60 |" in create
    assert "`NAME`" in create
    assert "how it prints: `--redis-url` `--redis-shards` `--port` `--json`." in create
    batch = text.partition("### aios batch run\n")[2].partition("###")[0]
    assert "| `--model MODEL` |" in batch
    assert "all [settings](settings.md)" in batch
    assert "--max-batch-size" not in batch
    ui = text.partition("### aios ui\n")[2].partition("###")[0]
    assert "settings" not in ui, "its --port is another"
