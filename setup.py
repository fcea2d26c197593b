"""Builds the native CPU layers where there is a C++ compiler; the rest of the package in pyproject.toml."""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

here = Path(__file__).resolve().parent

spec = importlib.util.spec_from_file_location("native_build", here / "dlgsanet/ops/backends/native/build.py")
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)


class BuildPackage(build_py):
    """The Python files, the included weights, and the native layers if they can be built."""

    def run(self):
        super().run()
        package = here / "dlgsanet" if self.editable_mode else Path(self.build_lib, "dlgsanet")
        if not self.editable_mode:
            (package / "weights").mkdir(parents=True, exist_ok=True)
            for path in sorted(here.glob("weights/*")):
                shutil.copy(path, package / "weights")
        problem = native.build(package / "ops/backends/native")
        print(problem or "native CPU layers are built", file=sys.stderr)


class BinaryDistribution(Distribution):
    """A distribution with compiled libraries, if there is a compiler."""

    def has_ext_modules(self):
        return native.compiler() is not None


class BuildWheel(bdist_wheel):
    """ctypes loads the libraries, so one wheel serves every Python 3 of the platform."""

    def get_tag(self):
        platform = super().get_tag()[2]
        return "py3", "none", platform


setup(distclass=BinaryDistribution, cmdclass={"build_py": BuildPackage, "bdist_wheel": BuildWheel})
