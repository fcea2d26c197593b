// Gradients of the fused dynamic depth-wise convolution with respect to the expansion (weight and bias):
//
//   grad_weight[g, t, k] = sum_p grad_f[t](p) z[k, p],   grad_bias[g, t] = sum_p grad_f[t](p)
//
// with the gradient of the filters (see grad_filter.h). A block processes some tiles for a group. Its warp i forms row
// i of the filters' gradient for all pixels of a tile, and keeps the sums of this row in registers. Lanes are added up
// once at the end. `sum_grad_expansion` adds up the blocks, so that the order of additions is fixed.
#include "tile.h"

//   FEATURES  D, channels of z
//   PASS      features that a block processes
constexpr int kFeatures = FEATURES;
constexpr int kPass = PASS;
constexpr int kPasses = (kFeatures + kPass - 1) / kPass;
constexpr int kRowsAtOnce = kWarp / kThreadsAcross;  // of the tile
constexpr int kOwnElements = TILE_HEIGHT * kStride;  // of a tile without the rows around it
constexpr int kSums = (kPass + 1) * kWindow;
static_assert(kThreads == kWindow * kWarp, "a warp for each row of the filters");
static_assert(TILE_HEIGHT % kRowsAtOnce == 0, "whole warps");
static_assert(SHARED_ELEMENTS == kChannels * kTileRows * kStride + (kChannels + kPass) * kOwnElements,
              "the layout below");

// Sum values[0 ... kCount - 1] over the lanes of a warp; kCount is a power of two, at most kWarp. Lane i gets sum
// i % kCount. In each step two lanes that differ in one bit exchange half of their values, until each has one left.
template <int kCount>
__device__ __forceinline__ Accumulator share_sums(const Accumulator (&values)[kCount]) {
  if constexpr (kCount == 1) {
    return values[0];
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = threadIdx.x & kHalf;
    Accumulator kept[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; i++) {
      const Accumulator sent = upper ? values[i] : values[i + kHalf];
      kept[i] = (upper ? values[i + kHalf] : values[i]) + __shfl_xor_sync(0xffffffffu, sent, kHalf);
    }
    return share_sums(kept);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    fused_grad_expansion(const Scalar* __restrict__ grad, const Scalar* __restrict__ x, const Scalar* __restrict__ z,
                         Accumulator* __restrict__ chunks, int groups, int tiles, int tiles_in_chunk, int height,
                         int width, int vectorized) {
  SHARED_MEMORY(shared);
  Accumulator* tile = shared;                                   // of x: [kChannels][kTileRows][kStride]
  Accumulator* grads = tile + kChannels * kTileRows * kStride;  // [kChannels][TILE_HEIGHT][kStride]
  Accumulator* features = grads + kChannels * kOwnElements;     // [kPass][TILE_HEIGHT][kStride]
  const Image image = {height, width, vectorized != 0};
  const int group = blockIdx.x % groups, first = blockIdx.x / groups % kPasses * kPass;
  const int chunk = blockIdx.x / (groups * kPasses), end = min(tiles, (chunk + 1) * tiles_in_chunk);
  const int filter_row = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int own = spread_row(lane / kThreadsAcross) * kStride + lane % kThreadsAcross * kQuad;

  Accumulator sums[kSums] = {};  // [kPass + 1][WINDOW]
#pragma unroll 1
  for (int number = chunk * tiles_in_chunk; number < end; number++) {
    const TilePlace place(number, image, TILE_HEIGHT);
#pragma unroll 1
    for (int part = 0; part < kParts; part++) {
      const int channels = min(kChannels, CHANNELS - part * kChannels);
      const long long plane = ((long long)place.batch * groups + group) * CHANNELS + part * kChannels;
      if (number > chunk * tiles_in_chunk || part) __syncthreads();  // all threads have read the tiles
      load_tile<kChannels>(tile, x + plane * image.pixels(), image, channels, place.y - kRadius, place.x - kMargin);
      load_tile<kChannels, TILE_HEIGHT, kStride, TILE_WIDTH>(grads, grad + plane * image.pixels(), image, channels,
                                                             place.y, place.x);
      if (part == 0)
        load_tile<kPass, TILE_HEIGHT, kStride, TILE_WIDTH>(
            features, z + ((long long)place.batch * kFeatures + first) * image.pixels(), image, kFeatures - first,
            place.y, place.x);
      __syncthreads();
#pragma unroll 1
      for (int y = 0; y < TILE_HEIGHT && image.has_row(place.y + y); y += kRowsAtOnce) {
        const int at = y * kStride + own;
        Accumulator grad_filter[kWindow][kQuad] = {};
#pragma unroll
        for (int c = 0; c < kChannels; c++) {
          const Window window(tile + (c * kTileRows + filter_row) * kStride + at);
          const Quad<Accumulator> quad = *reinterpret_cast<const Quad<Accumulator>*>(grads + c * kOwnElements + at);
#pragma unroll
          for (int t = 0; t < kWindow; t++)
#pragma unroll
            for (int j = 0; j < kQuad; j++) grad_filter[t][j] += quad.v[j] * window.at(t, j);
        }
#pragma unroll
        for (int k = 0; k < kPass; k++) {
          const Quad<Accumulator> quad = *reinterpret_cast<const Quad<Accumulator>*>(features + k * kOwnElements + at);
#pragma unroll
          for (int t = 0; t < kWindow; t++)
#pragma unroll
            for (int j = 0; j < kQuad; j++) sums[k * kWindow + t] += quad.v[j] * grad_filter[t][j];
        }
#pragma unroll
        for (int t = 0; t < kWindow; t++)
#pragma unroll
          for (int j = 0; j < kQuad; j++) sums[kPass * kWindow + t] += grad_filter[t][j];
      }
    }
  }
  const int outputs = groups * kWindow * kWindow;
  Accumulator* grad_weight = chunks + (long long)chunk * outputs * (kFeatures + 1);
  Accumulator* grad_bias = grad_weight + (long long)outputs * kFeatures;
#pragma unroll
  for (int start = 0; start < kSums; start += kWarp) {
    Accumulator values[kWarp];
#pragma unroll
    for (int i = 0; i < kWarp; i++) values[i] = start + i < kSums ? sums[start + i < kSums ? start + i : 0] : 0;
    const Accumulator sum = share_sums(values);
    const int k = (start + lane) / kWindow;
    const long long output = (group * kWindow + filter_row) * kWindow + (start + lane) % kWindow;
    if (k < kPass && first + k < kFeatures) grad_weight[output * kFeatures + first + k] = sum;
    if (k == kPass && first == 0) grad_bias[output] = sum;
  }
}

// Sum the gradients of weight (the first `weights` of `count` numbers) and bias (the rest) over chunks of tiles. A
// block sums kWarp numbers; each of its warps adds up some of the chunks.
extern "C" __global__ void sum_grad_expansion(const Accumulator* __restrict__ chunks,
                                              Accumulator* __restrict__ grad_weight,
                                              Accumulator* __restrict__ grad_bias, int chunk_count, int weights,
                                              int count) {
  SHARED_MEMORY(shared);  // [shares][kWarp]
  const int lane = threadIdx.x % kWarp, share = threadIdx.x / kWarp, shares = blockDim.x / kWarp;
  const int i = blockIdx.x * kWarp + lane;
  Accumulator sum = 0;
  if (i < count)
    for (int chunk = share; chunk < chunk_count; chunk += shares) sum += chunks[(long long)chunk * count + i];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (share || i >= count) return;
  for (int s = 1; s < shares; s++) sum += shared[s * kWarp + lane];
  if (i < weights)
    grad_weight[i] = sum;
  else
    grad_bias[i - weights] = sum;
}
