// The gated feed-forward layer without gradients, in one kernel:
//
//   a, b = depthwise_3x3(weight @ normalised(x) + bias),   out = x + proj_out @ (gelu(a) * b)
//
// (Restormer, section 3.2). weight and bias contain scale and shift of the normalisation. A block computes a tile of
// pixels. It needs hidden channels in the tile with a border of one pixel, the halo tile. Each warp normalises some
// pixels of the halo tile, and keeps them in registers as factors of the first projection. The hidden channels are then
// computed in chunks: 16 of a and the same 16 of b are projected to shared memory, filtered and gated, and added to the
// sums of the second projection, which are in registers. For x of 16 bits the gated channels are rounded to its dtype
// too, as PyTorch would store them, and the taps of a are half of the filter's.
#include "hidden.h"

typedef Hidden<kHalves, kRows / kTerms * kOutputs> Chunk;  // its own matrices are those of the second projection
static_assert(SHARED_ELEMENTS == Chunk::kWords + kValueRows * kValueStride, "the layout below");

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

// x (1 + tanh(p)), twice x Phi(x) to 6e-4 with an odd polynomial p, fitted here.
__device__ __forceinline__ float twice_gelu(float x) {
  const float p = x * (0.03475f * (x * x) + 0.8f);
  return x * approximate_tanh(p) + x;
}

// Of the packed weights of hidden channels a thread writes a word.
extern "C" __global__ void __launch_bounds__(THREADS)
    pack_feed_forward(const Scalar* __restrict__ scale, const Scalar* __restrict__ shift,
                      const Scalar* __restrict__ proj_in, const Scalar* __restrict__ depthwise,
                      const Scalar* __restrict__ proj_out, unsigned* __restrict__ weights) {
  const int i = blockIdx.x * THREADS + threadIdx.x, first = i / Chunk::kChunk * kRows, word = i % Chunk::kChunk;
  if (first >= CHUNKS * kRows) return;
  if (word < Chunk::kBias) {
    const Element of(word);
    float values[kNeighbours] = {};
#pragma unroll
    for (int j = 0; j < kNeighbours; j++) {
      if (of.matrix < kSteps * kHalves) {
        const int hidden = first + of.row, channel = of.matrix / kHalves * kTerms + of.term + j;
        const int row = of.matrix % kHalves * HIDDEN + hidden;
        if (hidden < HIDDEN && channel < CHANNELS)
          values[j] = widen(proj_in[row * CHANNELS + channel]) * widen(scale[channel]);
      } else {
        const int matrix = of.matrix - kSteps * kHalves, channel = matrix % kOutputs * kRows + of.row;
        const int hidden = first + matrix / kOutputs * kTerms + of.term + j;
        if (hidden < HIDDEN && channel < CHANNELS) values[j] = widen(proj_out[channel * HIDDEN + hidden]);
      }
    }
    weights[i] = as_factor<Factor>(values);
    return;
  }
  const bool bias = word < Chunk::kFilters;
  const int of_filters = word - Chunk::kFilters, row = bias ? word - Chunk::kBias : of_filters / kFilter;
  const int half = row / kRows, channel = half * HIDDEN + first + row % kRows;
  if (first + row % kRows >= HIDDEN) {
    weights[i] = 0;
  } else if (bias) {
    float sum = 0;
    for (int k = 0; k < CHANNELS; k++) sum += widen(proj_in[channel * CHANNELS + k]) * widen(shift[k]);
    weights[i] = __float_as_uint(sum);
  } else {
    weights[i] = taps_of(depthwise + channel * 9, of_filters % kFilter, kTerms == 16 && half ? 0.5f : 1);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    gated_feed_forward(const Scalar* __restrict__ x, const unsigned* __restrict__ weights, Scalar* __restrict__ out,
                       long long batch_stride, unsigned channel_stride, int height, int width, int paired) {
  SHARED_MEMORY(shared);
  const Tile tile(blockIdx.x, height, width);
  x += tile.batch * batch_stride;
  const Chunk hidden(reinterpret_cast<unsigned*>(shared), tile, x, channel_stride, height, width);
  unsigned* gated = reinterpret_cast<unsigned*>(shared) + Chunk::kWords;  // [kValueRows][kValueStride]
  const Places places;

  float sums[kOutputs][kAdded][4] = {};
#pragma unroll 1
  for (int chunk = 0; chunk < CHUNKS; chunk++, weights += Chunk::kChunk) {
    hidden.project(weights);
    __syncthreads();
    {
      float filtered[kHalves][2][4], values[2][4];
      hidden.filter(filtered, weights);
#pragma unroll
      for (int c = 0; c < 2; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float a = filtered[0][c][i];
          values[c][i] = (sizeof(Scalar) == 2 ? twice_gelu(a) : gelu(a)) * filtered[1][c][i];
        }
      places.store(gated, values);
    }
    __syncthreads();
    const Factors* matrices = reinterpret_cast<const Factors*>(weights) + threadIdx.x % kWarp;
#pragma unroll
    for (int step = 0; step < kRows / kTerms; step++) {
      unsigned b[kAdded][2];
      places.load(b, gated + step * kTermRows * kValueStride);
      multiply(sums, matrices + (kSteps * kHalves + step * kOutputs) * kWarp, b);
    }
  }

  out += tile.batch * CHANNELS * ((long long)height * width);
  tile.add(sums, x, out, channel_stride, height, width, paired);
}
