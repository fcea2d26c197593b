"""Find weights by name: the files that come with the package, or those in the `weights/` folder of a checkout."""

import re
from numbers import Real
from pathlib import Path

from dlgsanet.errors import ArgumentError, is_whole

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (_PACKAGE / "weights", _PACKAGE.parent / "weights")

DEFAULT_NAME = "Tiny"


def included_weights() -> dict[str, Path]:
    """Every included file of weights under its name without extension, such as ``DLGSANet_Tiny_x2``."""
    files = [path for folder in reversed(FOLDERS) for path in sorted(folder.glob("*.safetensors"))]
    return {path.stem: path for path in files}


def families() -> dict[str, dict[int, Path]]:
    """The included files by the name that all scales have in common (``Tiny``, ``Tiny_jpeg``), then by scale."""
    found: dict[str, dict[int, Path]] = {}
    for name, file in included_weights().items():
        if match := re.fullmatch(r"DLGSANet_(\w+)_x(\d+)(_\w+)?", name):
            found.setdefault(match[1] + (match[3] or ""), {})[int(match[2])] = file
    return found


def for_jpeg(weights: Path, given: str | Path) -> str | None:
    """What to give in place of `given`, which means the file `weights`, for compressed photographs.

    Returns:
        ``Tiny_jpeg`` for ``Tiny``, ``DLGSANet_Tiny_x2_jpeg`` for that name or file; None: no such weights are included.
    """
    here = included_weights()
    name = f"{weights.stem}_jpeg"
    if name not in here or here.get(weights.stem) != weights:
        return None
    return name if Path(given).suffix else f"{given}_jpeg"


def find_weights(weights: str | Path = DEFAULT_NAME, scale: int | None = None, outscale: float = 2) -> Path:
    """The file that `weights` means.

    Args:
        weights: a file (.pth or .safetensors), a size (``Tiny``, ``Light``, ``Large``; ``Tiny_jpeg`` are weights for
            compressed photographs), or the name of an included file (``DLGSANet_Tiny_x2``), in any case.
        scale: the scale factor of a size's weights.
        outscale: without `scale`, the smallest scale from this up is chosen, or else the largest that exists.

    Raises:
        ArgumentError: no such file or name (the message lists the names that exist), or a scale that is not a number.
    """
    if scale is not None and not is_whole(scale, 1):
        raise ArgumentError("scale", f"{scale!r} is not a whole number from 1 up")
    if isinstance(outscale, bool) or not isinstance(outscale, Real):
        raise ArgumentError("outscale", f"{outscale!r} is not a number")
    path = Path(weights)
    if path.suffix in (".pth", ".safetensors") or path.is_file():
        if not path.is_file():
            raise ArgumentError("weights", f"there is no file {path}")
        return path
    here = included_weights()
    wanted = str(weights).lower()
    for name, file in here.items():
        if name.lower() == wanted:
            return file
    by_scale = next((files for name, files in families().items() if name.lower() == wanted), {})
    if scale is None and by_scale:
        scale = min((s for s in by_scale if s >= outscale), default=max(by_scale))
    if scale in by_scale:
        return by_scale[scale]
    names = [*here] if by_scale else [*families(), *here]
    known = ", ".join(names) or f"none (looked in {' and '.join(map(str, FOLDERS))})"
    for_scale = f" at x{scale}" if scale else ""
    problem = f"unknown weights {str(weights)!r}{for_scale}; give a file, or choose from {known}"
    raise ArgumentError("weights", problem)
