// Gradients of the fused dynamic depth-wise convolution with respect to z and to the expansion (weight and bias). They
// are formed from the gradient of the filters, of which one row at a time exists, in registers:
//
//   grad_z[k, p] = sum_gt weight[g, t, k] grad_f[t](p)
//   grad_weight[g, t, k] = sum_p grad_f[t](p) z[k, p],   grad_bias[g, t] = sum_p grad_f[t](p)
//
// A block processes a tile for a slice of the groups and writes its sums to its own memory. `sum_grad_z` adds them up
// over slices and `sum_grad_expansion` over tiles, so that the order of additions is fixed. With a single slice, the
// block writes grad_z itself.
#include "expansion.h"
#include "grad_filter.h"

constexpr int kWarps = kThreads / kWarp;
constexpr int kSumsAtOnce = kWarp / kWindow;  // features for which a warp has one lane for each tap of a row
static_assert(kThreads % kWarp == 0, "whole warps");
static_assert(SHARED_ELEMENTS == kChannels * kTileRows * kStride + kWindow * Expansion::kRow +
                                     kPass * kThreads * kQuad + kWarps * kWindow * (kPass + 1) * kWindow,
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
template <int kCount>
__device__ __forceinline__ Accumulator sum_over_lanes(const Accumulator (&values)[kCount]) {
  Accumulator sum = share_sums(values);
#pragma unroll
  for (int bit = kCount; bit < kWarp; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
  return sum;
}

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    fused_grad_z_expansion(const Scalar* __restrict__ grad, const Scalar* __restrict__ x, const Scalar* __restrict__ z,
                           const Accumulator* __restrict__ weight, Scalar* __restrict__ grad_z,
                           Accumulator* __restrict__ grad_z_slices, Accumulator* __restrict__ grad_expansion_tiles,
                           int batch, int groups, int groups_in_slice, int height, int width, int vectorized) {
  SHARED_MEMORY(shared);
  Accumulator* tile = shared;                                       // [kChannels][kTileRows][kStride]
  Accumulator* expansion = tile + kChannels * kTileRows * kStride;  // [WINDOW][kPass + 1][kTaps]
  Accumulator* features = expansion + kWindow * Expansion::kRow;    // [kPass][kThreads][kQuad]
  Accumulator* sums = features + kPass * kThreads * kQuad;          // [kWarps][WINDOW][kPass + 1][WINDOW]
  Quad<Accumulator>* own_features = reinterpret_cast<Quad<Accumulator>*>(features) + threadIdx.x;  // kThreads apart
  constexpr int kSums = kWindow * (kPass + 1) * kWindow;
  const Image image = {height, width, vectorized != 0};
  const int slices = ceil_div(groups, groups_in_slice), slice = blockIdx.x % slices, tile_number = blockIdx.x / slices;
  const TilePlace place(tile_number, image, TILE_HEIGHT);
  const int py = place.y + thread_row(), px = place.x + thread_column();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int outputs = groups * kWindow * kWindow;
  Accumulator* grad_weight = grad_expansion_tiles + (long long)tile_number * outputs * (kFeatures + 1);
  Accumulator* grad_bias = grad_weight + (long long)outputs * kFeatures;

  for (int first = 0; first < kFeatures; first += kPass) {
    const int present = min(kPass, kFeatures - first);
    const long long z_plane = (long long)place.batch * kFeatures + first;
    {
      Accumulator quads[kPass][kQuad];
      load_quads(quads, z + z_plane * image.pixels(), image.pixels(), image, present, py, px);
#pragma unroll
      for (int k = 0; k < kPass; k++) {  // each thread reads only its own pixels: no barrier is needed
        Quad<Accumulator> quad;
#pragma unroll
        for (int j = 0; j < kQuad; j++) quad.v[j] = quads[k][j];
        own_features[k * kThreads] = quad;
      }
    }
    Accumulator grad_features[kPass][kQuad] = {};
    for (int group = slice * groups_in_slice; group < min(groups, (slice + 1) * groups_in_slice); group++) {
      FilterGradient grad_filters(tile, place, image, groups, group);
      Expansion::stage<kWindow>(expansion, weight, nullptr, group, first, 0);
#pragma unroll 1
      for (int i = 0; i < kWindow; i++) {
        Accumulator grad_filter[kWindow][kQuad];
        grad_filters.row(grad_filter, grad, x, i);
        Accumulator* row_sums = sums + warp * kSums + i * (kPass + 1) * kWindow;  // [kPass + 1][WINDOW]
#pragma unroll
        for (int k0 = 0; k0 < kPass; k0 += kSumsAtOnce) {
          Accumulator products[kWarp] = {};
#pragma unroll
          for (int k = k0; k < min(k0 + kSumsAtOnce, kPass); k++) {
            Accumulator taps[kTaps];
            Expansion::read(taps, expansion + i * Expansion::kRow, k);
            const Quad<Accumulator> feature = own_features[k * kThreads];
#pragma unroll
            for (int t = 0; t < kWindow; t++)
#pragma unroll
              for (int j = 0; j < kQuad; j++) {
                grad_features[k][j] += taps[t] * grad_filter[t][j];
                products[(k - k0) * kWindow + t] += feature.v[j] * grad_filter[t][j];
              }
          }
          const Accumulator sum = sum_over_lanes(products);
          if (lane < min(kSumsAtOnce, kPass - k0) * kWindow) row_sums[k0 * kWindow + lane] = sum;
        }
        Accumulator pixel_sums[kWindow > 8 ? 16 : 8] = {};
#pragma unroll
        for (int t = 0; t < kWindow; t++)
#pragma unroll
          for (int j = 0; j < kQuad; j++) pixel_sums[t] += grad_filter[t][j];
        const Accumulator sum = sum_over_lanes(pixel_sums);
        if (lane < kWindow) row_sums[kPass * kWindow + lane] = sum;
      }
      __syncthreads();  // all sums are written, and all threads have read the tile and the weights
      for (int i = threadIdx.x; i < kSums; i += kThreads) {
        const int tap = i % kWindow, k = i / kWindow % (kPass + 1);
        const int filter_row = i / (kWindow * (kPass + 1));
        const long long output = (group * kWindow + filter_row) * kWindow + tap;
        Accumulator sum = 0;
        for (int w = 0; w < kWarps; w++) sum += sums[w * kSums + i];
        if (k < present) grad_weight[output * kFeatures + first + k] = sum;
        if (k == kPass && first == 0) grad_bias[output] = sum;
      }
      // The first barrier of the next group separates these reads of the sums from the next writes.
    }
#pragma unroll
    for (int k = 0; k < kPass; k++) {
      if (k >= present) continue;
      if (grad_z_slices)
        store_quad(grad_z_slices + ((long long)slice * batch * kFeatures + z_plane + k) * image.pixels(), image, py, px,
                   grad_features[k]);
      else
        store_quad(grad_z + (z_plane + k) * image.pixels(), image, py, px, grad_features[k]);
    }
  }
}

// grad_z[i] = sum over slices of grad_z_slices[slice][i].
extern "C" __global__ void sum_grad_z(const Accumulator* __restrict__ grad_z_slices, Scalar* __restrict__ grad_z,
                                      int slices, int planes, int height, int width) {
  const long long count = (long long)planes * height * width;
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Accumulator sum = 0;
  for (int slice = 0; slice < slices; slice++) sum += grad_z_slices[slice * count + i];
  narrow(sum, grad_z[i]);
}

// Sum the gradients of weight (the first `weights` of `count` numbers) and bias (the rest) over tiles. A block sums
// kWarp numbers; each of its warps adds up some of the tiles.
extern "C" __global__ void sum_grad_expansion(const Accumulator* __restrict__ tiles,
                                              Accumulator* __restrict__ grad_weight,
                                              Accumulator* __restrict__ grad_bias, int tile_count, int weights,
                                              int count) {
  SHARED_MEMORY(shared);  // [shares][kWarp]
  const int lane = threadIdx.x % kWarp, share = threadIdx.x / kWarp, shares = blockDim.x / kWarp;
  const int i = blockIdx.x * kWarp + lane;
  Accumulator sum = 0;
  if (i < count)
    for (int tile = share; tile < tile_count; tile += shares) sum += tiles[(long long)tile * count + i];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (share || i >= count) return;
  for (int s = 1; s < shares; s++) sum += shared[s * kWarp + lane];
  if (i < weights)
    grad_weight[i] = sum;
  else
    grad_bias[i - weights] = sum;
}
