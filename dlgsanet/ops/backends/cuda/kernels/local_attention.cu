// Dynamic local attention without gradients, in two kernels:
//
//   y, squeezed = weight @ normalised(x) + bias
//   z = depthwise_KxK(squeezed) + bias,   f[g, t] = expansion @ z + bias, for the taps t of group g's filters
//   out = x + proj_out @ filtered,   filtered[c, p] = sum_t f[g, t](p) y[c, p + t]
//
// (DLGSANet, section 3.2). weight and bias contain scale and shift of the normalisation. `local_projection` writes the
// first line with a border of zeros and up to whole tiles, so that no load of `local_attention`, which computes the
// rest of a tile, has to be checked.
//
// `local_filters.h` has the filters.
#include "local_filters.h"

// Also from the command line:
//   ROUNDS    in which all groups are filtered
//   OWN       groups of 8 pixels that a warp projects
constexpr int kPlanes = CHANNELS + FEATURES, kGroups = CHANNELS / SHARE;
constexpr int kMatrices = (kPlanes + kRows - 1) / kRows;  // of the first projection, for kTerms channels

// The squeezed y, and a row of the filters of z in words: factors b of products, or taps as float in whole quads.
#if TERMS == 16
constexpr int kFeatureStride = kHalfStride, kFeaturePlane = kHalfPlane, kTaps = kWarp * 2;
#else
constexpr int kFeatureStride = kFloatStride, kFeaturePlane = kFloatPlane, kTaps = (WINDOW + 3) / 4 * 4;
#endif

// The weights of `local_attention`, in words: factors b of the expansion, [kGroups][kExpansion]; the second projection
// as factors a, [kSteps][kOutputs][kWarp][4]; the filters of z, [FEATURES][WINDOW][kTaps]; their bias as float.
constexpr int kMatricesAt = kGroups * kExpansion;
constexpr int kFiltersAt = kMatricesAt + kSteps * kOutputs * kWarp * 4;
constexpr int kBiasAt = kFiltersAt + FEATURES * WINDOW * kTaps;

// In shared memory, in words.
constexpr int kTilePlanes = kAtOnce * SHARE > FEATURES ? kAtOnce * SHARE : FEATURES;
constexpr int kFeaturesAt = kTilePlanes * kTilePlane * sizeof(Pixel) / 4;
constexpr int kValuesAt = kFeaturesAt + kFeatureWords;
constexpr int kValueWords = kSteps * kTermRows * kValueStride;
static_assert(SHARED_ELEMENTS == kValuesAt + kValueWords, "the layout of local_attention");
static_assert(CHANNELS % SHARE == 0 && SHARE % kNeighbours == 0, "values of a group are in whole words");
static_assert(sizeof(Scalar) * kFeaturePlane <= sizeof(Pixel) * kTilePlane, "the squeezed y takes no more memory");
static_assert(kFeaturesAt % 4 == 0, "as lanes access it");

// The result of `local_projection`, [B, kPlanes, rows, columns].
struct Bordered {
  int rows, columns;

  __device__ Bordered(int height, int width)
      : rows((height + TILE_HEIGHT - 1) / TILE_HEIGHT * TILE_HEIGHT + 2 * kRadius),
        columns((width + TILE_WIDTH - 1) / TILE_WIDTH * TILE_WIDTH + 2 * MARGIN) {}
  __device__ unsigned plane() const { return (unsigned)rows * columns; }
};

// weights: the matrices as factors a, [kSteps][kMatrices][kWarp][4]; the bias as float, [kMatrices * kRows].
extern "C" __global__ void __launch_bounds__(THREADS)
    local_projection(const Scalar* __restrict__ x, const unsigned* __restrict__ weights, Scalar* __restrict__ out,
                     long long batch_stride, unsigned channel_stride, int height, int width) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const Bordered bordered(height, width);
  const int across = bordered.columns / kColumns, all = bordered.rows * across;  // groups of 8 pixels of a row
  const int blocks = (all + kWarps * OWN - 1) / (kWarps * OWN), image = blockIdx.x / blocks;
  const int first = (blockIdx.x % blocks * kWarps + warp) * OWN;
  x += image * batch_stride;

  unsigned factors[kSteps][OWN][2];
  {
    float values[OWN][kValues];
#pragma unroll
    for (int n = 0; n < OWN; n++) {
      const int row = (first + n) / across - kRadius, column = (first + n) % across * kColumns - MARGIN + g;
      read_channels(values[n], x, row, column, channel_stride, height, width);
    }
    standardise(values);
    as_factors(factors, values);
  }
  float sums[kMatrices][OWN][4];
#pragma unroll
  for (int m = 0; m < kMatrices; m++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const unsigned* bias = weights + kSteps * kMatrices * kWarp * 4 + m * kRows + i / 2 * 8 + g;
#pragma unroll
      for (int n = 0; n < OWN; n++) sums[m][n][i] = __uint_as_float(*bias);
    }
#pragma unroll
  for (int step = 0; step < kSteps; step++)
    multiply(sums, reinterpret_cast<const Factors*>(weights) + lane + step * kMatrices * kWarp, factors[step]);

#pragma unroll
  for (int n = 0; n < OWN; n++) {
    if (first + n >= all) continue;
    const int row = (first + n) / across - kRadius, column = (first + n) % across * kColumns - MARGIN + t * 2;
    const bool has_row = (unsigned)row < (unsigned)height;
    const bool inside[2] = {has_row && (unsigned)column < (unsigned)width,
                            has_row && (unsigned)(column + 1) < (unsigned)width};
    Scalar* to = out + ((long long)image * kPlanes + g) * bordered.plane() + (long long)(first + n) * kColumns + t * 2;
    keep(to);
#pragma unroll
    for (int i = 0; i < kMatrices * 2; i++) {
      Pair<Scalar> pair = {};
#pragma unroll
      for (int j = 0; j < 2; j++)
        if (inside[j]) narrow(sums[i / 2][n][i % 2 * 2 + j], pair.v[j]);
      if (i * 8 + g < kPlanes) *reinterpret_cast<Pair<Scalar>*>(to + (long long)(i * 8) * bordered.plane()) = pair;
    }
  }
}

// Stores 16 bytes of global memory, as numbers of another type or the same.
template <typename T>
__device__ __forceinline__ void store_unit(T* to, const Factors& unit) {
  if constexpr (sizeof(T) == 2) {
    *reinterpret_cast<Factors*>(to) = unit;
  } else {
#pragma unroll
    for (int i = 0; i < 2 * kNeighbours; i++) {
      const Scalar* from = reinterpret_cast<const Scalar*>(&unit) + i * 2;
      reinterpret_cast<Pair<float>*>(to)[i] = {widen(from[0]), widen(from[1])};
    }
  }
}

// Copies the tile with its halo of `count` planes to shared memory. from: its first pixel.
template <int kCount, int kStride, int kPlane, typename T>
__device__ __forceinline__ void load_tile(T* tile, const Scalar* __restrict__ from, const Bordered& bordered,
                                          int count) {
  constexpr int kUnit = 4 * kNeighbours, kUnits = kTileColumns / kUnit, kOfPlane = kTileRows * kUnits;
  constexpr int kStep = THREADS / kOfPlane, kEach = (kCount + kStep - 1) / kStep;
  const int plane = threadIdx.x / kOfPlane;
  const int row = threadIdx.x % kOfPlane / kUnits, column = threadIdx.x % kUnits * kUnit;
  if (plane >= kStep) return;
  const Scalar* at = from + (long long)plane * bordered.plane() + row * bordered.columns + column;
  tile += plane * kPlane + row * kStride + column;
  keep(at);
  Factors units[kEach];  // all loads start before one result is used
#pragma unroll
  for (int n = 0; n < kEach; n++, at += (long long)kStep * bordered.plane())
    if (plane + n * kStep < count) units[n] = *reinterpret_cast<const Factors*>(at);
#pragma unroll
  for (int n = 0; n < kEach; n++)
    if (plane + n * kStep < count) store_unit(tile + n * kStep * kPlane, units[n]);
}

#if TERMS == 16
// A warp filters two features of the whole tile by products, of rows of pixels with a matrix that has a filter's taps
// in each column, as in hidden_16bit.h.
__device__ __forceinline__ void filter_features(unsigned* features, const Scalar* tile,
                                                const unsigned* __restrict__ filters,
                                                const unsigned* __restrict__ bias) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Scalar* rows = tile + lane % 8 * kFeatureStride + (lane / 8 + 1) / 2 * 8;
#pragma unroll 1
  for (int k = warp * 2; k < kFeatureSteps * kTerms; k += kWarps * 2) {
    float sums[2][4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) sums[n][i] = k + n == FEATURES ? 1 : 0;
      if (k + n >= FEATURES) continue;
#pragma unroll
      for (int i = 0; i < 4; i++) sums[n][i] = __uint_as_float(bias[k + n]);
#pragma unroll
      for (int y = 0; y < WINDOW; y++) {
        unsigned a[4];
        load_matrices(a, reinterpret_cast<const unsigned*>(rows + (k + n) * kFeaturePlane + y * kFeatureStride));
        const Pair<unsigned>* b = reinterpret_cast<const Pair<unsigned>*>(filters) + lane;
        multiply_add<Scalar>(sums[n], a, b[((k + n) * WINDOW + y) * kWarp].v);
      }
    }
    Values values[kStrips][2];
#pragma unroll
    for (int strip = 0; strip < kStrips; strip++)
#pragma unroll
      for (int n = 0; n < 2; n++) values[strip][n] = pack<Scalar>(sums[n][strip * 2], sums[n][strip * 2 + 1]);
    store_features(features, k, values);
  }
}
#else
// A thread filters 8 pixels of a row at a time.
__device__ __forceinline__ void filter_features(unsigned* features, const float* tile,
                                                const unsigned* __restrict__ filters,
                                                const unsigned* __restrict__ bias) {
  constexpr int kAll = kFeatureSteps * kTerms * kStrips * TILE_HEIGHT;
#pragma unroll 1
  for (int i = threadIdx.x; i < kAll; i += THREADS) {
    const int row = i % TILE_HEIGHT, strip = i / (2 * TILE_HEIGHT) % kStrips;
    const int k = i / (2 * TILE_HEIGHT * kStrips) * 2 + i / TILE_HEIGHT % 2;
    float sums[kColumns];
    if (k < FEATURES) {
      const float* from = tile + k * kFeaturePlane + row * kFeatureStride + strip * kColumns;
      const Factors* of_feature = reinterpret_cast<const Factors*>(filters) + k * (WINDOW * kTaps / 4);
#pragma unroll
      for (int j = 0; j < kColumns; j++) sums[j] = __uint_as_float(bias[k]);
#pragma unroll
      for (int y = 0; y < WINDOW; y++) {
        float line[16], taps[kTaps];
#pragma unroll
        for (int j = 0; j < 8; j++) {
          const Pair<float> pair = reinterpret_cast<const Pair<float>*>(from + y * kFeatureStride)[j];
          line[j * 2] = pair.v[0];
          line[j * 2 + 1] = pair.v[1];
        }
#pragma unroll
        for (int j = 0; j < kTaps / 4; j++) {
          const Factors four = of_feature[y * (kTaps / 4) + j];
#pragma unroll
          for (int i = 0; i < 4; i++) taps[j * 4 + i] = __uint_as_float(four.v[i]);
        }
#pragma unroll
        for (int tap = 0; tap < WINDOW; tap++)
#pragma unroll
          for (int j = 0; j < kColumns; j++) sums[j] += taps[tap] * line[kFirst + tap + j];
      }
    } else {
#pragma unroll
      for (int j = 0; j < kColumns; j++) sums[j] = k == FEATURES ? 1 : 0;
    }
    unsigned* to = features + place_of_feature(k, row, strip);
#pragma unroll
    for (int j = 0; j < kColumns; j++) to[j / 2 * kOfPair + j % 2] = as_factor<Scalar>(sums + j);
  }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    local_attention(const Scalar* __restrict__ projected, const unsigned* __restrict__ weights,
                    const Scalar* __restrict__ x, Scalar* __restrict__ out, long long batch_stride,
                    unsigned channel_stride, int height, int width, int paired) {
  SHARED_MEMORY(shared);
  Scalar* squeezed = reinterpret_cast<Scalar*>(shared);     // [FEATURES][kFeaturePlane]
  Pixel* tile_planes = reinterpret_cast<Pixel*>(shared);    // [kTilePlanes][kTilePlane]: of y, afterwards
  unsigned* features = reinterpret_cast<unsigned*>(shared) + kFeaturesAt;
  unsigned* values = reinterpret_cast<unsigned*>(shared) + kValuesAt;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Tile tile(blockIdx.x, height, width);
  const Bordered bordered(height, width);
  projected += (long long)tile.batch * kPlanes * bordered.plane() + (long long)tile.top * bordered.columns + tile.left;

  load_tile<FEATURES, kFeatureStride, kFeaturePlane>(squeezed, projected + (long long)CHANNELS * bordered.plane(),
                                                     bordered, FEATURES);
  constexpr int kUsed = kValueWords / (kSteps * kTerms) * CHANNELS;
  if constexpr (kUsed < kValueWords)  // channels that there are not
    for (int i = kUsed + threadIdx.x; i < kValueWords; i += THREADS) values[i] = 0;
  __syncthreads();
  filter_features(features, squeezed, weights + kFiltersAt, weights + kBiasAt);
  __syncthreads();

  const int of_warp = warp / kStrips;  // among the groups of a round
#pragma unroll 1
  for (int round = 0; round < ROUNDS; round++) {
    const int first = round * kAtOnce, group = first + of_warp;
    const int groups = kGroups % kAtOnce ? min(kAtOnce, kGroups - first) : kAtOnce;
    load_tile<kAtOnce * SHARE, kTileStride, kTilePlane>(
        tile_planes, projected + (long long)(first * SHARE) * bordered.plane(), bordered, groups * SHARE);
    __syncthreads();
    if (kGroups % kAtOnce == 0 || group < kGroups) {
      float filtered[kFiltered][2];
      filter_group(filtered, tile_planes + of_warp * SHARE * kTilePlane, features, weights + group * kExpansion,
                   warp % kStrips);
      store_filtered(values, filtered, group, warp % kStrips);
    }
    __syncthreads();
  }

  float sums[kOutputs][kAdded][4] = {};
  const Factors* matrices = reinterpret_cast<const Factors*>(weights + kMatricesAt) + lane;
#pragma unroll
  for (int step = 0; step < kSteps; step++) {
    unsigned b[kAdded][2];
    load_filtered(b, values, step);
    multiply(sums, matrices + step * kOutputs * kWarp, b);
  }
  out += tile.batch * CHANNELS * ((long long)height * width);
  tile.add(sums, x + tile.batch * batch_stride, out, channel_stride, height, width, paired);
}
