"""A table of text and numbers for the terminal, Markdown, LaTeX and CSV."""

import csv
import io
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

# Decimals with which papers print each metric; others have four.
_DECIMALS = {"psnr": 2, "psnr_rgb": 2, "ssim": 4, "ssim_rgb": 4}


def figure(metric: str, value: float | None) -> str:
    """A score as tables show it: `32.46`, `0.8984`; an infinite PSNR (None in JSON) is `inf`."""
    return "inf" if value is None or math.isinf(value) else f"{value:.{_DECIMALS.get(metric, 4)}f}"


@dataclass(frozen=True)
class Table:
    """Cells as text. The first `words` columns are left-aligned text, the others right-aligned numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def text(self, width: int | None = None) -> str:
        """For the terminal: aligned columns, a rule under the header.

        A table that is wider than `width` is split into tables of as many columns as fit, one below the other. Text
        that takes more than half of the width loses its middle.
        """
        return self._in_parts() if width is None else self._abbreviated(width // 2)._in_parts(width)

    def _abbreviated(self, most: int) -> "Table":
        """With text of at most so many characters, as long as different cells of a column stay different."""
        columns = list(zip(*self.rows, strict=True))
        for i, cells in enumerate(columns[: self.words]):
            short = tuple(c if len(c) <= most else f"{c[: most // 2 - 1]}…{c[-(most - most // 2) :]}" for c in cells)
            columns[i] = short if len(set(short)) == len(set(cells)) else cells
        return Table(self.header, list(zip(*columns, strict=True)), self.words)

    def _in_parts(self, width: int | None = None) -> str:
        widths = [max(len(row[i]) for row in [self.header, *self.rows]) for i in range(len(self.header))]
        room = float("inf") if width is None else width - sum(w + 2 for w in widths[: self.words]) + 2
        parts: list[list[int]] = [[]]
        for i in range(self.words, len(self.header)):
            if parts[-1] and sum(widths[k] + 2 for k in [*parts[-1], i]) > room:
                parts.append([])
            parts[-1].append(i)
        return "\n\n".join(self._part(columns)._aligned_text() for columns in parts)

    def _part(self, columns: Sequence[int]) -> "Table":
        """The text columns and these columns, without rows that are empty in them."""
        chosen = [*range(self.words), *columns]
        rows = [row for row in self.rows if any(row[i] for i in columns)] if columns else self.rows
        return Table([self.header[i] for i in chosen], [[row[i] for i in chosen] for row in rows], self.words)

    def _aligned_text(self) -> str:
        widths = [max(len(row[i]) for row in [self.header, *self.rows]) for i in range(len(self.header))]
        rule = ["─" * width for width in widths]
        return "\n".join("  ".join(self._aligned(row, widths)).rstrip() for row in [self.header, rule, *self.rows])

    def markdown(self) -> str:
        rule = ["---" if i < self.words else "---:" for i in range(len(self.header))]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in [self.header, rule, *self.rows]]
        return "".join(f"| {' | '.join(row)} |\n" for row in cells)

    def latex(self) -> str:
        """A `tabular` for the package `booktabs`."""
        columns = "l" * self.words + "r" * (len(self.header) - self.words)
        header, *rows = (" & ".join(map(_tex, row)) + r" \\" for row in [self.header, *self.rows])
        parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule"]
        return "\n".join([*parts, r"\end{tabular}", ""])

    def csv(self) -> str:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([map(_csv, row) for row in [self.header, *self.rows]])
        return buffer.getvalue()

    def _aligned(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            cell.ljust(width) if i < self.words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]


def terminal_width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def _csv(cell: str) -> str:
    """Spreadsheets evaluate a cell that begins with one of these characters. An apostrophe makes it text."""
    if not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}" if cell != "-" else cell
    return cell


_TEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "−": "$-$"}
)


def _tex(cell: str) -> str:
    return cell.translate(_TEX)
