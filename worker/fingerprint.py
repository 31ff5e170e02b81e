"""What decides which tokens come out of a request, as a short text. Workers with equal ones can go
on for each other.

Weights are sampled, not read whole: of each file its name, its size, and some blocks spread over
it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from shared.runner_options import Options
from worker.runners.base import RunnerOptions

SAMPLER_VERSION = 2
"""To be raised with every change after which the same seed says something else."""

_BLOCKS, _BLOCK_BYTES = 8, 1 << 16
_IRRELEVANT = (
    *("path", "tokenizer_path", "name", "own"),
    *(
        "max_batch",
        "kv_bytes",
        "kv_fraction",
        "max_device_bytes",
        "page_size",
        "prefix_cache",
        "step_tokens",
    ),
)
"""Options that name, move and size things, and change no token; the runner's own are looked at by
themselves."""


def fingerprint(runner: str, options: RunnerOptions) -> str:
    """Of a runner over the files and options given."""
    digest = hashlib.sha256()
    own = options.own or Options()
    facts = {name: value for name, value in vars(options).items() if name not in _IRRELEVANT}
    facts |= own.model_dump(exclude=set(own.files))
    sources = [options.path, options.tokenizer_path, *(getattr(own, name) for name in own.files)]
    digest.update(repr((SAMPLER_VERSION, runner, sorted(facts.items()))).encode())
    for source in sources:
        for file in _files(source):
            digest.update(f"{file.name}:{file.stat().st_size}".encode())
            digest.update(b"".join(_blocks(file)))
    return digest.hexdigest()[:16]


def _files(source: str | None) -> list[Path]:
    place = Path(source).expanduser() if source else None
    if place is None or not place.exists():
        return []
    found = [place] if place.is_file() else [item for item in place.rglob("*") if item.is_file()]
    return sorted(item for item in found if not item.name.startswith("."))


def _blocks(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as handle:
        for number in range(_BLOCKS):
            handle.seek(max(0, size - _BLOCK_BYTES) * number // (_BLOCKS - 1))
            yield handle.read(_BLOCK_BYTES)
