"""Put the sample model and the default settings into the wheel, which pyproject.toml cannot say.

They lie outside of all packages."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithShipped(build_py):
    """The modules and their data, and as data of `shared` what `shared.shipped` looks for there."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in ("models", "config"):
                copytree(name, Path(self.build_lib) / "shared" / name, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithShipped})
