"""A table of words and figures, written for the terminal, Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Decimals that the field prints of each metric; others get four.
_DECIMALS = {"psnr": 2, "psnr_rgb": 2, "ssim": 4, "ssim_rgb": 4}


def figure(metric: str, value: float | None) -> str:
    """A score as tables show it: `32.46`, `0.8984`; an infinite PSNR (None in JSON) is `inf`."""
    return "inf" if value is None or math.isinf(value) else f"{value:.{_DECIMALS.get(metric, 4)}f}"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `words` columns are words, the others figures."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def text(self) -> str:
        """For the terminal: aligned columns, a rule under the header."""
        widths = [max(len(row[i]) for row in [self.header, *self.rows]) for i in range(len(self.header))]
        rule = ["─" * width for width in widths]
        return "\n".join("  ".join(self._aligned(row, widths)).rstrip() for row in [self.header, rule, *self.rows])

    def markdown(self) -> str:
        rule = ["---" if i < self.words else "---:" for i in range(len(self.header))]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in [self.header, rule, *self.rows]]
        return "".join(f"| {' | '.join(row)} |\n" for row in cells)

    def latex(self) -> str:
        """A `tabular` in the manner of the `booktabs` package."""
        columns = "l" * self.words + "r" * (len(self.header) - self.words)
        header, *rows = (" & ".join(map(_tex, row)) + r" \\" for row in [self.header, *self.rows])
        parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule"]
        return "\n".join([*parts, r"\end{tabular}", ""])

    def csv(self) -> str:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.header, *self.rows])
        return buffer.getvalue()

    def _aligned(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            cell.ljust(width) if i < self.words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]


_TEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "−": "$-$"}
)


def _tex(cell: str) -> str:
    return cell.translate(_TEX)
