// `gated_feed_forward.cu` for x of 16 bits: a block computes the same steps for the same tile. Factors of products are
// rounded to the dtype of x, and so are hidden and gated channels in shared memory, as PyTorch would store them.
//
// The filters are products, too: of a row's pixels with a matrix that has a filter's three taps in each column. For 8
// rows and the columns 0 to 7 (above) and 8 to 15 (below) of a channel, the product of one of the filter's rows is
//
//   [ pixels  0 ... 15 of the halo tile's rows ]   [ w0              ]
//   [                                          ] * [ w1 w0           ]
//   [ pixels  8 ... 23 of the same rows        ]   [ w2 w1 w0        ]   ... 8 columns
//                                                  [    w2 w1 w0     ]
#include "halo_tile.h"

// The weights of a chunk, in words: matrices of both projections as factors a of products, [kMatrices][kWarp][4]; the
// bias of the first projection as float, [kHalves][kRows]; pairs of taps, [kHalves][kRows][kPairs][4], of which the
// last index is the row of the filter and padding. The pairs are (0, w0), (w0, w1), (w1, w2), (w2, 0) and (0, 0). The
// taps of b are half of the filter's, for gelu.
constexpr int kMatrices = kSteps * kHalves + kOutputs, kPairs = 5;
constexpr int kBias = kMatrices * kWarp * 4, kFilters = kBias + kHalves * kRows;
constexpr int kChunk = kFilters + kHalves * kRows * kPairs * 4;

// Planes of hidden channels in shared memory, in words of two pixels. Rows have columns for the products of above;
// those outside the halo tile are zero. A row is added for the pixels of the last warp that are not in the halo tile.
constexpr int kHaloRow = (TILE_WIDTH + kColumns) / 2, kHaloRows = TILE_HEIGHT + 3;
constexpr int kPlane = kHaloRows * kHaloRow;
constexpr int kSpare = kHaloRow - kHaloWidth / 2;  // words of a row outside the halo tile
// Gated channels: words of two channels, for the pixels of half of the tile's columns, row by row, then of the others.
constexpr int kGateStride = kPixels + 8;
static_assert(kHaloWidth * kHaloRows >= kProjected * kWarps * kColumns, "see above");
static_assert(kPlane % 8 == 4 && kGateStride % 32 == 8, "rows that neighbouring lanes access are in different banks");
static_assert(kHaloRow % 4 == 0, "products read four words at once");
static_assert(TILE_HEIGHT == 8 && kWarps * 2 == kRows && kAdded == 2, "a warp filters two channels of each half");
static_assert(SHARED_ELEMENTS == kHalves * kRows * kPlane + kRows / 2 * kGateStride, "the layout below");

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

// x (1 + tanh(p)), twice x Phi(x) to 6e-4 with an odd polynomial p, fitted here.
__device__ __forceinline__ float twice_gelu(float x) {
  const float p = x * (0.03475f * (x * x) + 0.8f);
  return x * approximate_tanh(p) + x;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    gated_feed_forward(const Scalar* __restrict__ x, const unsigned* __restrict__ weights, Scalar* __restrict__ out,
                       long long batch_stride, unsigned channel_stride, int height, int width, int paired) {
  SHARED_MEMORY(shared);
  unsigned* hidden = reinterpret_cast<unsigned*>(shared);  // [kHalves][kRows][kHaloRows][kHaloRow]
  unsigned* gated = hidden + kHalves * kRows * kPlane;     // [kRows / 2][kGateStride]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const Tile tile(blockIdx.x, height, width);
  x += tile.batch * batch_stride;

  for (int i = threadIdx.x; i < kHalves * kRows * kHaloRows * kSpare; i += THREADS)
    hidden[i / kSpare * kHaloRow + kHaloWidth / 2 + i % kSpare] = 0;
  unsigned normalised[kSteps][kProjected][2];
  unsigned outside;
  {
    float values[kProjected][kValues];
    outside = tile.normalise(values, x, channel_stride, height, width);
#pragma unroll
    for (int n = 0; n < kProjected; n++)
#pragma unroll
      for (int i = 0; i < kValues; i += 2)
        normalised[i / 4][n][i % 4 / 2] = pack<Scalar>(values[n][i], values[n][i + 1]);
  }

  // Of the first projection's sums of this lane: places in shared memory, and bits that clear pixels outside the image.
  int places[kProjected];
  unsigned inside[kProjected];
#pragma unroll
  for (int n = 0; n < kProjected; n++) {
    const int pixel = (warp * kProjected + n) * kColumns + t * 2;
    places[n] = g * kPlane + pixel / kHaloWidth * kHaloRow + pixel % kHaloWidth / 2;
    keep(places[n]);
    inside[n] = (outside >> n * 2 & 1 ? 0 : 0xffffu) | (outside >> n * 2 & 2 ? 0 : 0xffff0000u);
  }
  // Lanes 8 i ... 8 i + 7 read the ith block of 8 columns of 8 rows, of the first channel that this warp filters.
  int pixels = 2 * warp * kPlane + lane % 8 * kHaloRow + lane / 8 % 2 * 4;
  int to = warp * kGateStride + g * kColumns + t * 2, from = t * kGateStride + warp * kColumns + g;
  // This lane's taps are (w[d], w[d + 1]), or else (w[d + 8], w[d + 9]); all others are zero.
  int d = 2 * t - g;
  const Factors* taps = reinterpret_cast<const Factors*>(weights + kFilters) +
                        2 * warp * kPairs + (d >= -1 && d <= 2 ? d + 1 : d <= -6 ? d + 9 : kPairs - 1);
  keep(pixels);
  keep(to);
  keep(from);
  keep(d);

  float sums[kOutputs][kAdded][4] = {};
#pragma unroll 1
  for (int chunk = 0; chunk < CHUNKS; chunk++, weights += kChunk, taps += kChunk / 4) {
    const Factors* matrices = reinterpret_cast<const Factors*>(weights) + lane;
    {
      float projected[kHalves][kProjected][4];
#pragma unroll
      for (int half = 0; half < kHalves; half++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float bias = __uint_as_float(weights[kBias + half * kRows + i / 2 * 8 + g]);
#pragma unroll
          for (int n = 0; n < kProjected; n++) projected[half][n][i] = bias;
        }
#pragma unroll
      for (int step = 0; step < kSteps; step++)
        multiply(projected, matrices + step * kHalves * kWarp, normalised[step]);
      unsigned words[kHalves][kProjected][2];
#pragma unroll
      for (int half = 0; half < kHalves; half++)
#pragma unroll
        for (int n = 0; n < kProjected; n++)
#pragma unroll
          for (int lower = 0; lower < 2; lower++)
            words[half][n][lower] =
                pack<Scalar>(projected[half][n][lower * 2], projected[half][n][lower * 2 + 1]);
      if (outside) {
#pragma unroll
        for (int half = 0; half < kHalves; half++)
#pragma unroll
          for (int n = 0; n < kProjected; n++)
#pragma unroll
            for (int lower = 0; lower < 2; lower++) words[half][n][lower] &= inside[n];
      }
#pragma unroll
      for (int half = 0; half < kHalves; half++)
#pragma unroll
        for (int n = 0; n < kProjected; n++)
#pragma unroll
          for (int lower = 0; lower < 2; lower++)
            hidden[places[n] + (half * kRows + lower * 8) * kPlane] = words[half][n][lower];
    }
    __syncthreads();
    {
      float filtered[kHalves][2][4] = {};  // of two channels
#pragma unroll
      for (int half = 0; half < kHalves; half++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
          const int channel = half * kRows + c;
          const Factors pairs = taps[channel * kPairs];
#pragma unroll
          for (int i = 0; i < 3; i++) {
            const unsigned* row = hidden + pixels + channel * kPlane + i * kHaloRow;
            unsigned two[2], one[1];
            load_matrices(two, row);
            load_matrices(one, row + 8);
            const unsigned a[4] = {two[0], two[1], two[1], one[0]};
            const unsigned b[2] = {d >= -1 ? pairs.v[i] : 0, d <= -6 ? pairs.v[i] : 0};
            multiply_add<Scalar>(filtered[half][c], a, b);
          }
        }
#pragma unroll
      for (int columns = 0; columns < 2; columns++) {
        Pair<unsigned> pair;
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float values[2];
#pragma unroll
          for (int c = 0; c < 2; c++)
            values[c] = twice_gelu(filtered[0][c][columns * 2 + i]) * filtered[1][c][columns * 2 + i];
          pair.v[i] = pack<Scalar>(values[0], values[1]);
        }
        *reinterpret_cast<Pair<unsigned>*>(gated + to + columns * TILE_HEIGHT * kColumns) = pair;
      }
    }
    __syncthreads();
    {
      unsigned b[kAdded][2];
#pragma unroll
      for (int n = 0; n < kAdded; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) b[n][i] = gated[from + i * 4 * kGateStride + n * TILE_HEIGHT * kColumns];
      multiply(sums, matrices + kSteps * kHalves * kWarp, b);
    }
  }

  out += tile.batch * CHANNELS * ((long long)height * width);
  tile.add(sums, x, out, channel_stride, height, width, paired);
}
