"""The dynamic convolution and its gradients in CUDA kernels.

The fused kernels form filters from z in registers and never write them to memory. The sources describe the design.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlgsanet.ops import tf32
from dlgsanet.ops.backends.cuda import halo_tile, local_filters
from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.local_filters import AT_ONCE
from dlgsanet.ops.backends.cuda.modules import SCALARS, Instance, Launch, Module
from dlgsanet.ops.backends.reference import accumulation_dtype
from dlgsanet.ops.records import DynamicConv, FusedDynamicConv

FORWARD_MMA, BACKWARD_MMA = "fused forward on tensor cores", "fused backward on tensor cores"
FORWARD_EXACT, BACKWARD_EXACT = f"{FORWARD_MMA} with exact factors", f"{BACKWARD_MMA} with exact factors"
WINDOW_SIZES = (3, 5, 7, 9)

# The kernels get these numbers, and those that follow from them, from the compiler's command line.

# Size of a tile in pixels: patches of 48 x 48 and 64 x 64 divide evenly, or leave whole warps idle. A thread computes
# four pixels of a row. In fused_grad_x it computes two rows, and the larger tile gives each of the four schedulers of a
# multiprocessor the same number of warps; float64 uses a smaller one, which fits into the shared memory of every GPU.
TILE_WIDTH, TILE_HEIGHT = 16, 24
GRAD_EXPANSION_HEIGHT = 32
GRAD_X_SIDE, GRAD_X_SIDE_FLOAT64 = 32, 16
GRAD_X_ROWS = 2  # rows that a thread computes in fused_grad_x
MMA_COLUMNS = 8  # of a product on tensor cores
GRAD_X_MMA_HEIGHT, GRAD_X_MMA_GROUPS = 8, 8  # of a tile, and groups of a block
GRAD_FILTERS_MMA_SIDE, GRAD_FILTERS_MMA_PIXELS = 16, 8 * 8  # of a tile, and that a warp computes
QUAD = 4  # adjacent pixels that a thread computes and moves at once
VECTOR_BYTES = 16  # most bytes that a thread moves at once
IN_FLIGHT_BYTES = 128  # that a thread loads from global memory before it stores the first of them
WARP = 32
MARGIN = 4  # columns kept left and right of a tile: at least the largest radius, and whole quads
MOST_CHANNELS = 8  # channels of a group whose sums fit into registers; larger groups are divided into parts
THREADS = TILE_WIDTH // QUAD * TILE_HEIGHT
SUM_THREADS = 512

FEATURES_IN_REGISTERS = 24  # for four pixels, as 32-bit numbers
ENOUGH_BLOCKS = 384  # to fill a GPU; more would only need more scratch memory
SUMS_IN_REGISTERS = 84  # of a filter row, as 32-bit numbers
TWO_BLOCKS_FROM = 128 << 10  # with this many bytes of shared memory, two blocks of fused_grad_x share them


def dynamic_depthwise_conv(convolution: DynamicConv, x: Tensor) -> Tensor:
    x, filters = x.contiguous(), convolution.filters.contiguous()
    out = torch.empty_like(x)
    _plain_plan(x, filters, out).forward(x, filters, out)
    return out


def dynamic_depthwise_conv_backward(convolution: DynamicConv, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    grad, x, filters = grad.contiguous(), x.contiguous(), convolution.filters.contiguous()
    grad_x, grad_filters = torch.empty_like(x), torch.empty_like(filters)
    plan = _plain_plan(x, filters, grad, grad_x, grad_filters)
    plan.grad_x(grad, filters, grad_x)
    plan.grad_filters(grad, x, grad_filters)
    return grad_x, grad_filters


def fused_forward(convolution: FusedDynamicConv, x: Tensor, path: str | None) -> Tensor:
    """The result; path: `FORWARD_MMA` or `FORWARD_EXACT` on tensor cores, else None."""
    x = x.contiguous()
    z, weight, bias, window_size = _prepare(convolution)
    out = torch.empty_like(x)
    plan = _fused_plan(weight, window_size, x, z, out, exact=path == FORWARD_EXACT)
    if path is None:
        plan.forward(x, z, weight, bias, out)
    else:
        pack, forward = plan.forward_on_tensor_cores
        expansion = weight.new_empty(pack.sizes, dtype=torch.int32)
        pack(weight, bias, expansion)
        forward(x, z, expansion, out)
    return out


def fits_tensor_cores(convolution: FusedDynamicConv, x: Tensor) -> bool:
    """Whether the forward pass on tensor cores is made for these sizes."""
    groups, features = len(convolution.weight) // convolution.window_size**2, convolution.z.shape[1]
    fits = local_filters.serves(convolution.window_size, features, x.shape[1] // groups)
    return fits and groups >= AT_ONCE and _vectorized(x, convolution.z)


def fused_backward(
    convolution: FusedDynamicConv,
    x: Tensor,
    grad: Tensor,
    path: str,
    on_tensor_cores: Callable[[str, Callable[[bool], Tensor]], bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, z, weight and bias.

    Args:
        path: `BACKWARD_MMA` or `BACKWARD_EXACT`: how tensor cores are used.
        on_tensor_cores: whether a gradient is formed there; called with its name for messages, and a function that
            forms it there or not.
    """
    of_bias = convolution.weight if convolution.bias is None else convolution.bias
    grad, x = grad.contiguous(), x.contiguous()
    z, weight, bias, window_size = _prepare(convolution)
    plan = _fused_plan(weight, window_size, x, z, grad, exact=path == BACKWARD_EXACT)
    of_x = functools.partial(plan.grad_x, grad, z, weight, bias)
    of_filters = functools.partial(plan.grad_filters, grad, x, z, weight)
    grad_x = of_x(plan.grad_x_fits_tensor_cores and on_tensor_cores(", gradient of x", of_x))
    there = on_tensor_cores(", gradients of z and weight", lambda there: of_filters(there)[0])
    grad_z, grad_weight, grad_bias = of_filters(there)
    return grad_x, grad_z, grad_weight.to(convolution.weight.dtype), grad_bias.to(of_bias.dtype)


def _prepare(convolution: FusedDynamicConv) -> FusedDynamicConv:
    """Contiguous tensors, with weight and bias in the dtype in which sums are formed."""
    z, weight, bias, window_size = convolution
    accumulator = accumulation_dtype(z.dtype)
    if weight.dtype != accumulator:
        weight = weight.to(accumulator)
    if bias is not None:
        bias = (bias if bias.dtype == accumulator else bias.to(accumulator)).contiguous()
    return FusedDynamicConv(z.contiguous(), weight.contiguous(), bias, window_size)


def tf32_suffices(x: Tensor) -> bool:
    """Whether factors may be rounded to TF32."""
    return x.dtype in (torch.float16, torch.bfloat16) or (x.dtype == torch.float32 and tf32.allowed_in_convolutions())


def parts_of(channels: int) -> tuple[int, int]:
    """The number of parts in which the channels of a group are computed, and the channels of the largest."""
    parts = math.ceil(channels / MOST_CHANNELS)
    return parts, math.ceil(channels / parts)


def _vectorized(*images: Tensor) -> bool:
    """Whether four pixels can be moved at once: rows are whole quads, and addresses are aligned for a quad.

    The images have one width and one dtype.
    """
    aligned = min(VECTOR_BYTES, QUAD * images[0].element_size())
    return images[0].shape[-1] % QUAD == 0 and not any(t.data_ptr() % aligned for t in images)


def _passes(count: int, at_most: int) -> int:
    """Size of each pass when `count` is divided into as few equal passes of at most `at_most` as possible."""
    return math.ceil(count / math.ceil(count / at_most))


class _Plan:
    """The launches for the sizes of a call. Each is worked out, and its kernel is loaded, when it is first needed.

    The sizes of the arrays in shared memory are computed here. Each kernel's source checks them when it is compiled.
    """

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, device: torch.device, groups: int, window: int, vectorized: bool
    ):
        self.batch, channels, self.height, self.width = shape
        self.dtype, self.device = dtype, device
        self.groups, self.window = groups, window
        self.image = (self.height, self.width, vectorized)  # the last arguments of most kernels
        self.channels_in_group = channels // groups
        self.parts, self.channels = parts_of(self.channels_in_group)
        self.taps = math.ceil(window / QUAD) * QUAD  # length of a filter's row in shared memory, in whole quads
        self.item = 8 if dtype == torch.float64 else 4

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


class _PlainPlan(_Plan):
    def _launch(self, kernel: str, parts: int) -> Launch:
        elements = self.channels * self.tile_elements(TILE_HEIGHT)
        module = self.module("plain.cu", TILE_HEIGHT, 4, THREADS, elements)
        blocks = self.tiles(TILE_HEIGHT) * self.groups * parts
        return Launch(module, kernel, blocks, THREADS, elements * self.item, (self.groups, *self.image))

    @functools.cached_property
    def forward(self) -> Launch:
        return self._launch("plain_forward", self.parts)

    @functools.cached_property
    def grad_x(self) -> Launch:
        return self._launch("plain_grad_x", self.parts)

    @functools.cached_property
    def grad_filters(self) -> Launch:
        return self._launch("plain_grad_filters", 1)


class _FusedPlan(_Plan):
    def __init__(self, *call: Any, features: int, exact: bool):
        super().__init__(*call)
        self.features, self.exact = features, exact
        self.grad_x_side = GRAD_X_SIDE if self.item == 4 else GRAD_X_SIDE_FLOAT64
        self.shared_limit = cuda_modules.shared_memory_limit(self.device)

    def _with_features_in_registers(self, source: str) -> tuple[Module, int]:
        """The kernels of a source that keep features of four pixels in registers, and the bytes of shared memory."""
        features = _passes(self.features, FEATURES_IN_REGISTERS * 4 // self.item)
        elements = self.channels * self.tile_elements(TILE_HEIGHT) + self.window * (features + 1) * self.taps
        constants = {"FEATURES": self.features, "PASS": features}
        return self.module(source, TILE_HEIGHT, 4, THREADS, elements, **constants), elements * self.item

    @functools.cached_property
    def forward(self) -> Launch:
        module, shared_bytes = self._with_features_in_registers("fused_forward.cu")
        blocks = self.tiles(TILE_HEIGHT) * self.groups * self.parts
        return Launch(module, "fused_forward", blocks, THREADS, shared_bytes, (self.groups, *self.image))

    @functools.cached_property
    def forward_on_tensor_cores(self) -> tuple[Launch, Launch]:
        """The launches that pack the weights, and that form and apply filters."""
        share, threads = self.channels_in_group, halo_tile.THREADS
        filters = local_filters.sizes(self.dtype, self.device, self.window, share, self.features)
        elements, words = AT_ONCE * share * filters.plane + filters.features, self.groups * filters.expansion
        constants = halo_tile.constants(self.dtype, share, self.exact) | filters.constants
        constants["SHARED_ELEMENTS"] = elements
        module = cuda_modules.load(Instance("fused_forward_mma.cu", tuple(constants.items())), self.device)
        tiles = halo_tile.tiles(self.batch, self.height, self.width)
        sizes = (self.groups, math.ceil(self.groups / AT_ONCE), self.height, self.width)
        return (
            Launch(module, "pack_expansion", math.ceil(words / threads), threads, 0, (words,)),
            Launch(module, "fused_forward_mma", tiles, threads, 4 * elements, sizes),
        )

    def _grad_x_elements(self, features: int) -> int:
        expansion = (self.window + 2 * (GRAD_X_ROWS - 1)) * (features + 1) * self.taps
        return (self.channels + features) * self.tile_elements(self.grad_x_side, self.grad_x_side) + expansion

    @functools.cached_property
    def _grad_x(self) -> Launch:
        # The system takes 1 KB for each block. The limit for a single block already excludes it.
        limit = (self.shared_limit - 1024) // 2 if self.shared_limit > TWO_BLOCKS_FROM else self.shared_limit
        features = self.features
        while features > 1 and self._grad_x_elements(features) * self.item > limit:
            features -= 1
        features = _passes(self.features, features)
        side, elements = self.grad_x_side, self._grad_x_elements(features)
        threads = side // QUAD * side // GRAD_X_ROWS
        constants = {"FEATURES": self.features, "PASS": features, "ROWS": GRAD_X_ROWS}
        module = self.module("fused_grad_x.cu", side, 2, threads, elements, side, **constants)
        blocks = self.tiles(side, side) * self.groups * self.parts
        return Launch(module, "fused_grad_x", blocks, threads, elements * self.item, (self.groups, *self.image))

    @functools.cached_property
    def _grad_x_mma_elements(self) -> int:
        """Numbers in shared memory: tiles of the gradient and of z, and a row of the weights. Four lanes have different
        groups, whose tiles are so far apart that they use different banks."""
        rows = (GRAD_X_MMA_HEIGHT + self.window) // 4 * 4 + 2
        plane = rows * (TILE_WIDTH + 2 * MARGIN + QUAD)
        of_lane = GRAD_X_MMA_GROUPS // 4 * self.channels * plane
        weights = (self.features // MMA_COLUMNS + 1) * self.window * 2 * WARP
        return 4 * (of_lane + (8 - of_lane) % 32) + self.features * plane + weights

    @property
    def grad_x_fits_tensor_cores(self) -> bool:
        return self._grad_x_mma_elements * self.item <= self.shared_limit

    @functools.cached_property
    def _grad_x_on_tensor_cores(self) -> Launch:
        height, elements = GRAD_X_MMA_HEIGHT, self._grad_x_mma_elements
        threads = height // 2 * WARP
        constants = {"FEATURES": self.features, "EXACT": int(self.exact)}
        module = self.module("fused_grad_x_mma.cu", height, 2, threads, elements, **constants)
        blocks = self.tiles(height) * math.ceil(self.groups / GRAD_X_MMA_GROUPS)
        return Launch(module, "fused_grad_x_mma", blocks, threads, elements * self.item, (self.groups, *self.image))

    def grad_x(self, grad: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, on_tensor_cores: bool) -> Tensor:
        grad_x = torch.empty_like(grad)
        launch = self._grad_x_on_tensor_cores if on_tensor_cores else self._grad_x
        launch(grad, z, weight, bias, grad_x)
        return grad_x

    @functools.cached_property
    def _grad_z_module(self) -> tuple[Module, int]:
        return self._with_features_in_registers("fused_grad_z.cu")

    @functools.cached_property
    def _grad_z(self) -> tuple[Launch, int]:
        """The launch, and the number of slices of the groups that blocks process."""
        module, shared_bytes = self._grad_z_module
        tiles = self.tiles(TILE_HEIGHT)
        groups, slices = self._slices(tiles)
        sizes = (self.batch, self.groups, groups, *self.image)
        return Launch(module, "fused_grad_z", tiles * slices, THREADS, shared_bytes, sizes), slices

    def _slices(self, tiles: int) -> tuple[int, int]:
        """The groups that a block processes for a tile, and the number of such slices of the groups."""
        groups = max(1, min(self.groups, tiles * self.groups // ENOUGH_BLOCKS))
        return groups, math.ceil(self.groups / groups)

    @functools.cached_property
    def _grad_expansion_module(self) -> tuple[Module, int, int, int]:
        """The kernels, the features of a block, the height of a tile, and the numbers in shared memory."""
        features = _passes(self.features, SUMS_IN_REGISTERS * 4 // self.item // self.window)
        height = GRAD_EXPANSION_HEIGHT
        while (elements := self._grad_expansion_elements(features, height)) * self.item > self.shared_limit:
            height -= WARP * QUAD // TILE_WIDTH
        constants = {"FEATURES": self.features, "PASS": features, "IN_FLIGHT": 4 * 4 // self.item}
        blocks = 2 if self.window <= 7 else 1
        module = self.module("fused_grad_expansion.cu", height, blocks, self.window * WARP, elements, **constants)
        return module, features, height, elements

    @functools.cached_property
    def _grad_expansion(self) -> tuple[Launch, int]:
        """The launch, and the number of chunks of the tiles that blocks process."""
        module, features, height, elements = self._grad_expansion_module
        tiles, of_tile = self.tiles(height), self.groups * math.ceil(self.features / features)
        tiles_in_chunk = max(1, tiles * of_tile // ENOUGH_BLOCKS)
        chunks, threads = math.ceil(tiles / tiles_in_chunk), self.window * WARP
        sizes = (self.groups, tiles, tiles_in_chunk, *self.image)
        return Launch(module, "fused_grad_expansion", chunks * of_tile, threads, elements * self.item, sizes), chunks

    @functools.cached_property
    def _grad_filters_on_tensor_cores(self) -> tuple[Launch, int, int]:
        """The launch, and the numbers of slices and chunks."""
        side = GRAD_FILTERS_MMA_SIDE
        threads, tiles = side * side // GRAD_FILTERS_MMA_PIXELS * WARP, self.tiles(side)
        tiles_in_chunk, (groups, slices) = max(1, tiles // ENOUGH_BLOCKS), self._slices(tiles)
        chunks = math.ceil(tiles / tiles_in_chunk)
        # Tiles of x and of the gradient have rows of an odd number of quads.
        rows_of_x = side + self.window - 1
        elements = self.channels * (rows_of_x * (TILE_WIDTH + 2 * MARGIN + QUAD) + side * (TILE_WIDTH + QUAD))
        taps = math.ceil(self.window / 2) * 2  # of a row of the filters, in whole pairs
        elements += math.ceil(self.window / 4) * taps * math.ceil(self.features / MMA_COLUMNS) * WARP
        # What the lanes of a warp exchange: four taps of four rows of the filters' gradient at a time, or sums.
        exchanged = max(8 * QUAD + 2 * QUAD, (self.features // MMA_COLUMNS + 1) * MMA_COLUMNS)
        elements += threads // WARP * math.ceil(taps / 4) * 16 * exchanged
        # Of the loads of quads that a thread starts at once, so that no trip over a tile of x has much less to load.
        own = math.ceil(self.channels * rows_of_x / (threads // ((TILE_WIDTH + 2 * MARGIN) // QUAD)))
        in_flight = _passes(own, IN_FLIGHT_BYTES // (QUAD * self.item))
        constants = {"FEATURES": self.features, "IN_FLIGHT": in_flight, "EXACT": int(self.exact)}
        constants["VECTORIZED"] = int(self.image[2])
        module = self.module("fused_grad_filters_mma.cu", side, 3, threads, elements, **constants)
        sizes = (self.batch, self.groups, groups, tiles, tiles_in_chunk, self.height, self.width)
        launch = Launch(module, "fused_grad_filters_mma", chunks * slices, threads, elements * self.item, sizes)
        return launch, slices, chunks

    def _grad_expansion_elements(self, features: int, height: int) -> int:
        own = height * (TILE_WIDTH + 2 * MARGIN)
        return self.channels * self.tile_elements(height) + (self.channels + features) * own

    def grad_filters(
        self, grad: Tensor, x: Tensor, z: Tensor, weight: Tensor, on_tensor_cores: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of z, weight and bias."""
        if on_tensor_cores:
            launch, slices, chunks = self._grad_filters_on_tensor_cores
        else:
            (of_z, slices), (of_expansion, chunks) = self._grad_z, self._grad_expansion
        grad_z, grad_weight, grad_bias = torch.empty_like(z), torch.empty_like(weight), weight.new_empty(len(weight))
        count = grad_weight.numel() + grad_bias.numel()
        of_slices = weight.new_empty(slices, *z.shape) if slices > 1 else None
        of_chunks = weight.new_empty(chunks, count)
        if on_tensor_cores:
            launch(grad, x, z, weight, grad_z, of_slices, of_chunks)
        else:
            of_z(grad, x, weight, grad_z, of_slices)
            of_expansion(grad, x, z, of_chunks)
        if of_slices is not None:
            sizes = (slices, self.batch * self.features, self.height, self.width)
            Launch(self._grad_z_module[0], "sum_grad_z", math.ceil(z.numel() / 256), 256, 0, sizes)(of_slices, grad_z)
        Launch(
            self._grad_expansion_module[0], "sum_grad_expansion", math.ceil(count / WARP), SUM_THREADS,
            SUM_THREADS * self.item, (chunks, grad_weight.numel(), count),
        )(of_chunks, grad_weight, grad_bias)  # fmt: skip
        return grad_z, grad_weight, grad_bias


@functools.lru_cache(maxsize=1024)  # images of every size may come
def plan(*call: Any, features: int = 0, exact: bool = False) -> Any:
    """The plan for (shape, dtype, device, groups, window, vectorized), of filters formed from features or given (0)."""
    return _FusedPlan(*call, features=features, exact=exact) if features else _PlainPlan(*call)


def _plain_plan(x: Tensor, filters: Tensor, *more: Tensor) -> _PlainPlan:
    return plan(x.shape, x.dtype, x.device, *filters.shape[1:3], _vectorized(x, filters, *more))


def _fused_plan(weight: Tensor, window: int, x: Tensor, z: Tensor, *more: Tensor, exact: bool = False) -> _FusedPlan:
    """The plan for a call; exact: whether products of gradients on tensor cores are as exact as in float32."""
    call = x.shape, x.dtype, x.device, weight.shape[0] // window**2, window, _vectorized(x, z, *more)
    return plan(*call, features=z.shape[1], exact=exact)
