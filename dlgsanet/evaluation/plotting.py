"""Pictures by matplotlib: one place for what they have in common."""

from pathlib import Path
from typing import Any

from dlgsanet.errors import UserError
from dlgsanet.files import written_aside

INK, FRAME = "#1a1c20", "#e8b200"


def new_figure(width: float, height: float, **settings: Any) -> Any:
    """A matplotlib figure of this size in inches; it needs no display.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need the package matplotlib (pip install matplotlib)") from None
    matplotlib.rcParams.update({"font.size": 8, "pdf.fonttype": 42, "text.color": INK})
    return Figure(figsize=(width, height), **settings)


def write_figure(figure: Any, path: Path, dpi: int = 200) -> None:
    """Write .png or .pdf, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with written_aside(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=dpi)
