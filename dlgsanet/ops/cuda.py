"""The dynamic depth-wise convolution on NVIDIA GPUs, by the CUDA kernels in `kernels/`.

The fused kernels never write the filters: they form them from z in registers. See the sources for the design.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from dlgsanet.ops import cuda_modules
from dlgsanet.ops.cuda_modules import Instance

WINDOW_SIZES = (3, 5, 7, 9)
SCALARS = {torch.float32: "float", torch.float64: "double", torch.float16: "Half", torch.bfloat16: "BFloat16"}

# Pixels of a tile, in columns of quads: divides 48 x 48 patches without a rest.
TILE_WIDTH, TILE_HEIGHT = 16, 24
MARGIN = 4  # as kMargin of tile.h
THREADS = TILE_WIDTH // 4 * TILE_HEIGHT
GATHER_HEIGHT = 48  # of a tile of grad_x, whose threads compute two rows
SUM_THREADS = 512
ENOUGH_BLOCKS = 512  # to fill a GPU: more than that are not worth scratch memory
TWO_BLOCKS = 128 << 10  # with more shared memory than this, two blocks of grad_x shall share it
FEATURES_IN_REGISTERS = 24  # of a quad of pixels, in 32-bit registers


def why_not(operation: str, x: Tensor, *args) -> str | None:
    """Why these kernels cannot take a call, or None; see `backends`."""
    if x.device.type != "cuda" or torch.version.hip:
        return "it needs an NVIDIA GPU"
    if x.dtype not in SCALARS:
        return f"it has no kernels for {x.dtype}"
    window_size = args[0].shape[2] if operation.startswith("dynamic") else args[3]
    if window_size not in WINDOW_SIZES:
        return f"its windows are {', '.join(map(str, WINDOW_SIZES))} wide, not {window_size}"
    return _missing()


@functools.cache
def _missing() -> str | None:
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except (ImportError, RuntimeError) as e:
        return f"CuPy with NVRTC is missing (pip install cupy-cuda12x or cupy-cuda13x): {e}"
    return None


def fused_dynamic_depthwise_conv(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int) -> Tensor:
    """See `dlgsanet.ops.fused_dynamic_depthwise_conv`."""
    x, z, weight, bias = _prepare(x, z, weight, bias)
    out = torch.empty_like(x)
    if out.numel():
        kernels = _Fused(x, z, weight, window_size)
        kernels.forward(x, z, weight, bias, out)
    return out


def fused_dynamic_depthwise_conv_backward(
    grad: Tensor, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, window_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, z, weight and bias, as `reference.fused_dynamic_depthwise_conv_backward`."""
    dtypes = weight.dtype, (weight if bias is None else bias).dtype
    grad = grad.contiguous()
    x, z, weight, bias = _prepare(x, z, weight, bias)
    grad_x, grad_z = torch.empty_like(x), torch.empty_like(z)
    if x.numel():
        kernels = _Fused(x, z, weight, window_size)
        kernels.grad_x(grad, z, weight, bias, grad_x)
        grad_weight, grad_bias = kernels.grad_z_expansion(grad, x, z, weight, grad_z)
    else:
        grad_weight, grad_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
    return grad_x, grad_z, grad_weight.to(dtypes[0]), grad_bias.to(dtypes[1])


def _prepare(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None):
    accumulator = _accumulator(x.dtype)
    weight = weight.to(accumulator).contiguous()
    bias = None if bias is None else bias.to(accumulator).contiguous()
    return x.contiguous(), z.contiguous(), weight, bias


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _vectorized(*images: Tensor) -> bool:
    """Whether four pixels may be moved at once: rows of whole quads, from an address that is a quad's."""
    return all(t.shape[-1] % 4 == 0 and t.data_ptr() % min(16, 4 * t.element_size()) == 0 for t in images)


def _passes(count: int, at_most: int) -> int:
    """Size of the fewest equal passes of at most `at_most` that cover `count`."""
    return math.ceil(count / math.ceil(count / at_most))


class _Fused:
    """The fused kernels for these tensors' dtype, channels and window, and their launches.

    Numbers of elements in shared memory are those of the arrays named at the head of each kernel in fused.cu.
    """

    def __init__(self, x: Tensor, z: Tensor, weight: Tensor, window_size: int):
        self.batch, channels, self.height, self.width = x.shape
        self.window, self.features = window_size, z.shape[1]
        self.groups = len(weight) // window_size**2
        self.item = weight.element_size()
        in_group = channels // self.groups
        self.parts = math.ceil(in_group / 8)
        self.channels = math.ceil(in_group / self.parts)
        self.taps = math.ceil(window_size / 4) * 4

        in_registers = FEATURES_IN_REGISTERS * 4 // self.item
        self.forward_pass = _passes(self.features, in_registers)
        limit = cuda_modules.shared_memory_limit(x.device)
        self.contract_pass = self._largest_pass(self._contract_shared, limit, in_registers)
        self.gather_pass = self._largest_pass(self._gather_shared, limit // 2 if limit > TWO_BLOCKS else limit)
        constants: dict[str, str | int] = {
            "SCALAR": SCALARS[x.dtype],
            "WINDOW": window_size,
            "CHANNELS": in_group,
            "FEATURES": self.features,
            "TILE_WIDTH": TILE_WIDTH,
            "TILE_HEIGHT": TILE_HEIGHT,
            "GATHER_HEIGHT": GATHER_HEIGHT,
            "FORWARD_PASS": self.forward_pass,
            "GATHER_PASS": self.gather_pass,
            "CONTRACT_PASS": self.contract_pass,
        }
        self.module = cuda_modules.load(Instance("fused.cu", tuple(constants.items())), x.device)

    def _largest_pass(self, shared_bytes: Callable[[int], int], limit: int, at_most: int | None = None) -> int:
        fitting = at_most or self.features
        while fitting > 1 and shared_bytes(fitting) > limit:
            fitting -= 1
        return _passes(self.features, fitting)

    def _tile(self, height: int) -> int:
        return (height + self.window - 1) * (TILE_WIDTH + 2 * MARGIN)

    def _forward_shared(self) -> int:
        expansion = self.window * (self.forward_pass + 1) * self.taps
        return (self.channels * self._tile(TILE_HEIGHT) + expansion) * self.item

    def _gather_shared(self, features: int) -> int:
        expansion = (self.window + 2) * (features + 1) * self.taps
        return ((self.channels + features) * self._tile(GATHER_HEIGHT) + expansion) * self.item

    def _contract_shared(self, features: int) -> int:
        expansion = self.window * (features + 1) * self.taps
        sums = THREADS // 32 * self.window**2 * (features + 1)
        return (self.channels * self._tile(TILE_HEIGHT) + features * THREADS * 4 + expansion + sums) * self.item

    def _tiles(self, height: int) -> int:
        return self.batch * math.ceil(self.width / TILE_WIDTH) * math.ceil(self.height / height)

    def forward(self, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        blocks = self._tiles(TILE_HEIGHT) * self.groups * self.parts
        self.module.launch(
            "fused_forward", blocks, THREADS, self._forward_shared(),
            x, z, weight, bias, out, self.groups, self.height, self.width, _vectorized(x, z, out),
        )  # fmt: skip

    def grad_x(self, grad: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, grad_x: Tensor) -> None:
        blocks = self._tiles(GATHER_HEIGHT) * self.groups * self.parts
        threads = TILE_WIDTH // 4 * GATHER_HEIGHT // 2
        self.module.launch(
            "fused_grad_x", blocks, threads, self._gather_shared(self.gather_pass),
            grad, z, weight, bias, grad_x, self.groups, self.height, self.width, _vectorized(grad, z, grad_x),
        )  # fmt: skip

    def grad_z_expansion(self, grad: Tensor, x: Tensor, z: Tensor, weight: Tensor, grad_z: Tensor):
        """Fill grad_z; returns the gradients of weight and bias."""
        tiles = self._tiles(TILE_HEIGHT)
        groups_in_slice = max(1, min(self.groups, tiles * self.groups // ENOUGH_BLOCKS))
        slices = math.ceil(self.groups / groups_in_slice)
        of_slices = weight.new_empty(slices, *z.shape) if slices > 1 else None
        of_tiles = weight.new_empty(tiles, weight.numel() + len(weight))
        self.module.launch(
            "fused_grad_z_expansion", tiles * slices, THREADS, self._contract_shared(self.contract_pass),
            grad, x, z, weight, grad_z, of_slices, of_tiles, self.batch, self.groups, groups_in_slice,
            self.height, self.width, _vectorized(grad, x, z, grad_z),
        )  # fmt: skip
        if of_slices is not None:
            self.module.launch(
                "sum_grad_z", math.ceil(z.numel() / 256), 256, 0,
                of_slices, grad_z, slices, self.batch * self.features, self.height, self.width,
            )  # fmt: skip
        grad_weight, grad_bias = torch.empty_like(weight), weight.new_empty(len(weight))
        count = of_tiles.shape[1]
        self.module.launch(
            "sum_grad_expansion", math.ceil(count / 32), SUM_THREADS, SUM_THREADS * self.item,
            of_tiles, grad_weight, grad_bias, tiles, weight.numel(), count,
        )  # fmt: skip
        return grad_weight, grad_bias
