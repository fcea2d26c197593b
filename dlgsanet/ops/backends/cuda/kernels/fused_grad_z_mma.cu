// Gradient with respect to z (see fused_grad_z.cu), with the sum over taps on tensor cores in TF32.
//
// A warp processes 8 x 8 pixels. Its lane 4 g + t forms rows t and t + 4 of the filters' gradient for the eight pixels
// of row g, and holds these values as a product needs them. The 16 rows of a product are pixels 2 m and 2 m + 1 of rows
// g, its 8 columns are features, and it adds up taps 2 n and 2 n + 1 of the filter row of each t.
#include "grad_filter_mma.h"

//   FEATURES  D, channels of z
constexpr int kRows = 8;                    // of pixels that a warp processes
constexpr int kPasses = (kWindow + 3) / 4;  // over the rows of the filters
constexpr int kBlocks = (FEATURES + kColumns - 1) / kColumns;
constexpr int kProducts = kPasses * kTapPairs * kBlocks;  // for two pixels
constexpr int kAcross = TILE_WIDTH / kPixels;
static_assert(kWarps == TILE_WIDTH * TILE_HEIGHT / (kPixels * kRows), "a warp for each part of the tile");
static_assert(SHARED_ELEMENTS == kTiles + kProducts * kWarp * 2, "the layout below");

struct alignas(8) Pair {
  unsigned v[2];
};

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    fused_grad_z_mma(const Scalar* __restrict__ grad, const Scalar* __restrict__ x, const float* __restrict__ weight,
                     Scalar* __restrict__ grad_z, float* __restrict__ grad_z_slices, int batch, int groups,
                     int groups_in_slice, int height, int width, int vectorized) {
  SHARED_MEMORY(shared);
  GradTiles tile(shared);
  Pair* pairs = reinterpret_cast<Pair*>(shared + kTiles);  // b, from the weights: [kProducts][kWarp]
  const Image image = {height, width, vectorized != 0};
  const int slices = ceil_div(groups, groups_in_slice), slice = blockIdx.x % slices;
  const TilePlace place(blockIdx.x / slices, image, TILE_HEIGHT);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int row = warp / kAcross * kRows + g, column = warp % kAcross * kPixels;
  const bool wanted = image.has_row(place.y + row - g) && image.has_column(place.x + column);  // the same in a warp

  float sums[kPixels / 2][kBlocks][4] = {};
#pragma unroll 1
  for (int group = slice * groups_in_slice; group < min(groups, (slice + 1) * groups_in_slice); group++) {
    if (group > slice * groups_in_slice) __syncthreads();  // all threads have read the tiles and the pairs
    tile.load(x, grad, image, place, groups, group);
#pragma unroll
    for (int number = warp; number < kProducts; number += kWarps) {
      const int b = number % kBlocks, n = number / kBlocks % kTapPairs, pass = number / kBlocks / kTapPairs;
      const int k = b * kColumns + g, filter_row = pass * 4 + t;
      const float* weights = weight + ((group * kWindow + filter_row) * kWindow + n * 2) * FEATURES + k;
      Pair pair = {};
      if (filter_row < kWindow && k < FEATURES) {
        pair.v[0] = as_factor(weights[0]);
        if (n * 2 + 1 < kWindow) pair.v[1] = as_factor(weights[FEATURES]);
      }
      pairs[number * kWarp + lane] = pair;
    }
    __syncthreads();
    if (!wanted) continue;
#pragma unroll 1
    for (int pass = 0; pass < kPasses; pass++) {
      const int filter_row = min(pass * 4 + t, kWindow - 1);  // the factors of rows below it are zero
      float grad_filter[kTapPairs * 2][kPixels];
      tile.form(grad_filter, filter_row, row, column);
#pragma unroll
      for (int n = 0; n < kTapPairs; n++) {
        Factors a[kPixels / 2];
        unsigned b[kBlocks][2];
#pragma unroll
        for (int m = 0; m < kPixels / 2; m++) {
          const float *even = grad_filter[n * 2] + m * 2, *odd = grad_filter[n * 2 + 1] + m * 2;
          a[m] = {as_factor(even[0]), as_factor(even[1]), as_factor(odd[0]), as_factor(odd[1])};
        }
#pragma unroll
        for (int block = 0; block < kBlocks; block++) {
          const Pair pair = pairs[((pass * kTapPairs + n) * kBlocks + block) * kWarp + lane];
          b[block][0] = pair.v[0];
          b[block][1] = pair.v[1];
        }
        multiply_loaded<float>(sums, a, b);
      }
    }
  }
#pragma unroll
  for (int block = 0; block < kBlocks; block++)
#pragma unroll
    for (int odd = 0; odd < 2; odd++) {
      const int k = block * kColumns + t * 2 + odd;
      if (k >= FEATURES) continue;
      const long long plane = ((long long)place.batch * FEATURES + k) * image.pixels();
      const long long planes = (long long)batch * FEATURES * image.pixels();
#pragma unroll
      for (int q = 0; q < kPixels / kQuad; q++) {
        const float quad[kQuad] = {sums[q * 2][block][odd], sums[q * 2][block][odd + 2],
                                   sums[q * 2 + 1][block][odd], sums[q * 2 + 1][block][odd + 2]};
        const int y = place.y + row, left = place.x + column + q * kQuad;
        if (grad_z_slices)
          store_quad(grad_z_slices + slice * planes + plane, image, y, left, quad);
        else
          store_quad(grad_z + plane, image, y, left, quad);
      }
    }
}
