// The fused dynamic depth-wise convolution (see fused_forward.cu) with filters formed on tensor cores, as in local
// attention (see local_filters.h). `pack_expansion` makes factors of products of weight and bias. A block of
// `fused_forward_mma` computes a tile, kAtOnce groups at a time.
#include "local_filters.h"

constexpr int kTilePlanes = kAtOnce * SHARE;
constexpr int kFeaturesAt = kTilePlanes * kTilePlane * sizeof(Pixel) / 4;  // in shared memory, in words
static_assert(SHARED_ELEMENTS == kFeaturesAt + kFeatureWords && kFeaturesAt % 4 == 0, "the layout below");

// out: [groups][kExpansion], `words` in all; bias may be null.
extern "C" __global__ void __launch_bounds__(THREADS)
    pack_expansion(const float* __restrict__ weight, const float* __restrict__ bias, unsigned* __restrict__ out,
                   int words) {
  const int word = blockIdx.x * THREADS + threadIdx.x;
  if (word >= words) return;
  const Tap tap = tap_of(word % kExpansion);
  const bool present = tap.row < WINDOW && (unsigned)tap.column < WINDOW;
  const int output = (word / kExpansion * WINDOW + tap.row) * WINDOW + tap.column;
  float numbers[2] = {};
#pragma unroll
  for (int i = 0; i < kNeighbours; i++) {
    const int k = tap.feature + i;
    if (present && k < FEATURES) numbers[i] = weight[output * FEATURES + k];
    if (present && k == FEATURES && bias) numbers[i] = bias[output];
  }
  out[word] = as_factor<Factor>(numbers);
}

// Four pixels of a row, as they are in memory.
struct alignas(4 * sizeof(Scalar)) Unit {
  unsigned words[sizeof(Scalar)];
};

template <typename T>
__device__ __forceinline__ void store_unit(T* to, const Unit& unit) {
  if constexpr (sizeof(T) == sizeof(Half)) {
    *reinterpret_cast<Unit*>(to) = unit;
  } else {
    const Scalar* from = reinterpret_cast<const Scalar*>(&unit);
#pragma unroll
    for (int i = 0; i < 4; i += 2) *reinterpret_cast<Pair<float>*>(to + i) = {widen(from[i]), widen(from[i + 1])};
  }
}

// There are at least kAtOnce groups. Rows are whole quads of pixels, at addresses from which a quad can be loaded at
// once.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    fused_forward_mma(const Scalar* __restrict__ x, const Scalar* __restrict__ z,
                      const unsigned* __restrict__ expansion, Scalar* __restrict__ out, int groups, int rounds,
                      int height, int width) {
  typedef unsigned long long Size;
  SHARED_MEMORY(shared);
  Pixel* planes = reinterpret_cast<Pixel*>(shared);  // [kTilePlanes][kTilePlane]
  unsigned* features = reinterpret_cast<unsigned*>(shared) + kFeaturesAt;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, of_warp = warp / kStrips, strip = warp % kStrips;
  const Tile tile(blockIdx.x, height, width);
  const unsigned pixels = (unsigned)height * width;

#pragma unroll
  for (int trip = 0; trip * kWarps * 2 < kFeatureSteps * kTerms; trip++) {
    const int row = tile.top + lane / 4, column = tile.left + lane % 4 * 2, k = (trip * kWarps + warp) * 2;
    if (k >= kFeatureSteps * kTerms) break;
    const Scalar* at = z + (unsigned)(tile.batch * FEATURES + k) * (Size)pixels + ((unsigned)row * width + column);
    Values values[kStrips][2];
#pragma unroll
    for (int i = 0; i < kStrips; i++)
#pragma unroll
      for (int n = 0; n < 2; n++) {
        values[i][n] = k + n == FEATURES ? values_of(1) : Values{};
        if (k + n < FEATURES && row < height && column + i * kColumns < width)
          values[i][n] = *reinterpret_cast<const Values*>(at + n * (Size)pixels + i * kColumns);
      }
    store_features(features, k, values);
  }

  // A thread copies a quad of every kStep-th plane.
  constexpr int kQuads = kTileColumns / 4, kOfPlane = kTileRows * kQuads, kStep = THREADS / kOfPlane;
  constexpr int kEach = (kTilePlanes + kStep - 1) / kStep;
  const int own = threadIdx.x / kOfPlane, line = threadIdx.x % kOfPlane / kQuads, quad = threadIdx.x % kQuads;
  const int row = tile.top - kRadius + line, column = tile.left - MARGIN + quad * 4;
  const bool inside = (unsigned)row < (unsigned)height && (unsigned)column < (unsigned)width;
  Pixel* to = planes + own * kTilePlane + line * kTileStride + quad * 4;
  // Its first pair of filtered pixels, how many there are, and how far apart: rows of a channel, or channels of a row.
  const int right = tile.left + strip * kColumns + lane % 4 * 2, channel = PRODUCTS ? lane / 4 : 0;
  const int top = tile.top + (PRODUCTS ? 0 : lane / 4), count = PRODUCTS ? height - top : SHARE;
  const bool stores = channel < SHARE && right < width && top < height;
  int step = PRODUCTS ? width : pixels;
  keep(step);

#pragma unroll 1
  for (int round = 0; round < rounds; round++) {
    // The last round has as many groups as the others, of which it may filter some again.
    const int first = min(round * kAtOnce, groups - kAtOnce), group = first + of_warp;
    const unsigned plane = (tile.batch * groups + first) * SHARE;
    if (round) __syncthreads();  // all threads have read the tile
    if (own < kStep) {
      const Scalar* at = x + (plane + own) * (Size)pixels + ((unsigned)row * width + column);
      Unit units[kEach] = {};  // all loads start before one result is used
#pragma unroll
      for (int n = 0; n < kEach; n++, at += kStep * (Size)pixels) {
        keep(at);
        if (inside && (kTilePlanes % kStep == 0 || own + n * kStep < kTilePlanes))
          units[n] = *reinterpret_cast<const Unit*>(at);
      }
#pragma unroll
      for (int n = 0; n < kEach; n++)
        if (kTilePlanes % kStep == 0 || own + n * kStep < kTilePlanes)
          store_unit(to + n * kStep * kTilePlane, units[n]);
    }
    __syncthreads();
    float filtered[kFiltered][2];
    filter_group(filtered, planes + of_warp * SHARE * kTilePlane, features, expansion + group * kExpansion, strip);
    if (!stores) continue;
    Scalar* at = out + (plane + of_warp * SHARE + channel) * (Size)pixels + ((unsigned)top * width + right);
#pragma unroll
    for (int i = 0; i < kFiltered; i++, at += (unsigned)step) {
      keep(at);
      Pair<Scalar> pair;
#pragma unroll
      for (int j = 0; j < 2; j++) narrow(filtered[i][j], pair.v[j]);
      if (i < count) *reinterpret_cast<Pair<Scalar>*>(at) = pair;
    }
  }
}
