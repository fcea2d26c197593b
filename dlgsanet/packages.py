"""The packages that results depend on, and their installed versions."""

from importlib import metadata

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
