"""Compile Triton kernels for a GPU that need not be here: python -m tests.ops.compile_triton 90 bf16 kernels.

The first argument is a compute capability, or an architecture of AMD such as gfx942. The last one is their module:
kernels or gradient_kernels. Prints name, registers of a thread, bytes of its stack, where spilled registers go, and
bytes of shared memory. The constants are those of the largest network.
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
from dlgsanet.ops.backends.triton import gradient_kernels, kernels, steps, tiles, training

NORMALISE = ("normalise",)
PROJECT = ("normalise_project", "gate_project", "attend_locally", "attend")
FILTERS = ("depthwise", "depthwise_in_windows", "gate")
ATTENTION = ("attention",)  # whose tensors have the dtype of sums
IMAGES = ("x", "y", "out", "shortcut", "filtered")
WEIGHTS = ("bias", "weight", "projection", "spatial_bias", "spatial_weight", "filter_weight", "temperature")
SUMS = (*WEIGHTS, "sums", "gram", "folded")
DIM = max(options["dim"] for options in SIZES.values())
CHANNELS = triton.next_power_of_2(DIM)
SIDES = steps.side_of_head(DIM // 6), steps.WIDEST_HEAD
CONSTANTS = {
    "EPS": 1e-5,
    "CHANNELS": CHANNELS,
    "PIXELS": steps.NORMALISED // CHANNELS,
    "ROWS": steps.TILE // 64,
    "COLUMNS": 64,
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
OF_AMD = "vgpr_count", "private_segment_fixed_size"  # registers of a thread, and bytes of its stack
INDICES = {"places": "*i32", "members": "*i32", "offsets": "*i32"}


FACTORS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
IMAGES_OF_GRADIENTS = ("x", "out", "shortcut", "squeezed", "grad", "grad_x", "grad_halves", "grad_features")
IMAGES_OF_GRADIENTS += "grad_values", "grad_squeezed", "projected"


def gradients(architecture: str, dtype: str) -> None:
    parts = triton.cdiv(2 * DIM, steps.FEWEST_TERMS)
    constants = CONSTANTS | {"ROUNDS": 3, "TERMS": steps.FEWEST_TERMS, "PARTS": parts, "COLUMNS": training.COLUMNS}
    constants |= {"ACC": triton.language.float32}

    def compile(name: str, warps: int = training.WARPS, **more: Any) -> None:
        kernel = getattr(gradient_kernels, name)
        types = {a: f"*{dtype}" if a in IMAGES_OF_GRADIENTS else "*fp32" for a in kernel.arg_names}
        types |= dict.fromkeys(kernel.do_not_specialize, "i32")
        report(kernel, types, constants | more, warps, architecture)

    sides = SIDES[0], training.WIDEST_HEAD
    for side in sides:
        of_head = {"SIDE": side, "TERMS": side, "PARTS": triton.cdiv(DIM, steps.OUTPUTS)}
        compile("fold", steps.warps_of_sums(side), **of_head)
        compile("fold_backward", steps.warps_of_sums(side), **of_head)
    compile("add_up", 4, ROWS=16, COLUMNS=training.SUMMED)
    amd = is_amd(architecture)
    for precision in ("tf32x3", "tf32") if dtype == "fp32" and not amd else ("ieee",):
        factors = {"PRECISION": precision, "FACTOR": getattr(triton.language, FACTORS[dtype])}
        columns = training.COLUMNS * (2 if precision == "tf32x3" else 1)  # which halves the rows
        factors["ROWS"] = max(1, training._pixels_at_once(DIM) // columns)
        exact = precision.replace("tf32x3", "ieee")
        of_products = {"PRECISION": exact if dtype == "fp32" or amd else "tf32", "FACTOR": triton.language.float32}
        for features in (0, triton.next_power_of_2(FEATURES)):
            sizes = {"FEATURES": features, "BORDER": not features}
            compile("project", PIXELS=training._at_once(training.PROJECTED, factors) // CHANNELS, **factors | sizes)
        compile("gate_project", steps.FEWEST_TERMS, **factors | {"ROWS": steps.rows_of_values(CHANNELS)})
        fewer = precision == "tf32x3" and architecture != "90"  # see `training._pixels_of_parts`
        of_parts = factors | {"ROWS": max(1, factors["ROWS"] // (1 + fewer))}
        compile("gate_project_backward", **of_parts)
        for side in sides:
            of_head = {"SIDE": side, "ROWS": max(1, training.FILTERED // (2 * side) // columns)}
            compile("products", **factors | of_head | {"PRECISION": exact})
            compile("products_backward", **of_products | of_head)
        compile("attend", steps.FEWEST_TERMS, **factors | {"ROWS": steps.rows_of_values(CHANNELS)})
        compile("attend_backward", **of_parts)
        for name in ("filter_project_backward", "project_backward", "squeeze_project_backward"):
            compile(name, FEATURES=triton.next_power_of_2(FEATURES), **factors)


def main(architecture: str, dtype: str, module: str) -> None:
    if module == "gradient_kernels":
        return gradients(architecture, dtype)
    wide = "fp64" if dtype == "fp64" else "fp32"
    constants = CONSTANTS | {"ACC": getattr(triton.language, wide.replace("fp", "float"))}
    types = dict.fromkeys(IMAGES, f"*{dtype}") | dict.fromkeys(SUMS, f"*{wide}")
    amd = is_amd(architecture)
    for name in PROJECT if dtype != "fp64" else ():
        for precision in ("ieee", "tf32") if dtype == "fp32" and not amd else ("ieee",):
            factor = getattr(triton.language, FACTORS[dtype])
            formed = precision if dtype == "fp32" or amd else "tf32"
            more = {"PRECISION": precision, "FACTOR": factor, "FORMED": formed}
            own, warps = OF_PROJECTION.get(name, ({}, steps.WARPS))
            report(getattr(kernels, name), types, constants | more | own, warps, architecture)
            for side in SIDES if name == "attend" else ():
                more |= {"SIDE": side, "ROWS": steps.rows_of_sums(side), "COLUMNS": tiles.TILE_COLUMNS}
                report(kernels.channel_sums, types, constants | more, steps.warps_of_sums(side), architecture)
    for precision in () if dtype == "fp64" else ("tf32x3", "tf32") if dtype == "fp32" and not amd else ("ieee",):
        for mean, to, shuffle in AROUND:
            more = {"PRECISION": precision, "FACTOR": factor, "HAS_MEAN": mean, "TO": to, "SHUFFLE": shuffle}
            factors = dict.fromkeys(("weight", "mean", "to"), f"*{dtype}")
            report(kernels.convolve, types | factors, constants | more | OF_CONVOLUTION, 4, architecture)
    for side in SIDES if dtype != "fp64" else ():
        more = {"SIDE": side, "TERMS": side, "PARTS": triton.cdiv(DIM, steps.OUTPUTS)}
        report(
            kernels.fold_attention,
            types | {"out": f"*{wide}"},
            constants | more,
            steps.warps_of_sums(side),
            architecture,
        )
    for name in NORMALISE + FILTERS:
        report(getattr(kernels, name), types, constants, steps.WARPS if name in NORMALISE else 4, architecture)
    for side in (8, 64):
        types = dict.fromkeys([*IMAGES, *SUMS], f"*{wide}")
        for name in ATTENTION:
            report(getattr(kernels, name), types, constants | {"SIDE": side}, steps.warps_of_head(side), architecture)


def report(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, architecture: str) -> None:
    name = kernel.__name__
    types = types | INDICES
    if kernel in (kernels.channel_sums, kernels.attend):  # elsewhere `tiles` is a number
        types |= {"tiles": "*i32"}
    signature = {a: "constexpr" if a in constants else types.get(a, "i32") for a in kernel.arg_names}
    used = {argument: constants[argument] for argument, kind in signature.items() if kind == "constexpr"}
    amd, attributes = is_amd(architecture), {}
    target = GPUTarget("cuda", int(architecture), 32) if not amd else GPUTarget("hip", architecture, 64)
    if amd:  # tensors of up to 2 GB, which are loaded by other instructions
        pointers = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
        attributes = {(i,): [["tt.divisibility", 16], ["tt.pointer_range", 32]] for i in pointers}
    source = ASTSource(kernel, signature, used, attributes)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    if amd:
        numbers = [re.search(rf"\.{n}: +(\d+)", compiled.asm["amdgcn"])[1] for n in OF_AMD]
    else:
        tool = Path(triton.__file__).with_name("backends") / "nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        numbers = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    print(name, *numbers, compiled.metadata.shared)


def is_amd(architecture: str) -> bool:
    return architecture.startswith("gfx")


if __name__ == "__main__":
    main(*sys.argv[1:])
