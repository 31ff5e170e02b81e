"""Compile the kernels, and put them, the models that ship and the default settings into the wheel.

The kernels need a C compiler where the wheel is built, none where it is installed. Without a
compiler the wheel is for every platform, and workers compute by torch alone. `build_kernels`
compiles them where the sources lie.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path("worker/native")
# The names that worker/native/library.py looks for, and the processor and features of each.
KERNELS = {
    "kernels_avx512_bf16.so": ["x86-64-v4", "avx512vnni", "avx512bf16"],
    "kernels_avx512_vnni.so": ["x86-64-v4", "avx512vnni"],
    "kernels_avx512.so": ["x86-64-v4"],
    "kernels_avx_vnni.so": ["x86-64-v3", "avxvnni"],
    "kernels_avx2.so": ["x86-64-v3"],
}
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-s"]


def compiler_for(instructions: list[str]) -> list[str]:
    """Return the command of a C compiler that has these instructions of x86 Linux, [] without one."""
    processor, *features = instructions
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return []
    if shutil.which("cc"):
        compiler = ["cc", "-Wno-psabi", f"-march={processor}", *(f"-m{name}" for name in features)]
        # Older compilers do not know all instructions.
        knows = subprocess.run(
            [*compiler, "-fsyntax-only", "-x", "c", "/dev/null"], capture_output=True, check=False
        )
        return compiler if knows.returncode == 0 else []
    # A compiler in a wheel, which scripts/build/backend.py asks for where the machine has none.
    if find_spec("ziglang"):
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.17"]
        return [*zig, f"-mcpu={'+'.join([processor.replace('-', '_'), *features])}"]
    return []


def compile_kernels(folder: Path) -> None:
    """Compile the kernels into a folder, those that the compiler has instructions for."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(compile_one, folder), KERNELS))


def compile_one(folder: Path, name: str) -> None:
    """Compile one file of `KERNELS` into a folder, unless the compiler lacks its instructions."""
    compiler = compiler_for(KERNELS[name])
    if not compiler:
        print(f"no C compiler for {name}: workers will compute without it")
        return
    source = NATIVE / "kernels.c"
    # Written beside its place first: a worker that runs goes on with the old file.
    unfinished = folder / f"{name}.new"
    version = f'-DSOURCE_DIGEST="{hashlib.sha256(source.read_bytes()).hexdigest()}"'
    files = [str(source), "-o", str(unfinished), "-lm"]
    subprocess.run([*compiler, *FLAGS, version, *files], check=True)
    unfinished.replace(folder / name)


class BuildKernels(Command):
    """The build of the kernels alone, in the source tree."""

    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        compile_kernels(NATIVE)


class BuildWithShipped(build_py):
    """The build of the modules, the kernels, and the data that `shared.shipped` looks for."""

    def run(self) -> None:
        super().run()
        # An editable install finds everything in the checkout.
        if self.editable_mode:
            compile_kernels(NATIVE)
            return
        compile_kernels(Path(self.build_lib) / NATIVE)
        for name in ("models", "config", "assets"):
            copytree(name, Path(self.build_lib) / "shared" / name, dirs_exist_ok=True)


class WheelOfPlatform(bdist_wheel):
    """A wheel for every Python. With kernels it is for one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, system = super().get_tag()
        return "py3", "none", system


class WithKernels(Distribution):
    """A distribution that counts as compiled where the kernels can be."""

    def has_ext_modules(self) -> bool:
        return any(map(compiler_for, KERNELS.values()))


setup(
    distclass=WithKernels,
    cmdclass={
        "build_py": BuildWithShipped,
        "build_kernels": BuildKernels,
        "bdist_wheel": WheelOfPlatform,
    },
)
