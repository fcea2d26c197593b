"""Tables for the terminal, Markdown, LaTeX and CSV."""

import csv
import io
import math

from dlgsanet.evaluation.rows import Row, every_image, summary
from dlgsanet.evaluation.tables import Table, figure

TABLE = Table(["method", "Set5"], [["a_b & 50%", "32.46/0.8984"], ["c|d\\e", "−0.10"]])


def test_figures_have_the_usual_number_of_decimals():
    assert figure("psnr", 32.456) == "32.46"
    assert figure("ssim", 0.89837) == "0.8984"
    assert figure("psnr", math.inf) == "inf"


def test_columns_are_aligned():
    lines = TABLE.text().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("a_b & 50%")
    assert lines[2].endswith("32.46/0.8984")


def test_markdown_and_latex_escape_special_characters():
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


def test_cells_of_a_csv_file_are_no_formulas():
    rows = [["=1+1", "-3.5"], ["@SUM(A1)", "+2"], ["-x", "-"], ["a", "-inf"]]
    text = Table(["method", "score"], rows).csv()
    assert text.splitlines() == ["method,score", "'=1+1,-3.5", "'@SUM(A1),+2", "'-x,-", "a,-inf"]


def test_a_wide_table_is_split():
    header = ["method", *(f"set {i}" for i in range(12))]
    rows = [[f"method number {k}", *["38.00/0.9605"] * 12] for k in range(9)]
    text = Table(header, rows).text(80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("38.00/0.9605") == 9 * 12
    assert text.count("method number 3") == len(text.split("\n\n")) > 1
    assert "\n\n" not in Table(header, rows).text(400)
    assert Table(header, rows).text() == Table(header, rows).text(400)


def test_long_names_leave_room_for_the_scores_in_a_terminal():
    name = "test_SISR_ClassicDIV2K_Tiny_48C3G3B_DLGSANet_SRx2_scratch_img_size_48_lr5e_4"
    table = Table(["data set", "method", "PSNR", "SSIM"], [["Set5", "bicubic", "33.67", "0.9303"]], words=2)
    table = Table(table.header, [*table.rows, ["Set5", name, "38.00", "0.9605"]], words=2)
    text = table.text(80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\n\n" not in text
    assert "  38.00  0.9605" in text
    assert name[:15] in text
    assert name[-15:] in text
    assert name in table.text()
    assert name in table.markdown()
    alike = [[f"{'a' * 100}{k}{'b' * 100}", "38.00"] for k in range(2)]
    assert all(name in Table(["method", "PSNR"], alike).text(80) for name, _ in alike)
