// Local filters where x is float32, or tensor cores are not much faster than other multiply-adds.
//
// A warp has 8 rows and 8 columns of the tile. Four neighbouring lanes share a row: lane t handles rows t, t + 4, ...
// of the window. The 16 rows of a product are pixels 2 m and 2 m + 1 of the 8 rows. Its 8 columns are taps 2 n and
// 2 n + 1 of rows 4 pass ... 4 pass + 3 of the filters. A lane then holds two taps of one row of its own pixels'
// filters. At the end the four lanes add up their sums.
#pragma once

typedef float Pixel;  // of the tile
constexpr int kTileStride = kFloatStride, kTilePlane = kFloatPlane;

constexpr int kTapPairs = (WINDOW + 1) / 2;       // of a row of a filter
constexpr int kPasses = (WINDOW + 3) / 4;         // over the rows of a filter
constexpr int kPairs = kColumns / 2;              // pairs of columns of a strip
constexpr int kFactorsOfPass = (kTapPairs * kFeatureSteps + 1) / 2;
constexpr int kExpansion = kPasses * kFactorsOfPass * kWarp * 4;  // factors b, [kPasses][kFactorsOfPass][kWarp][4]
static_assert(kFirst + kColumns + WINDOW <= 16, "the windows of a strip's rows");

// Of a word of a group's factors b.
__device__ __forceinline__ Tap tap_of(int word) {
  const int lane = word / 4 % kWarp, n = word / (4 * kWarp) % kFactorsOfPass * 2 + word / 2 % 2;
  const int row = word / (4 * kWarp * kFactorsOfPass) * 4 + lane / 8;
  const bool padding = n >= kTapPairs * kFeatureSteps;
  return {padding ? WINDOW : row, n % kTapPairs * 2 + lane / 4 % 2,
          n / kTapPairs * kTerms + (word % 2 * 4 + lane % 4) * kNeighbours};
}

constexpr int kFiltered = SHARE;  // lane 4 g + t has pixels 2 t and 2 t + 1 of row g of all channels

// z of the tile is kept as factors a of products, [kStrips][kPairs][kFeatureSteps][kWarp][4], with padding between
// pairs, which lanes store at once. This is the place of feature k in the first pixel of a strip's row; the next pixel
// follows.
constexpr int kOfPair = kFeatureSteps * kWarp * 4 + 4, kFeatureWords = kStrips * kPairs * kOfPair;
__device__ __forceinline__ int place_of_feature(int k, int row, int strip) {
  const int term = k % kTerms, lane = row * 4 + term % (kTerms / 2) / kNeighbours, upper = term / (kTerms / 2);
  return strip * kPairs * kOfPair + (k / kTerms * kWarp + lane) * 4 + upper * 2;
}

// Features k and k + 1 of a lane: pixels 2 t and 2 t + 1 of row g of each strip.
__device__ __forceinline__ void store_features(unsigned* features, int k, const Values (&values)[kStrips][2]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int strip = 0; strip < kStrips; strip++)
#pragma unroll
    for (int n = 0; n < 2 / kNeighbours; n++) {
      Pair<unsigned> pair;
#pragma unroll
      for (int i = 0; i < 2; i++)
#if TERMS == 16
        pair.v[i] = of_pixel(i, values[strip]);
#else
        pair.v[i] = as_factor(values[strip][n].v[i]);
#endif
      unsigned* to = features + place_of_feature(k + n, lane / 4, strip) + lane % 4 * kOfPair;
      *reinterpret_cast<Pair<unsigned>*>(to) = pair;
    }
}

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

// Filters a strip of a group's channels. tile: of its first channel; expansion: of the group.
__device__ __forceinline__ void filter_group(float (&filtered)[kFiltered][2], const float* tile,
                                             const unsigned* features, const unsigned* __restrict__ expansion,
                                             int strip) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const Factors* of_strip = reinterpret_cast<const Factors*>(features + strip * kPairs * kOfPair) + lane;
  const Factors* weights = reinterpret_cast<const Factors*>(expansion) + lane;
  tile += strip * kColumns;
  float sums[SHARE][kColumns] = {};
#pragma unroll
  for (int pass = 0; pass < kPasses; pass++) {
    unsigned b[kFeatureSteps][kTapPairs][2];
#pragma unroll
    for (int i = 0; i < kFeatureSteps * kTapPairs; i += 2) {
      const Factors four = weights[(pass * kFactorsOfPass + i / 2) * kWarp];
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
        multiply(filter, of_strip + pair * kOfPair / 4 + step * kWarp, b[step]);
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
  for (int c = 0; c < SHARE; c++) share_out(filtered[c], sums[c]);
}

// Stores what is filtered as values of the tile.
__device__ __forceinline__ void store_filtered(unsigned* values, const float (&filtered)[kFiltered][2], int group,
                                               int strip) {
  values += group * SHARE / kNeighbours * kValueStride + strip * kValueHalf + threadIdx.x % kWarp * 2;
#pragma unroll
  for (int c = 0; c < SHARE; c += kNeighbours) {
    Pair<unsigned> pair;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const float numbers[2] = {filtered[c][j], filtered[c + kNeighbours - 1][j]};
      pair.v[j] = as_factor<Scalar>(numbers);
    }
    *reinterpret_cast<Pair<unsigned>*>(values + c / kNeighbours * kValueStride) = pair;
  }
}

// Factors b of kTerms filtered channels.
__device__ __forceinline__ void load_filtered(unsigned (&b)[kAdded][2], const unsigned* values, int step) {
  load_values(b, values + place_in_row() + step * kTermRows * kValueStride);
}
