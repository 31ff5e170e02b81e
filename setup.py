"""What pyproject.toml cannot say: the sample model, which lies outside of all packages, goes into
the wheel."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSample(build_py):
    """The modules and their data, and the sample model as data of `shared`, where `shared.settings`
    looks for it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copytree("models", Path(self.build_lib) / "shared" / "models", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithSample})
