// `gated_feed_forward.cu` for x of 16 bits: a block computes the same steps for the same tile. Factors of products are
// rounded to the dtype of x, and so are hidden and gated channels in shared memory, as PyTorch would store them. The
// parts of a chunk are channels of a, and of b, whose taps are half of the filter's, for gelu.
#include "hidden_16bit.h"

typedef Hidden<kHalves, kOutputs> Chunk;  // its own matrices are those of the second projection
static_assert(SHARED_ELEMENTS == Chunk::kWords + kRows / 2 * kValueStride, "the layout below");

// x (1 + tanh(p)), twice x Phi(x) to 6e-4 with an odd polynomial p, fitted here.
__device__ __forceinline__ float twice_gelu(float x) {
  const float p = x * (0.03475f * (x * x) + 0.8f);
  return x * approximate_tanh(p) + x;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    gated_feed_forward(const Scalar* __restrict__ x, const unsigned* __restrict__ weights, Scalar* __restrict__ out,
                       long long batch_stride, unsigned channel_stride, int height, int width, int paired) {
  SHARED_MEMORY(shared);
  const Tile tile(blockIdx.x, height, width);
  x += tile.batch * batch_stride;
  const Chunk hidden(reinterpret_cast<unsigned*>(shared), tile, x, channel_stride, height, width);
  unsigned* gated = hidden.planes + Chunk::kWords;  // [kRows / 2][kValueStride]
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
        for (int i = 0; i < 4; i++) values[c][i] = twice_gelu(filtered[0][c][i]) * filtered[1][c][i];
      places.store(gated, values);
    }
    __syncthreads();
    {
      unsigned b[kAdded][2];
      places.load(b, gated);
      const Factors* matrices = reinterpret_cast<const Factors*>(weights) + threadIdx.x % kWarp;
      multiply(sums, matrices + kSteps * kHalves * kWarp, b);
    }
  }

  out += tile.batch * CHANNELS * ((long long)height * width);
  tile.add(sums, x, out, channel_stride, height, width, paired);
}
