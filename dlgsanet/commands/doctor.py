"""``dlgsanet doctor``: what is installed here, and which backend computes each layer and why."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from dlgsanet import __version__
from dlgsanet.commands.arguments import ArgumentParser
from dlgsanet.packages import versions

ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")


def main(argv: list[str]) -> int:
    ArgumentParser(
        prog="dlgsanet doctor",
        description="Print the versions of packages, the processors, the memory allocator, and for every layer the "
        "backend that computes it here and why those before it do not. DLGSANET_BACKEND forces one.",
    ).parse_args(argv)
    for title, lines in (
        ("packages", _packages()),
        ("processors", _processors()),
        ("allocator", _allocator()),
        ("layers", _layers()),
    ):
        print(title)
        for line in lines:
            print(f"  {line}")
    return 0


def _packages() -> Iterator[str]:
    yield f"dlgsanet {__version__}"
    yield f"Python {platform.python_version()} on {platform.platform()}"
    for name, version in versions().items():
        yield f"{name} {version}" if version else f"{name} is not installed"


def _processors() -> Iterator[str]:
    import torch

    from dlgsanet.ops.backends.native.build import instruction_sets
    from dlgsanet.ops.backends.native.library import instruction_set, library_path

    yield f"CPU: {os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads"
    state = "built" if library_path().exists() else "not built"
    built = f"native layers for {instruction_set()} (of {', '.join(instruction_sets())}): {state}"
    yield f"CPU: PyTorch's instruction set is {torch.backends.cpu.get_cpu_capability()}; {built}"
    if not torch.cuda.is_available():
        yield "GPU: none that PyTorch can use" + ("" if torch.version.cuda else " (this PyTorch is built without CUDA)")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = gpu.total_memory / 2**30
        yield f"GPU {index}: {gpu.name}, compute capability {gpu.major}.{gpu.minor}, {memory:.1f} GiB"


def _allocator() -> Iterator[str]:
    """Large tensors cost page after page where the allocator gives them back to the system at once."""
    maps = Path("/proc/self/maps")
    loaded = maps.read_text() if maps.exists() else ""
    found = [name for name in ALLOCATORS if name in loaded]
    library, version = platform.libc_ver()
    yield f"{', '.join(found)} in place of {library}'s" if found else f"{library or 'the system'} {version}".rstrip()
    settings = [
        f"{k}={v}"
        for k, v in os.environ.items()
        if k.startswith(("DLGSANET_", "MALLOC_")) or k in ("GLIBC_TUNABLES", "LD_PRELOAD")
    ]
    yield f"set by the environment: {' '.join(settings) or 'nothing'}"


def _layers() -> Iterator[str]:
    import torch

    from dlgsanet.ops import dispatch

    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for operation, args in _calls(device).items():
            answers = dispatch.explain(operation, *args)
            taken = next(name for name, reason in answers if reason is None)
            refused = answers[: [n for n, _ in answers].index(taken)]
            yield f"{operation} on {device}, float32: {taken}{dispatch.because(refused)}"


def _calls(device: str) -> dict[str, tuple]:
    """Small calls of every layer, as inference and training make them."""
    import torch

    C, D, G, K, heads = 12, 3, 2, 7, 2

    def tensor(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=device)

    x, norm = tensor(1, C, 8, 8), (tensor(C), tensor(C))
    filters = tensor(G * K * K, D, 1, 1), tensor(G * K * K)
    squeeze = tensor(D, C, 1, 1), tensor(D), tensor(D, 1, K, K), tensor(D)
    attention = tensor(3 * C, C, 1, 1), tensor(3 * C, 1, 3, 3), tensor(heads, 1, 1), tensor(C, C, 1, 1), "relu", 0.5
    layers: dict[str, tuple] = {
        "dynamic_local_attention": (x, *norm, tensor(C, C, 1, 1), *squeeze, *filters, tensor(C, C, 1, 1), K),
        "channel_attention": (x, *norm, *attention),
        "gated_feed_forward": (x, *norm, tensor(4 * C, C, 1, 1), tensor(4 * C, 1, 3, 3), tensor(C, 2 * C, 1, 1)),
    }
    convolution = x, tensor(1, D, 8, 8), filters[0].flatten(1), filters[1], K
    calls = {}
    for prefix, window in (("", (8,)), ("differentiable_", (None,))):
        for name, args in layers.items():
            calls[prefix + name] = (*args, *window) if name == "channel_attention" else args
    calls["fused_dynamic_depthwise_conv"] = calls["fused_dynamic_depthwise_conv_backward"] = convolution
    return calls
