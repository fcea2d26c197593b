"""Installs the package and the `dlgsanet` command."""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

if sys.version_info >= (3, 13):
    sys.exit("dlgsanet needs Python 3.10 to 3.12: the setup.py of BasicSR 1.4.2 fails on 3.13 (its issue #725)")

here = Path(__file__).parent
version = re.search(r'__version__ = "(.*)"', (here / "dlgsanet/__init__.py").read_text())[1]
lines = (here / "requirements.txt").read_text().splitlines()
requirements = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]

setup(
    name="dlgsanet",
    version=version,
    description="DLGSANet: lightweight dynamic local and global self-attention for image super-resolution",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["dlgsanet", "dlgsanet.*"]),
    include_package_data=True,
    install_requires=requirements,
    extras_require={
        "cuda12": ["cupy-cuda12x"],
        "cuda13": ["cupy-cuda13x"],
        "test": (here / "requirements-test.txt").read_text().split(),
    },
    entry_points={"console_scripts": ["dlgsanet=dlgsanet.cli:main"]},
)
