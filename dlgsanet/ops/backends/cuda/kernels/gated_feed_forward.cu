// The gated feed-forward layer without gradients, in one kernel:
//
//   a, b = depthwise_3x3(weight @ normalised(x) + bias),   out = x + proj_out @ (gelu(a) * b)
//
// (Restormer, section 3.2). weight and bias contain scale and shift of the normalisation. A block computes a tile of
// pixels. It needs hidden channels in the tile with a border of one pixel, the halo tile. Each warp normalises some
// pixels of the halo tile, and keeps them in registers as factors of the first projection. The hidden channels are then
// computed in chunks: 16 of a and the same 16 of b are projected to shared memory, filtered and gated, and added to the
// sums of the second projection, which are in registers.
//
// Products are computed on tensor cores, in TF32. With EXACT every factor is the sum of its first 11 bits, the head,
// and a rest of as many. Three products then add up to what float32 gives: all but rest times rest.
#include "halo_tile.h"

// Also from the command line: EXACT, whether products are as exact as in float32.

constexpr int kFilter = 12;  // numbers of a filter: nine taps and padding
constexpr int kGateSteps = kRows / kTerms;

// The weights of a chunk: matrices of both projections as factors a of products, [kMatrices][kWarp][4]; the bias of the
// first projection, [kHalves][kRows]; the filters, [kHalves][kRows][kFilter].
constexpr int kMatrices = kSteps * kHalves + kGateSteps * kOutputs;
constexpr int kBias = kMatrices * kWarp * 4, kFilters = kBias + kHalves * kRows;
constexpr int kChunk = kFilters + kHalves * kRows * kFilter;

// Rows that neighbouring lanes access are in different banks of shared memory: strides are 8 modulo 32.
constexpr int kHiddenStride = kProjected * kWarps * kColumns + 8;
constexpr int kGateStride = kPixels + 8;
static_assert(kWarps % 4 == 0 && kHiddenStride % 32 == 8 && kGateStride % 32 == 8, "see above");
static_assert(SHARED_ELEMENTS == kRows * (kHalves * kHiddenStride + kGateStride), "the layout below");

constexpr int kGatedRows = TILE_HEIGHT * 4 / kWarps;  // of two columns, that a thread filters: four warps share a row

// A factor that is computed here. Tensor cores ignore all bits below TF32, so with EXACT it is its own head.
__device__ __forceinline__ unsigned as_factor(float value) {
  return EXACT ? (__float_as_uint(value) + 2) & ~3u : to_tf32(value);  // rounded to 22 bits or to 11
}

__device__ __forceinline__ unsigned rest_of(unsigned factor) {
  return __float_as_uint(__uint_as_float(factor) - __uint_as_float(factor & 0xffffe000u));
}

// sums[m][n] += a[m] b[n]. Successive products have different sums, since each waits for the last one of its own.
template <int kM, int kN>
__device__ __forceinline__ void multiply(float (&sums)[kM][kN][4], const Factors* __restrict__ matrices,
                                         const unsigned (&b)[kN][2]) {
  Factors a[kM];
#pragma unroll
  for (int m = 0; m < kM; m++) a[m] = matrices[m * kWarp];
  if constexpr (EXACT) {
    unsigned rests[kN][2];
#pragma unroll
    for (int n = 0; n < kN; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) rests[n][i] = rest_of(b[n][i]);
#pragma unroll
    for (int m = 0; m < kM; m++)
#pragma unroll
      for (int n = 0; n < kN; n++) multiply_add(sums[m][n], a[m].v, rests[n]);
#pragma unroll
    for (int m = 0; m < kM; m++) {
      const unsigned rest[4] = {rest_of(a[m].v[0]), rest_of(a[m].v[1]), rest_of(a[m].v[2]), rest_of(a[m].v[3])};
#pragma unroll
      for (int n = 0; n < kN; n++) multiply_add(sums[m][n], rest, b[n]);
    }
  }
#pragma unroll
  for (int m = 0; m < kM; m++)
#pragma unroll
    for (int n = 0; n < kN; n++) multiply_add(sums[m][n], a[m].v, b[n]);
}

// x Phi(x), Phi being the normal distribution: max(x, 0) - |x| Phi(-|x|). Phi(-s) exp(s^2 / 2) is a polynomial of
// 1 / (1 + 0.3386 s), fitted here; the result is exact to 4e-8.
__device__ __forceinline__ float gelu(float x) {
  const float s = fabsf(x), t = approximate_reciprocal(1 + 0.3386484f * s);
  float tail = -0.10715351f;
  tail = tail * t + 0.33768762f;
  tail = tail * t - 0.047677346f;
  tail = tail * t + 0.1888579f;
  tail = tail * t + 0.12828339f;
  return fmaxf(x, 0) - tail * t * s * approximate_exp2(-0.72134752f * s * s);
}

// The pixels of a tile's row that a filter for two neighbouring outputs needs.
struct Window {
  float v[4];

  __device__ __forceinline__ void read(const float* from) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const Pair<float> pair = reinterpret_cast<const Pair<float>*>(from)[i];
      v[i * 2] = pair.v[0];
      v[i * 2 + 1] = pair.v[1];
    }
  }
};

// The 3x3 filter of a channel, and the rows of the channel that it is applied to.
struct Filter {
  float taps[kFilter];
  Window rows[3];

  __device__ __forceinline__ explicit Filter(const float* __restrict__ from) {
#pragma unroll
    for (int i = 0; i < kFilter / 4; i++) {
      const Factors quad = reinterpret_cast<const Factors*>(from)[i];
#pragma unroll
      for (int j = 0; j < 4; j++) taps[i * 4 + j] = __uint_as_float(quad.v[j]);
    }
  }

  // Of the rows first ... first + 2, modulo 3.
  __device__ __forceinline__ float apply(int first, int column) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 3; i++)
#pragma unroll
      for (int j = 0; j < 3; j++) sum += taps[i * 3 + j] * rows[(first + i) % 3].v[column + j];
    return sum;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    gated_feed_forward(const Scalar* __restrict__ x, const float* __restrict__ weights,
                       Scalar* __restrict__ out, long long batch_stride, unsigned channel_stride,
                       int height, int width, int paired) {
  SHARED_MEMORY(hidden);                                       // [kHalves][kRows][kHiddenStride]
  float* gated = hidden + kHalves * kRows * kHiddenStride;     // [kRows][kGateStride]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const Tile tile(blockIdx.x, height, width);
  x += tile.batch * batch_stride;

  unsigned normalised[kSteps][kProjected][2];
  unsigned outside;
  {
    float values[kProjected][kValues];
    outside = tile.normalise(values, x, channel_stride, height, width);
#pragma unroll
    for (int n = 0; n < kProjected; n++)
#pragma unroll
      for (int i = 0; i < kValues; i++) normalised[i / 2][n][i % 2] = as_factor(values[n][i]);
  }

  const int channel = warp % 4 * 4 + lane / 8 % 2 * 2 + lane / 16;  // that this thread filters
  const int first_row = warp / 4 * kGatedRows, first_column = lane % 8 * 2;
  float sums[kOutputs][kAdded][4] = {};
#pragma unroll 1
  for (int chunk = 0; chunk < CHUNKS; chunk++, weights += kChunk) {
    const Factors* matrices = reinterpret_cast<const Factors*>(weights) + lane;
    {
      float projected[kHalves][kProjected][4];
#pragma unroll
      for (int half = 0; half < kHalves; half++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float bias = weights[kBias + half * kRows + i / 2 * 8 + g];
#pragma unroll
          for (int n = 0; n < kProjected; n++) projected[half][n][i] = bias;
        }
#pragma unroll
      for (int step = 0; step < kSteps; step++)
        multiply(projected, matrices + step * kHalves * kWarp, normalised[step]);
      if (outside) {
#pragma unroll
        for (int n = 0; n < kProjected; n++)
#pragma unroll
          for (int i = 0; i < 2; i++)
            if (outside >> (n * 2 + i) & 1)
#pragma unroll
              for (int half = 0; half < kHalves; half++) projected[half][n][i] = projected[half][n][i + 2] = 0;
      }
#pragma unroll
      for (int half = 0; half < kHalves; half++)
#pragma unroll
        for (int n = 0; n < kProjected; n++)
#pragma unroll
          for (int lower = 0; lower < 2; lower++) {
            float* to = hidden + (half * kRows + g + lower * 8) * kHiddenStride;
            const Pair<float> pair = {projected[half][n][lower * 2], projected[half][n][lower * 2 + 1]};
            reinterpret_cast<Pair<float>*>(to)[(warp * kProjected + n) * 4 + t] = pair;
          }
    }
    __syncthreads();
    {
      const float* filters = weights + kFilters + channel * kFilter;
      Filter a(filters), b(filters + kRows * kFilter);
      const float* of_a = hidden + channel * kHiddenStride + first_row * kHaloWidth + first_column;
      const float* of_b = of_a + kRows * kHiddenStride;
      float* to = gated + channel * kGateStride + first_row * TILE_WIDTH + first_column;
#pragma unroll
      for (int row = 0; row < kGatedRows + 2; row++) {
        a.rows[row % 3].read(of_a + row * kHaloWidth);
        b.rows[row % 3].read(of_b + row * kHaloWidth);
        if (row < 2) continue;
        Pair<unsigned> pair;
#pragma unroll
        for (int i = 0; i < 2; i++) pair.v[i] = as_factor(gelu(a.apply(row - 2, i)) * b.apply(row - 2, i));
        *reinterpret_cast<Pair<unsigned>*>(to + (row - 2) * TILE_WIDTH) = pair;
      }
    }
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kGateSteps; step++) {
      unsigned b[kAdded][2];
#pragma unroll
      for (int n = 0; n < kAdded; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int term = step * kTerms + i * 4 + t;
          b[n][i] = __float_as_uint(gated[term * kGateStride + (warp * kAdded + n) * kColumns + g]);
        }
      multiply(sums, matrices + (kSteps * kHalves + step * kOutputs) * kWarp, b);
    }
  }

  out += tile.batch * CHANNELS * ((long long)height * width);
  tile.add(sums, x, out, channel_stride, height, width, paired);
}
