// The dynamic depth-wise convolution with filters = weight @ z + bias, which are never written to memory:
//
//   out[c, p] = sum_t f[t](p) x[c, p + t],   f[t](p) = bias[g, t] + sum_k weight[g, t, k] z[k, p]
//
// for the taps t of a K x K window and the channels c of group g (DLGSANet, section 3.2). A thread forms one row of the
// filters of four pixels at a time and applies it to the channels of the group.
#include "expansion.h"

static_assert(kThreads == kThreadsAcross * TILE_HEIGHT, "one thread for each quad of a tile");
static_assert(SHARED_ELEMENTS == kChannels * kTileRows * kStride + kWindow * Expansion::kRow, "the layout below");

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    fused_forward(const Scalar* __restrict__ x, const Scalar* __restrict__ z, const Accumulator* __restrict__ weight,
                  const Accumulator* __restrict__ bias, Scalar* __restrict__ out, int groups, int height, int width,
                  int vectorized) {
  SHARED_MEMORY(shared);
  Accumulator* tile = shared;                                       // [kChannels][kTileRows][kStride]
  Accumulator* expansion = tile + kChannels * kTileRows * kStride;  // [WINDOW][kPass + 1][kTaps]
  const Image image = {height, width, vectorized != 0};
  const GroupTile share(blockIdx.x, groups, image);
  const TilePlace& place = share.place;
  const int row = thread_row(), column = thread_column();
  const int py = place.y + row, px = place.x + column;

  load_tile<kChannels>(tile, x + share.plane * image.pixels(), image, share.channels, place.y - kRadius,
                       place.x - kMargin);
  Accumulator sum[kChannels][kQuad] = {};
  for (int first = 0; first < kFeatures; first += kPass) {
    if (first) __syncthreads();  // all threads have read the weights of the last pass
    Expansion::stage<kWindow>(expansion, weight, bias, share.group, first, 0);
    Accumulator features[kPass][kQuad];
    load_quads(features, z + ((long long)place.batch * kFeatures + first) * image.pixels(), image.pixels(),
               image, kFeatures - first, py, px);
    __syncthreads();
    if (!image.has_row(py)) continue;  // of tiles at the lower edge, whole warps
#pragma unroll 1
    for (int i = 0; i < kWindow; i++) {
      const Accumulator* weights = expansion + i * Expansion::kRow;
      Accumulator taps[kTaps], filter[kWindow][kQuad];
      Expansion::read(taps, weights, kPass);
#pragma unroll
      for (int t = 0; t < kWindow; t++)
#pragma unroll
        for (int j = 0; j < kQuad; j++) filter[t][j] = taps[t];
#pragma unroll
      for (int k = 0; k < kPass; k++) {
        Expansion::read(taps, weights, k);
#pragma unroll
        for (int t = 0; t < kWindow; t++)
#pragma unroll
          for (int j = 0; j < kQuad; j++) filter[t][j] += taps[t] * features[k][j];
      }
#pragma unroll
      for (int c = 0; c < kChannels; c++) {
        const Window window(tile + (c * kTileRows + row + i) * kStride + column);
#pragma unroll
        for (int t = 0; t < kWindow; t++)
#pragma unroll
          for (int j = 0; j < kQuad; j++) sum[c][j] += filter[t][j] * window.at(t, j);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kChannels; c++)
    if (c < share.channels) store_quad(out + (share.plane + c) * image.pixels(), image, py, px, sum[c]);
}
