// Gradients with respect to the expansion (see fused_grad_expansion.cu), with the sum over pixels on tensor cores in
// TF32.
//
// Lane 4 g + t of a warp forms row g of the filters' gradient for eight pixels, and holds these values as a product
// needs them. The 16 rows of a product are taps 2 n and 2 n + 1 of rows g, its 8 columns are features, and it adds up
// two pixels of each t. A feature that is 1 everywhere gives the gradient of the bias. Lanes with t = 0 and 1 have the
// 16 pixels of a tile's row. Lanes with t = 2 and 3 have those of the row four below, so that loads from shared memory
// use different banks.
#include "grad_filter_mma.h"

//   FEATURES  D, channels of z
constexpr int kRowsApart = 4;                     // of the tile, between lanes with t = 1 and 2
constexpr int kBlocks = FEATURES / kColumns + 1;  // of columns; one column is for the bias
constexpr int kSums = kTapPairs * kBlocks * 4;    // of a lane
static_assert(TILE_WIDTH == 2 * kPixels && TILE_HEIGHT % (2 * kRowsApart) == 0, "the pixels of four lanes");
static_assert(SHARED_ELEMENTS == (kTiles > kThreads * kSums ? kTiles : kThreads * kSums), "the layout below");

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    fused_grad_expansion_mma(const Scalar* __restrict__ grad, const Scalar* __restrict__ x,
                             const Scalar* __restrict__ z, float* __restrict__ chunks, int groups, int tiles,
                             int tiles_in_chunk, int height, int width, int vectorized) {
  SHARED_MEMORY(shared);
  GradTiles tile(shared);  // at the end, the sums of all lanes: [kSums][kThreads]
  const Image image = {height, width, vectorized != 0};
  const int group = blockIdx.x % groups, chunk = blockIdx.x / groups, end = min(tiles, (chunk + 1) * tiles_in_chunk);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int filter_row = min(g, kWindow - 1);  // the sums of other rows are not used

  float sums[kTapPairs][kBlocks][4] = {};
#pragma unroll 1
  for (int number = chunk * tiles_in_chunk; number < end; number++) {
    const TilePlace place(number, image, TILE_HEIGHT);
    if (number > chunk * tiles_in_chunk) __syncthreads();  // all threads have read the tiles
    tile.load(x, grad, image, place, groups, group);
    __syncthreads();
#pragma unroll 1
    for (int step = warp; step < TILE_HEIGHT / 2; step += kWarps) {
      const int first = step / kRowsApart * 2 * kRowsApart + step % kRowsApart;
      if (!image.has_row(place.y + first)) break;
      const int row = first + t / 2 * kRowsApart, column = t % 2 * kPixels;
      float features[kPixels / kQuad][kBlocks][kQuad];
#pragma unroll
      for (int q = 0; q < kPixels / kQuad; q++)
        load_quads(features[q], z + ((long long)place.batch * FEATURES + g) * image.pixels(),
                   kColumns * image.pixels(), image, (FEATURES - g + kColumns - 1) / kColumns, place.y + row,
                   place.x + column + q * kQuad);
      float grad_filter[kTapPairs * 2][kPixels];
      tile.form(grad_filter, filter_row, row, column);
#pragma unroll
      for (int j = 0; j < kPixels; j += 2) {
        unsigned factors[kBlocks][2];
#pragma unroll
        for (int b = 0; b < kBlocks; b++)
#pragma unroll
          for (int odd = 0; odd < 2; odd++) {
            const bool of_bias = b == FEATURES / kColumns && g == FEATURES % kColumns;
            factors[b][odd] = as_factor(of_bias ? 1 : features[j / kQuad][b][j % kQuad + odd]);
          }
        Factors a[kTapPairs];
#pragma unroll
        for (int n = 0; n < kTapPairs; n++) {
          const float *even = grad_filter[n * 2] + j, *odd = grad_filter[n * 2 + 1] + j;
          a[n] = {as_factor(even[0]), as_factor(odd[0]), as_factor(even[1]), as_factor(odd[1])};
        }
        multiply_loaded<float>(sums, a, factors);
      }
    }
  }
  __syncthreads();  // all threads have read the tiles
#pragma unroll
  for (int n = 0; n < kTapPairs; n++)
#pragma unroll
    for (int b = 0; b < kBlocks; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) shared[((n * kBlocks + b) * 4 + i) * kThreads + threadIdx.x] = sums[n][b][i];
  __syncthreads();
  const int outputs = groups * kWindow * kWindow;
  float* grad_weight = chunks + (long long)chunk * outputs * (FEATURES + 1);
  float* grad_bias = grad_weight + (long long)outputs * FEATURES;
#pragma unroll 1
  for (int i = warp; i < kSums; i += kWarps) {
    float sum = 0;
    for (int w = 0; w < kWarps; w++) sum += shared[i * kThreads + w * kWarp + lane];
    const int tap = i / (4 * kBlocks) * 2 + i / 2 % 2, k = i / 4 % kBlocks * kColumns + t * 2 + i % 2;
    if (g >= kWindow || tap >= kWindow || k > FEATURES) continue;
    const int output = (group * kWindow + g) * kWindow + tap;
    if (k < FEATURES)
      grad_weight[(long long)output * FEATURES + k] = sum;
    else
      grad_bias[output] = sum;
  }
}
