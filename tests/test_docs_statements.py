"""What the docs name is there: files, links, modules, flags, variables.

What their examples print: `tests/e2e/test_docs.py`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.settings.layers import env_names, flag_name, switch_flags
from shared.settings.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(
        ROOT / name
        for name in (
            "README.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "deploy/README.md",
            "models/sample-hrm-text/README.md",
        )
    ),
    *sorted((ROOT / "docs").glob("*.md")),
]
TREES = ("api", "worker", "shared", "scripts", "tests", "docs", "config", "deploy", "models", ".ci")

_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
_OURS = re.compile(
    r"(?:^|[|;&(] *|\$ |\bin |\bexec )(?:\.venv/bin/)?(aios|python3? -m [\w.]+|scripts/\w+\.sh)((?: [^|;&#`\n]*)?)",
    re.MULTILINE,
)

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
    "--wait",
}
"""Flags of curl, docker, vLLM and TGI that stand alone in a sentence."""


OTHERS = {
    "AWS_ACCESS_KEY_ID",
    "AWS_ENDPOINT_URL",
    "OPENAI_API_KEY",
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
    """Everything that is set as code: blocks, with continued lines joined, and what stands in a
    sentence."""
    for _, block in _FENCED.findall(text):
        yield block.replace("\\\n", " ")
    yield from _INLINE.findall(_FENCED.sub("", text))


def slug(heading: str) -> str:
    """As GitHub makes anchors of headings."""
    plain = re.sub(
        r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    )
    return plain.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = page.read_text()
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", text), re.MULTILINE)
    return {slug(heading) for heading in headings} | set(re.findall(r'<a id="([^"]+)"', text))


def flags_in(text: str) -> list[str]:
    """The flags of a command line, as they are listed: dashes and underscores are the same."""
    return [flag.replace("_", "-") for flag in _FLAG.findall(text)]


def literals(*sources: Path) -> set[str]:
    """The flags that stand in these sources as strings."""
    return {
        flag
        for source in sources
        for flag in re.findall(r'"(--[a-z][a-z0-9-]*)"', source.read_text())
    }


SETTINGS = {flag_name(field) for field in Settings.model_fields}
SETTINGS |= {flag for field in Settings.model_fields for flag in switch_flags(field)}
SETTINGS |= {"--no-" + flag[2:] for flag in SETTINGS} | {
    "--config",
    "--print-config",
    "--dry-run",
    "--help",
}


def flags_of(command: str, arguments: str) -> set[str]:
    """The flags that a command of ours knows."""
    if command == "aios" or command.endswith(".sh"):
        words = [word for word in arguments.split() if re.fullmatch(r"[a-z]+", word)][:1]
        own = [ROOT / "scripts" / "cli" / f"{word}.py" for word in words]
        return SETTINGS | literals(
            ROOT / "scripts/cli/aios.py", *(path for path in own if path.is_file())
        )
    module = command.rsplit(maxsplit=1)[-1]
    if module in ("api", "worker", "scripts.cli.aios"):
        return SETTINGS | literals(ROOT / "scripts/cli/aios.py")
    found = source_of(module)
    assert found is not None
    return {"--help"} | literals(
        *sorted(found.parent.glob("*.py")) if found.name == "__main__.py" else [found],
        *deeper(found),
    )


def deeper(source: Path) -> list[Path]:
    """Modules of ours that a command lets add flags."""
    names = re.findall(r"^(?:from|import) (scripts\.[\w.]+)", source.read_text(), re.MULTILINE)
    return [found for name in names if (found := source_of(name)) is not None]


def source_of(module: str) -> Path | None:
    place = ROOT / module.replace(".", "/")
    for path in (place.with_suffix(".py"), place / "__main__.py", place / "__init__.py"):
        if path.is_file():
            return path
    return None


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_FENCED.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


@pytest.mark.parametrize("page", pages())
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.compile(
        rf"(?<![\w./$-])((?:{'|'.join(re.escape(tree) for tree in TREES)})/[\w./*-]*\w/?)(?![\w<{{*])"
    )
    for code in code_of(page.read_text()):
        for name in named.findall(code):
            if name.startswith("deploy/aios-"):
                continue  # kubectl names a Deployment so
            # The requirements map names tests by their place there.
            in_tests = ROOT / "tests" / name
            is_module = (ROOT / f"{name}.py").is_file()
            assert any(ROOT.glob(name.rstrip("/"))) or in_tests.exists() or is_module, name


@pytest.mark.parametrize("page", pages())
def test_commands_and_their_flags_exist(page: Path) -> None:
    for code in code_of(page.read_text()):
        for command, arguments in _OURS.findall(code):
            if (
                command.startswith("python")
                and command.rsplit(maxsplit=1)[-1].partition(".")[0] not in TREES
            ):
                continue
            if command.startswith("python"):
                assert source_of(command.rsplit(maxsplit=1)[-1]) is not None, command
            if command.endswith(".sh"):
                assert (ROOT / command).is_file(), command
            for flag in flags_in(arguments):
                assert flag in flags_of(command, arguments), f"{command}{arguments}: {flag}"


@pytest.mark.parametrize("page", pages())
def test_flags_that_stand_alone_exist(page: Path) -> None:
    known = (
        SETTINGS
        | FOREIGN
        | literals(ROOT / "shared/settings/command_line.py", *(ROOT / "scripts").rglob("*.py"))
    )
    for code in _INLINE.findall(_FENCED.sub("", page.read_text())):
        if code.startswith("--"):
            assert flags_in(code)[0] in known, code


@pytest.fixture(scope="module")
def sources() -> str:
    """All that is ours, but for pages and this test."""
    found = [ROOT / "pyproject.toml", ROOT / "Dockerfile"]
    for tree in ("api", "worker", "shared", "scripts", "deploy", "config", "tests"):
        found += (
            path
            for path in (ROOT / tree).rglob("*")
            if path.suffix in SUFFIXES and "node_modules" not in path.parts
        )
    return "".join(path.read_text() for path in found if path.is_file() and path != Path(__file__))


SUFFIXES = {".py", ".lua", ".yaml", ".sh", ".ps1", ".cfg", ".acl", ".json", ".tpl", ".mjs"}


@pytest.mark.parametrize("page", pages())
def test_words_of_ours_exist(page: Path, sources: str) -> None:
    """Codes, fields, headers and names of functions, which are set as code."""
    settings = {name for field in Settings.model_fields for name in env_names(field)}
    for code in _INLINE.findall(_FENCED.sub("", page.read_text())):
        if re.fullmatch(r"[A-Za-z_]+(_[A-Za-z_]+)+|[a-z]+[A-Z]\w+|X-[\w-]+", code):
            parts = code.removesuffix("_ms")  # times are named as they are told
            assert code in OTHERS or code in settings or code in sources or parts in sources, code


@pytest.mark.parametrize("page", pages())
def test_variables_that_are_named_exist(page: Path) -> None:
    settings = {name for field in Settings.model_fields for name in env_names(field)}
    sources = [
        path
        for tree in ("api", "worker", "shared", "scripts")
        for path in (ROOT / tree).rglob("*.*")
        if path.suffix in (".py", ".sh", ".ps1")
    ]
    elsewhere = "".join(path.read_text() for path in sources)
    for name in re.findall(r"\bAIOS_[A-Z_0-9]*[A-Z0-9]\b(?!\*)", page.read_text()):
        assert name in settings or name in elsewhere, name
