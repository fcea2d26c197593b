"""What local attention and the dynamic convolution share: filters on tensor cores. See `kernels/local_filters.h`."""

import math
from typing import NamedTuple

import torch

from dlgsanet.ops.backends.cuda import modules as cuda_modules
from dlgsanet.ops.backends.cuda.halo_tile import COLUMNS, ROWS, THREADS, TILE_HEIGHT, TILE_WIDTH, WARP, terms_of, whole

WINDOWS = (3, 5, 7)
MOST_FEATURES, MOST_SHARED = 23, 6  # channels of z, and channels that share a filter, so that registers suffice
MARGIN = 4  # columns of the border of a tile on either side
FAST = ((8, 0), (9, 0), (10, 0), (10, 3))  # compute capabilities: products of 16 bits are 16 times as fast as others
AT_ONCE = THREADS // WARP * COLUMNS // TILE_WIDTH  # groups that a block filters at once
QUAD = 4  # words that a lane loads at once


def serves(window: int, features: int, share: int) -> bool:
    """Whether there are kernels for a window, channels of z, and channels that share a filter."""
    return window in WINDOWS and features <= MOST_FEATURES and share <= MOST_SHARED


def applies_by_products(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether filters are applied by products: most factors are zero, so tensor cores have to be fast."""
    return dtype.itemsize == 2 and cuda_modules.capability(device) in FAST


class Sizes(NamedTuple):
    """What kernels are compiled for, and 32-bit words that follow from it."""

    constants: dict[str, int]
    plane: int  # of the tile in shared memory: kTilePlane
    features: int  # of z in shared memory: kFeatureWords
    expansion: int  # of a group's weights: kExpansion


def sizes(dtype: torch.dtype, device: torch.device, window: int, share: int, features: int) -> Sizes:
    by_products, steps = applies_by_products(dtype, device), features // terms_of(dtype) + 1
    rows, columns, of_product = TILE_HEIGHT + window - 1, TILE_WIDTH + 2 * MARGIN, WARP * QUAD
    if by_products:
        plane, expansion = (rows * columns + COLUMNS) // 2, window * steps * of_product
        words = TILE_WIDTH // COLUMNS * (TILE_HEIGHT // 2) * (2 * steps * of_product + ROWS)
    else:
        plane = whole(rows * (columns + 2) - WARP // 2, WARP) + WARP // 2
        expansion = math.ceil(window / 4) * math.ceil(math.ceil(window / 2) * steps / 2) * of_product
        words = TILE_WIDTH // 2 * (steps * of_product + QUAD)
    constants = {
        "BLOCKS": 2 if dtype.itemsize == 2 and steps == 1 else 1,  # by registers
        "WINDOW": window,
        "SHARE": share,
        "FEATURES": features,
        "MARGIN": MARGIN,
        "PRODUCTS": int(by_products),
    }
    return Sizes(constants, plane, words, expansion)
