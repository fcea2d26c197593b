"""`dlgsanet figure`: the benchmark's crops for a paper."""

from pathlib import Path

from dlgsanet.commands.arguments import ArgumentParser, whole_number

EXAMPLES = """examples:
  dlgsanet figure Set5/butterfly Urban100/img004 --scale 4 -o comparison
  dlgsanet figure Set14/comic --scale 4 --crop 40 120 64 \\
    --methods bicubic EDSR DLGSANet_Tiny_x4
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="dlgsanet figure",
        description="Draw pictures of a finished benchmark: the whole with a rectangle, and the crop of every method "
        "with its name and the whole picture's PSNR and SSIM on Y. Writes PDF and PNG.",
        epilog=EXAMPLES,
    )
    parser.add_argument("images", nargs="+", metavar="SET/IMAGE", help="which pictures, one below the other")
    parser.add_argument("--scale", type=whole_number(), required=True, help="scale of the benchmark's results")
    parser.add_argument("--results", type=Path, default=Path("results/benchmark"), help="default: %(default)s")
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder of the test sets; default: where the benchmark read them"
    )
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="methods to show, in this order; default: all")
    parser.add_argument(
        "--crop",
        type=whole_number(0),
        nargs=3,
        metavar=("X", "Y", "SIDE"),
        help="left, top and side in output pixels, multiples of the scale; default: where the networks differ most",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("figure"), help="name without .pdf and .png; default: %(default)s"
    )
    arguments = parser.parse_args(argv)

    from dlgsanet.errors import UserError
    from dlgsanet.evaluation.crops import Crop
    from dlgsanet.evaluation.figure import panel_files, read_panel, write_panels
    from dlgsanet.files import check_can_write, printable

    output = arguments.output
    if output.suffix.lower() in (".pdf", ".png"):
        output = output.with_suffix("")
    for path in panel_files(output):
        check_can_write(path)
    scale, crop = arguments.scale, Crop(*arguments.crop) if arguments.crop else None
    if crop and (crop.side < 1 or any(v % scale for v in (crop.x, crop.y, crop.side))):
        raise UserError(f"--crop: {crop.x} {crop.y} {crop.side} must be multiples of the scale, {scale}")
    methods = [printable(name) for name in arguments.methods or ()] or None
    panels = []
    for which in arguments.images:
        name, slash, image = printable(which).partition("/")
        if not slash:
            raise UserError(f"{which}: write SET/IMAGE, e.g. Set5/butterfly")
        panels.append(read_panel(arguments.results, name, scale, image, methods, crop, arguments.data_root))
    print(*write_panels(panels, output), sep="\n")
    return 0
