// The gradient of the filters (see grad_filter.h) for kernels that multiply it on tensor cores: a lane forms a row of
// it for eight pixels.
#pragma once
#include "exact.h"
#include "tile.h"

constexpr int kPixels = 8;                       // of a lane
constexpr int kOddStride = kStride + kQuad;      // an odd number of quads: rows are in different banks
constexpr int kGradStride = TILE_WIDTH + kQuad;  // likewise
constexpr int kTapPairs = (kWindow + 1) / 2;     // of a row of the filters
constexpr int kColumns = 8;                      // of a product
constexpr int kWarps = kThreads / kWarp;
constexpr int kTiles = kChannels * (kTileRows * kOddStride + TILE_HEIGHT * kGradStride);  // numbers in a GradTiles
static_assert(kWarp == 32 && kWindow <= 8 && kParts == 1, "the sizes that both kernels serve");

struct GradTiles {
  float* x;     // [kChannels][kTileRows][kOddStride]
  float* grad;  // [kChannels][TILE_HEIGHT][kGradStride]

  __device__ explicit GradTiles(float* shared) : x(shared), grad(shared + kChannels * kTileRows * kOddStride) {}

  __device__ __forceinline__ void load(const Scalar* __restrict__ from_x, const Scalar* __restrict__ from_grad,
                                       const Image& image, const TilePlace& place, int groups, int group) {
    const long long start = ((long long)place.batch * groups + group) * CHANNELS * image.pixels();
    load_tile<kChannels, kTileRows, kOddStride>(x, from_x + start, image, kChannels, place.y - kRadius,
                                                place.x - kMargin);
    load_tile<kChannels, TILE_HEIGHT, kGradStride, TILE_WIDTH>(grad, from_grad + start, image, kChannels, place.y,
                                                               place.x);
  }

  // Row filter_row of the filters' gradient, for the pixels that begin at (row, column) of the tile.
  __device__ __forceinline__ void form(float (&to)[kTapPairs * 2][kPixels], int filter_row, int row,
                                       int column) const {
#pragma unroll
    for (int tap = 0; tap < kTapPairs * 2; tap++)
#pragma unroll
      for (int j = 0; j < kPixels; j++) to[tap][j] = 0;
#pragma unroll
    for (int c = 0; c < kChannels; c++) {
      const Window<kPixels> window(x + (c * kTileRows + row + filter_row) * kOddStride + column);
      float pixels[kPixels];
      read_run(pixels, grad + (c * TILE_HEIGHT + row) * kGradStride + column);
#pragma unroll
      for (int tap = 0; tap < kWindow; tap++)
#pragma unroll
        for (int j = 0; j < kPixels; j++) to[tap][j] += pixels[j] * window.at(tap, j);
    }
  }
};
