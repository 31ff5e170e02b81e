"""Put the sample model and the default settings into the wheel.

Both lie outside of all packages, which pyproject.toml cannot express.
"""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithShipped(build_py):
    """The build of the modules, and of the folders of data that `shared.shipped` looks for."""

    def run(self) -> None:
        super().run()
        # An editable install finds both in the checkout.
        if self.editable_mode:
            return
        for name in ("models", "config"):
            copytree(name, Path(self.build_lib) / "shared" / name, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithShipped})
