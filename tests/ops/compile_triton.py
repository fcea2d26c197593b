"""Compile every Triton kernel for an NVIDIA GPU that need not be here: python -m tests.ops.compile_triton 90 bf16.

Prints name, registers of a thread, and bytes of its stack, where spilled registers go. The constants are those of the
largest network.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dlgsanet.archs.sizes import SIZES
from dlgsanet.ops.backends.triton import kernels, steps, tiles

NORMALISE = ("normalise", "normalise_backward")
PROJECT = ("normalise_project", "gate_project", "attend_locally", "attend")
FILTERS = ("depthwise", "depthwise_in_windows", "gate", "gate_backward", "depthwise_backward")
ATTENTION = ("attention", "attention_backward")  # whose tensors have the dtype of sums
IMAGES = ("x", "y", "out", "shortcut", "filtered", "grad", "grad_x", "grad_halves", "normalised")
WEIGHTS = ("bias", "weight", "projection", "spatial_bias", "spatial_weight", "filter_weight", "temperature")
SUMS = (*WEIGHTS, "sums", "scales", "gram", "grad_gram", "folded")
DIM = max(options["dim"] for options in SIZES.values())
CHANNELS = triton.next_power_of_2(DIM)
SIDES = steps.side_of_head(DIM // 6), steps.WIDEST_HEAD
CONSTANTS = {
    "EPS": 1e-5,
    "CHANNELS": CHANNELS,
    "PIXELS": steps.NORMALISED // CHANNELS,
    "ROWS": steps.TILE // 64,
    "COLUMNS": 64,
    "TILES": steps.TILES_OF_PROGRAM,
    "OUTPUTS": steps.OUTPUTS,
    "PARTS": triton.cdiv(3 * DIM, steps.OUTPUTS),
    "HAS_BIAS": True,
    "BORDER": 3,
    "HEADS": 6,
}
OF_GATE = {
    "ROWS": min(steps.GATED, steps.PROJECTED // CHANNELS) // 32,
    "COLUMNS": 32,
    "TERMS": steps.FEWEST_TERMS,
    "PARTS": triton.cdiv(2 * DIM, steps.FEWEST_TERMS),
}
OF_VALUES = {
    "ROWS": steps.rows_of_values(CHANNELS),
    "COLUMNS": tiles.TILE_COLUMNS,
    "TERMS": steps.FEWEST_TERMS,
    "PARTS": triton.cdiv(DIM, steps.FEWEST_TERMS),
}
FEATURES = DIM // 4
OF_LOCAL = {
    "K": 7,
    "FEATURES": FEATURES,
    "SHARE": 6,
    "TERMS": triton.next_power_of_2(FEATURES + 1),
    "GROUPS": steps.GROUPS,
    "PASSES": triton.cdiv(DIM // 6, steps.GROUPS),
    "TAPS": 64,
    "PIXELS": steps.COLUMNS,
    "PART": steps.FEWEST_TERMS,
    "PARTS": triton.cdiv(DIM, steps.FEWEST_TERMS),
}
OF_PROJECTION = {"gate_project": (OF_GATE, steps.FEWEST_TERMS), "attend_locally": (OF_LOCAL, steps.GROUPS)}
OF_PROJECTION["attend"] = OF_VALUES, steps.FEWEST_TERMS
OF_CONVOLUTION = {
    "ROWS": steps.CONVOLVED // 32,
    "COLUMNS": 32,
    "OUTPUTS": steps.CONVOLVED_TO,
    "WAYS": triton.cdiv(DIM, steps.CONVOLVED_TO),
    "TERMS": steps.FEWEST_TERMS,
    "PARTS": triton.cdiv(DIM, steps.FEWEST_TERMS),
    "WHOLE": False,
    "HAS_BIAS": True,
}
# What comes before and after a convolution: of the first one of a network, of a group's, of the last one.
AROUND = [(True, 0, 1), (False, 2, 1), (False, 1, 4)]
INDICES = {"places": "*i32", "members": "*i32", "offsets": "*i32"}


def main(architecture: str, dtype: str) -> None:
    wide = "fp64" if dtype == "fp64" else "fp32"
    constants = CONSTANTS | {"ACC": getattr(triton.language, wide.replace("fp", "float"))}
    types = dict.fromkeys(IMAGES, f"*{dtype}") | dict.fromkeys(SUMS, f"*{wide}")
    for name in PROJECT if dtype != "fp64" else ():
        for precision in ("ieee", "tf32") if dtype == "fp32" else ("ieee",):
            factor = getattr(triton.language, {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[dtype])
            formed = precision if dtype == "fp32" else "tf32"
            more = {"PRECISION": precision, "FACTOR": factor, "FORMED": formed}
            own, warps = OF_PROJECTION.get(name, ({}, steps.WARPS))
            report(name, types, constants | more | own, warps, architecture)
            for side in SIDES if name == "attend" else ():
                more |= {"SIDE": side, "ROWS": steps.rows_of_sums(side), "COLUMNS": tiles.TILE_COLUMNS}
                report("channel_sums", types, constants | more, steps.warps_of_sums(side), architecture)
    for precision in () if dtype == "fp64" else ("tf32x3", "tf32") if dtype == "fp32" else ("ieee",):
        for mean, to, shuffle in AROUND:
            more = {"PRECISION": precision, "FACTOR": factor, "HAS_MEAN": mean, "TO": to, "SHUFFLE": shuffle}
            factors = dict.fromkeys(("weight", "mean", "to"), f"*{dtype}")
            report("convolve", types | factors, constants | more | OF_CONVOLUTION, 4, architecture)
    for side in SIDES if dtype != "fp64" else ():
        more = {"SIDE": side, "TERMS": side, "PARTS": triton.cdiv(DIM, steps.OUTPUTS)}
        report("fold_attention", types | {"out": f"*{wide}"}, constants | more, steps.warps_of_sums(side), architecture)
    for name in NORMALISE + FILTERS:
        report(name, types, constants, steps.WARPS if name in NORMALISE else 4, architecture)
    for side in (8, 64):
        types = dict.fromkeys([*IMAGES, *SUMS], f"*{wide}")
        for name in ATTENTION:
            report(name, types, constants | {"SIDE": side}, steps.warps_of_head(side), architecture)


def report(name: str, types: dict[str, str], constants: dict[str, Any], warps: int, architecture: str) -> None:
    kernel = getattr(kernels, name)
    types = types | INDICES
    if name in ("channel_sums", "attend"):  # elsewhere `tiles` is a number
        types |= {"tiles": "*i32"}
    signature = {a: "constexpr" if a in constants else types.get(a, "i32") for a in kernel.arg_names}
    used = {argument: constants[argument] for argument, kind in signature.items() if kind == "constexpr"}
    source, target = ASTSource(kernel, signature, used), GPUTarget("cuda", int(architecture), 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    tool = Path(triton.__file__).with_name("backends") / "nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    print(name, *re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())


if __name__ == "__main__":
    main(*sys.argv[1:])
