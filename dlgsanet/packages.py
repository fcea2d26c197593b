"""What results depend on: the versions of installed packages, and this package's own code."""

from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch", "torchvision", "basicsr", "numpy", "opencv-python", "opencv-python-headless", "cupy-cuda12x",
    "cupy-cuda13x",
)  # fmt: skip


def versions() -> dict[str, str | None]:
    """The version of each package; None where it is not installed."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_in(folder: Path) -> list[Path]:
    """The source files in a folder of this package."""
    return sorted(file for file in folder.rglob("*") if file.suffix in (".py", ".cpp", ".cu", ".h"))
