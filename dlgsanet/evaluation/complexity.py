"""What a network costs: parameters, multiply-accumulates, time and memory."""

import ctypes
import gc
import re
import statistics
import timeit
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dlgsanet.archs.checkpoint import FORMATS, network_options, read_checkpoint
from dlgsanet.archs.parts import copy_of
from dlgsanet.archs.sizes import SCALES, SIZES, size_options
from dlgsanet.device import describe, find_device
from dlgsanet.errors import UserError, counted, reason_of, unknown
from dlgsanet.evaluation.memory import enough_memory, fake_tensors
from dlgsanet.evaluation.networks import input_channels, load_network_options, registered_network
from dlgsanet.evaluation.tables import Table, terminal_width
from dlgsanet.ops import kept_memory
from dlgsanet.progress import Counter

HD = (1280, 720)  # width and height of the output for which papers state complexity


@dataclass(frozen=True)
class Cost:
    """Seconds of one forward pass (median), and the peak of its memory in bytes, without the weights."""

    seconds: float
    peak_bytes: int | None


def input_size(scale: int, output: tuple[int, int] = HD) -> tuple[int, int]:
    """(height, width) of the LR image of an output (width, height), rounded down."""
    width, height = output
    return height // scale, width // scale


def computed_size(options: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
    """The size that a network really computes: SwinIR's is padded to whole windows, as BasicSR's model pads it."""
    multiple = options.get("window_size", 7) if options["type"] == "SwinIR" else 1
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def table(
    names: Sequence[str], scales: Sequence[int], output: tuple[int, int], device: str | None, runs: int
) -> tuple[str, list[str]]:
    """The costs of networks as a table for the terminal.

    Args:
        names: published sizes (at each of `scales`), option files, and weight files of DLGSANets.
        output: (width, height) of the output of the networks.
        device: None: a GPU if there is one.
        runs: timed runs of each network; 0: latency and memory are not measured.

    Returns:
        The table, and a line for each name that could not be counted.

    Raises:
        UserError: a device that is not there, or a scale that no published network has.
    """
    on = find_device(device)
    rows, failures = [], []
    with Counter("complexity", len(names), "networks") as counter:
        for name in counter.each(names):
            try:
                for title, scale, options in _networks(name, scales):
                    rows.append([title, f"x{scale}", *_figures(options, scale, output, on, runs)])
            except UserError as error:
                failures.append(str(error))
    measured = ["latency [ms]", "peak memory [MiB]"] if runs else []
    header = ["network", "scale", "parameters", "GMACs", *measured]
    at = f"{output[0]}x{output[1]} output" + (f", on {describe(on)}, median of {counted(runs, 'run')}" if runs else "")
    return f"{Table(header, rows, words=2).text(terminal_width())}\n\n{at}" if rows else "", failures


def _figures(
    options: Mapping[str, Any], scale: int, output: tuple[int, int], device: torch.device, runs: int
) -> list[str]:
    network = registered_network(options).eval()
    height, width = computed_size(options, *input_size(scale, output))
    channels = input_channels(options)
    figures = [f"{parameters(network):,}", f"{multiply_accumulates(network, height, width, channels) / 1e9:.1f}"]
    if runs:
        cost = measure(network.to(device), height, width, device, runs, channels)
        memory = "-" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**20:.0f}"
        figures += [f"{cost.seconds * 1000:.1f}", memory]
    return figures


def _networks(name: str, scales: Sequence[int]) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Name, scale and `network_g` options of a size at all scales, an option file or a weight file."""
    if name in SIZES:
        if unpublished := set(scales) - set(SCALES):
            raise UserError(f"{name}: {unknown('scale', min(unpublished), SCALES)}")
        yield from ((name, scale, {"type": "DLGSANet", **size_options(name, scale)}) for scale in scales)
    elif Path(name).suffix in (".yml", ".yaml"):
        options = load_network_options(name)
        yield options["name"], options["scale"], options["network_g"]
    elif Path(name).suffix in FORMATS or Path(name).is_file():
        network = network_options(read_checkpoint(name))
        yield Path(name).stem, network["upscale"], {"type": "DLGSANet", **network}
    else:
        raise UserError(f"{unknown('network', name, SIZES)}, or give an option file (.yml) or a weight file")


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def multiply_accumulates(network: nn.Module, height: int, width: int, channels: int = 3) -> int:
    """Multiply-accumulates of all convolutions and matrix products for one input [1, channels, height, width].

    They are counted as PyTorch dispatches them, with fake tensors, so nothing is computed and no term is forgotten. For
    DLGSANet this includes the dynamic filtering and the products of the attention in every TLC window. Norms,
    activations and other element-wise operations are not counted.

    Raises:
        UserError: the network does not take this size.
    """
    dynamic = {
        torch.ops.dlgsanet.fused_dynamic_depthwise_conv: _fused_dynamic_flops,
        torch.ops.dlgsanet.dynamic_depthwise_conv: _dynamic_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=dynamic)
    twin = copy_of(network).cpu().eval().requires_grad_()
    try:
        # With gradients, so that DLGSANet composes its layers of operators that can be counted.
        with torch.enable_grad(), fake_tensors(), counter:
            twin(torch.empty(1, channels, height, width))
    except Exception as error:  # networks of other projects may raise any exception
        what = f"{type(network).__name__} cannot be counted at {width}x{height}"
        raise UserError(f"{what}: {reason_of(error, 300)}") from error
    return counter.get_total_flops() // 2


def _fused_dynamic_flops(x: Any, z: Any, weight: Any, bias: Any, window_size: int, *args: Any, **kwargs: Any) -> int:
    batch, channels, height, width = x
    forming, filtering = weight[0] * weight[1], channels * window_size**2
    return 2 * batch * height * width * (forming + filtering)


def _dynamic_flops(x: Any, filters: Any, *args: Any, **kwargs: Any) -> int:
    batch, channels, height, width = x
    return 2 * batch * channels * height * width * filters[2] * filters[3]


def measure(network: nn.Module, height: int, width: int, device: torch.device, runs: int, channels: int = 3) -> Cost:
    """Time and memory of the network on its device for an input [1, channels, height, width], after one run to warm up.

    With CUDA or ROCm: events on the GPU, and the peak of the allocator. Elsewhere: the wall clock, and on a CPU the
    peak of the process's resident memory (Linux; otherwise None).

    Raises:
        UserError: the memory does not suffice.
    """
    shape = (1, channels, height, width)
    with enough_memory(network, shape, device, remedy="; --runs 0 measures nothing"):
        x = torch.rand(shape, device=device)
        return (_measure_cuda if x.is_cuda else _measure_by_clock)(network, x, runs)


@torch.inference_mode()
def _measure_cuda(network: nn.Module, x: Tensor, runs: int) -> Cost:
    network(x)
    torch.cuda.synchronize(x.device)
    before = torch.cuda.memory_allocated(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    times = []
    stream = torch.cuda.current_stream(x.device)
    for _ in range(runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(stream)
        network(x)
        end.record(stream)
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return Cost(statistics.median(times), torch.cuda.max_memory_allocated(x.device) - before)


@torch.inference_mode()
def _measure_by_clock(network: nn.Module, x: Tensor, runs: int) -> Cost:
    def run() -> None:
        network(x)
        x.flatten()[0].item()  # waits until a GPU has done what was started before

    gc.collect()
    kept_memory.release()  # what it and the allocator keep would not show up when it is used again
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    before = _peak_resident(reset=True) if x.is_cpu else None
    run()  # memory is measured in the first run: later ones reuse what the allocator kept
    after = _peak_resident()
    times = timeit.repeat(run, number=1, repeat=runs)
    return Cost(statistics.median(times), None if before is None or after is None else max(0, after - before))


def _peak_resident(reset: bool = False) -> int | None:
    """Peak of this process's resident memory in bytes since the last reset; None where it is not known."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    peak = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(peak[1]) * 1024 if peak else None
