// The fused dynamic depth-wise convolution (see fused_forward.cu) with filters formed on tensor cores, in TF32.
//
// Four neighbouring lanes compute the 16 pixels of a tile's row together. Lane t handles rows t, t + 4, ... of the
// window. The matrix products are arranged so that each lane receives the taps of these rows. The 16 rows of a product
// are pixels 2 m and 2 m + 1 of eight rows of the tile. Its 8 columns are taps 2 n and 2 n + 1 of the filters' rows
// 4 pass ... 4 pass + 3. A lane then holds two taps of one row of its own pixels' filters. At the end the four lanes
// add up their sums.
#include "mma.h"
#include "tile.h"

//   FEATURES  D, channels of z
//   STEP      features that one product adds up
constexpr int kStep = STEP;
constexpr int kOddStride = kStride + 1;  // lanes that read from neighbouring rows of the tile use different banks
constexpr int kSteps = (FEATURES + kStep - 1) / kStep;
constexpr int kTapPairs = (WINDOW + 1) / 2;
constexpr int kPasses = (WINDOW + 3) / 4;  // over the rows of the window
constexpr int kPairs = TILE_WIDTH / 2;     // pairs of pixels in a row
static_assert(kStep == 8 && kWarp == 32, "the shapes of mma.h");
static_assert(kThreadsAcross == 4 && TILE_WIDTH == 16, "four lanes share a row of 16 pixels");
static_assert(kThreads == kThreadsAcross * TILE_HEIGHT, "one thread for each quad of a tile");
static_assert(SHARED_ELEMENTS == kPairs * kSteps * kThreads * kQuad + kChannels * kTileRows * kOddStride,
              "the layout below");

// Add up the sums of four lanes over all 16 pixels. Each lane gets the totals of its own four pixels.
__device__ __forceinline__ void share_out(float (&own)[kQuad], const float (&sums)[TILE_WIDTH]) {
  const bool right = threadIdx.x & 2, odd = threadIdx.x & 1;
  float half[8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float sent = right ? sums[i] : sums[i + 8];
    half[i] = (right ? sums[i + 8] : sums[i]) + __shfl_xor_sync(0xffffffffu, sent, 2);
  }
#pragma unroll
  for (int i = 0; i < kQuad; i++) {
    const float sent = odd ? half[i] : half[i + 4];
    own[i] = (odd ? half[i + 4] : half[i]) + __shfl_xor_sync(0xffffffffu, sent, 1);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    fused_forward_mma(const Scalar* __restrict__ x, const Scalar* __restrict__ z, const float* __restrict__ weight,
                      const float* __restrict__ bias, Scalar* __restrict__ out, int groups, int height, int width,
                      int vectorized) {
  SHARED_MEMORY(shared);
  Quad<unsigned>* features = reinterpret_cast<Quad<unsigned>*>(shared) + threadIdx.x;  // [kPairs][kSteps][kThreads]
  float* tile = shared + kPairs * kSteps * kThreads * kQuad;  // [kChannels][kTileRows][kOddStride]
  const Image image = {height, width, vectorized != 0};
  const GroupTile share(blockIdx.x, groups, image);
  const TilePlace& place = share.place;
  const int row = threadIdx.x / 4, lane = threadIdx.x % kWarp, t = lane % 4, column_of_b = lane / 4;

  load_tile<kChannels, kTileRows, kOddStride>(tile, x + share.plane * image.pixels(), image, share.channels,
                                              place.y - kRadius, place.x - kMargin);
  // The factors a of the products: features t and t + 4 of every step at the row's pixels. No other lane needs them.
  const Scalar* planes = z + (long long)place.batch * FEATURES * image.pixels();
#pragma unroll 1
  for (int quad = 0; quad < kThreadsAcross; quad++) {
    float pixels[kSteps * 2][kQuad];
    load_quads(pixels, planes + t * image.pixels(), 4 * image.pixels(), image, (FEATURES + 3 - t) / 4, place.y + row,
               place.x + quad * kQuad);
#pragma unroll
    for (int step = 0; step < kSteps; step++)
#pragma unroll
      for (int pair = 0; pair < 2; pair++) {
        const float *lower = pixels[step * 2] + pair * 2, *upper = pixels[step * 2 + 1] + pair * 2;
        features[((quad * 2 + pair) * kSteps + step) * kThreads] = {to_tf32(lower[0]), to_tf32(lower[1]),
                                                                    to_tf32(upper[0]), to_tf32(upper[1])};
      }
  }
  __syncthreads();

  float sum[kChannels][TILE_WIDTH] = {};
#pragma unroll 1
  for (int pass = 0; pass < kPasses; pass++) {
    unsigned factors[kTapPairs][kSteps][2];  // b
    float start[kTapPairs][2];               // the bias
    const int filter_row = pass * 4 + t;
#pragma unroll
    for (int n = 0; n < kTapPairs; n++) {
      const int b_row = pass * 4 + column_of_b / 2, b_tap = n * 2 + column_of_b % 2;
      const float* weights = weight + ((long long)(share.group * WINDOW + b_row) * WINDOW + b_tap) * FEATURES;
#pragma unroll
      for (int step = 0; step < kSteps; step++)
#pragma unroll
        for (int upper = 0; upper < 2; upper++) {
          const int k = step * kStep + upper * 4 + t;
          factors[n][step][upper] = b_row < WINDOW && b_tap < WINDOW && k < FEATURES ? to_tf32(weights[k]) : 0;
        }
#pragma unroll
      for (int odd = 0; odd < 2; odd++) {
        const int tap = n * 2 + odd;
        const bool present = bias && filter_row < WINDOW && tap < WINDOW;
        start[n][odd] = present ? bias[(share.group * WINDOW + filter_row) * WINDOW + tap] : 0;
      }
    }
    // Rows below the window have filters of zero. They read the last row of the window, so that they stay in the tile.
    const float* line = tile + (row + min(filter_row, WINDOW - 1)) * kOddStride + kMargin - kRadius;
    float window[kChannels][WINDOW + 1];  // the pixels that both pixels of a pair need
#pragma unroll
    for (int c = 0; c < kChannels; c++)
#pragma unroll
      for (int i = 0; i < WINDOW - 1; i++) window[c][i + 2] = line[c * kTileRows * kOddStride + i];
#pragma unroll
    for (int pair = 0; pair < kPairs; pair++) {
      float filter[kTapPairs][4];
#pragma unroll
      for (int n = 0; n < kTapPairs; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) filter[n][i] = start[n][i % 2];
#pragma unroll
      for (int step = 0; step < kSteps; step++) {
        const Quad<unsigned> a = features[(pair * kSteps + step) * kThreads];
#pragma unroll
        for (int n = 0; n < kTapPairs; n++) multiply_add(filter[n], a.v, factors[n][step]);
      }
#pragma unroll
      for (int c = 0; c < kChannels; c++) {
#pragma unroll
        for (int i = 0; i < WINDOW - 1; i++) window[c][i] = window[c][i + 2];
#pragma unroll
        for (int i = WINDOW - 1; i <= WINDOW; i++) window[c][i] = line[c * kTileRows * kOddStride + pair * 2 + i];
#pragma unroll
        for (int tap = 0; tap < WINDOW; tap++)
#pragma unroll
          for (int right = 0; right < 2; right++)
            sum[c][pair * 2 + right] += filter[tap / 2][right * 2 + tap % 2] * window[c][right + tap];
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kChannels; c++) {
    float own[kQuad];
    share_out(own, sum[c]);
    if (c < share.channels)
      store_quad(out + (share.plane + c) * image.pixels(), image, place.y + row, place.x + t * kQuad, own);
  }
}
