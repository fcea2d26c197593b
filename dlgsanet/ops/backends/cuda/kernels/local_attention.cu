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
// Filters are products on tensor cores, as in fused_forward_mma.cu; here a warp has 8 rows and 8 columns of the tile at
// a time, and their bias is the weight of a feature of ones. Four neighbouring lanes share a row: lane t handles rows
// t, t + 4, ... of the window. The 16 rows of a product are pixels 2 m and 2 m + 1 of the 8 rows. Its 8 columns are
// taps 2 n and 2 n + 1 of rows 4 pass ... 4 pass + 3 of the filters.
#include "projection.h"

// Also from the command line:
//   WINDOW    K
//   SHARE     channels that share a filter
//   FEATURES  D, channels of z
//   MARGIN    columns of the border on either side: at least the radius, and whole quads
//   ROUNDS    in which all groups are filtered
//   OWN       groups of 8 pixels that a warp projects
constexpr int kRadius = WINDOW / 2, kPlanes = CHANNELS + FEATURES;
constexpr int kMatrices = (kPlanes + kRows - 1) / kRows;  // of the first projection, for kTerms channels

constexpr int kGroups = CHANNELS / SHARE;
constexpr int kStrips = TILE_WIDTH / kColumns, kAtOnce = kWarps / kStrips;  // groups that warps filter at once
constexpr int kTileRows = TILE_HEIGHT + 2 * kRadius, kTileColumns = TILE_WIDTH + 2 * MARGIN;
// In shared memory, rows that neighbouring lanes access are in different banks, and so are those of two planes.
constexpr int kTileStride = kTileColumns + 2, kTilePlane = (kTileRows * kTileStride + 15) / 32 * 32 + 16;
constexpr int kTilePlanes = kAtOnce * SHARE > FEATURES ? kAtOnce * SHARE : FEATURES;

// Words of a row of the filters of z: taps as float in whole quads, or factors b of products.
constexpr int kTaps = kNeighbours == 2 ? kWarp * 2 : (WINDOW + 3) / 4 * 4;
constexpr int kTapPairs = (WINDOW + 1) / 2;                 // of a row of a filter
constexpr int kPasses = (WINDOW + 3) / 4;                   // over the rows of a filter
constexpr int kFeatureSteps = FEATURES / kTerms + 1;        // of products that form filters; there is a feature of ones
constexpr int kPairs = kColumns / 2;                        // pairs of columns of a strip
constexpr int kExpansion = (kTapPairs * kFeatureSteps + 1) / 2;  // Factors of a lane, for a pass

// The weights of `local_attention`, in words: factors b of the expansion, [kGroups][kPasses][kExpansion][kWarp][4]; the
// second projection as factors a, [kSteps][kOutputs][kWarp][4]; the filters of z, [FEATURES][WINDOW][kTaps]; their bias
// as float.
constexpr int kMatricesAt = kGroups * kPasses * kExpansion * kWarp * 4;
constexpr int kFiltersAt = kMatricesAt + kSteps * kOutputs * kWarp * 4;
constexpr int kBiasAt = kFiltersAt + FEATURES * WINDOW * kTaps;

constexpr int kFeaturesAt = kTilePlanes * kTilePlane;  // in shared memory, in words
constexpr int kValuesAt = kFeaturesAt + kStrips * kPairs * kFeatureSteps * kWarp * 4;
static_assert(SHARED_ELEMENTS == kValuesAt + kSteps * kTermRows * kValueStride, "the layout of local_attention");
static_assert(kRadius <= MARGIN && MARGIN - kRadius + kColumns + WINDOW <= 16, "the windows of a strip's rows");
static_assert(CHANNELS % SHARE == 0 && SHARE % kNeighbours == 0, "values of a group are in whole words");
static_assert(kFeaturesAt % 4 == 0 && kColumns % 8 == 0 && TILE_HEIGHT == 8, "as lanes access it");

template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  T v[4];
};

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

__device__ __forceinline__ void copy(float from, float& to) { to = from; }
__device__ __forceinline__ void copy(Half from, float& to) { to = widen(from); }
__device__ __forceinline__ void copy(BFloat16 from, float& to) { to = widen(from); }
__device__ __forceinline__ void copy(Half from, Half& to) { to = from; }
__device__ __forceinline__ void copy(BFloat16 from, BFloat16& to) { to = from; }

// Copies the tile with its halo of `count` planes to shared memory. from: its first pixel.
template <int kCount, int kStride, int kPlane, typename T>
__device__ __forceinline__ void load_tile(T* tile, const Scalar* __restrict__ from, const Bordered& bordered,
                                          int count) {
  constexpr int kQuads = kTileColumns / 4, kOfPlane = kTileRows * kQuads, kStep = THREADS / kOfPlane;
  constexpr int kEach = (kCount + kStep - 1) / kStep;
  const int plane = threadIdx.x / kOfPlane, row = threadIdx.x % kOfPlane / kQuads, column = threadIdx.x % kQuads * 4;
  if (plane >= kStep) return;
  from += (long long)plane * bordered.plane() + row * bordered.columns + column;
  tile += plane * kPlane + row * kStride + column;
  Quad<Scalar> quads[kEach];  // all loads start before one result is used
#pragma unroll
  for (int n = 0; n < kEach; n++)
    if (plane + n * kStep < count)
      quads[n] = *reinterpret_cast<const Quad<Scalar>*>(from + (long long)(n * kStep) * bordered.plane());
#pragma unroll
  for (int n = 0; n < kEach; n++)
    if (plane + n * kStep < count)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        Pair<T> pair;
#pragma unroll
        for (int j = 0; j < 2; j++) copy(quads[n].v[i * 2 + j], pair.v[j]);
        reinterpret_cast<Pair<T>*>(tile + n * kStep * kPlane)[i] = pair;
      }
}

// z of the tile is kept as factors a of products, [kStrips][kPairs][kFeatureSteps][kWarp][4]. This is the place of
// feature k in the first pixel of a strip's row; the next pixel follows.
constexpr int kOfPair = kFeatureSteps * kWarp * 4;
__device__ __forceinline__ int place_of_feature(int k, int row, int strip) {
  const int term = k % kTerms, lane = row * 4 + term % (kTerms / 2) / kNeighbours, upper = term / (kTerms / 2);
  return strip * kPairs * kOfPair + (k / kTerms * kWarp + lane) * 4 + upper * 2;
}

#if TERMS == 16
// A warp filters two features of the whole tile by products, of rows of pixels with a matrix that has a filter's taps
// in each column, as in hidden_16bit.h.
constexpr int kFeatureStride = kTileColumns, kFeaturePlane = kTileRows * kFeatureStride;
typedef Scalar Feature;

__device__ __forceinline__ void filter_features(unsigned* features, const Feature* tile,
                                                const unsigned* __restrict__ weights) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const unsigned* rows = reinterpret_cast<const unsigned*>(tile + lane % 8 * kFeatureStride) + lane / 8 % 2 * 4;
#pragma unroll 1
  for (int k = warp * 2; k < kFeatureSteps * kTerms; k += kWarps * 2) {
    float sums[2][4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) sums[n][i] = k + n == FEATURES ? 1 : 0;
      if (k + n >= FEATURES) continue;
#pragma unroll
      for (int i = 0; i < 4; i++) sums[n][i] = __uint_as_float(weights[kBiasAt + k + n]);
      const Pair<unsigned>* filters = reinterpret_cast<const Pair<unsigned>*>(weights + kFiltersAt) + lane;
#pragma unroll
      for (int y = 0; y < WINDOW; y++) {
        const unsigned* row = rows + ((k + n) * kFeaturePlane + y * kFeatureStride) / 2;
        unsigned two[2], one[1];
        load_matrices(two, row);
        load_matrices(one, row + 8);
        const unsigned a[4] = {two[0], two[1], two[1], one[0]};
        const Pair<unsigned> b = filters[((k + n) * WINDOW + y) * kWarp];
        multiply_add<Scalar>(sums[n], a, b.v);
      }
    }
#pragma unroll
    for (int strip = 0; strip < kStrips; strip++) {
      Pair<unsigned> pair;
#pragma unroll
      for (int i = 0; i < 2; i++) pair.v[i] = pack<Scalar>(sums[0][strip * 2 + i], sums[1][strip * 2 + i]);
      *reinterpret_cast<Pair<unsigned>*>(features + place_of_feature(k, g, strip) + t * kOfPair) = pair;
    }
  }
}
#else
constexpr int kFeatureStride = kTileStride, kFeaturePlane = kTilePlane;
typedef float Feature;

// A thread filters 8 pixels of a row at a time.
__device__ __forceinline__ void filter_features(unsigned* features, const float* tile,
                                                const unsigned* __restrict__ weights) {
  constexpr int kAll = kFeatureSteps * kTerms * kStrips * TILE_HEIGHT;
#pragma unroll 1
  for (int i = threadIdx.x; i < kAll; i += THREADS) {
    const int row = i % TILE_HEIGHT, strip = i / (2 * TILE_HEIGHT) % kStrips;
    const int k = i / (2 * TILE_HEIGHT * kStrips) * 2 + i / TILE_HEIGHT % 2;
    float sums[kColumns];
    if (k < FEATURES) {
      const float* from = tile + k * kTilePlane + row * kTileStride + strip * kColumns;
      const Factors* filters = reinterpret_cast<const Factors*>(weights + kFiltersAt) + k * (WINDOW * kTaps / 4);
#pragma unroll
      for (int j = 0; j < kColumns; j++) sums[j] = __uint_as_float(weights[kBiasAt + k]);
#pragma unroll
      for (int y = 0; y < WINDOW; y++) {
        float line[16], taps[kTaps];
#pragma unroll
        for (int j = 0; j < 8; j++) {
          const Pair<float> pair = reinterpret_cast<const Pair<float>*>(from + y * kTileStride)[j];
          line[j * 2] = pair.v[0];
          line[j * 2 + 1] = pair.v[1];
        }
#pragma unroll
        for (int j = 0; j < kTaps / 4; j++) {
          const Factors four = filters[y * (kTaps / 4) + j];
#pragma unroll
          for (int i = 0; i < 4; i++) taps[j * 4 + i] = __uint_as_float(four.v[i]);
        }
#pragma unroll
        for (int tap = 0; tap < WINDOW; tap++)
#pragma unroll
          for (int j = 0; j < kColumns; j++) sums[j] += taps[tap] * line[MARGIN - kRadius + tap + j];
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

// Adds up the sums of four lanes over 8 pixels. Lane t gets the totals of pixels 2 t and 2 t + 1.
__device__ __forceinline__ void share_out(float (&own)[2], const float (&sums)[kColumns]) {
  const bool right = threadIdx.x & 2, odd = threadIdx.x & 1;
  float half[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float sent = right ? sums[i] : sums[i + 4];
    half[i] = (right ? sums[i + 4] : sums[i]) + __shfl_xor_sync(0xffffffffu, sent, 2);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const float sent = odd ? half[i] : half[i + 2];
    own[i] = (odd ? half[i + 2] : half[i]) + __shfl_xor_sync(0xffffffffu, sent, 1);
  }
}

// Filters a strip of a group's channels. tile: of its first channel and the strip's first column; features: of the
// strip; weights: of the group and this lane; values: of its first channel and this lane's first pixel.
__device__ __forceinline__ void filter_group(unsigned* values, const float* tile, const Factors* features,
                                             const Factors* __restrict__ weights) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  constexpr int kFirst = MARGIN - kRadius;  // the first column that a strip's first pixel needs
  float sums[SHARE][kColumns] = {};
#pragma unroll
  for (int pass = 0; pass < kPasses; pass++) {
    unsigned b[kFeatureSteps][kTapPairs][2];
#pragma unroll
    for (int i = 0; i < kFeatureSteps * kTapPairs; i += 2) {
      const Factors four = weights[(pass * kExpansion + i / 2) * kWarp];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int n = i + j / 2;
        if (n < kFeatureSteps * kTapPairs) b[n / kTapPairs][n % kTapPairs][j % 2] = four.v[j];
      }
    }
    // Rows below the window have filters of zero. They read the last row of the window, so that they stay in the tile.
    const float* line = tile + (g + min(pass * 4 + t, WINDOW - 1)) * kTileStride;
    float window[SHARE][16];
#pragma unroll
    for (int pair = 0; pair < kPairs; pair++) {
      constexpr int kLast = (kFirst + WINDOW) / 2;  // of the pairs of columns that the first pair of pixels needs
#pragma unroll
      for (int c = 0; c < SHARE; c++)
#pragma unroll
        for (int i = pair ? pair + kLast : kFirst / 2; i <= pair + kLast; i++) {
          const Pair<float> columns = reinterpret_cast<const Pair<float>*>(line + c * kTilePlane)[i];
          window[c][i * 2] = columns.v[0];
          window[c][i * 2 + 1] = columns.v[1];
        }
      float filter[1][kTapPairs][4] = {};
#pragma unroll
      for (int step = 0; step < kFeatureSteps; step++)
        multiply(filter, features + (pair * kFeatureSteps + step) * kWarp + lane, b[step]);
#pragma unroll
      for (int c = 0; c < SHARE; c++)
#pragma unroll
        for (int tap = 0; tap < WINDOW; tap++)
#pragma unroll
          for (int right = 0; right < 2; right++)
            sums[c][pair * 2 + right] +=
                filter[0][tap / 2][right * 2 + tap % 2] * window[c][kFirst + pair * 2 + right + tap];
    }
  }
#pragma unroll
  for (int c = 0; c < SHARE; c += kNeighbours) {
    float own[kNeighbours][2];
#pragma unroll
    for (int i = 0; i < kNeighbours; i++) share_out(own[i], sums[c + i]);
    Pair<unsigned> pair;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const float numbers[2] = {own[0][j], own[kNeighbours - 1][j]};
      pair.v[j] = as_factor<Scalar>(numbers);
    }
    *reinterpret_cast<Pair<unsigned>*>(values + c / kNeighbours * kValueStride) = pair;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    local_attention(const Scalar* __restrict__ projected, const unsigned* __restrict__ weights,
                    const Scalar* __restrict__ x, Scalar* __restrict__ out, long long batch_stride,
                    unsigned channel_stride, int height, int width, int paired) {
  SHARED_MEMORY(tile_planes);  // [kTilePlanes][kTilePlane]: of the squeezed y, then of y
  unsigned* features = reinterpret_cast<unsigned*>(tile_planes) + kFeaturesAt;
  unsigned* values = reinterpret_cast<unsigned*>(tile_planes) + kValuesAt;  // [kSteps * kTermRows][kValueStride]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, strip = warp % kStrips;
  const Tile tile(blockIdx.x, height, width);
  const Bordered bordered(height, width);
  projected += (long long)tile.batch * kPlanes * bordered.plane() + (long long)tile.top * bordered.columns + tile.left;

  Feature* squeezed = reinterpret_cast<Feature*>(tile_planes);
  load_tile<FEATURES, kFeatureStride, kFeaturePlane>(squeezed, projected + (long long)CHANNELS * bordered.plane(),
                                                     bordered, FEATURES);
  constexpr int kUsed = CHANNELS / kNeighbours * kValueStride, kAll = kSteps * kTermRows * kValueStride;
  if constexpr (kUsed < kAll)  // channels that there are not
    for (int i = kUsed + threadIdx.x; i < kAll; i += THREADS) values[i] = 0;
  __syncthreads();
  filter_features(features, squeezed, weights);
  __syncthreads();

  const Factors* of_strip = reinterpret_cast<const Factors*>(features) + strip * kPairs * kFeatureSteps * kWarp;
  const int of_warp = warp / kStrips;  // among the groups of a round
#pragma unroll 1
  for (int round = 0; round < ROUNDS; round++) {
    const int first = round * kAtOnce, group = first + of_warp;
    const int groups = kGroups % kAtOnce ? min(kAtOnce, kGroups - first) : kAtOnce;
    load_tile<kAtOnce * SHARE, kTileStride, kTilePlane>(
        tile_planes, projected + (long long)(first * SHARE) * bordered.plane(), bordered, groups * SHARE);
    __syncthreads();
    if (kGroups % kAtOnce == 0 || group < kGroups)
      filter_group(values + group * SHARE / kNeighbours * kValueStride + strip * kValueHalf + lane * 2,
                   tile_planes + of_warp * SHARE * kTilePlane + strip * kColumns, of_strip,
                   reinterpret_cast<const Factors*>(weights) + group * kPasses * kExpansion * kWarp + lane);
    __syncthreads();
  }

  float sums[kOutputs][kAdded][4] = {};
  const Factors* matrices = reinterpret_cast<const Factors*>(weights + kMatricesAt) + lane;
#pragma unroll
  for (int step = 0; step < kSteps; step++) {
    unsigned b[kAdded][2];
    load_values(b, values + place_in_row() + step * kTermRows * kValueStride);
    multiply(sums, matrices + step * kOutputs * kWarp, b);
  }
  out += tile.batch * CHANNELS * ((long long)height * width);
  tile.add(sums, x + tile.batch * batch_stride, out, channel_stride, height, width, paired);
}
