"""The dynamic depth-wise convolution on NVIDIA GPUs, by the CUDA kernels in `kernels/`.

The fused kernels form filters from z in registers and never write them to memory. The sources describe the design.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from dlgsanet.ops.backends import Backend, ConvolutionFunctions
from dlgsanet.ops.backends.cuda import first_use
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.first_use import Use
from dlgsanet.ops.backends.cuda.modules import Instance, Module
from dlgsanet.ops.records import DynamicConv, FusedDynamicConv, Record, tensors_of

WINDOW_SIZES = (3, 5, 7, 9)
SCALARS = {torch.float32: "float", torch.float64: "double", torch.float16: "Half", torch.bfloat16: "BFloat16"}

# The kernels get these numbers, and those that follow from them, from the compiler's command line.

# Size of a tile in pixels: patches of 48 x 48 and 64 x 64 divide evenly, or leave whole warps idle. A thread computes
# four pixels of a row. In fused_grad_x it computes two rows, and the larger tile gives each of the four schedulers of a
# multiprocessor the same number of warps; float64 uses a smaller one, which fits into the shared memory of every GPU.
# On tensor cores a thread needs many registers, so smaller blocks fill a multiprocessor better.
TILE_WIDTH, TILE_HEIGHT, MMA_HEIGHT = 16, 24, 16
GRAD_X_SIDE, GRAD_X_SIDE_FLOAT64 = 32, 16
GRAD_X_ROWS = 2  # rows that a thread computes in fused_grad_x
MMA_STEP = 8  # features that one product on tensor cores adds up
QUAD = 4  # adjacent pixels that a thread computes and moves at once
VECTOR_BYTES = 16  # most bytes that a thread moves at once
IN_FLIGHT_BYTES = 128  # that a thread loads from global memory before it stores the first of them
WARP = 32
MARGIN = 4  # columns kept left and right of a tile: at least the largest radius, and whole quads
MOST_CHANNELS = 8  # channels of a group whose sums fit into registers; larger groups are divided into parts
THREADS = TILE_WIDTH // QUAD * TILE_HEIGHT
SUM_THREADS = 512

FEATURES_IN_REGISTERS = 24  # for four pixels, as 32-bit numbers
ENOUGH_BLOCKS = 512  # to fill a GPU; more would only need more scratch memory
TWO_BLOCKS_FROM = 128 << 10  # with this many bytes of shared memory, two blocks of fused_grad_x share them


def unsuited(convolution: Record, x: Tensor, training: bool) -> str | None:
    if x.device.type != "cuda" or torch.version.hip:
        return "it needs an NVIDIA GPU"
    tensors = [x, *tensors_of(convolution)]
    if any(t.device != x.device for t in tensors):
        return "the tensors are on several devices"
    if not all(t.numel() for t in tensors):
        return "a tensor is empty"
    if x.dtype not in SCALARS:
        return f"it has no kernels for {x.dtype}"
    assert isinstance(convolution, DynamicConv | FusedDynamicConv)
    window_size = convolution.filters.shape[2] if isinstance(convolution, DynamicConv) else convolution.window_size
    if window_size not in WINDOW_SIZES:
        return f"its windows are {', '.join(map(str, WINDOW_SIZES))} wide, not {window_size}"
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        return "the tensors are of a subclass"
    return unusable(x.device) or refused_kernels(convolution, x, training)


@functools.cache
def unusable(device: torch.device) -> str | None:
    """Why no kernel can be compiled or loaded for a GPU, or None."""
    try:
        from cupy.cuda import nvrtc

        version, known = nvrtc.getVersion(), nvrtc.getSupportedArchs()
        cuda_modules.shared_memory_limit(device)  # fails where the driver is older than CuPy's CUDA
    except (ImportError, RuntimeError) as e:
        return f"CuPy with NVRTC is missing or cannot be used (pip install cupy-cuda12x or cupy-cuda13x): {e}"
    major, minor = cuda_modules.capability(device)
    if major < 7:
        return f"it needs a GPU of compute capability 7.0 or more, not {major}.{minor}"
    if 10 * major + minor not in known:
        return f"CuPy's NVRTC {version[0]}.{version[1]} does not know GPUs of compute capability {major}.{minor}"
    return None


def refused_kernels(convolution: DynamicConv | FusedDynamicConv, x: Tensor, training: bool) -> str | None:
    """Why the kernels for a call failed at their first use on this GPU, or None."""
    if isinstance(convolution, FusedDynamicConv) and not training and _on_tensor_cores(convolution, x):
        return None
    kind = "plain" if isinstance(convolution, DynamicConv) else "fused"
    return _refused(f"{kind} {'backward' if training else 'forward'}", convolution, x)


def _refused(path: str, convolution: DynamicConv | FusedDynamicConv, x: Tensor) -> str | None:
    channels = x.shape[1]
    if isinstance(convolution, DynamicConv):
        groups, window, features = convolution.filters.shape[1], convolution.filters.shape[2], 0
    else:
        window, features = convolution.window_size, convolution.z.shape[1]
        groups = len(convolution.weight) // window**2
    return first_use.refused(Use(path, x.dtype, window, channels // groups, features, x.device), PATHS[path])


def dynamic_depthwise_conv(convolution: DynamicConv, x: Tensor) -> Tensor:
    x, filters = x.contiguous(), convolution.filters.contiguous()
    out = torch.empty_like(x)
    kernels = _Kernels(x, filters.shape[1], filters.shape[2])
    kernels.plain("plain_forward", kernels.parts, x, filters, out)
    return out


def dynamic_depthwise_conv_backward(convolution: DynamicConv, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    grad, x, filters = grad.contiguous(), x.contiguous(), convolution.filters.contiguous()
    grad_x, grad_filters = torch.empty_like(x), torch.empty_like(filters)
    kernels = _Kernels(x, filters.shape[1], filters.shape[2])
    kernels.plain("plain_grad_x", kernels.parts, grad, filters, grad_x)
    kernels.plain("plain_grad_filters", 1, grad, x, grad_filters)
    return grad_x, grad_filters


def fused_dynamic_depthwise_conv(convolution: FusedDynamicConv, x: Tensor) -> Tensor:
    return _fused_forward(convolution, x, _on_tensor_cores(convolution, x))


def _fused_forward(convolution: FusedDynamicConv, x: Tensor, on_tensor_cores: bool) -> Tensor:
    x = x.contiguous()
    z, weight, bias, window_size = _prepare(convolution)
    out = torch.empty_like(x)
    kernels = _FusedKernels(x, z, weight, window_size)
    (kernels.forward_on_tensor_cores if on_tensor_cores else kernels.forward)(x, z, weight, bias, out)
    return out


def fused_dynamic_depthwise_conv_backward(
    convolution: FusedDynamicConv, x: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_bias = convolution.weight if convolution.bias is None else convolution.bias
    grad, x = grad.contiguous(), x.contiguous()
    z, weight, bias, window_size = _prepare(convolution)
    grad_x, grad_z = torch.empty_like(x), torch.empty_like(z)
    grad_weight, grad_bias = torch.empty_like(weight), weight.new_empty(len(weight))
    kernels = _FusedKernels(x, z, weight, window_size)
    kernels.grad_x(grad, z, weight, bias, grad_x)
    kernels.grad_z_expansion(grad, x, z, weight, grad_z, grad_weight, grad_bias)
    return grad_x, grad_z, grad_weight.to(convolution.weight.dtype), grad_bias.to(of_bias.dtype)


# Each is compared with the reference at its first use.
PATHS: dict[str, first_use.Run] = {
    "plain forward": lambda convolution, x, grad: (dynamic_depthwise_conv(convolution, x),),
    "plain backward": dynamic_depthwise_conv_backward,
    "fused forward": lambda convolution, x, grad: (_fused_forward(convolution, x, False),),
    "fused forward on tensor cores": lambda convolution, x, grad: (_fused_forward(convolution, x, True),),
    "fused backward": fused_dynamic_depthwise_conv_backward,
}

BACKEND = Backend(
    name="cuda",
    unsuited=unsuited,
    dynamic_depthwise_conv=ConvolutionFunctions(dynamic_depthwise_conv, dynamic_depthwise_conv_backward),
    fused_dynamic_depthwise_conv=ConvolutionFunctions(
        fused_dynamic_depthwise_conv, fused_dynamic_depthwise_conv_backward
    ),
)


def _prepare(convolution: FusedDynamicConv) -> FusedDynamicConv:
    """Contiguous tensors, with weight and bias in the dtype in which sums are formed."""
    z, weight, bias, window_size = convolution
    accumulator = torch.float64 if z.dtype == torch.float64 else torch.float32
    bias = None if bias is None else bias.to(accumulator).contiguous()
    return FusedDynamicConv(z.contiguous(), weight.to(accumulator).contiguous(), bias, window_size)


def _on_tensor_cores(convolution: FusedDynamicConv, x: Tensor) -> bool:
    """Whether TF32 is exact enough, and the kernel for tensor cores serves these sizes and agreed at first use."""
    window, features = convolution.window_size, convolution.z.shape[1]
    exact_enough = x.dtype in (torch.float16, torch.bfloat16) or (x.dtype == torch.float32 and tf32_allowed())
    _, channels = _parts(x.shape[1] * window**2 // len(convolution.weight))
    fits = window <= 7 and features <= FEATURES_IN_REGISTERS and channels <= 6
    path = "fused forward on tensor cores"
    if not exact_enough or not fits or no_tensor_cores(path, x.dtype, x.device):
        return False
    return _refused(path, convolution, x) is None


def no_tensor_cores(path: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a kernel of `PATHS` is never used for a dtype on a GPU, or None."""
    if path.endswith("tensor cores") and (dtype == torch.float64 or cuda_modules.capability(device) < (8, 0)):
        return "not used: float64 has no tensor cores" if dtype == torch.float64 else "not used: needs sm_80 or later"
    return None


def _parts(channels: int) -> tuple[int, int]:
    """In how many parts the channels of a group are computed, and the channels of the largest."""
    parts = math.ceil(channels / MOST_CHANNELS)
    return parts, math.ceil(channels / parts)


def tf32_allowed() -> bool:
    """Whether PyTorch may compute float32 convolutions with TF32 products, by its newer setting or the older one."""
    conv = getattr(torch.backends.cudnn, "conv", None)  # since PyTorch 2.9; a program must not read both settings
    return torch.backends.cudnn.allow_tf32 if conv is None else conv.fp32_precision == "tf32"


def _vectorized(*images: Tensor) -> bool:
    """Whether four pixels can be moved at once: rows are whole quads, and the address is aligned for a quad."""
    return all(
        t.shape[-1] % QUAD == 0 and t.data_ptr() % min(VECTOR_BYTES, QUAD * t.element_size()) == 0 for t in images
    )


def _passes(count: int, at_most: int) -> int:
    """Size of each pass when `count` is divided into as few equal passes of at most `at_most` as possible."""
    return math.ceil(count / math.ceil(count / at_most))


class _Kernels:
    """The kernels for the dtype, channels and window of a call, and their launches.

    The sizes of the arrays in shared memory are computed here. Each kernel's source checks them when it is compiled.
    """

    def __init__(self, x: Tensor, groups: int, window_size: int):
        self.batch, channels, self.height, self.width = x.shape
        self.dtype, self.device = x.dtype, x.device
        self.groups, self.window = groups, window_size
        self.channels_in_group = channels // groups
        self.parts, self.channels = _parts(self.channels_in_group)
        self.taps = math.ceil(window_size / QUAD) * QUAD  # length of a filter's row in shared memory, in whole quads
        self.item = 8 if x.dtype == torch.float64 else 4

    def module(
        self, source: str, height: int, blocks: int, threads: int, elements: int, width: int = TILE_WIDTH, **more: int
    ) -> Module:
        """The kernels of a source.

        Args:
            source: file in `kernels/`.
            height: of a tile, pixels.
            blocks: the fewest blocks that a multiprocessor should hold.
            threads: of a block.
            elements: numbers in the shared memory of a block.
            width: of a tile, pixels.
            more: further constants of the source.
        """
        constants: dict[str, str | int] = {
            "SCALAR": SCALARS[self.dtype],
            "WINDOW": self.window,
            "CHANNELS": self.channels_in_group,
            "TILE_WIDTH": width,
            "TILE_HEIGHT": height,
            "QUAD": QUAD,
            "VECTOR_BYTES": VECTOR_BYTES,
            "MARGIN": MARGIN,
            "TAPS": self.taps,
            "PARTS": self.parts,
            "CHANNELS_IN_PART": self.channels,
            "THREADS": threads,
            "BLOCKS": 1 if self.item == 8 else blocks,
            "IN_FLIGHT": IN_FLIGHT_BYTES // (QUAD * self.item),
            "WARP": WARP,
            "SHARED_ELEMENTS": elements,
            **more,
        }
        return cuda_modules.load(Instance(source, tuple(constants.items())), self.device)

    def tiles(self, height: int, width: int = TILE_WIDTH) -> int:
        return self.batch * math.ceil(self.width / width) * math.ceil(self.height / height)

    def tile_elements(self, height: int, width: int = TILE_WIDTH) -> int:
        return (height + self.window - 1) * (width + 2 * MARGIN)

    def plain(self, kernel: str, parts: int, *tensors: Tensor) -> None:
        elements = self.channels * self.tile_elements(TILE_HEIGHT)
        self.module("plain.cu", TILE_HEIGHT, 4, THREADS, elements).launch(
            kernel, self.tiles(TILE_HEIGHT) * self.groups * parts, THREADS, elements * self.item,
            *tensors, self.groups, self.height, self.width, _vectorized(*tensors),
        )  # fmt: skip


class _FusedKernels(_Kernels):
    def __init__(self, x: Tensor, z: Tensor, weight: Tensor, window_size: int):
        super().__init__(x, len(weight) // window_size**2, window_size)
        self.features = z.shape[1]
        self.in_registers = FEATURES_IN_REGISTERS * 4 // self.item
        self.grad_x_side = GRAD_X_SIDE if self.item == 4 else GRAD_X_SIDE_FLOAT64
        self.shared_limit = cuda_modules.shared_memory_limit(x.device)

    def _largest_pass(self, elements: Callable[[int], int], shared_limit: int, at_most: int) -> int:
        """How many features a kernel processes at a time."""
        while at_most > 1 and elements(at_most) * self.item > shared_limit:
            at_most -= 1
        return _passes(self.features, at_most)

    def forward(self, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        features = _passes(self.features, self.in_registers)
        expansion = self.window * (features + 1) * self.taps
        elements = self.channels * self.tile_elements(TILE_HEIGHT) + expansion
        constants = {"FEATURES": self.features, "PASS": features}
        self.module("fused_forward.cu", TILE_HEIGHT, 4, THREADS, elements, **constants).launch(
            "fused_forward", self.tiles(TILE_HEIGHT) * self.groups * self.parts, THREADS, elements * self.item,
            x, z, weight, bias, out, self.groups, self.height, self.width, _vectorized(x, z, out),
        )  # fmt: skip

    def forward_on_tensor_cores(self, x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        threads = TILE_WIDTH // QUAD * MMA_HEIGHT
        tile = self.channels * (MMA_HEIGHT + self.window - 1) * (TILE_WIDTH + 2 * MARGIN + 1)
        elements = TILE_WIDTH // 2 * math.ceil(self.features / MMA_STEP) * threads * QUAD + tile
        constants = {"FEATURES": self.features, "STEP": MMA_STEP}
        self.module("fused_forward_mma.cu", MMA_HEIGHT, 4, threads, elements, **constants).launch(
            "fused_forward_mma", self.tiles(MMA_HEIGHT) * self.groups * self.parts, threads, elements * self.item,
            x, z, weight, bias, out, self.groups, self.height, self.width, _vectorized(x, z, out),
        )  # fmt: skip

    def _grad_x_elements(self, features: int) -> int:
        expansion = (self.window + 2 * (GRAD_X_ROWS - 1)) * (features + 1) * self.taps
        return (self.channels + features) * self.tile_elements(self.grad_x_side, self.grad_x_side) + expansion

    def grad_x(self, grad: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, grad_x: Tensor) -> None:
        # The system takes 1 KB for each block. The limit for a single block already excludes it.
        limit = (self.shared_limit - 1024) // 2 if self.shared_limit > TWO_BLOCKS_FROM else self.shared_limit
        features = self._largest_pass(self._grad_x_elements, limit, self.features)
        side, elements = self.grad_x_side, self._grad_x_elements(features)
        threads = side // QUAD * side // GRAD_X_ROWS
        constants = {"FEATURES": self.features, "PASS": features, "ROWS": GRAD_X_ROWS}
        self.module("fused_grad_x.cu", side, 2, threads, elements, side, **constants).launch(
            "fused_grad_x", self.tiles(side, side) * self.groups * self.parts, threads, elements * self.item,
            grad, z, weight, bias, grad_x, self.groups, self.height, self.width, _vectorized(grad, z, grad_x),
        )  # fmt: skip

    def _grad_z_elements(self, features: int) -> int:
        expansion = self.window * (features + 1) * self.taps
        sums = THREADS // WARP * self.window**2 * (features + 1)
        return self.channels * self.tile_elements(TILE_HEIGHT) + expansion + features * THREADS * QUAD + sums

    def grad_z_expansion(
        self, grad: Tensor, x: Tensor, z: Tensor, weight: Tensor, grad_z: Tensor, grad_weight: Tensor, grad_bias: Tensor
    ) -> None:
        features = self._largest_pass(self._grad_z_elements, self.shared_limit, self.in_registers)
        elements, constants = self._grad_z_elements(features), {"FEATURES": self.features, "PASS": features}
        module = self.module("fused_grad_z.cu", TILE_HEIGHT, 4, THREADS, elements, **constants)
        tiles = self.tiles(TILE_HEIGHT)
        groups_in_slice = max(1, min(self.groups, tiles * self.groups // ENOUGH_BLOCKS))
        slices = math.ceil(self.groups / groups_in_slice)
        of_slices = weight.new_empty(slices, *z.shape) if slices > 1 else None
        of_tiles = weight.new_empty(tiles, weight.numel() + len(weight))
        module.launch(
            "fused_grad_z_expansion", tiles * slices, THREADS, elements * self.item,
            grad, x, z, weight, grad_z, of_slices, of_tiles, self.batch, self.groups, groups_in_slice,
            self.height, self.width, _vectorized(grad, x, z, grad_z),
        )  # fmt: skip
        if of_slices is not None:
            module.launch(
                "sum_grad_z", math.ceil(z.numel() / 256), 256, 0,
                of_slices, grad_z, slices, self.batch * self.features, self.height, self.width,
            )  # fmt: skip
        count = of_tiles.shape[1]
        module.launch(
            "sum_grad_expansion", math.ceil(count / WARP), SUM_THREADS, SUM_THREADS * self.item,
            of_tiles, grad_weight, grad_bias, tiles, weight.numel(), count,
        )  # fmt: skip
