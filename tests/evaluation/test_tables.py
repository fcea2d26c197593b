"""Tables for the terminal, Markdown, LaTeX and CSV."""

import csv
import io
import math

from dlgsanet.evaluation.rows import Row, every_image, summary
from dlgsanet.evaluation.tables import Table, figure

TABLE = Table(["method", "Set5"], [["a_b & 50%", "32.46/0.8984"], ["c|d\\e", "−0.10"]])


def test_figures_have_the_fields_decimals():
    assert figure("psnr", 32.456) == "32.46"
    assert figure("ssim", 0.89837) == "0.8984"
    assert figure("psnr", math.inf) == "inf"


def test_columns_are_aligned():
    lines = TABLE.text().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("a_b & 50%")
    assert lines[2].endswith("32.46/0.8984")


def test_markdown_and_latex_escape_what_would_break_them():
    markdown = TABLE.markdown().splitlines()
    assert markdown[1] == "| --- | ---: |"
    assert markdown[3] == "| c\\|d\\e | −0.10 |"
    latex = TABLE.latex()
    assert r"a\_b \& 50\% & 32.46/0.8984 \\" in latex
    assert r"c|d\textbackslash{}e & $-$0.10 \\" in latex
    assert r"\begin{tabular}{lr}" in latex


def test_csv_reads_back():
    assert list(csv.reader(io.StringIO(TABLE.csv()))) == [list(TABLE.header), *map(list, TABLE.rows)]


def test_means_are_of_images():
    rows = [Row("Set5", name, "A", {"psnr": value}) for name, value in (("x", 30.0), ("y", 33.0))]
    assert summary(rows, ["psnr"]).rows == [["Set5", "A", "31.50"]]
    assert every_image(rows, ["psnr"]).rows[-1] == ["Set5", "mean", "A", "31.500000"]
