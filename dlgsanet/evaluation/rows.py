"""Scores of single pictures, their means, and the tables made of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from dlgsanet.evaluation.tables import Table, figure

BICUBIC = "bicubic"
MEAN = "mean"


@dataclass(frozen=True)
class Row:
    """The scores (metric -> value) of one picture of a test set by one method."""

    dataset: str
    image: str
    method: str
    scores: dict[str, float]


def means(rows: Iterable[Row]) -> list[Row]:
    """One row for each test set and method, in the order of their first rows, with the mean of every metric."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.method), []).append(row)
    return [
        Row(dataset, MEAN, method, {name: fmean(row.scores[name] for row in group) for name in group[0].scores})
        for (dataset, method), group in groups.items()
    ]


def summary(rows: Sequence[Row], metrics: Sequence[str]) -> Table:
    """The means: a line for each test set and method, a column for each metric."""
    lines = [[r.dataset, r.method, *(figure(m, r.scores[m]) for m in metrics)] for r in means(rows)]
    return Table(["data set", "method", *(m.upper() for m in metrics)], lines, words=2)


def every_image(rows: Sequence[Row], metrics: Sequence[str]) -> Table:
    """Every picture's scores in full precision, then the means: what a CSV file is for."""
    lines = [[r.dataset, r.image, r.method, *(f"{r.scores[m]:.6f}" for m in metrics)] for r in [*rows, *means(rows)]]
    return Table(["data set", "image", "method", *metrics], lines, words=3)
