"""`dlgsanet export`: write the network for onnxruntime, or for PyTorch without this project."""

from pathlib import Path

from dlgsanet.commands.arguments import ArgumentParser, add_weights

EXAMPLES = """\
examples:
  dlgsanet export --weights Tiny --scale 4 -o tiny_x4.onnx
  dlgsanet export --weights mine.safetensors --precision fp16 -o mine_fp16.onnx
  dlgsanet export --weights Tiny -o tiny_x2.pt2   (for torch.export.load)
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        "dlgsanet export",
        description="Write a network as ONNX or torch.export, for images of every size, and check what was written.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="a name that ends in .onnx or .pt2")
    add_weights(parser)
    add("--precision", choices=("fp32", "fp16"), default="fp32", help="fp16: half the size; norms stay in fp32; "
        "default: fp32")  # fmt: skip
    args = parser.parse_args(argv)

    from dlgsanet.archs.checkpoint import build_network
    from dlgsanet.inference.export import TOLERANCE, export
    from dlgsanet.inference.loading import load_checkpoint
    from dlgsanet.progress import stage

    checkpoint = load_checkpoint(args.weights, args.scale)
    network = build_network(checkpoint)
    difference = export(network, args.output, args.precision, checkpoint.metadata, stage)
    print(f"{args.output}: within {difference:.1e} of PyTorch (allowed: {TOLERANCE[args.precision]:.0e})")
    return 0
