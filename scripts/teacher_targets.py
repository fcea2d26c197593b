"""Write what a trained network makes of the LR images of a data root, as HR images to train another network on.

  python scripts/teacher_targets.py datasets/Photos542 --scale 4 --weights SMFANetplus_DF2K_x4.pth \\
    --network '{type: SMFANet, upscaling_factor: 4}' --import docs/examples/smfanet.py

writes datasets/Photos542/Teacher/X4; name it in a training file as `dataroot_gt`. Unlike `train.teacher_opt`, the
teacher computes each image once, not once for each crop, and as a whole, and `--self-ensemble` can be used. Images that
are there already are not computed again; targets of other weights or another share are refused.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

import dlgsanet.plugin  # noqa: F401  # registers the networks
from dlgsanet.archs.sizes import SCALES
from dlgsanet.cli import run
from dlgsanet.commands.arguments import add_import
from dlgsanet.data.images import png_bytes
from dlgsanet.data.layout import check_recipe, write_recipe
from dlgsanet.data.pairs import Pair, find_pairs_in
from dlgsanet.data.parallel import for_each, in_one_line
from dlgsanet.device import find_device
from dlgsanet.errors import UserError, brief, reason_of
from dlgsanet.evaluation.networks import network_class
from dlgsanet.extensions import import_all
from dlgsanet.files import write_whole
from dlgsanet.inference.self_ensemble import Network, self_ensemble
from dlgsanet.memory import is_out_of_memory
from dlgsanet.models.teacher import build_teacher
from dlgsanet.options.parse import parse_yaml
from dlgsanet.pictures.reading import UnreadableImageError


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="a data root, as `dlgsanet data` makes it")
    parser.add_argument("--scale", type=int, choices=SCALES, required=True)
    parser.add_argument("--weights", required=True, help="of the teacher: .pth or .safetensors")
    parser.add_argument("--network", help="its class and arguments, as in `network_g`")
    parser.add_argument("--share", type=float, default=1.0, help="of the teacher; the rest is the HR image; default: 1")
    parser.add_argument("--self-ensemble", action="store_true", help="average over 8 flips and transposes")
    parser.add_argument("--device", help="default: the GPU if there is one")
    add_import(parser)
    arguments = parser.parse_args(argv)
    if not 0 < arguments.share <= 1:
        parser.error("--share: a number above 0, at most 1, is expected")
    import_all(arguments.imports)
    network = parse_yaml(arguments.network, "--network") if arguments.network else None
    if network:
        network_class(network, "--network")
    device = find_device(arguments.device)
    teacher = build_teacher({"path": arguments.weights, "network": network}, arguments.scale, device)
    if arguments.self_ensemble:
        teacher = self_ensemble(teacher)
    folder = arguments.root / "Teacher" / f"X{arguments.scale}"
    pairs = find_pairs_in(arguments.root, arguments.scale)
    digest = hashlib.sha256(Path(arguments.weights).read_bytes()).hexdigest()[:16]
    how = f"weights {digest} ({Path(arguments.weights).name}), network {network}, share {arguments.share:g}"
    how += ", self-ensemble" * arguments.self_ensemble
    check_recipe(folder, how, "remove it to make it again")
    written = write_targets(pairs, folder, teacher, arguments.scale, arguments.share, device, how)
    print(f"{folder}: {written} written, {len(pairs) - written} were there")
    return 0


def write_targets(
    pairs: list[Pair], folder: Path, teacher: Network, scale: int, share: float, device: torch.device, how: str
) -> int:
    """Write the target of each pair: `share` times the teacher's output plus `1 - share` times the HR image.

    `how` is the recipe of the folder.

    Returns:
        How many were written; those that were there already are left as they are.

    Raises:
        UserError: images that cannot be read, or that the teacher refuses (names them).
    """
    one_at_a_time = Lock()  # in memory of the device; files are read and written meanwhile

    def write(pair: Pair) -> bool:
        path = folder / f"{pair.name}.png"
        if path.exists():
            return False
        lr, hr = (torch.from_numpy(image.transpose(2, 0, 1).copy())[None] for image in pair.read(scale))
        with one_at_a_time, refusals_name(pair):
            target = blend(teacher(lr.to(device) / 255), hr, share)
        write_recipe(folder, how)
        write_whole(path, png_bytes(target.numpy(), compress_level=1))
        return True

    written, failures = for_each(write, pairs, folder.name)
    if failures:
        raise UserError(f"images without a target ({len(failures)}): {in_one_line(failures)}")
    return sum(written)


@contextmanager
def refusals_name(pair: Pair) -> Iterator[None]:
    """Networks raise all kinds of errors for sizes that they do not take."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"{pair.lq.name}: memory ran out ({brief(error, 200)}); leave out large images") from error
        raise UnreadableImageError(f"{pair.lq.name}: the teacher cannot take it: {reason_of(error, 200)}") from error


def blend(output: Tensor, hr: Tensor, share: float) -> Tensor:
    """uint8 [H, W, 3] of a network's output [1, 3, H, W] in [0, 1] and an HR image, uint8 [1, 3, H, W].

    Raises:
        ValueError: the output is of another size, or not finite.
    """
    if output.shape != hr.shape:
        raise ValueError(f"it makes {list(output.shape)} where {list(hr.shape)} is expected")
    if not output.isfinite().all():
        raise ValueError("its output is not finite")
    target = torch.lerp(hr.to(output.device) / 255, output.clamp(0, 1), share)
    return (target[0] * 255).round().byte().permute(1, 2, 0).cpu()


if __name__ == "__main__":
    sys.exit(run("__main__:main", sys.argv[1:]))
