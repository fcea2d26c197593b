// The dynamic depth-wise convolution with filters from memory. They are read once for all channels of a group:
//
//   out[c, p] = sum_t f[t](p) x[c, p + t]
//   grad_x[c, p] = sum_t f[t](p - t) grad[c, p - t],   grad_f[t](p) = sum_c grad[c, p] x[c, p + t]
//
// for the taps t of a K x K window and the channels c of a group. filters are [B, G, K, K, H, W].
#include "grad_filter.h"

static_assert(SHARED_ELEMENTS == kChannels * kTileRows * kStride, "the tile of x or of the gradient");

constexpr int kTapsOfFilter = WINDOW * WINDOW;

// sum[c][j] += filter[t][j] * tile[c] for one row of the window, with taps in ascending or descending order.
template <bool kDescending>
__device__ __forceinline__ void apply(Accumulator (&sum)[kChannels][kQuad], const Accumulator (&filter)[kWindow][kQuad],
                                      const Accumulator* tile, int row) {
#pragma unroll
  for (int c = 0; c < kChannels; c++) {
    const Window window(tile + (c * kTileRows + row) * kStride + thread_column());
#pragma unroll
    for (int t = 0; t < kWindow; t++)
#pragma unroll
      for (int j = 0; j < kQuad; j++) sum[c][j] += filter[t][j] * window.at(kDescending ? kWindow - 1 - t : t, j);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    plain_forward(const Scalar* __restrict__ x, const Scalar* __restrict__ filters, Scalar* __restrict__ out,
                  int groups, int height, int width, int vectorized) {
  SHARED_MEMORY(tile);
  const Image image = {height, width, vectorized != 0};
  const GroupTile share(blockIdx.x, groups, image);
  const int row = thread_row(), py = share.place.y + row, px = share.place.x + thread_column();

  load_tile<kChannels>(tile, x + share.plane * image.pixels(), image, share.channels, share.place.y - kRadius,
                       share.place.x - kMargin);
  __syncthreads();
  Accumulator sum[kChannels][kQuad] = {};
#pragma unroll 1
  for (int i = 0; i < kWindow; i++) {
    Accumulator filter[kWindow][kQuad];
    load_quads(filter, filters + (share.of_group * kTapsOfFilter + i * kWindow) * image.pixels(), image.pixels(),
               image, kWindow, py, px);
    apply<false>(sum, filter, tile, row + i);
  }
#pragma unroll
  for (int c = 0; c < kChannels; c++)
    if (c < share.channels) store_quad(out + (share.plane + c) * image.pixels(), image, py, px, sum[c]);
}

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    plain_grad_x(const Scalar* __restrict__ grad, const Scalar* __restrict__ filters, Scalar* __restrict__ grad_x,
                 int groups, int height, int width, int vectorized) {
  SHARED_MEMORY(tile);
  const Image image = {height, width, vectorized != 0};
  const GroupTile share(blockIdx.x, groups, image);
  const int row = thread_row(), py = share.place.y + row, px = share.place.x + thread_column();

  load_tile<kChannels>(tile, grad + share.plane * image.pixels(), image, share.channels, share.place.y - kRadius,
                       share.place.x - kMargin);
  __syncthreads();
  Accumulator sum[kChannels][kQuad] = {};
#pragma unroll 1
  for (int i = 0; i < kWindow; i++) {  // rows above and below: row WINDOW - 1 - i of their filters reaches this row
    const Scalar* taps = filters + (share.of_group * kTapsOfFilter + (kWindow - 1 - i) * kWindow) * image.pixels();
    Accumulator filter[kWindow][kQuad];
    Quad<Scalar> quads[kWindow];
#pragma unroll
    for (int t = 0; t < kWindow; t++)
      quads[t] = read_quad<false>(taps + t * image.pixels(), image, py + i - kRadius, px + kRadius - t, true);
#pragma unroll
    for (int t = 0; t < kWindow; t++)
#pragma unroll
      for (int j = 0; j < kQuad; j++) filter[t][j] = widen(quads[t].v[j]);
    apply<true>(sum, filter, tile, row + i);
  }
#pragma unroll
  for (int c = 0; c < kChannels; c++)
    if (c < share.channels) store_quad(grad_x + (share.plane + c) * image.pixels(), image, py, px, sum[c]);
}

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    plain_grad_filters(const Scalar* __restrict__ grad, const Scalar* __restrict__ x, Scalar* __restrict__ grad_filters,
                       int groups, int height, int width, int vectorized) {
  SHARED_MEMORY(tile);
  const Image image = {height, width, vectorized != 0};
  const int group = blockIdx.x % groups;
  const TilePlace place(blockIdx.x / groups, image, TILE_HEIGHT);
  Scalar* taps = grad_filters + ((long long)place.batch * groups + group) * kTapsOfFilter * image.pixels();
  FilterGradient gradient(tile, place, image, groups, group);
#pragma unroll 1
  for (int i = 0; i < kWindow; i++) {
    Accumulator grad_filter[kWindow][kQuad];
    gradient.row(grad_filter, grad, x, i);
#pragma unroll
    for (int t = 0; t < kWindow; t++)
      store_quad(taps + (i * kWindow + t) * image.pixels(), image, place.y + thread_row(), place.x + thread_column(),
                 grad_filter[t]);
  }
}
