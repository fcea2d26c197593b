"""`dlgsanet export`: the network for onnxruntime, and for PyTorch without this project."""

import argparse
from pathlib import Path

from dlgsanet.commands.arguments import ArgumentParser

EXAMPLES = """\
examples:
  dlgsanet export --weights Tiny --scale 4 -o tiny_x4.onnx
  dlgsanet export --weights mine.safetensors --precision fp16 -o mine_fp16.onnx
  dlgsanet export --weights Tiny -o tiny_x2.pt2        (torch.export.load reads it)
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        "dlgsanet export",
        description="Write a network as ONNX or torch.export, for images of every size, and run what was written.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="ends in .onnx or .pt2")
    add("--weights", default="Tiny", metavar="FILE|NAME", help="a .safetensors or .pth file, or Tiny, Light, Large")
    add("--scale", type=int, choices=(2, 3, 4), help="the network's enlargement (default: what the weights have)")
    add("--precision", choices=("fp32", "fp16"), default="fp32", help="fp16: half the size; norms stay in fp32")
    args = parser.parse_args(argv)

    from dlgsanet.archs.checkpoint import build_network
    from dlgsanet.inference.export import TOLERANCE, export
    from dlgsanet.inference.loading import load_checkpoint

    checkpoint = load_checkpoint(args.weights, args.scale)
    difference = export(build_network(checkpoint), args.output, args.precision, checkpoint.metadata)
    print(f"{args.output}: within {difference:.1e} of PyTorch (at most {TOLERANCE[args.precision]:.0e} is allowed)")
    return 0
