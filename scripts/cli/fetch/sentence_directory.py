"""Sentence models: a directory of sentence-transformers, in a zip file inside the package."""

import shutil
import zipfile
from pathlib import Path


def convert(package: Path, target: Path) -> None:
    """Write the directory that lies in the zip file of an unpacked package.

    Raise ValueError if there is not exactly one such file, or no such directory in it.
    """
    archives = sorted(package.glob("*/*.zip"))
    if len(archives) != 1:
        raise ValueError(f"expected one zip file, found {len(archives)}")
    unpacked = target.with_name("unpacked-zip")
    with zipfile.ZipFile(archives[0]) as archive:
        archive.extractall(unpacked)

    # The zip file may hold the files themselves, or a folder around them.
    modules = sorted(unpacked.rglob("modules.json"), key=lambda path: len(path.parts))
    if not modules:
        raise ValueError(f"expected a modules.json in {archives[0].name}")
    shutil.move(modules[0].parent, target)
