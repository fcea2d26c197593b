"""Compile the CUDA kernels of the dynamic convolution and print what they take of a GPU, without one.

python scripts/kernels_gpu.py                                 Tiny, float32, for sm_80, sm_90 and sm_120
python scripts/kernels_gpu.py --size Large --dtype bfloat16 --architectures sm_86

Registers and spilled bytes are those of the compiler. Warps per multiprocessor follow from them, from the threads and
from the shared memory of a block (CUDA's occupancy rules). Waves: blocks of the launch, divided by those that all
multiprocessors of a card hold at once.
"""

import argparse
import re
import sys
from typing import NamedTuple
from unittest import mock

import torch

from dlgsanet.archs.sizes import SIZES, size_options
from dlgsanet.ops.backends import cuda
from dlgsanet.ops.backends.cuda import first_use
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.modules import Instance
from dlgsanet.ops.records import FusedDynamicConv


class Card(NamedTuple):
    """Of a multiprocessor and a card; from the CUDA programming guide and the data sheets."""

    shared: int  # KB of shared memory of a multiprocessor; a block has at most one less
    warps: int  # that a multiprocessor holds
    blocks: int
    multiprocessors: int


CARDS = {
    "sm_75": Card(64, 32, 16, 68),  # RTX 2080 Ti
    "sm_80": Card(164, 64, 32, 108),  # A100
    "sm_86": Card(100, 48, 16, 82),  # RTX 3090
    "sm_89": Card(100, 48, 24, 128),  # RTX 4090
    "sm_90": Card(228, 64, 32, 132),  # H100
    "sm_120": Card(100, 48, 24, 170),  # RTX 5090
}
REGISTERS = 64 << 10  # of a multiprocessor, given to warps in units of 256
COMPILED = re.compile(r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", re.S)


class Launch(NamedTuple):
    instance: Instance
    kernel: str
    blocks: int
    threads: int
    shared_bytes: int


def launches(size: str, dtype: torch.dtype, architecture: str, batch: int, height: int, width: int) -> list[Launch]:
    """Every launch of a network's dynamic convolution, forward (without and with tensor cores) and backward."""
    found: list[Launch] = []

    class Recorder:
        def __init__(self, instance: Instance, device: torch.device):
            self.instance = instance

        def launch(self, kernel: str, blocks: int, threads: int, shared_bytes: int, *args: object) -> None:
            found.append(Launch(self.instance, kernel, blocks, threads, shared_bytes))

    options = size_options(size, 2)
    channels, groups, window = options["dim"], options["dim"] // 6, 7
    features = channels // 4
    x = torch.empty(batch, channels, height, width, dtype=dtype, device="meta")
    z = torch.empty(batch, features, height, width, dtype=dtype, device="meta")
    weight = torch.empty(groups * window**2, features, device="meta")
    convolution = FusedDynamicConv(z, weight, weight[:, 0].contiguous(), window)
    cuda.plan.cache_clear()
    with (
        mock.patch.object(cuda_modules, "load", Recorder),
        mock.patch.object(cuda_modules, "shared_memory_limit", return_value=CARDS[architecture].shared - 1 << 10),
        mock.patch.object(cuda_modules, "capability", return_value=divmod(int(architecture[3:]), 10)),
        mock.patch.object(first_use, "refused", return_value=None),
    ):
        for tf32 in (False, True):
            with mock.patch.object(cuda, "tf32_allowed", return_value=tf32):
                cuda.BACKEND.convolve(convolution, x)
        cuda.BACKEND.convolve_backward(convolution, x, x)
    cuda.plan.cache_clear()
    return list(dict.fromkeys(found))


def warps(launch: Launch, registers: int, card: Card) -> int:
    """Most warps of a kernel that a multiprocessor holds."""
    of_block = -(-launch.threads // 32)
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256) // of_block
    by_shared = (card.shared << 10) // (launch.shared_bytes + 1024)
    return of_block * min(by_registers, by_shared, card.warps // of_block, card.blocks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="Tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "float64"], default="float32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image", default="64x64", metavar="WxH", help="of the convolution's input; default 64x64")
    parser.add_argument("--architectures", nargs="+", choices=list(CARDS), default=["sm_80", "sm_90", "sm_120"])
    args = parser.parse_args()
    width, height = map(int, args.image.split("x"))
    print("| | kernel | registers | spilled bytes | KB shared | warps | blocks | waves |")
    print("|---|---|---|---|---|---|---|---|")
    for architecture in args.architectures:
        card, used = CARDS[architecture], {}
        for launch in launches(args.size, getattr(torch, args.dtype), architecture, args.batch, height, width):
            if launch.instance not in used:
                _, log = cuda_modules.compile_instance(launch.instance, architecture, "--ptxas-options=-v")
                used[launch.instance] = {name: (int(r), int(s)) for name, s, r in COMPILED.findall(log)}
            registers, spilled = used[launch.instance][launch.kernel]
            held = warps(launch, registers, card)
            at_once = held * 32 // launch.threads * card.multiprocessors
            print(
                f"| {architecture} | {launch.kernel} | {registers} | {spilled} | {launch.shared_bytes / 1024:.0f} | "
                f"{held} | {launch.blocks} | {launch.blocks / at_once:.1f} |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
