"""Files, links, modules, flags and variables that the docs name exist.

`tests/e2e/test_docs.py` checks what their examples print.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from scripts.cli.aios import app
from shared.commands import flags_of as flags_of_command
from shared.settings.layers import env_names, flag_name, switch_flags
from shared.settings.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "deploy/README.md",
    ROOT / "models/hrm-text-math/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TREES = ("api", "worker", "shared", "scripts", "tests", "docs", "config", "deploy", "models", ".ci")

_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
_OURS = re.compile(
    r"(?:^|[|;&(] *|\$ |\bin |\bexec )(?:\.venv/bin/)?"
    r"(aios|python3? -m [\w.]+|scripts/\w+\.sh)((?: [^|;&#`\n]*)?)",
    re.MULTILINE,
)
_TREE = "|".join(re.escape(tree) for tree in TREES)
_NAMED_FILE = re.compile(rf"(?<![\w./$-])((?:{_TREE})/[\w./*-]*\w/?)(?![\w<{{*])")
_WORD_OF_CODE = re.compile(r"[A-Za-z_]+(_[A-Za-z_]+)+|[a-z]+[A-Z]\w+|X-[\w-]+")

FOREIGN = {
    "--all-features",
    "--build",
    "--build-arg",
    "--generation-config",
    "--gpus",
    "--json",
    "--model-id",
    "--no-build",
    "--no-healthcheck",
    "--profile",
    "--scale",
    "--secret",
    "--served-model-name",
    "--shm-size",
    "--target",
    "--tls-auth-clients",
    "--use-cache",
    "--wait",
}
"""Flags of curl, docker, vLLM, TGI and lm-evaluation-harness that stand alone in a sentence."""
HARNESS = {"--apply-chat-template", "--batch-size", "--include-path", "--model-args", "--tasks"}
"""Flags of lm-evaluation-harness, which `aios lm-eval` passes on."""


OTHERS = {
    "AWS_ACCESS_KEY_ID",
    "AWS_ENDPOINT_URL",
    "OPENAI_API_KEY",
    "STREAMLIT_THEME_BASE_FONT_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "extra_body",
    "extra_headers",
    "forward_dtype",
    "idle_timeout",
    "max_autotune",
    "page_manager",
    "paged_attention",
    "prompt_cache_key",
    "prompt_cache_retention",
    "rawPredict",
    "redis_exporter",
    "safety_identifier",
    "target_delimiter",
    "trust_remote_code",
    "use_cpu_device",
}
"""Words set as code that are of other programs, or of their files."""


def pages() -> list[object]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES]


def code_of(text: str) -> Iterator[str]:
    """Yield all code of a page: blocks, with continued lines joined, then code within sentences."""
    for _, block in _FENCED.findall(text):
        yield block.replace("\\\n", " ")
    yield from inline_code_of(text)


def inline_code_of(text: str) -> list[str]:
    return _INLINE.findall(_FENCED.sub("", text))


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    without_links = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    plain = re.sub(r"[^\w\- ]", "", without_links.strip().lower())
    return plain.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = page.read_text()
    names = set(re.findall(r'<a id="([^"]+)"', text))
    for heading in re.findall(r"^#+ (.*)$", _FENCED.sub("", text), re.MULTILINE):
        names.add(slug(heading))
    return names


def flags_in(text: str) -> list[str]:
    """Return the flags of a command line, with dashes for underscores as they are listed."""
    return [flag.replace("_", "-") for flag in _FLAG.findall(text)]


def literals(*sources: Path) -> set[str]:
    """Return the flags that stand in these sources as strings."""
    flags: set[str] = set()
    for source in sources:
        flags.update(re.findall(r'"(--[a-z][a-z0-9-]*)"', source.read_text()))
    return flags


def setting_flags() -> set[str]:
    """Return the flags of all settings, each with its `--no-` form."""
    flags: set[str] = set()
    for field in Settings.model_fields:
        flags.add(flag_name(field))
        flags.update(switch_flags(field))
    for flag in list(flags):
        flags.add("--no-" + flag.removeprefix("--"))
    return flags | {"--config", "--print-config", "--dry-run", "--help"}


def setting_variables() -> set[str]:
    """Return the environment variables of all settings."""
    names: set[str] = set()
    for field in Settings.model_fields:
        names.update(env_names(field))
    return names


SETTINGS = setting_flags()


def flags_of(command: str, arguments: str) -> set[str]:
    """Return the flags that a command of ours knows."""
    if command == "aios":
        return flags_of_aios(arguments.split())
    if command.endswith(".sh"):
        return SETTINGS

    module = command.rsplit(maxsplit=1)[-1]
    if module in ("api", "worker"):
        return SETTINGS
    if module == "scripts.cli.aios":
        return flags_of_aios(arguments.split())

    source = source_of(module)
    assert source is not None

    sources = [source]
    if source.name == "__main__.py":
        sources = sorted(source.parent.glob("*.py"))

    return {"--help"} | literals(*sources, *imported_scripts(source))


def flags_of_aios(words: list[str]) -> set[str]:
    """Return the flags of the command that these words begin with, and of the groups it lies in.

    Where it is not told which, they are those of all commands of the group.
    """
    if words[:1] == ["lm-eval"]:
        return {"--model", *HARNESS}
    command: click.Command = app
    flags = set(flags_of_command(app))
    for word in words:
        if not isinstance(command, click.Group):
            return flags
        found = command.get_command(click.Context(command), word)
        if found is None:
            continue
        command = found
        flags.update(flags_of_command(command))
    if isinstance(command, click.Group) and command is not app:
        context = click.Context(command)
        for name in command.list_commands(context):
            flags.update(flags_of_aios([*words, name]))
    return flags


def imported_scripts(source: Path) -> list[Path]:
    """Return the scripts that a command imports, since they may add flags."""
    names = re.findall(r"^(?:from|import) (scripts\.[\w.]+)", source.read_text(), re.MULTILINE)
    scripts = []
    for name in names:
        script = source_of(name)
        if script is not None:
            scripts.append(script)
    return scripts


def source_of(module: str) -> Path | None:
    base = ROOT / module.replace(".", "/")
    for path in (base.with_suffix(".py"), base / "__main__.py", base / "__init__.py"):
        if path.is_file():
            return path
    return None


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", pages())
def test_files_that_are_named_exist(page: Path) -> None:
    for code in code_of(page.read_text()):
        for name in _NAMED_FILE.findall(code):
            # kubectl names a Deployment so.
            if name.startswith("deploy/aios-"):
                continue
            exists = any(ROOT.glob(name.rstrip("/")))
            is_module = (ROOT / f"{name}.py").is_file()
            # The requirements map names a test by its path below `tests`.
            is_test = (ROOT / "tests" / name).exists()
            assert exists or is_module or is_test, name


@pytest.mark.parametrize("page", pages())
def test_commands_and_their_flags_exist(page: Path) -> None:
    for code in code_of(page.read_text()):
        for command, arguments in _OURS.findall(code):
            if command.startswith("python"):
                module = command.rsplit(maxsplit=1)[-1]
                if module.partition(".")[0] not in TREES:
                    continue
                assert source_of(module) is not None, command

            if command.endswith(".sh"):
                assert (ROOT / command).is_file(), command

            for flag in flags_in(arguments):
                assert flag in flags_of(command, arguments), f"{command}{arguments}: {flag}"


@pytest.mark.parametrize("page", pages())
def test_flags_that_stand_alone_exist(page: Path) -> None:
    ours = literals(ROOT / "shared/settings/command_line.py", *(ROOT / "scripts").rglob("*.py"))
    known = SETTINGS | FOREIGN | HARNESS | ours
    for code in inline_code_of(page.read_text()):
        if code.startswith("--"):
            assert flags_in(code)[0] in known, code


@pytest.fixture(scope="module")
def sources() -> str:
    """Join all sources, without the pages and this test."""
    texts = [(ROOT / "pyproject.toml").read_text(), (ROOT / "Dockerfile").read_text()]

    for tree in ("api", "worker", "shared", "scripts", "deploy", "config", "tests"):
        for path in (ROOT / tree).rglob("*"):
            if path.suffix not in SUFFIXES or "node_modules" in path.parts:
                continue
            if path.is_file() and path != Path(__file__):
                texts.append(path.read_text())

    return "".join(texts)


SUFFIXES = {".py", ".lua", ".yaml", ".sh", ".ps1", ".cfg", ".acl", ".json", ".tpl", ".mjs"}


@pytest.mark.parametrize("page", pages())
def test_words_of_ours_exist(page: Path, sources: str) -> None:
    """Codes, fields, headers and names of functions that are set as code exist."""
    variables = setting_variables()
    for code in inline_code_of(page.read_text()):
        if not _WORD_OF_CODE.fullmatch(code) or code in OTHERS or code in variables:
            continue
        # A log field in milliseconds is made of a name without the unit.
        assert code in sources or code.removesuffix("_ms") in sources, code


@pytest.mark.parametrize("page", pages())
def test_variables_that_are_named_exist(page: Path) -> None:
    texts = []
    for tree in ("api", "worker", "shared", "scripts"):
        for path in (ROOT / tree).rglob("*.*"):
            if path.suffix in (".py", ".sh", ".ps1"):
                texts.append(path.read_text())

    sources = "".join(texts)

    variables = setting_variables()
    for name in re.findall(r"\bAIOS_[A-Z_0-9]*[A-Z0-9]\b(?!\*)", page.read_text()):
        assert name in variables or name in sources, name
