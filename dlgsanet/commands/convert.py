"""`dlgsanet convert`: weights between .pth, as the published code has them, and .safetensors, with options inside."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlgsanet.commands.arguments import ArgumentParser
from dlgsanet.errors import UserError, within

if TYPE_CHECKING:
    from dlgsanet.archs.checkpoint import Checkpoint

EXAMPLES = """\
examples:
  dlgsanet convert net_g_latest.pth mine.safetensors --metadata data=DIV2K
  dlgsanet convert published.pth mine.safetensors -opt options/test/FILE.yml
  dlgsanet convert mine.safetensors mine.pth
  dlgsanet convert tuned.pth mine.safetensors --average plain.safetensors=0.15

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
    add("--key", choices=("params", "params_ema"), help="weights of each .pth to take; default: params_ema if there")
    add("--metadata", action="append", default=[], metavar="KEY=VALUE", help="an entry to add to the new file")
    add("--average", metavar="FILE=SHARE", help="mix in a share, from 0 to 1, of another file's weights")
    args = parser.parse_args(argv)

    from dlgsanet.archs.checkpoint import build_network, network_options, read_checkpoint, write_checkpoint

    network = {"network_g": _network_options_of(args.opt)} if args.opt else {}
    checkpoint = read_checkpoint(args.source, args.key)
    checkpoint = replace(checkpoint, metadata=checkpoint.metadata | network)
    entries = dict(_key_and_value(text) for text in args.metadata)
    options = network_options(checkpoint)
    build_network(checkpoint)  # or the new file could not be used
    if args.average:
        checkpoint = _averaged(checkpoint, options, args.average, args.key)
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


def _averaged(checkpoint: "Checkpoint", options: dict[str, Any], text: str, key: str | None) -> "Checkpoint":
    """The weights, with a share of another file's. `text` is FILE=SHARE."""
    from dlgsanet.archs.checkpoint import build_network, network_options, read_checkpoint

    file, _, number = text.rpartition("=")
    share = -1.0
    with suppress(ValueError):
        share = float(number)
    if not (file and 0 <= share <= 1):
        raise UserError(f"--average: {text!r} is not FILE=SHARE with a share from 0 to 1")
    other = read_checkpoint(Path(file), key)
    if network_options(other) != options:
        raise UserError(f"--average: {file}: its weights are of another network than those of FROM")
    build_network(other)  # it has all of them, and no others
    state = {name: value.lerp(other.state[name].to(value.dtype), share) for name, value in checkpoint.state.items()}
    return replace(checkpoint, state=state, metadata=checkpoint.metadata | {"average": f"{share:g} of {file}"})


def _network_options_of(path: Path) -> str:
    import json

    from dlgsanet.options.parse import load_yaml

    with within("-opt"):
        options = load_yaml(path).get("network_g")
    if isinstance(options, dict) and options.get("type", "DLGSANet") != "DLGSANet":
        raise UserError(f"-opt: {path}: its network is {options['type']}; convert takes only weights of a DLGSANet")
    try:
        return json.dumps(dict(options))  # type: ignore[arg-type]  # refused below
    except (ValueError, TypeError):
        raise UserError(f"-opt: {path}: not an option file with a network_g section") from None
