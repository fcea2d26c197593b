// Chunks of hidden channels of a halo tile, for x of 16 bits: projected to shared memory and filtered. Factors of
// products are rounded to the dtype of x, and so are channels in shared memory, as PyTorch would store them.
//
// The filters are products, too: of a row's pixels with a matrix that has a filter's three taps in each column. For 8
// rows and the columns 0 to 7 (above) and 8 to 15 (below) of a channel, the product of one of the filter's rows is
//
//   [ pixels  0 ... 15 of the halo tile's rows ]   [ w0              ]
//   [                                          ] * [ w1 w0           ]
//   [ pixels  8 ... 23 of the same rows        ]   [ w2 w1 w0        ]   ... 8 columns
//                                                  [    w2 w1 w0     ]
#pragma once
#include "halo_tile.h"

// Planes of hidden channels in shared memory, in words of two pixels. Rows have columns for the products of above;
// those outside the halo tile are zero. A row is added for the pixels of the last warp that are not in the halo tile.
constexpr int kHaloRow = (TILE_WIDTH + kColumns) / 2, kHaloRows = TILE_HEIGHT + 3;
constexpr int kPlane = kHaloRows * kHaloRow;
constexpr int kSpare = kHaloRow - kHaloWidth / 2;  // words of a row outside the halo tile
constexpr int kPairs = 5;                          // of taps, see below
// Values: words of two channels, for the pixels of half of the tile's columns, row by row, then of the others.
constexpr int kValueStride = kPixels + 8;
static_assert(kHaloWidth * kHaloRows >= kProjected * kWarps * kColumns, "see above");
static_assert(kPlane % 8 == 4 && kValueStride % 32 == 8, "rows that neighbouring lanes access are in different banks");
static_assert(kHaloRow % 4 == 0, "products read four words at once");
static_assert(TILE_HEIGHT == 8 && kWarps * 2 == kRows && kAdded == 2, "a warp filters two channels of each part");

// sums[m][n] += a[m] b[n]
template <int kM, int kN>
__device__ __forceinline__ void multiply(float (&sums)[kM][kN][4], const Factors* __restrict__ matrices,
                                         const unsigned (&b)[kN][2]) {
  Factors a[kM];
#pragma unroll
  for (int m = 0; m < kM; m++) a[m] = matrices[m * kWarp];
#pragma unroll
  for (int m = 0; m < kM; m++)
#pragma unroll
    for (int n = 0; n < kN; n++) multiply_add<Scalar>(sums[m][n], a[m].v, b[n]);
}

// Where a lane stores values of the two channels that its warp filters, and loads those of its warp's row of the tile.
struct Places {
  int to, from;

  __device__ __forceinline__ Places() {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    to = warp * kValueStride + g * kColumns + t * 2;
    from = t * kValueStride + warp * kColumns + g;
    keep(to);
    keep(from);
  }

  // Two channels, distributed as `Hidden::filter` does, of 16.
  __device__ __forceinline__ void store(unsigned* values, const float (&of)[2][4]) const {
#pragma unroll
    for (int columns = 0; columns < 2; columns++) {
      Pair<unsigned> pair;
#pragma unroll
      for (int i = 0; i < 2; i++) pair.v[i] = pack<Scalar>(of[0][columns * 2 + i], of[1][columns * 2 + i]);
      *reinterpret_cast<Pair<unsigned>*>(values + to + columns * TILE_HEIGHT * kColumns) = pair;
    }
  }

  // Factors b of 16 channels.
  __device__ __forceinline__ void load(unsigned (&b)[kAdded][2], const unsigned* values) const {
#pragma unroll
    for (int n = 0; n < kAdded; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) b[n][i] = values[from + i * 4 * kValueStride + n * TILE_HEIGHT * kColumns];
  }
};

// A chunk has 16 channels of each of kParts. Its weights, in words: matrices of the projection, then kMore of the
// kernel's own, as factors a of products, [kMatrices][kWarp][4]; the bias of the projection as float,
// [kParts][kRows]; pairs of taps, [kParts][kRows][kPairs][4], of which the last index is the row of the filter and
// padding. The pairs are (0, w0), (w0, w1), (w1, w2), (w2, 0) and (0, 0).
template <int kParts, int kMore>
struct Hidden {
  static constexpr int kMatrices = kSteps * kParts + kMore;
  static constexpr int kBias = kMatrices * kWarp * 4, kFilters = kBias + kParts * kRows;
  static constexpr int kChunk = kFilters + kParts * kRows * kPairs * 4;
  static constexpr int kWords = kParts * kRows * kPlane;  // in shared memory

  unsigned* planes;  // [kParts][kRows][kHaloRows][kHaloRow]
  unsigned normalised[kSteps][kProjected][2];
  // Of the projection's sums of this lane: places in shared memory, and bits that clear pixels outside the image.
  unsigned outside, inside[kProjected];
  int places[kProjected];
  int pixels, taps, d;

  __device__ __forceinline__ Hidden(unsigned* shared, const Tile& tile, const Scalar* __restrict__ x,
                                    unsigned channel_stride, int height, int width)
      : planes(shared) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    for (int i = threadIdx.x; i < kParts * kRows * kHaloRows * kSpare; i += THREADS)
      planes[i / kSpare * kHaloRow + kHaloWidth / 2 + i % kSpare] = 0;
    {
      float values[kProjected][kValues];
      outside = tile.normalise(values, x, channel_stride, height, width);
#pragma unroll
      for (int n = 0; n < kProjected; n++)
#pragma unroll
        for (int i = 0; i < kValues; i += 2)
          normalised[i / 4][n][i % 4 / 2] = pack<Scalar>(values[n][i], values[n][i + 1]);
    }
#pragma unroll
    for (int n = 0; n < kProjected; n++) {
      const int pixel = (warp * kProjected + n) * kColumns + t * 2;
      places[n] = g * kPlane + pixel / kHaloWidth * kHaloRow + pixel % kHaloWidth / 2;
      keep(places[n]);
      inside[n] = (outside >> n * 2 & 1 ? 0 : 0xffffu) | (outside >> n * 2 & 2 ? 0 : 0xffff0000u);
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
    const int lane = threadIdx.x % kWarp, g = lane / 4;
    float projected[kParts][kProjected][4];
#pragma unroll
    for (int part = 0; part < kParts; part++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float bias = __uint_as_float(weights[kBias + part * kRows + i / 2 * 8 + g]);
#pragma unroll
        for (int n = 0; n < kProjected; n++) projected[part][n][i] = bias;
      }
#pragma unroll
    for (int step = 0; step < kSteps; step++)
      multiply(projected, reinterpret_cast<const Factors*>(weights) + lane + step * kParts * kWarp, normalised[step]);
    unsigned words[kParts][kProjected][2];
#pragma unroll
    for (int part = 0; part < kParts; part++)
#pragma unroll
      for (int n = 0; n < kProjected; n++)
#pragma unroll
        for (int lower = 0; lower < 2; lower++)
          words[part][n][lower] = pack<Scalar>(projected[part][n][lower * 2], projected[part][n][lower * 2 + 1]);
    if (outside) {
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
        const Factors pairs = reinterpret_cast<const Factors*>(weights + kFilters)[taps + channel * kPairs];
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
