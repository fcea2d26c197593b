// The dynamic depth-wise convolution with filters formed on the fly: filters = weight @ z + bias never exist in memory.
//
//   out[c, p] = sum_t f[t](p) x[c, p + t],   f[t](p) = bias[g, t] + sum_k weight[g, t, k] z[k, p]
//
// for the taps t of a K x K window and the channels c of group g (DLGSANet, section 3.2). The gradients form f again,
// or its gradient, which the next sum consumes at once. All sums are in a fixed order: no atomics.
#include "expansion.h"

//   FORWARD_PASS, GATHER_PASS, CONTRACT_PASS  features of z that a kernel takes at a time
//   GATHER_HEIGHT                             height of a tile of fused_grad_x
constexpr int kForwardPass = FORWARD_PASS;
constexpr int kGatherPass = GATHER_PASS;
constexpr int kContractPass = CONTRACT_PASS;
constexpr int kThreads = kThreadsAcross * TILE_HEIGHT;
constexpr int kBlocks = sizeof(Accumulator) == 8 ? 2 : 4;  // that a multiprocessor shall hold at least
constexpr int kTileRows = TILE_HEIGHT + 2 * kRadius;

extern "C" __global__ void __launch_bounds__(kThreads, kBlocks)
    fused_forward(const Scalar* __restrict__ x, const Scalar* __restrict__ z, const Accumulator* __restrict__ weight,
                  const Accumulator* __restrict__ bias, Scalar* __restrict__ out, int groups, int height, int width,
                  int vectorized) {
  SHARED_MEMORY(shared);
  Accumulator* tile = shared;                                       // [kChannels][kTileRows][kStride]
  Accumulator* expansion = tile + kChannels * kTileRows * kStride;  // [WINDOW][kForwardPass + 1][kTaps]
  const Image image = {height, width, vectorized != 0};
  const int part = blockIdx.x % kParts, group = blockIdx.x / kParts % groups;
  const TilePlace place(blockIdx.x / (kParts * groups), image, TILE_HEIGHT);
  const int first_channel = part * kChannels, channels = min(kChannels, CHANNELS - first_channel);
  const long long plane = ((long long)place.batch * groups + group) * CHANNELS + first_channel;
  const int row = thread_row(), column = thread_column();
  const int py = place.y + row, px = place.x + column;

  load_tile(tile, x + plane * image.pixels(), image, kChannels, channels, kTileRows, place.y - kRadius,
            place.x - kMargin);
  Accumulator sum[kChannels][kQuad] = {};
  for (int first = 0; first < kFeatures; first += kForwardPass) {
    if (first) __syncthreads();  // nobody reads the last pass's weights any more
    Expansion<kForwardPass>::stage(expansion, weight, bias, group, first, 0, kWindow);
    Accumulator features[kForwardPass][kQuad];
    const Scalar* planes = z + ((long long)place.batch * kFeatures + first) * image.pixels();
#pragma unroll
    for (int k = 0; k < kForwardPass; k++) {
      if (kFeatures % kForwardPass == 0 || first + k < kFeatures) {
        load_quad(features[k], planes + k * image.pixels(), image, py, px);
      } else {
#pragma unroll
        for (int j = 0; j < kQuad; j++) features[k][j] = 0;
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < kWindow; i++) {
      const Accumulator* weights = expansion + i * Expansion<kForwardPass>::kRow;
      Accumulator taps[kTaps], filter[kWindow][kQuad];
      Expansion<kForwardPass>::read(taps, weights, kForwardPass);
#pragma unroll
      for (int t = 0; t < kWindow; t++)
#pragma unroll
        for (int j = 0; j < kQuad; j++) filter[t][j] = taps[t];
#pragma unroll
      for (int k = 0; k < kForwardPass; k++) {
        Expansion<kForwardPass>::read(taps, weights, k);
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
    if (c < channels) store_quad(out + (plane + c) * image.pixels(), image, py, px, sum[c]);
}

// grad_x[c, p] = sum_t f[t](p - t) grad[c, p - t]: every pixel gathers, with filters formed again from a tile of z.
//
// A thread computes two rows, p and the one below, which read the same rows of z and grad: of those, for row i, the
// first of the two needs the filters' row WINDOW - 1 - i and the second the next one. Rows of zeros stand before and
// after the filters' rows.
constexpr int kGatherThreads = kThreadsAcross * GATHER_HEIGHT / 2;
constexpr int kGatherRows = GATHER_HEIGHT + 2 * kRadius;

extern "C" __global__ void __launch_bounds__(kGatherThreads)
    fused_grad_x(const Scalar* __restrict__ grad, const Scalar* __restrict__ z, const Accumulator* __restrict__ weight,
                 const Accumulator* __restrict__ bias, Scalar* __restrict__ grad_x, int groups, int height, int width,
                 int vectorized) {
  SHARED_MEMORY(shared);
  Accumulator* tile = shared;                                             // [kChannels][kGatherRows][kStride]
  Accumulator* z_tile = tile + kChannels * kGatherRows * kStride;         // [kGatherPass][kGatherRows][kStride]
  Accumulator* expansion = z_tile + kGatherPass * kGatherRows * kStride;  // [WINDOW + 2][kGatherPass + 1][kTaps]
  const Image image = {height, width, vectorized != 0};
  const int part = blockIdx.x % kParts, group = blockIdx.x / kParts % groups;
  const TilePlace place(blockIdx.x / (kParts * groups), image, GATHER_HEIGHT);
  const int first_channel = part * kChannels, channels = min(kChannels, CHANNELS - first_channel);
  const long long plane = ((long long)place.batch * groups + group) * CHANNELS + first_channel;
  const int row = threadIdx.x / kThreadsAcross * 2, column = thread_column();

  load_tile(tile, grad + plane * image.pixels(), image, kChannels, channels, kGatherRows, place.y - kRadius,
            place.x - kMargin);
  Accumulator sum[2][kChannels][kQuad] = {};
  for (int first = 0; first < kFeatures; first += kGatherPass) {
    if (first) __syncthreads();  // nobody reads the last pass's features any more
    Expansion<kGatherPass>::stage(expansion, weight, bias, group, first, -1, kWindow + 2);
    load_tile(z_tile, z + ((long long)place.batch * kFeatures + first) * image.pixels(), image, kGatherPass,
              min(kGatherPass, kFeatures - first), kGatherRows, place.y - kRadius, place.x - kMargin);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i <= kWindow; i++) {
      const Accumulator* weights = expansion + (kWindow - i) * Expansion<kGatherPass>::kRow;
      const int offset = (row + i) * kStride + column;
      Accumulator taps[2][kTaps], filter[2][kWindow][kQuad];
#pragma unroll
      for (int a = 0; a < 2; a++) {
        Expansion<kGatherPass>::read(taps[a], weights + a * Expansion<kGatherPass>::kRow, kGatherPass);
#pragma unroll
        for (int t = 0; t < kWindow; t++)
#pragma unroll
          for (int j = 0; j < kQuad; j++) filter[a][t][j] = taps[a][t];
      }
#pragma unroll
      for (int k = 0; k < kGatherPass; k++) {
        const Window window(z_tile + k * kGatherRows * kStride + offset);
#pragma unroll
        for (int a = 0; a < 2; a++) {
          Expansion<kGatherPass>::read(taps[a], weights + a * Expansion<kGatherPass>::kRow, k);
#pragma unroll
          for (int t = 0; t < kWindow; t++)
#pragma unroll
            for (int j = 0; j < kQuad; j++) filter[a][t][j] += taps[a][t] * window.at(kWindow - 1 - t, j);
        }
      }
#pragma unroll
      for (int c = 0; c < kChannels; c++) {
        const Window window(tile + c * kGatherRows * kStride + offset);
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
      if (c < channels)
        store_quad(grad_x + (plane + c) * image.pixels(), image, place.y + row + a, place.x + column, sum[a][c]);
}

// Gradients of z and of the expansion, from the gradient of the filters, which exists a row at a time in registers:
//
//   grad_f[t](p) = sum_c grad[c, p] x[c, p + t],   grad_z[k, p] = sum_gt weight[g, t, k] grad_f[t](p),
//   grad_weight[g, t, k] = sum_p grad_f[t](p) z[k, p],   grad_bias[g, t] = sum_p grad_f[t](p)
//
// A block takes a tile and a slice of the groups. What it sums goes to memory of its own, where `sum_grad_z` (over
// slices) and `sum_grad_expansion` (over tiles) find it; with one slice, grad_z goes straight to its place.
constexpr int kWarps = kThreads / 32;
constexpr int kSumsAtOnce = 32 / kWindow;  // features whose sums with all taps of a row fit one lane each

// Sums over the lanes of a warp of values[0 ... kCount - 1], kCount a power of two up to 32; lane i is left with the
// sum number i % kCount. Lanes that differ in a bit share out between them the values they have, until each has one.
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
  for (int bit = kCount; bit < 32; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
  return sum;
}

extern "C" __global__ void __launch_bounds__(kThreads, kBlocks)
    fused_grad_z_expansion(const Scalar* __restrict__ grad, const Scalar* __restrict__ x, const Scalar* __restrict__ z,
                           const Accumulator* __restrict__ weight, Scalar* __restrict__ grad_z,
                           Accumulator* __restrict__ grad_z_slices, Accumulator* __restrict__ grad_expansion_tiles,
                           int batch, int groups, int groups_in_slice, int height, int width, int vectorized) {
  SHARED_MEMORY(shared);
  typedef Expansion<kContractPass> Pass;
  Accumulator* tile = shared;                                       // [kChannels][kTileRows][kStride]
  Accumulator* expansion = tile + kChannels * kTileRows * kStride;  // [WINDOW][kContractPass + 1][kTaps]
  Accumulator* features = expansion + kWindow * Pass::kRow;         // [kContractPass][kThreads][kQuad]
  Accumulator* sums = features + kContractPass * kThreads * kQuad;  // [kWarps][WINDOW][kContractPass + 1][WINDOW]
  Quad<Accumulator>* own_features = reinterpret_cast<Quad<Accumulator>*>(features) + threadIdx.x;  // kThreads apart
  constexpr int kSums = kWindow * (kContractPass + 1) * kWindow;
  const Image image = {height, width, vectorized != 0};
  const int slices = ceil_div(groups, groups_in_slice), slice = blockIdx.x % slices, tile_number = blockIdx.x / slices;
  const TilePlace place(tile_number, image, TILE_HEIGHT);
  const int row = thread_row(), column = thread_column();
  const int py = place.y + row, px = place.x + column;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int outputs = groups * kWindow * kWindow;
  Accumulator* grad_weight = grad_expansion_tiles + (long long)tile_number * outputs * (kFeatures + 1);
  Accumulator* grad_bias = grad_weight + (long long)outputs * kFeatures;

  for (int first = 0; first < kFeatures; first += kContractPass) {
    const int present = min(kContractPass, kFeatures - first);
    const long long z_plane = (long long)place.batch * kFeatures + first;
    for (int k = 0; k < kContractPass; k++) {  // each thread's own pixels: no barrier
      Quad<Accumulator> quad = {};
      if (k < present) load_quad(quad.v, z + (z_plane + k) * image.pixels(), image, py, px);
      own_features[k * kThreads] = quad;
    }
    Accumulator grad_features[kContractPass][kQuad] = {};
    for (int group = slice * groups_in_slice; group < min(groups, (slice + 1) * groups_in_slice); group++) {
      Accumulator grads[kChannels][kQuad];
      Pass::stage(expansion, weight, nullptr, group, first, 0, kWindow);
#pragma unroll 1
      for (int i = 0; i < kWindow; i++) {
        Accumulator grad_filter[kWindow][kQuad] = {};
#pragma unroll 1
        for (int part = 0; part < kParts; part++) {
          if (kParts > 1 || i == 0) {
            const int first_channel = part * kChannels, channels = min(kChannels, CHANNELS - first_channel);
            const long long plane = ((long long)place.batch * groups + group) * CHANNELS + first_channel;
            if (part || i) __syncthreads();  // nobody reads the tile of the part before any more
            load_tile(tile, x + plane * image.pixels(), image, kChannels, channels, kTileRows, place.y - kRadius,
                      place.x - kMargin);
#pragma unroll
            for (int c = 0; c < kChannels; c++)
              load_quad(grads[c], grad + (plane + c) * image.pixels(), image, c < channels ? py : -1, px);
            __syncthreads();
          }
#pragma unroll
          for (int c = 0; c < kChannels; c++) {
            const Window window(tile + (c * kTileRows + row + i) * kStride + column);
#pragma unroll
            for (int t = 0; t < kWindow; t++)
#pragma unroll
              for (int j = 0; j < kQuad; j++) grad_filter[t][j] += grads[c][j] * window.at(t, j);
          }
        }
        Accumulator* row_sums = sums + warp * kSums + i * (kContractPass + 1) * kWindow;  // [kContractPass + 1][WINDOW]
#pragma unroll
        for (int k0 = 0; k0 < kContractPass; k0 += kSumsAtOnce) {
          Accumulator products[32] = {};
#pragma unroll
          for (int k = k0; k < min(k0 + kSumsAtOnce, kContractPass); k++) {
            Accumulator taps[kTaps];
            Pass::read(taps, expansion + i * Pass::kRow, k);
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
          if (lane < min(kSumsAtOnce, kContractPass - k0) * kWindow) row_sums[k0 * kWindow + lane] = sum;
        }
        Accumulator pixel_sums[kWindow > 8 ? 16 : 8] = {};
#pragma unroll
        for (int t = 0; t < kWindow; t++)
#pragma unroll
          for (int j = 0; j < kQuad; j++) pixel_sums[t] += grad_filter[t][j];
        const Accumulator sum = sum_over_lanes(pixel_sums);
        if (lane < kWindow) row_sums[kContractPass * kWindow + lane] = sum;
      }
      __syncthreads();  // every warp's sums are there, and nobody reads the tile and the weights any more
      for (int i = threadIdx.x; i < kSums; i += kThreads) {
        const int tap = i % kWindow, k = i / kWindow % (kContractPass + 1);
        const int filter_row = i / (kWindow * (kContractPass + 1));
        const long long output = (group * kWindow + filter_row) * kWindow + tap;
        Accumulator sum = 0;
        for (int w = 0; w < kWarps; w++) sum += sums[w * kSums + i];
        if (k < present) grad_weight[output * kFeatures + first + k] = sum;
        if (k == kContractPass && first == 0) grad_bias[output] = sum;
      }
      // The next group's first barrier stands between these reads of the sums and the next writes.
    }
#pragma unroll
    for (int k = 0; k < kContractPass; k++) {
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

// Sums over tiles of the gradients of weight (the first `weights` of `count` numbers) and bias (the rest). A block
// takes 32 numbers, and its warps share out the tiles.
extern "C" __global__ void sum_grad_expansion(const Accumulator* __restrict__ tiles,
                                              Accumulator* __restrict__ grad_weight,
                                              Accumulator* __restrict__ grad_bias, int tile_count, int weights,
                                              int count) {
  SHARED_MEMORY(shared);  // [shares][32]
  const int lane = threadIdx.x % 32, share = threadIdx.x / 32, shares = blockDim.x / 32;
  const int i = blockIdx.x * 32 + lane;
  Accumulator sum = 0;
  if (i < count)
    for (int tile = share; tile < tile_count; tile += shares) sum += tiles[(long long)tile * count + i];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (share || i >= count) return;
  for (int s = 1; s < shares; s++) sum += shared[s * 32 + lane];
  if (i < weights)
    grad_weight[i] = sum;
  else
    grad_bias[i - weights] = sum;
}
