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
// Products are computed on tensor cores, in TF32. With EXACT every factor is the sum of its first 11 bits, the head, and
// a rest of as many. Three products then add up to what float32 gives: all but rest times rest.
#include "mma.h"
#include "scalar.h"

// The compiler's command line gives the constants of an instantiation; `cuda/feed_forward.py` is their only source:
//   SCALAR       type of x and out: float, Half or BFloat16
//   CHANNELS     of x
//   CHUNKS       of 16 hidden channels of each half
//   EXACT        whether products are as exact as in float32
//   TILE_WIDTH, TILE_HEIGHT  size of a tile in pixels
//   THREADS, BLOCKS  threads of a block, and the fewest blocks per multiprocessor (it limits a thread's registers)
//   EPS          added to the variance
//   SHARED_ELEMENTS  numbers in the shared memory of a block
typedef SCALAR Scalar;
typedef float Accumulator;

constexpr int kWarp = 32, kWarps = THREADS / kWarp;
constexpr int kRows = 16, kColumns = 8, kTerms = 8;  // of a product
constexpr int kHaloWidth = TILE_WIDTH + 2;
constexpr int kHaloPixels = kHaloWidth * (TILE_HEIGHT + 2);
constexpr int kPixels = TILE_WIDTH * TILE_HEIGHT;
constexpr int kProjected = (kHaloPixels + kWarps * kColumns - 1) / (kWarps * kColumns);  // groups of 8 pixels of a warp
constexpr int kAdded = kPixels / (kWarps * kColumns);  // the same of the second projection
constexpr int kSteps = (CHANNELS + kTerms - 1) / kTerms;
constexpr int kOutputs = (CHANNELS + kRows - 1) / kRows;
constexpr int kHalves = 2, kFilter = 12;  // numbers of a filter: nine taps and padding
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
static_assert(TILE_WIDTH == 2 * kColumns && kAdded * kWarps * kColumns == kPixels, "lanes have pixels as below");
static_assert(SHARED_ELEMENTS == kRows * (kHalves * kHiddenStride + kGateStride), "the layout below");

constexpr int kGatedRows = TILE_HEIGHT * 4 / kWarps;  // of two columns, that a thread filters: four warps share a row

struct alignas(16) Factors {
  unsigned v[4];
};

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T v[2];
};

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

#ifndef DLGSANET_EMULATED  // the tests' emulator defines its own
// 1 / value and 2^value, to one or two units in the last place.
__device__ __forceinline__ float approximate_reciprocal(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

__device__ __forceinline__ float approximate_exp2(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}
#endif

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
                       Scalar* __restrict__ out, long long batch_stride, long long channel_stride,
                       int height, int width, int paired) {
  SHARED_MEMORY(hidden);                                       // [kHalves][kRows][kHiddenStride]
  float* gated = hidden + kHalves * kRows * kHiddenStride;     // [kRows][kGateStride]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int across = (width + TILE_WIDTH - 1) / TILE_WIDTH, down = (height + TILE_HEIGHT - 1) / TILE_HEIGHT;
  const int left = blockIdx.x % across * TILE_WIDTH, top = blockIdx.x / across % down * TILE_HEIGHT;
  const int batch = blockIdx.x / (across * down);
  x += batch * batch_stride;

  unsigned normalised[kSteps][kProjected][2];
  unsigned outside = 0;  // bits of the pixels outside the image of which this lane has sums of the first projection
  {
    float values[kProjected][kSteps * 2];
#pragma unroll
    for (int n = 0; n < kProjected; n++) {
      const int first = (warp * kProjected + n) * kColumns, pixel = first + g;
      const int row = top - 1 + pixel / kHaloWidth, column = left - 1 + pixel % kHaloWidth;
      const bool inside = pixel < kHaloPixels && (unsigned)row < (unsigned)height && (unsigned)column < (unsigned)width;
      const Scalar* at = x + (long long)row * width + column + t * channel_stride;
#pragma unroll
      for (int i = 0; i < kSteps * 2; i++) {
        Scalar value = {};
        if (inside && i * 4 + t < CHANNELS) value = *at;
        values[n][i] = widen(value);
        at += 4 * channel_stride;
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int of_sum = first + t * 2 + i;
        const bool has_row = (unsigned)(top - 1 + of_sum / kHaloWidth) < (unsigned)height;
        const bool has_column = (unsigned)(left - 1 + of_sum % kHaloWidth) < (unsigned)width;
        if (of_sum < kHaloPixels && !(has_row && has_column)) outside |= 1u << (n * 2 + i);
      }
    }
#pragma unroll
    for (int n = 0; n < kProjected; n++) {
      float mean = 0, variance = 0;  // over the channels, which four lanes share
#pragma unroll
      for (int i = 0; i < kSteps * 2; i++) mean += values[n][i];
#pragma unroll
      for (int mask = 1; mask < 4; mask *= 2) mean += __shfl_xor_sync(0xffffffffu, mean, mask);
      mean *= 1.0f / CHANNELS;
#pragma unroll
      for (int i = 0; i < kSteps * 2; i++) {
        values[n][i] = i * 4 + t < CHANNELS ? values[n][i] - mean : 0;
        variance += values[n][i] * values[n][i];
      }
#pragma unroll
      for (int mask = 1; mask < 4; mask *= 2) variance += __shfl_xor_sync(0xffffffffu, variance, mask);
      const float scale = rsqrtf(variance * (1.0f / CHANNELS) + EPS);
#pragma unroll
      for (int i = 0; i < kSteps * 2; i++) normalised[i / 2][n][i % 2] = as_factor(values[n][i] * scale);
    }
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

  const long long plane = (long long)height * width;
  out += batch * CHANNELS * plane;
#pragma unroll
  for (int n = 0; n < kAdded; n++) {
    const int first = warp * kAdded + n, row = top + first / 2, column = left + first % 2 * kColumns + t * 2;
    if (row >= height || column >= width) continue;
    const long long pixel = (long long)row * width + column;
    const Scalar* from = x + g * channel_stride + pixel;
    Scalar* to = out + g * plane + pixel;
    const bool second = column + 1 < width;
#pragma unroll
    for (int i = 0; i < kOutputs * 2; i++) {
      if (i * 8 + g < CHANNELS) {
        Pair<Scalar> pair = {};
        if (paired) {
          pair = *reinterpret_cast<const Pair<Scalar>*>(from);
        } else {
          pair.v[0] = from[0];
          if (second) pair.v[1] = from[1];
        }
#pragma unroll
        for (int j = 0; j < 2; j++) narrow(widen(pair.v[j]) + sums[i / 2][n][i % 2 * 2 + j], pair.v[j]);
        if (paired) {
          *reinterpret_cast<Pair<Scalar>*>(to) = pair;
        } else {
          to[0] = pair.v[0];
          if (second) to[1] = pair.v[1];
        }
      }
      from += 8 * channel_stride;
      to += 8 * plane;
    }
  }
}
