"""The fingerprint of a model: a hash of all facts that decide which tokens a request yields.

Workers with equal fingerprints can go on with each other's jobs. Weights are sampled, not read
whole: the hash covers each file's name, its size, and some blocks spread over it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.tasks.runner_options import Options
from shared.tasks.runner_table import is_url
from worker.engine.runner import RunnerOptions

SAMPLER_VERSION = 2
"""The version of the sampler. Raise it with every change after which a seed draws other tokens."""

_BLOCKS = 8
_BLOCK_BYTES = 1 << 16
_IRRELEVANT = (
    "path",
    "tokenizer_path",
    "name",
    "own",
    "max_batch",
    "kv_bytes",
    "kv_fraction",
    "max_device_bytes",
    "page_size",
    "prefix_cache",
    "step_tokens",
)
"""Options of names, places and sizes, which change no token.

`own`, the options of the runner, are hashed one by one.
"""


def fingerprint(runner: str, options: RunnerOptions) -> str:
    """Return the fingerprint, 16 hexadecimal digits, of a runner with these options and files."""
    own_options = options.own or Options()
    facts: dict[str, Any] = {}
    for name, value in vars(options).items():
        if name not in _IRRELEVANT:
            facts[name] = value
    # An engine elsewhere has no files that could be read here.
    if is_url(options.path):
        facts["path"] = options.path
    if options.is_lossy:
        facts["arithmetic"] = arithmetic()
    # Files that options name count by their contents, not by their paths.
    apart = {*own_options.files, *own_options.harmless}
    facts |= own_options.model_dump(exclude=apart)
    sources = [options.path, options.tokenizer_path]
    for name in own_options.files:
        sources.append(getattr(own_options, name))

    digest = hashlib.sha256()
    digest.update(repr((SAMPLER_VERSION, runner, sorted(facts.items()))).encode())
    for source in sources:
        for file in _files(source):
            digest.update(f"{file.name}:{file.stat().st_size}".encode())
            for block in _blocks(file):
                digest.update(block)
    return digest.hexdigest()[:16]


def arithmetic() -> str:
    """Return what decides the last bits of a result on this machine's CPU.

    They matter where activations, keys or values are rounded, because a difference there can grow
    until another token is chosen.
    """
    # Imported here, because a model without weights needs no torch.
    import torch

    from worker.native.library import library

    kernels = library()
    digest = "torch" if kernels is None else kernels.digest
    return f"{torch.backends.cpu.get_cpu_capability()} {digest}"


def _files(source: str | None) -> list[Path]:
    """Return a file, or the files of a directory in a fixed order. Hidden files are left out."""
    if not source:
        return []
    path = Path(source).expanduser()
    if not path.exists():
        return []
    candidates = [path]
    if not path.is_file():
        candidates = list(path.rglob("*"))

    files: list[Path] = []
    for file in candidates:
        if file.is_file() and not file.name.startswith("."):
            files.append(file)
    files.sort()
    return files


def _blocks(file: Path) -> Iterator[bytes]:
    """Yield blocks spread over a file, from the first to the last."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        for number in range(_BLOCKS):
            handle.seek(max(0, size - _BLOCK_BYTES) * number // (_BLOCKS - 1))
            yield handle.read(_BLOCK_BYTES)
