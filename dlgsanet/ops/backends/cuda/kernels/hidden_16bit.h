// Hidden channels of a halo tile, for x of 16 bits. In shared memory they are rounded to its dtype, as PyTorch would
// store them.
//
// The filters are products, too: of a row's pixels with a matrix that has a filter's three taps in each column. For 8
// rows and the columns 0 to 7 (above) and 8 to 15 (below) of a channel, the product of one of the filter's rows is
//
//   [ pixels  0 ... 15 of the halo tile's rows ]   [ w0              ]
//   [                                          ] * [ w1 w0           ]
//   [ pixels  8 ... 23 of the same rows        ]   [ w2 w1 w0        ]   ... 8 columns
//                                                  [    w2 w1 w0     ]
#pragma once
#include "projection.h"

// Planes of hidden channels in shared memory, in words of two pixels. Rows have columns for the products of above;
// those outside the halo tile are zero. A row is added for the pixels of the last warp that are not in the halo tile.
constexpr int kHaloRow = (TILE_WIDTH + kColumns) / 2, kHaloRows = TILE_HEIGHT + 3;
constexpr int kPlane = kHaloRows * kHaloRow;
// A filter as lanes have it in products: factors b of its rows, and padding, [kKinds][4][2]. Of kinds 0 to 3 the upper
// factor is (0, w0), (w0, w1), (w1, w2) or (w2, 0), of kinds 4 and 5 the lower one is (w1, w2) or (w2, 0). All others
// are zero.
constexpr int kKinds = 7;
constexpr int kFilter = kKinds * 8;
// Features, in words of two pixels: rows of channels, with the left half of the tile's columns first.
constexpr int kFeatureHalf = kPixels / 4, kFeatureStride = kPixels / 2 + 4;
static_assert(kHaloWidth * kHaloRows >= kProjected * kWarps * kColumns, "see above");
static_assert(kPlane % 8 == 4 && kFeatureStride % 8 == 4, "rows that lanes access at once are in different banks");
static_assert(kHaloRow % 4 == 0, "products read four words at once");

// A word of a packed filter; taps: of the filter, which is multiplied by `factor`.
__device__ __forceinline__ unsigned taps_of(const Scalar* __restrict__ taps, int word, float factor) {
  const int kind = word / 8, row = word % 8 / 2, lower = word % 2, pair = lower ? kind - 2 : kind;
  const bool is_zero = row > 2 || kind > 5 || (kind > 3) != lower;
  const float first = is_zero || pair == 0 ? 0 : widen(taps[row * 3 + pair - 1]);
  const float second = is_zero || pair == 3 ? 0 : widen(taps[row * 3 + pair]);
  return pack<Scalar>(first * factor, second * factor);
}

template <int kParts, int kMore>
struct Hidden : Projection<kParts, kMore, kFilter> {
  static constexpr int kWords = kParts * kRows * kPlane;  // in shared memory

  unsigned* planes;  // [kParts][kRows][kHaloRows][kHaloRow]
  // Of the projection's sums of this lane: places in shared memory, and bits that clear pixels outside the image.
  unsigned inside[kProjected];
  int places[kProjected];
  int pixels, taps;

  __device__ __forceinline__ Hidden(unsigned* shared, const Tile& tile, const Scalar* __restrict__ x,
                                    unsigned channel_stride, int height, int width)
      : Projection<kParts, kMore, kFilter>(tile, x, channel_stride, height, width), planes(shared) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    constexpr int kAllRows = kParts * kRows * kHaloRows;
#pragma unroll
    for (int i = 0; i < kAllRows; i += THREADS)
      if (i + (int)threadIdx.x < kAllRows)
#pragma unroll
        for (int j = kHaloWidth / 2; j < kHaloRow; j++) planes[(i + threadIdx.x) * kHaloRow + j] = 0;
#pragma unroll
    for (int n = 0; n < kProjected; n++) {
      const int pixel = (warp * kProjected + n) * kColumns + t * 2;
      places[n] = g * kPlane + pixel / kHaloWidth * kHaloRow + pixel % kHaloWidth / 2;
      keep(places[n]);
      inside[n] = (this->outside >> n * 2 & 1 ? 0 : 0xffffu) | (this->outside >> n * 2 & 2 ? 0 : 0xffff0000u);
    }
    // Of the first channel that this warp filters, lanes read 8 rows of the columns 0, 8, 8 and 16 and the next seven.
    pixels = 2 * warp * kPlane + lane % 8 * kHaloRow + (lane / 8 + 1) / 2 * 4;
    // This lane's taps are (w[d], w[d + 1]), or else (w[d + 8], w[d + 9]); all others are zero.
    const int d = 2 * t - g;
    taps = 2 * warp * kKinds + (d >= -1 && d <= 2 ? d + 1 : d <= -6 ? d + 11 : kKinds - 1);
    keep(pixels);
    keep(taps);
  }

  // weights: of the chunk. All threads have to wait before the chunk is filtered, and before the next one is projected.
  __device__ __forceinline__ void project(const unsigned* __restrict__ weights) const {
    float projected[kParts][kProjected][4];
    this->sums(projected, weights);
    unsigned words[kParts][kProjected][2];
#pragma unroll
    for (int part = 0; part < kParts; part++)
#pragma unroll
      for (int n = 0; n < kProjected; n++)
#pragma unroll
        for (int lower = 0; lower < 2; lower++)
          words[part][n][lower] = pack<Scalar>(projected[part][n][lower * 2], projected[part][n][lower * 2 + 1]);
    if (this->outside) {
#pragma unroll
      for (int part = 0; part < kParts; part++)
#pragma unroll
        for (int n = 0; n < kProjected; n++)
#pragma unroll
          for (int lower = 0; lower < 2; lower++) words[part][n][lower] &= inside[n];
    }
#pragma unroll
    for (int part = 0; part < kParts; part++)
#pragma unroll
      for (int n = 0; n < kProjected; n++)
#pragma unroll
        for (int lower = 0; lower < 2; lower++)
          planes[places[n] + (part * kRows + lower * 8) * kPlane] = words[part][n][lower];
  }

  // Channels 2 i and 2 i + 1 of each part, where i is this warp's number, distributed as sums of products: lane 4 g + t
  // has row g of the tile, and columns 2 t, 2 t + 1, 2 t + 8, 2 t + 9.
  __device__ __forceinline__ void filter(float (&filtered)[kParts][2][4], const unsigned* __restrict__ weights) const {
#pragma unroll
    for (int part = 0; part < kParts; part++)
#pragma unroll
      for (int c = 0; c < 2; c++) {
        const int channel = part * kRows + c;
        const Factors* factors = reinterpret_cast<const Factors*>(weights + this->kFilters) + taps * 2 +
                                 channel * (kFilter / 4);
        const Factors above = factors[0];
        const Pair<unsigned> below = *reinterpret_cast<const Pair<unsigned>*>(factors + 1);
        const unsigned b[3][2] = {{above.v[0], above.v[1]}, {above.v[2], above.v[3]}, {below.v[0], below.v[1]}};
#pragma unroll
        for (int i = 0; i < 4; i++) filtered[part][c][i] = 0;
#pragma unroll
        for (int i = 0; i < 3; i++) {
          unsigned a[4];
          load_matrices(a, planes + pixels + channel * kPlane + i * kHaloRow);
          multiply_add<Scalar>(filtered[part][c], a, b[i]);
        }
      }
  }
};

__device__ __forceinline__ int place_of_values() {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  return warp * kValueStride + lane / 4 * kColumns + lane % 4 * 2;
}

__device__ __forceinline__ void store_values(unsigned* values, const float (&of)[2][4]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    Pair<unsigned> pair;
#pragma unroll
    for (int i = 0; i < 2; i++) pair.v[i] = pack<Scalar>(of[0][half * 2 + i], of[1][half * 2 + i]);
    *reinterpret_cast<Pair<unsigned>*>(values + half * kValueHalf) = pair;
  }
}

__device__ __forceinline__ void store_features(unsigned* features, const float (&of)[2][4]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int c = 0; c < 2; c++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      features[(2 * warp + c) * kFeatureStride + half * kFeatureHalf + lane] =
          pack<Scalar>(of[c][half * 2], of[c][half * 2 + 1]);
}
