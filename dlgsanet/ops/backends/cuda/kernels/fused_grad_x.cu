// Gradient of the fused dynamic depth-wise convolution with respect to x:
//
//   grad_x[c, p] = sum_t f[t](p - t) grad[c, p - t]
//
// Every pixel gathers, with filters formed again from a tile of z (see fused_forward.cu for f), so that sums are in a
// fixed order. A thread computes two rows, p and the one below, which read the same rows of z and grad: of those, for
// row i, the first of the two needs the filters' row WINDOW - 1 - i and the second the next one. Rows of zeros stand
// before and after the filters' rows.
#include "expansion.h"

constexpr int kThreads = kThreadsAcross * TILE_HEIGHT / 2;
constexpr int kTileRows = TILE_HEIGHT + 2 * kRadius;

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    fused_grad_x(const Scalar* __restrict__ grad, const Scalar* __restrict__ z, const Accumulator* __restrict__ weight,
                 const Accumulator* __restrict__ bias, Scalar* __restrict__ grad_x, int groups, int height, int width,
                 int vectorized) {
  SHARED_MEMORY(shared);
  Accumulator* tile = shared;                                     // [kChannels][kTileRows][kStride]
  Accumulator* z_tile = tile + kChannels * kTileRows * kStride;   // [kPass][kTileRows][kStride]
  Accumulator* expansion = z_tile + kPass * kTileRows * kStride;  // [WINDOW + 2][kPass + 1][kTaps]
  const Image image = {height, width, vectorized != 0};
  const GroupTile share(blockIdx.x, groups, image);
  const TilePlace& place = share.place;
  const int row = threadIdx.x / kThreadsAcross * 2, column = thread_column();

  load_tile(tile, grad + share.plane * image.pixels(), image, kChannels, share.channels, kTileRows, place.y - kRadius,
            place.x - kMargin);
  Accumulator sum[2][kChannels][kQuad] = {};
  for (int first = 0; first < kFeatures; first += kPass) {
    if (first) __syncthreads();  // nobody reads the last pass's features any more
    Expansion::stage(expansion, weight, bias, share.group, first, -1, kWindow + 2);
    load_tile(z_tile, z + ((long long)place.batch * kFeatures + first) * image.pixels(), image, kPass,
              min(kPass, kFeatures - first), kTileRows, place.y - kRadius, place.x - kMargin);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i <= kWindow; i++) {
      const Accumulator* weights = expansion + (kWindow - i) * Expansion::kRow;
      const int offset = (row + i) * kStride + column;
      Accumulator taps[2][kTaps], filter[2][kWindow][kQuad];
#pragma unroll
      for (int a = 0; a < 2; a++) {
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
        for (int a = 0; a < 2; a++) {
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
        for (int a = 0; a < 2; a++)
#pragma unroll
          for (int t = 0; t < kWindow; t++)
#pragma unroll
            for (int j = 0; j < kQuad; j++) sum[a][c][j] += filter[a][t][j] * window.at(kWindow - 1 - t, j);
      }
    }
  }
#pragma unroll
  for (int a = 0; a < 2; a++)
#pragma unroll
    for (int c = 0; c < kChannels; c++)
      if (c < share.channels)
        store_quad(grad_x + (share.plane + c) * image.pixels(), image, place.y + row + a, place.x + column, sum[a][c]);
}
