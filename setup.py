"""Installs the package and the `dlgsanet` command, and builds the native CPU layers where there is a C++ compiler."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

if sys.version_info >= (3, 13):
    sys.exit("dlgsanet needs Python 3.10 to 3.12: the setup.py of BasicSR 1.4.2 fails on 3.13 (its issue #725)")

here = Path(__file__).resolve().parent
version = re.search(r'__version__ = "(.*)"', (here / "dlgsanet/__init__.py").read_text())[1]
lines = (here / "requirements.txt").read_text().splitlines()
requirements = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]

spec = importlib.util.spec_from_file_location("native_build", here / "dlgsanet/ops/backends/native/build.py")
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)


class BuildPackage(build_py):
    """The Python files, the shipped weights beside them, and the native layers if they can be built."""

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
    """One that holds compiled libraries."""

    def has_ext_modules(self):
        return native.compiler() is not None


try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel


class BuildWheel(bdist_wheel):
    """The libraries are called by ctypes: any Python 3 of the platform takes them."""

    def get_tag(self):
        platform = super().get_tag()[2]
        return "py3", "none", platform


setup(
    name="dlgsanet",
    version=version,
    description="DLGSANet: lightweight dynamic local and global self-attention for image super-resolution",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["dlgsanet", "dlgsanet.*"]),
    package_data={
        "dlgsanet": [
            "ops/backends/cuda/kernels/*",
            "ops/backends/native/*.cpp",
            "ops/backends/native/*.h",
            "evaluation/*.*",
        ]
    },
    install_requires=requirements,
    extras_require={
        "cuda12": ["cupy-cuda12x", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12"],
        "cuda13": ["cupy-cuda13x", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime"],
        "export": ["onnx", "onnxruntime", "onnxscript"],
        "figures": ["matplotlib"],
        "heic": ["pillow-heif"],
        "perceptual": ["pyiqa"],
        "spandrel": ["spandrel", "einops"],
        "test": (here / "requirements-test.txt").read_text().split(),
    },
    entry_points={"console_scripts": ["dlgsanet=dlgsanet.cli:main"]},
    distclass=BinaryDistribution,
    cmdclass={"build_py": BuildPackage, "bdist_wheel": BuildWheel},
)
