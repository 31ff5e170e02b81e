"""Write what the docs' examples print now into the docs, where another model is the default.

    python -m tests.e2e.record_examples docs/api.md

Only `console` blocks on pages of the fleet of `aios serve hrm` are written again. What stood for
any text (`…`) does so again, and long numbers are cut. What is left to do by hand is printed.
"""

import re
import sys
import tempfile
from pathlib import Path

from tests.e2e.test_docs import NODE, PAGES, blocks_to_run
from tests.fixtures.e2e.examples import ROOT, Block, outputs
from tests.fixtures.e2e.serving import serving

_VOLATILE = re.compile(r'"(\w+)":("?)([^",…\[{}]*)…')
_LONG_NUMBER = re.compile(r"(-?\d+\.\d{2})\d{3,}")
_NUMBERS = re.compile(r"\[(-?\d+\.\d{2})…?(?:,-?[\d.e-]+…?)+\]")


def masked(expected: str, output: str) -> str:
    """Return an output with `…` where the expected one has it."""
    text = output.strip("\n")
    for name, quote, beginning in _VOLATILE.findall(expected):
        value = f'"{name}":{quote}[^",}}\\]]*{quote}'
        kept = beginning if quote else ""
        text = re.sub(value, f'"{name}":{quote}{kept}…{quote}', text)
    text = _LONG_NUMBER.sub(r"\1…", text)
    return _NUMBERS.sub(r"[\1…]", text)


def recorded(text: str, block: Block, addresses: dict[str, str]) -> str:
    """Return the text of a page with what the commands of one of its blocks print."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            printed = outputs(block, Path(folder), addresses, {})
        except AssertionError as error:
            print(f"FAILED {block.page}: {error}")
            return text
    for example, output in zip(block.examples, printed, strict=True):
        if example.expected is None or example.fits(output):
            continue
        if block.language != "console" or "data: " in example.expected:
            print(f"BY HAND {block.page}: {example.command}\n{output}")
            continue
        end = example.expected[len(example.expected.rstrip("\n")) :]
        new = masked(example.expected, output) + end
        text = text.replace(f"{example.command}\n{example.expected}", f"{example.command}\n{new}")
        print(f"{block.page}: {example.command}\n{new}")
    return text


def main() -> None:
    pages = sys.argv[1:] or [page for page, stage in PAGES.items() if stage != "trial"]
    flags = ["--threads", "1", "--admin-keys", "ops:c1a8e9f0", "--require-key", "no"]
    with serving(*flags) as fleet:
        addresses = {"localhost:8000": fleet.url.removeprefix("http://")}
        for page in pages:
            text = (ROOT / page).read_text()
            for block in blocks_to_run():
                if block.page == page and (block.language != "js" or NODE.exists()):
                    text = recorded(text, block, addresses)
            (ROOT / page).write_text(text)


if __name__ == "__main__":
    main()
