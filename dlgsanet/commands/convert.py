"""`dlgsanet convert`: weights between .pth, as the published code has them, and .safetensors, with options inside."""

from dataclasses import replace
from pathlib import Path

from dlgsanet.commands.arguments import ArgumentParser
from dlgsanet.errors import UserError

EXAMPLES = """\
examples:
  dlgsanet convert net_g_latest.pth mine.safetensors --metadata data=DIV2K
  dlgsanet convert published.pth mine.safetensors -opt options/test/FILE.yml
  dlgsanet convert mine.safetensors mine.pth

A .pth of the published code does not hold its options. Most of them follow from
the shapes of the weights. The rest (activation, tlc_kernel, sparseedge or edge,
img_range) take the published values, unless an option file is given.
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        "dlgsanet convert",
        description="Convert weights between .pth and .safetensors, names and values kept.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("source", type=Path, metavar="FROM", help="a .pth or .safetensors file")
    add("target", type=Path, metavar="TO", help="a .pth or .safetensors file")
    add("-opt", type=Path, metavar="FILE", help="the option file whose network_g the weights belong to")
    add("--key", choices=("params", "params_ema"), help="which weights of a .pth (default: params_ema if it has them)")
    add("--metadata", action="append", default=[], metavar="KEY=VALUE", help="an entry to add to the new file")
    args = parser.parse_args(argv)

    from dlgsanet.archs.checkpoint import build_network, network_options, read_checkpoint, write_checkpoint

    checkpoint = read_checkpoint(args.source, args.key)
    entries = dict(_key_and_value(text) for text in args.metadata)
    if args.opt:
        checkpoint = replace(checkpoint, metadata=checkpoint.metadata | {"network_g": _network_options_of(args.opt)})
    options = network_options(checkpoint)
    build_network(checkpoint)  # or the new file could not be used
    entries = {"scale": str(options["upscale"]), **checkpoint.metadata, **entries}
    write_checkpoint(args.target, checkpoint.state, options, entries)
    print(f"{args.target}: {len(checkpoint.state)} tensors, x{options['upscale']}")
    return 0


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UserError(f"--metadata: {text!r} is not KEY=VALUE")
    if key in ("network_g", "scale"):
        raise UserError(f"--metadata: {key} follows from the weights; leave it out")
    return key, value


def _network_options_of(path: Path) -> str:
    import json

    import yaml

    try:
        options = yaml.safe_load(path.read_text())["network_g"]
        return json.dumps(dict(options))
    except OSError as error:
        raise UserError(f"-opt: {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError):
        raise UserError(f"-opt: {path}: not an option file with a network_g section") from None
