// Gradient of the fused dynamic depth-wise convolution with respect to x:
//
//   grad_x[c, p] = sum_t f[t](p - t) grad[c, p - t]
//
// Every pixel gathers its sum, so that the order of additions is fixed. The filters f (see fused_forward.cu) are formed
// again from a tile of z. A thread computes kRows rows, which read the same rows of z and grad: for row i of the tile,
// output row a needs row WINDOW - 1 - i + a of the filters. There are rows of zeros before and after those of the
// filters.
#include "expansion.h"

//   ROWS      rows that a thread computes
constexpr int kRows = ROWS;
constexpr int kExpansionRows = kWindow + 2 * (kRows - 1);
static_assert(kThreads * kRows == kThreadsAcross * TILE_HEIGHT, "a thread computes a quad of kRows rows");
static_assert(SHARED_ELEMENTS == (kChannels + kPass) * kTileRows * kStride + kExpansionRows * Expansion::kRow,
              "the layout below");

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    fused_grad_x(const Scalar* __restrict__ grad, const Scalar* __restrict__ z, const Accumulator* __restrict__ weight,
                 const Accumulator* __restrict__ bias, Scalar* __restrict__ grad_x, int groups, int height, int width,
                 int vectorized) {
  SHARED_MEMORY(shared);
  Accumulator* tile = shared;                                     // [kChannels][kTileRows][kStride]
  Accumulator* z_tile = tile + kChannels * kTileRows * kStride;   // [kPass][kTileRows][kStride]
  Accumulator* expansion = z_tile + kPass * kTileRows * kStride;  // [kExpansionRows][kPass + 1][kTaps]
  const Image image = {height, width, vectorized != 0};
  const GroupTile share(blockIdx.x, groups, image);
  const TilePlace& place = share.place;
  const int row = threadIdx.x / kThreadsAcross * kRows, column = thread_column();

  load_tile<kChannels>(tile, grad + share.plane * image.pixels(), image, share.channels, place.y - kRadius,
                       place.x - kMargin);
  Accumulator sum[kRows][kChannels][kQuad] = {};
  for (int first = 0; first < kFeatures; first += kPass) {
    if (first) __syncthreads();  // all threads have read the features of the last pass
    Expansion::stage<kExpansionRows>(expansion, weight, bias, share.group, first, 1 - kRows);
    load_tile<kPass>(z_tile, z + ((long long)place.batch * kFeatures + first) * image.pixels(), image,
                     kFeatures - first, place.y - kRadius, place.x - kMargin);
    __syncthreads();
    if (!image.has_row(place.y + row)) continue;  // of tiles at the lower edge, whole warps
#pragma unroll 1
    for (int i = 0; i < kWindow + kRows - 1; i++) {
      const Accumulator* weights = expansion + (kWindow + kRows - 2 - i) * Expansion::kRow;
      const int offset = (row + i) * kStride + column;
      Accumulator taps[kRows][kTaps], filter[kRows][kWindow][kQuad];
#pragma unroll
      for (int a = 0; a < kRows; a++) {
        Expansion::read(taps[a], weights + a * Expansion::kRow, kPass);
#pragma unroll
        for (int t = 0; t < kWindow; t++)
#pragma unroll
          for (int j = 0; j < kQuad; j++) filter[a][t][j] = taps[a][t];
      }
#pragma unroll
      for (int k = 0; k < kPass; k++) {
        const Window window(z_tile + k * kTileRows * kStride + offset);
#pragma unroll
        for (int a = 0; a < kRows; a++) {
          Expansion::read(taps[a], weights + a * Expansion::kRow, k);
#pragma unroll
          for (int t = 0; t < kWindow; t++)
#pragma unroll
            for (int j = 0; j < kQuad; j++) filter[a][t][j] += taps[a][t] * window.at(kWindow - 1 - t, j);
        }
      }
#pragma unroll
      for (int c = 0; c < kChannels; c++) {
        const Window window(tile + c * kTileRows * kStride + offset);
#pragma unroll
        for (int a = 0; a < kRows; a++)
#pragma unroll
          for (int t = 0; t < kWindow; t++)
#pragma unroll
            for (int j = 0; j < kQuad; j++) sum[a][c][j] += filter[a][t][j] * window.at(kWindow - 1 - t, j);
      }
    }
  }
#pragma unroll
  for (int a = 0; a < kRows; a++)
#pragma unroll
    for (int c = 0; c < kChannels; c++)
      if (c < share.channels)
        store_quad(grad_x + (share.plane + c) * image.pixels(), image, place.y + row + a, place.x + column, sum[a][c]);
}
