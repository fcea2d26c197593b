"""``dlgsanet doctor``: what is installed here, and which backend computes each layer and why."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dlgsanet import __version__
from dlgsanet.commands.arguments import ArgumentParser
from dlgsanet.errors import counted
from dlgsanet.files import check_can_write, write_whole
from dlgsanet.packages import versions
from dlgsanet.startup import quick_imports

if TYPE_CHECKING:
    from dlgsanet.ops.records import Record

ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="dlgsanet doctor",
        description="Print the versions of packages, the processors and GPUs, and the memory allocator; for every GPU "
        "kernel whether it agrees with the reference here; for every layer the backend that computes it here, and why "
        "those before it do not. DLGSANET_BACKEND=NAME skips the backends before NAME, and -NAME only NAME.",
    )
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="try every kernel again, and write all of it to a file for an issue"
    )
    args = parser.parse_args(argv)
    if args.report:
        check_can_write(args.report)
    sections = [
        ("packages", _packages()),
        ("processors", _processors()),
        ("allocator", _allocator()),
        ("kernels", _skipped("cuda") or _kernels(again=args.report is not None)),
        ("Triton kernels", _skipped("triton") or _triton_kernels(again=args.report is not None)),
        ("layers", _layers()),
    ]
    if args.report:
        sections.append(("PyTorch", _configuration()))
    written = []
    for title, lines in sections:
        for line in (title, *(f"  {line}" for line in lines)):
            print(line, flush=True)
            written.append(line)
    if args.report:
        write_whole(args.report, ("\n".join(written) + "\n").encode(errors="backslashreplace"))
        print(f"wrote {args.report}; read it, then attach it to an issue")
    return 0


def _configuration() -> Iterator[str]:
    import torch

    yield from torch.__config__.show().splitlines()


def _packages() -> Iterator[str]:
    yield f"dlgsanet {__version__}"
    yield f"Python {platform.python_version()} on {platform.platform()}"
    for name, version in versions().items():
        yield f"{name} {version}" if version else f"{name} is not installed"


def _processors() -> Iterator[str]:
    with quick_imports():
        import torch

    from dlgsanet.device import accelerators, describe_accelerator, threads
    from dlgsanet.ops.backends.native.build import instruction_sets
    from dlgsanet.ops.backends.native.library import instruction_set, library_path, problem

    yield f"CPU: {counted(os.cpu_count() or 1, 'core')}, PyTorch uses {threads()}"
    state = "not built" if not library_path().exists() else "built, but not usable here" if problem() else "built"
    built = f"native layers for {instruction_set()} (of {', '.join(instruction_sets())}): {state}"
    yield f"CPU: PyTorch's instruction set is {torch.backends.cpu.get_cpu_capability()}; {built}"
    gpus = list(accelerators())
    if not gpus:
        yield "GPU: none that PyTorch can use" + ("" if torch.version.cuda else " (this PyTorch is built without CUDA)")
    for gpu in gpus:
        yield f"{gpu}: {describe_accelerator(gpu)}"


def _allocator() -> Iterator[str]:
    """If the allocator returns large tensors to the system immediately, each new one must be mapped page by page."""
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

    from dlgsanet.device import accelerators
    from dlgsanet.ops import dispatch
    from dlgsanet.ops.records import OPERATIONS

    gpus = list(dict.fromkeys(gpu.type for gpu in accelerators()))
    found: dict[tuple[str, str], list[str]] = {}  # the kind of call, and what computes it -> layers
    for device in ("cpu", *gpus):
        x = torch.zeros(1, 12, 8, 8, device=device)
        for record, training in _calls(device):
            *refused, (taken, _) = dispatch.explain(record, x, training)
            refused = [(name, reason) for name, reason in refused if device != "cpu" or name not in dispatch.FOR_GPUS]
            kind = f"{'training' if training else 'inference'} on {device}, float32"
            found.setdefault((kind, f"{taken}{dispatch.because(refused)}"), []).append(OPERATIONS[type(record)])
    kinds = [kind for kind, _ in found]
    for (kind, answer), layers in found.items():
        yield f"{', '.join(layers) if kinds.count(kind) > 1 else 'every layer'}, {kind}: {answer}"


def _skipped(backend: str) -> list[str]:
    """A line in place of the kernels of a backend that the environment leaves out. They are not tried."""
    with quick_imports():
        from dlgsanet.ops import dispatch

    variable = f"DLGSANET_BACKEND={os.environ.get('DLGSANET_BACKEND')}"
    return [] if backend in dispatch.candidates() else [f"not used: {variable}"]


def _kernels(again: bool) -> Iterator[str]:
    """What came out of the first use of every CUDA kernel, for the layers of the published networks."""
    import torch

    from dlgsanet.archs.sizes import SIZES
    from dlgsanet.device import accelerators
    from dlgsanet.ops.backends import cuda
    from dlgsanet.ops.backends.cuda import first_use
    from dlgsanet.ops.backends.cuda.modules import SCALARS

    gpus = [gpu for gpu in accelerators() if gpu.type == "cuda" and not torch.version.hip]
    if not gpus:
        yield "none is compiled: there is no NVIDIA GPU that PyTorch can use"
    layers = {(dim, dim // 6, dim // 4, 7) for dim in sorted(options["dim"] for options in SIZES.values())}
    for gpu in gpus:
        if reason := cuda.unusable(gpu):
            yield f"{gpu}: {reason}"
            continue
        for layer in sorted(layers):
            for dtype in SCALARS:
                for path, run in cuda.PATHS.items():
                    if reason := cuda.no_tensor_cores(path, dtype, gpu, layer[0]):
                        verdict: object = reason
                    else:
                        verdict = first_use.examine(first_use.use_of(path, dtype, layer, gpu), run, again)
                    yield f"{gpu}, {path}, {str(dtype).removeprefix('torch.')}, {layer[0]} channels: {verdict}"


def _triton_kernels(again: bool) -> Iterator[str]:
    """Triton's version, and what came out of the first use of the kernels of the layers."""
    from importlib import import_module
    from importlib.util import find_spec

    from dlgsanet.device import accelerators
    from dlgsanet.ops.backends import triton
    from dlgsanet.ops.backends.verdicts import TOLERANCE

    gpus = [gpu for gpu in accelerators() if gpu.type in triton.DEVICES]
    if not gpus:
        yield "none is compiled: there is no NVIDIA, AMD or Intel GPU that PyTorch can use"
        return
    if find_spec("triton") is None:
        yield "none is compiled: Triton is not installed"
        return
    yield f"Triton {import_module('triton').__version__}"
    for gpu in gpus:
        for dtype in TOLERANCE:
            yield f"{gpu}, {str(dtype).removeprefix('torch.')}: {triton.examine(dtype, gpu, again)}"


def _calls(device: str) -> "Iterator[tuple[Record, bool]]":
    """Every layer at 12 channels, for inference and for training."""
    import torch

    from dlgsanet.archs.feed_forward import GDFN
    from dlgsanet.archs.mhdlsa import MHDLSA
    from dlgsanet.archs.sparse_gsa import SparseGSA
    from dlgsanet.ops.records import dynamic_conv_of

    attention = SparseGSA(12, tlc_kernel=8).to(device)
    local, network = MHDLSA(12).to(device).record(), GDFN(12).to(device).record()
    z = torch.zeros(1, len(local.squeeze_weight), 8, 8, device=device)
    convolution = dynamic_conv_of(local, z)
    for training in (False, True):
        yield local, training
        yield attention.train(training).record(), training
        yield network, training
        yield convolution, training
