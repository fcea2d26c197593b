"""Count what a network does on a GPU, without one: operators launched, bytes moved, layout copies, memory.

python scripts/count_gpu.py inference              Tiny x4 of a 320x180 image
python scripts/count_gpu.py inference --size Large --scale 2 --image 3840x2160 --free 15
python scripts/count_gpu.py training --size Large --batch 16 --image 48x48 --free 8

The network runs on PyTorch's meta device, which works out the shape, dtype and layout of every result and computes
nothing. All figures are counted. An operator is a call of an ATen operator that starts work on the device; views are
not counted. Each moves the bytes of its inputs and results once, as if caches held nothing. A layout copy writes an
image in another order of axes. Memory is the most that tensors hold at once, weights included; the workspace of
libraries and the fragmentation of the allocator come on top.

With `--kernels` the dynamic convolution is one operator, as with the CUDA kernels. The gated feed-forward layer is one
with frozen weights and five in a training step; without gradients local attention is two, and channel attention three.
Without, PyTorch computes them. With `--triton` the layers have Triton's kernels, each one operator.
"""

import argparse
import contextlib
import math
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dlgsanet import ops
from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.sizes import SCALES, SIZES, size_options
from dlgsanet.commands import arguments
from dlgsanet.ops import dispatch
from dlgsanet.ops.backends import Backend, ConvolutionFunctions, cuda
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.torch import strip_rows
from dlgsanet.ops.records import OPERATIONS

SMALL = 1 << 16  # tensors of fewer elements are not images
ALLOCATIONS = {
    "empty",
    "empty_strided",
    "new_empty",
    "empty_like",
    "new_empty_strided",
    "detach",
    "lift_fresh",
    "alias",
    "_unsafe_view",
}


class Counted(TorchDispatchMode):
    """Counts operators, bytes and live tensors while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.dtypes: set[torch.dtype] = set()
        self.bytes = self.layout_copies = self.live = self.peak = 0
        self._seen = weakref.WeakKeyDictionary[Any, None]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_meta]
        for t in results:
            self.hold(t)
            self.dtypes.add(t.dtype)
        if not results or not starts_work(func):
            return out
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self.operators[func.name().removeprefix("aten::")] += 1
        overwrites = func.overloadpacket.__name__ in ("copy_", "fill_", "zero_")
        read = [t for t in inputs if not (overwrites and t is args[0])]
        self.bytes += sum(map(bytes_of, read + results))
        self.layout_copies += _copies_layout(func, inputs, results)
        return out

    def start(self, kernel: str, arguments: tuple[Any, ...]) -> None:
        """Count a kernel that is no operator."""
        self.operators[kernel] += 1
        self.bytes += sum(bytes_of(a) for a in arguments if isinstance(a, Tensor))

    def hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor as long as it lives."""
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen[storage] = None
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size


def starts_work(func: Any) -> bool:
    return not func.is_view and func.overloadpacket.__name__ not in ALLOCATIONS


def bytes_of(tensor: Tensor) -> int:
    """The bytes of the elements of a tensor; those that several indices share (expanded axes, windows) count once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    count = math.prod(size for size, stride in sizes if stride) * tensor.element_size()
    return min(count, tensor.untyped_storage().nbytes())


def _order(tensor: Tensor) -> list[int]:
    return sorted((i for i, n in enumerate(tensor.shape) if n > 1), key=lambda i: -tensor.stride(i))


def _copies_layout(func: Any, inputs: list[Tensor], results: list[Tensor]) -> int:
    name = func.overloadpacket.__name__
    if name == "native_layer_norm":  # copies an image that is not contiguous
        return int(inputs[0].numel() >= SMALL and not inputs[0].is_contiguous())
    if name not in ("clone", "_to_copy", "copy_", "contiguous") or not inputs:
        return 0
    source, target = inputs[-1], results[0]
    return int(
        target.numel() >= SMALL
        and target.is_floating_point()
        and source.shape == target.shape
        and _order(source) != _order(target)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["inference", "training"])
    parser.add_argument("--size", choices=list(SIZES), default="Tiny")
    parser.add_argument("--scale", type=int, choices=SCALES, default=4)
    arguments.add_size(parser, "--image", (320, 180), "of the LR image")
    parser.add_argument("--batch", type=arguments.whole_number(), default=1)
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the network and the image"
    )
    parser.add_argument("--free", type=float, default=80, metavar="GB", help="free memory of the device; default 80")
    parser.add_argument("--kernels", action="store_true", help="there are the CUDA kernels, each one operator")
    parser.add_argument("--triton", action="store_true", help="the layers have Triton's kernels")
    parser.add_argument("--reference", action="store_true", help="layers by the plain definition, as before strips")
    parser.add_argument("--unfrozen", action="store_true", help="weights may change; commands freeze them (ops.freeze)")
    parser.add_argument("--each", action="store_true", help="print how often each operator is started")
    args = parser.parse_args()
    width, height = args.image
    counted = count(
        args.what, args.size, args.scale, args.image, args.batch, getattr(torch, args.dtype), args.free,
        args.kernels, args.reference, not args.unfrozen, args.triton,
    )  # fmt: skip
    print(
        f"{args.size} x{args.scale}, {args.what}, {args.batch} of {width}x{height}, {args.dtype} (counted): "
        f"{counted.operators.total()} operators, {counted.bytes / 1e9:.2f} GB moved, "
        f"{counted.layout_copies} layout copies, peak {counted.peak / 1e9:.2f} GB"
    )
    if args.each:
        for name, times in counted.operators.most_common():
            print(f"{times:7} {name}")
    return 0


def count(
    what: str, size: str, scale: int, image: tuple[int, int], batch: int = 1, dtype: torch.dtype = torch.float32,
    free: float = 80, kernels: bool = False, reference: bool = False, frozen: bool = True, triton: bool = False,
    **options: int
) -> Counted:  # fmt: skip
    """Run a network; free: GB of free memory before the network is there; options: of the network."""
    width, height = image
    counted = Counted()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_backends(counted, kernels, reference, triton))
        stack.enter_context(_free_memory(counted, free))
        if triton:
            stack.enter_context(_triton_kernels(counted))
        with torch.device("meta"):
            network = DLGSANet(**size_options(size, scale) | options).to(dtype).train(what == "training")
            lq = torch.empty(batch, 3, height, width, dtype=dtype)
            gt = torch.empty(batch, 3, height * scale, width * scale)
        if frozen:
            ops.freeze(network)
        for parameter in network.parameters():
            counted.hold(parameter)
        for _ in range(2):  # what is planned once per shape is not counted
            network.zero_grad()
            counted.operators.clear()
            counted.bytes = counted.layout_copies = 0
            with counted:
                if what == "training":
                    F.l1_loss(network(lq).float(), gt).backward()
                else:
                    with torch.no_grad():
                        network(lq)
    return counted


@contextlib.contextmanager
def _backends(counted: Counted, kernels: bool, reference: bool, triton: bool) -> Iterator[None]:
    """Only the backends of a GPU; with kernels, one operator stands for each of them."""
    operator = torch.ops.dlgsanet

    class Module:
        def launch(self, kernel: str, blocks: int, threads: int, shared_bytes: int, *arguments: Any) -> None:
            counted.start(kernel, arguments)

    stand_in = Backend(
        name="cuda",
        unsuited=lambda record, x, training: cuda.no_layer(record, x),
        **{} if reference else {OPERATIONS[kind]: cuda.BACKEND.functions(kind) for kind in cuda.LAYERS},
        fused_dynamic_depthwise_conv=ConvolutionFunctions(
            lambda record, x: operator.fused_dynamic_depthwise_conv(x, *record),
            lambda record, x, grad: operator.fused_dynamic_depthwise_conv_backward(grad, x, *record),
        ),
        keeps_x_alone=True,
    )
    layers = [*(["triton"] if triton else []), "torch"] if not reference else ["composed"] if kernels else []
    used = [*(["cuda"] if kernels else []), *layers, "reference"]
    h100 = {
        "multiprocessors": lambda device: 132,
        "shared_memory_limit": lambda device: 227 << 10,
        "capability": lambda device: (9, 0),
    }
    cuda.forget_plans()
    with (
        mock.patch.multiple(cuda_modules, load=lambda *instance: Module(), **h100),
        dispatch.using(*(stand_in if name == "cuda" else name for name in used)),
    ):
        yield
    cuda.forget_plans()


@contextlib.contextmanager
def _triton_kernels(counted: Counted) -> Iterator[None]:
    """Triton's kernels do nothing but count, and the meta device may use them, as on a card where each is faster."""
    from dlgsanet.ops.backends import choice, triton
    from dlgsanet.ops.backends.triton import steps, training

    class Kernel:
        def __init__(self, name: str):
            self.name = name

        def __getitem__(self, grid: tuple[int]) -> Any:
            return self.launch

        def launch(self, *arguments: Any, **sizes: Any) -> None:
            counted.start(self.name, arguments)

    class Kernels:
        def __getattr__(self, name: str) -> Kernel:
            return Kernel(name)

    agree = {"DEVICES": ("meta",), "refused": lambda *_: None, "refused_sizes": lambda *_: None}
    with (
        mock.patch.multiple(triton, **agree),
        mock.patch.multiple(steps, kernels=Kernels(), _on=lambda x: contextlib.nullcontext()),
        mock.patch.object(training, "kernels", Kernels()),
        mock.patch.multiple(choice, is_faster=lambda *call: False),  # a mock would keep the tensors of its calls
    ):
        yield


@contextlib.contextmanager
def _free_memory(counted: Counted, gigabytes: float) -> Iterator[None]:
    real = strip_rows.free_memory
    strip_rows.free_memory = lambda device: int(gigabytes * 1e9) - counted.live
    for planned in (strip_rows._plan, strip_rows._fits):
        planned.cache_clear()
    try:
        yield
    finally:
        strip_rows.free_memory = real


if __name__ == "__main__":
    sys.exit(main())
