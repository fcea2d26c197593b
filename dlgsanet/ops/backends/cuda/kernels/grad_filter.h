// The gradient of the filters of a thread's pixels, one row of the filters at a time:
//
//   grad_f[t](p) = sum_c grad[c, p] x[c, p + t]
#pragma once
#include "tile.h"

static_assert(kThreads == kThreadsAcross * TILE_HEIGHT, "one thread for each quad of a tile");

struct FilterGradient {
  Accumulator* tile;  // [kChannels][kTileRows][kStride], of x
  const TilePlace& place;
  const Image& image;
  const long long first_plane;  // index of the first plane of the group
  Accumulator grads[kChannels][kQuad];

  __device__ FilterGradient(Accumulator* tile, const TilePlace& place, const Image& image, int groups, int group)
      : tile(tile), place(place), image(image), first_plane(((long long)place.batch * groups + group) * CHANNELS) {}

  // Row i of the filters. All threads call it together, for rows in ascending order. No thread may still read the tile
  // when row 0 begins.
  __device__ __forceinline__ void row(Accumulator (&to)[kWindow][kQuad], const Scalar* __restrict__ grad,
                                      const Scalar* __restrict__ x, int i) {
#pragma unroll
    for (int t = 0; t < kWindow; t++)
#pragma unroll
      for (int j = 0; j < kQuad; j++) to[t][j] = 0;
#pragma unroll 1
    for (int part = 0; part < kParts; part++) {
      if (kParts > 1 || i == 0) load(grad, x, part, part || i);
#pragma unroll
      for (int c = 0; c < kChannels; c++) {
        const Window window(tile + (c * kTileRows + thread_row() + i) * kStride + thread_column());
#pragma unroll
        for (int t = 0; t < kWindow; t++)
#pragma unroll
          for (int j = 0; j < kQuad; j++) to[t][j] += grads[c][j] * window.at(t, j);
      }
    }
  }

  __device__ __forceinline__ void load(const Scalar* __restrict__ grad, const Scalar* __restrict__ x, int part,
                                       bool in_use) {
    const int first = part * kChannels, channels = min(kChannels, CHANNELS - first);
    const long long plane = first_plane + first;
    if (in_use) __syncthreads();  // all threads have read the previous part
    load_tile<kChannels>(tile, x + plane * image.pixels(), image, channels, place.y - kRadius, place.x - kMargin);
    load_quads(grads, grad + plane * image.pixels(), image.pixels(), image, channels, place.y + thread_row(),
               place.x + thread_column());
    __syncthreads();
  }
};
