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
constexpr int kSpare = kHaloRow - kHaloWidth / 2;  // words of a row outside the halo tile
// The filters' taps: pairs (0, w0), (w0, w1), (w1, w2), (w2, 0) and (0, 0), [kPairs][4], of which the last index is the
// row of the filter and padding.
constexpr int kPairs = 5;
constexpr int kFilter = kPairs * 4;
// Features, in words of two pixels: rows of channels, with the left half of the tile's columns first.
constexpr int kFeatureHalf = kPixels / 4, kFeatureStride = kPixels / 2 + 4;
static_assert(kHaloWidth * kHaloRows >= kProjected * kWarps * kColumns, "see above");
static_assert(kPlane % 8 == 4 && kFeatureStride % 8 == 4, "rows that lanes access at once are in different banks");
static_assert(kHaloRow % 4 == 0, "products read four words at once");

// A word of a packed filter; taps: of the filter, which is multiplied by `factor`.
__device__ __forceinline__ unsigned taps_of(const Scalar* __restrict__ taps, int word, float factor) {
  const int pair = word / 4, row = word % 4;
  const float first = row < 3 && pair > 0 && pair < 4 ? widen(taps[row * 3 + pair - 1]) : 0;
  const float second = row < 3 && pair < 3 ? widen(taps[row * 3 + pair]) : 0;
  return pack<Scalar>(first * factor, second * factor);
}

template <int kParts, int kMore>
struct Hidden : Projection<kParts, kMore, kFilter> {
  static constexpr int kWords = kParts * kRows * kPlane;  // in shared memory

  unsigned* planes;  // [kParts][kRows][kHaloRows][kHaloRow]
  // Of the projection's sums of this lane: places in shared memory, and bits that clear pixels outside the image.
  unsigned inside[kProjected];
  int places[kProjected];
  int pixels, taps, d;

  __device__ __forceinline__ Hidden(unsigned* shared, const Tile& tile, const Scalar* __restrict__ x,
                                    unsigned channel_stride, int height, int width)
      : Projection<kParts, kMore, kFilter>(tile, x, channel_stride, height, width), planes(shared) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    for (int i = threadIdx.x; i < kParts * kRows * kHaloRows * kSpare; i += THREADS)
      planes[i / kSpare * kHaloRow + kHaloWidth / 2 + i % kSpare] = 0;
#pragma unroll
    for (int n = 0; n < kProjected; n++) {
      const int pixel = (warp * kProjected + n) * kColumns + t * 2;
      places[n] = g * kPlane + pixel / kHaloWidth * kHaloRow + pixel % kHaloWidth / 2;
      keep(places[n]);
      inside[n] = (this->outside >> n * 2 & 1 ? 0 : 0xffffu) | (this->outside >> n * 2 & 2 ? 0 : 0xffff0000u);
    }
    // Lanes 8 i ... 8 i + 7 read the ith block of 8 columns of 8 rows, of the first channel that this warp filters.
    pixels = 2 * warp * kPlane + lane % 8 * kHaloRow + lane / 8 % 2 * 4;
    // This lane's taps are (w[d], w[d + 1]), or else (w[d + 8], w[d + 9]); all others are zero.
    d = 2 * t - g;
    taps = 2 * warp * kPairs + (d >= -1 && d <= 2 ? d + 1 : d <= -6 ? d + 9 : kPairs - 1);
    keep(pixels);
    keep(taps);
    keep(d);
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
        const Factors pairs = reinterpret_cast<const Factors*>(weights + this->kFilters)[taps + channel * kPairs];
#pragma unroll
        for (int i = 0; i < 4; i++) filtered[part][c][i] = 0;
#pragma unroll
        for (int i = 0; i < 3; i++) {
          const unsigned* row = planes + pixels + channel * kPlane + i * kHaloRow;
          unsigned two[2], one[1];
          load_matrices(two, row);
          load_matrices(one, row + 8);
          const unsigned a[4] = {two[0], two[1], two[1], one[0]};
          const unsigned b[2] = {d >= -1 ? pairs.v[i] : 0, d <= -6 ? pairs.v[i] : 0};
          multiply_add<Scalar>(filtered[part][c], a, b);
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
