"""Time and memory of the dynamic convolution and of whole networks on an NVIDIA GPU, beside other ways to compute them.

python scripts/benchmark_gpu.py tiny        the layer of Tiny and Light, in every way
python scripts/benchmark_gpu.py large       the layer of Large
python scripts/benchmark_gpu.py inference   the nine published networks, SwinIR-light and EDSR: a picture
python scripts/benchmark_gpu.py training    the same: a training step

Every part prints a Markdown table and takes less than 8 minutes. Times are medians by CUDA events, in milliseconds,
with the caches emptied before each run; memory is the peak beyond what stood before, in MB.
"""

import argparse
import contextlib
import datetime
import functools
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlgsanet import ops
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.evaluation.published import SCALES, SIZES, size_options
from dlgsanet.ops import cuda, cuda_modules, dynamic_conv, reference

SOURCE = Path(__file__).with_suffix(".cu")  # the kernels as published

LAYERS = {"tiny": ("Tiny and Light", 48, 8, 12), "large": ("Large", 90, 15, 22)}  # channels, groups, features
SIZES_OF_LAYERS = [(1, 180, 320), (1, 678, 1020), (16, 48, 48)]
COMPILED_SIZES = [(1, 180, 320), (16, 48, 48)]
WINDOW = 7
PRECISIONS = {"fp32": (torch.float32, False), "TF32": (torch.float32, True), "bf16": (torch.bfloat16, False)}
SECONDS = 0.5  # of one measurement, after warming up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*LAYERS, "inference", "training"])
    part = parser.parse_args().part
    if not torch.cuda.is_available():
        print("no NVIDIA GPU is present: nothing was measured", file=sys.stderr)
        return 2
    if reason := cuda.why_not("dynamic_depthwise_conv", torch.empty(1, device="cuda"), torch.empty(1, 1, WINDOW)):
        print(f"the CUDA kernels cannot be used here: {reason}", file=sys.stderr)
        return 2
    print(f"{datetime.date.today()}, {torch.cuda.get_device_name()}, torch {torch.__version__}, {_cupy()}\n")
    if part in LAYERS:
        benchmark_layer(*LAYERS[part])
    elif part == "inference":
        benchmark_inference()
    else:
        benchmark_training()
    return 0


def _cupy() -> str:
    import cupy

    driver = cupy.cuda.runtime.driverGetVersion()
    return f"CuPy {cupy.__version__}, CUDA {torch.version.cuda}, driver for CUDA {driver // 1000}.{driver // 10 % 100}"


# Measuring


@functools.cache
def _cache_filler() -> Tensor:
    return torch.empty(64 << 20, device="cuda")  # 256 MB: more than any cache


def milliseconds(run: Callable[[], object]) -> float:
    """Median time of `run`, from cold caches."""
    times: list[float] = []
    for i in range(1000):
        _cache_filler().zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
        if sum(times) > 1000 * SECONDS and len(times) >= 5:
            break
    return statistics.median(times)


def peak_megabytes(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def set_tf32(on: bool) -> None:
    for place in (torch.backends.cudnn.conv, torch.backends.cuda.matmul):
        place.fp32_precision = "tf32" if on else "ieee"


@contextlib.contextmanager
def or_out_of_memory(row: list[str], columns: int) -> Iterator[None]:
    """Fill the row with words where the GPU's memory does not do."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        row += ["out of memory"] + ["-"] * (columns - len(row) - 1)
    torch.cuda.empty_cache()


def print_table(head: list[str], rows: Iterator[list[str]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
    print()


# One layer, in five ways: functions of x, z, weight, bias


@functools.cache
def _published_kernels(dtype: torch.dtype, channels: int, height: int, width: int):
    import cupy

    scalar = (cuda_modules.KERNELS / "scalar.h").read_text()
    constants = {
        "TYPE": cuda.SCALARS[dtype], "CHANNELS": channels, "WINDOW": WINDOW,
        "HEIGHT": height, "WIDTH": width,
    }  # fmt: skip
    options = tuple(f"-D{name}={value}" for name, value in constants.items())
    code = SOURCE.read_text().replace('#include "scalar.h"', scalar)
    return cupy.RawModule(code=code, options=("--std=c++17", *options))


class _Published(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(x, filters)
        return _Published.launch("published_forward", x, filters, torch.empty_like(x))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, filters = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = _Published.launch("published_grad_x", grad, filters, torch.empty_like(x))
        return grad_x, _Published.launch("published_grad_filters", grad, x, torch.empty_like(filters), like=filters)

    @staticmethod
    def launch(name: str, first: Tensor, second: Tensor, out: Tensor, like: Tensor | None = None) -> Tensor:
        import cupy

        groups = (second if like is None else like).shape[1]
        module = _published_kernels(first.dtype, first.shape[1] // groups, *first.shape[2:])
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
        with stream:
            arguments = (first.data_ptr(), second.data_ptr(), out.data_ptr(), out.numel())
            module.get_function(name)((-(-out.numel() // 256),), (256,), arguments)
        return out


def _expand(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    filters = F.conv2d(z, weight.to(z.dtype)[:, :, None, None], bias.to(z.dtype))
    return filters.unflatten(1, (-1, WINDOW, WINDOW))


def published(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor, window_size: int = WINDOW) -> Tensor:
    return _Published.apply(x.contiguous(), _expand(z, weight, bias).contiguous())


def unfolded(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    filters = _expand(z, weight, bias).flatten(2, 3).unsqueeze(2)  # [B, G, 1, K * K, H, W]
    taps = F.unfold(x, WINDOW, padding=WINDOW // 2).view(len(x), filters.shape[1], -1, WINDOW**2, *x.shape[2:])
    return (filters * taps).sum(3).flatten(1, 2)


def plain(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.dynamic_depthwise_conv(x, _expand(z, weight, bias))


def fused(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.fused_dynamic_depthwise_conv(x, z, weight, bias, WINDOW)


@torch.compile
def compiled(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.fused_dynamic_depthwise_conv(x, z, weight, bias, WINDOW)


WAYS = {
    "1x1 convolution, kernel as published": published,
    "1x1 convolution, unfold": unfolded,
    "torch.compile of the definition": compiled,
    "1x1 convolution, plain kernel": plain,
    "fused kernel": fused,
}


def benchmark_layer(name: str, channels: int, groups: int, features: int) -> None:
    print(f"## The dynamic convolution of {name}\n")
    print("Forward and backward in ms, peak of both in MB; in brackets, how many times faster than as published.\n")
    head = ["size", "precision", "way", "forward", "backward", "peak"]

    def rows() -> Iterator[list[str]]:
        for size in SIZES_OF_LAYERS:
            for precision, (dtype, tf32) in PRECISIONS.items():
                set_tf32(tf32)
                base: tuple[float, float] | None = None
                for way, function in WAYS.items():
                    if function is compiled and (size not in COMPILED_SIZES or precision != "fp32"):
                        continue
                    row = ["x".join(map(str, size)), precision, way]
                    with or_out_of_memory(row, len(head)):
                        forward, backward, peak = measure_layer(function, size, dtype, channels, groups, features)
                        base = base or (forward, backward)
                        row.append(f"{forward:.3f} ({base[0] / forward:.1f})")
                        row.append(f"{backward:.3f} ({base[1] / backward:.1f})")
                        row.append(f"{peak:.0f}")
                    yield row

    print_table(head, rows())


def measure_layer(function, size: tuple[int, int, int], dtype: torch.dtype, channels: int, groups: int, features: int):
    """(forward ms, backward ms, peak MB) of one way; weights in float32."""
    batch, height, width = size
    outputs = groups * WINDOW**2
    x = torch.randn(batch, channels, height, width, device="cuda", dtype=dtype, requires_grad=True)
    z = torch.randn(batch, features, height, width, device="cuda", dtype=dtype, requires_grad=True)
    weight = (torch.randn(outputs, features, device="cuda") / features**0.5).requires_grad_()
    bias = torch.randn(outputs, device="cuda", requires_grad=True)
    grad = torch.randn_like(x)
    inputs = (x, z, weight, bias)

    def differentiate(out: Tensor, keep: bool = False) -> None:
        torch.autograd.grad(out, inputs, grad, retain_graph=keep)

    def backward_milliseconds() -> float:
        out = function(*inputs)
        return milliseconds(lambda: differentiate(out, keep=True))

    differentiate(function(*inputs))  # compiles
    with torch.no_grad():
        forward = milliseconds(lambda: function(*inputs))
    return forward, backward_milliseconds(), peak_megabytes(lambda: differentiate(function(*inputs)))


# Whole networks


def networks(scales: tuple[int, ...] = SCALES) -> Iterator[tuple[str, int, nn.Module]]:
    """(name, scale, network) of the published networks, and of two that the field compares with."""
    import dlgsanet.plugin  # noqa: F401, I001  # before BasicSR
    from basicsr.archs.edsr_arch import EDSR
    from basicsr.archs.swinir_arch import SwinIR

    for size in SIZES:
        for scale in scales:
            yield f"DLGSANet {size}", scale, DLGSANet(**size_options(size, scale))
    for scale in scales:
        yield "SwinIR-light", scale, SwinIR(
            upscale=scale, img_size=64, window_size=8, img_range=1.0, depths=[6] * 4, embed_dim=60, num_heads=[6] * 4,
            mlp_ratio=2, upsampler="pixelshuffledirect",
        )  # fmt: skip
    for scale in scales:
        yield "EDSR", scale, EDSR(3, 3, num_feat=256, num_block=32, upscale=scale, res_scale=0.1, img_range=1.0)


@contextlib.contextmanager
def as_published(on: bool) -> Iterator[None]:
    """Have networks compute their dynamic convolution as published."""
    ours = dynamic_conv.fused_dynamic_depthwise_conv
    if on:
        dynamic_conv.fused_dynamic_depthwise_conv = published
    try:
        yield
    finally:
        dynamic_conv.fused_dynamic_depthwise_conv = ours


def benchmark_inference() -> None:
    print("## A picture of 1280 x 720 pixels from whole networks\n")

    def rows() -> Iterator[list[str]]:
        for name, scale, network in networks():
            network = network.cuda().eval()
            height, width = 720 // scale // 8 * 8, 1280 // scale // 8 * 8  # SwinIR takes whole windows
            image = torch.rand(1, 3, height, width, device="cuda")
            row = [name, f"x{scale}"]
            with or_out_of_memory(row, 6), torch.no_grad():
                for dtype in (torch.float32, torch.bfloat16):
                    set_tf32(False)
                    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                        row.append(f"{milliseconds(lambda n=network, i=image: n(i)):.1f}")
                        row.append(f"{peak_megabytes(lambda n=network, i=image: n(i)):.0f}")
            yield row

    print_table(["network", "scale", "fp32 ms", "fp32 MB", "bf16 ms", "bf16 MB"], rows())


def benchmark_training() -> None:
    """A step: forward, L1, backward, Adam; 16 patches of 48 x 48."""
    print("## A training step, 16 patches of 48 x 48\n")

    def rows() -> Iterator[list[str]]:
        for name, scale, network in networks((4,)):
            ours = name.startswith("DLGSANet")
            for way in ("as published", "ours", "ours, torch.compile") if ours else ("BasicSR",):
                row = [name, f"x{scale}", way]
                with or_out_of_memory(row, 7), as_published(way == "as published"):
                    for dtype in (torch.float32, torch.bfloat16):
                        row += [f"{value:.1f}" for value in measure_step(network, scale, dtype, "compile" in way)]
                yield row

    print_table(["network", "scale", "way", "fp32 ms", "fp32 MB", "bf16 ms", "bf16 MB"], rows())


def measure_step(network: nn.Module, scale: int, dtype: torch.dtype, compile_it: bool) -> tuple[float, float]:
    set_tf32(False)
    torch.compiler.reset()
    network = network.cuda().train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-6)
    run = torch.compile(network) if compile_it else network
    low = torch.rand(16, 3, 48, 48, device="cuda")
    high = torch.rand(16, 3, 48 * scale, 48 * scale, device="cuda")

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            out = run(low)
        F.l1_loss(out.float(), high).backward()
        optimizer.step()

    step()
    return milliseconds(step), peak_megabytes(step)


if __name__ == "__main__":
    sys.exit(main())
