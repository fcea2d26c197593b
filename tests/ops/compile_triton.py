"""Compile every Triton kernel for an NVIDIA GPU that need not be here: python -m tests.ops.compile_triton 90 bf16.

Prints name, registers of a thread, and bytes of its stack, where spilled registers go. The constants are those of the
largest network.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dlgsanet.archs.sizes import SIZES
from dlgsanet.ops.backends.triton import kernels, steps

NAMES = ("normalise", "normalise_backward", "depthwise", "gate", "gate_backward", "depthwise_backward")
IMAGES = ("x", "out", "grad", "grad_x", "grad_halves", "normalised")
OTHERS = ("bias", "weight", "sums", "scales")
CHANNELS = triton.next_power_of_2(max(options["dim"] for options in SIZES.values()))
CONSTANTS = {
    "EPS": 1e-5,
    "CHANNELS": CHANNELS,
    "PIXELS": steps.NORMALISED // CHANNELS,
    "ROWS": steps.TILE // 64,
    "COLUMNS": 64,
    "TILES": steps.TILES_OF_PROGRAM,
    "ACC": triton.language.float32,
}


def main(architecture: str, dtype: str) -> None:
    tool = Path(triton.__file__).with_name("backends") / "nvidia/bin/cuobjdump"
    for name in NAMES:
        kernel = getattr(kernels, name)
        types = {argument: type_of(argument, dtype) for argument in kernel.arg_names}
        used = {argument: CONSTANTS[argument] for argument, kind in types.items() if kind == "constexpr"}
        options = {"num_warps": steps.WARPS if "CHANNELS" in used else 4}
        source, target = ASTSource(kernel, types, used), GPUTarget("cuda", int(architecture), 32)
        compiled = triton.compile(source, target=target, options=options)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        print(name, *re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())


def type_of(argument: str, dtype: str) -> str:
    if argument in CONSTANTS:
        return "constexpr"
    if argument in IMAGES:
        return f"*{dtype}"
    return "*fp32" if argument in OTHERS else "i32"


if __name__ == "__main__":
    main(*sys.argv[1:])
