// Gradients with respect to z and to the expansion (see fused_grad_z.cu and fused_grad_expansion.cu), with their sums
// on tensor cores in TF32.
//
// A block processes some groups of some tiles, a warp 8 x 8 pixels of a tile. Lane 4 g + t of it forms rows t and t + 4
// of the filters' gradient for the eight pixels of row g, and holds these values as a product for z needs them. The 16
// rows of this product are pixels 2 m and 2 m + 1 of rows g, its 8 columns are features, and it adds up taps 2 n and
// 2 n + 1 of the filter row of each t.
//
// The product for the expansion adds up pixels. For it the lanes exchange their values in shared memory, half of the
// pixels at a time. Its 16 rows are four taps of four filter rows, and it adds up two pixels of each t. A feature that
// is 1 everywhere gives the gradient of the bias.
#include "exact.h"
#include "tile.h"

//   FEATURES    D, channels of z
//   VECTORIZED  Image::vectorized, so that the compiler leaves out the other way to load pixels
constexpr int kPixels = 8;                       // of a lane
constexpr int kRows = 8;                         // of pixels that a warp processes
constexpr int kOddStride = kStride + kQuad;      // an odd number of quads: rows are in different banks
constexpr int kGradStride = TILE_WIDTH + kQuad;  // likewise
constexpr int kTapPairs = (kWindow + 1) / 2;     // of a row of the filters
constexpr int kPasses = (kWindow + 3) / 4;       // over the rows of the filters
constexpr int kColumns = 8;                      // of a product
constexpr int kBlocks = (FEATURES + kColumns - 1) / kColumns;  // of columns
constexpr int kWeightBlocks = FEATURES / kColumns + 1;         // one column is for the bias
constexpr int kProducts = kPasses * kTapPairs * kBlocks;       // for two pixels
constexpr int kFours = (kTapPairs + 1) / 2;                    // taps of a filter row
constexpr int kSums = kFours * kWeightBlocks * 4;              // of a lane, for the expansion
constexpr int kRun = kRows * kQuad + kQuad * 2;  // exchanged pixels of a tap, so that lanes use different banks
constexpr int kExchange = kFours * 16 * (kRun > kWeightBlocks * 8 ? kRun : kWeightBlocks * 8);  // numbers of a warp
constexpr int kWarps = kThreads / kWarp, kAcross = TILE_WIDTH / kPixels;
constexpr int kTileOfX = kChannels * kTileRows * kOddStride, kTileOfGrad = kChannels * TILE_HEIGHT * kGradStride;
static_assert(kWarp == 32 && kWindow <= 8 && kParts == 1, "the sizes that this kernel serves");
static_assert(kWarps == TILE_WIDTH * TILE_HEIGHT / (kPixels * kRows), "a warp for each part of the tile");
static_assert(SHARED_ELEMENTS == kTileOfX + kTileOfGrad + kProducts * kWarp * 2 + kWarps * kExchange,
              "the layout below");

struct alignas(8) Pair {
  unsigned v[2];
};

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    fused_grad_filters_mma(const Scalar* __restrict__ grad, const Scalar* __restrict__ x,
                           const Scalar* __restrict__ z, const float* __restrict__ weight,
                           Scalar* __restrict__ grad_z, float* __restrict__ grad_z_slices, float* __restrict__ chunks,
                           int batch, int groups, int groups_in_slice, int tiles, int tiles_in_chunk, int height,
                           int width) {
  SHARED_MEMORY(shared);
  float* x_tile = shared;                // [kChannels][kTileRows][kOddStride]
  float* grad_tile = shared + kTileOfX;  // [kChannels][TILE_HEIGHT][kGradStride]
  Pair* pairs = reinterpret_cast<Pair*>(grad_tile + kTileOfGrad);  // b, from the weights: [kProducts][kWarp]
  float* exchanges = grad_tile + kTileOfGrad + kProducts * kWarp * 2;  // [kWarps][kExchange], of a warp:
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  float* exchange = exchanges + warp * kExchange;  // [taps][4 filter rows][kRun], then sums [kSums][kWarp]
  const Image image = {height, width, VECTORIZED != 0};
  const int slices = ceil_div(groups, groups_in_slice), slice = blockIdx.x % slices, chunk = blockIdx.x / slices;
  const int first_group = slice * groups_in_slice, first_tile = chunk * tiles_in_chunk;
  const int top = warp / kAcross * kRows, column = warp % kAcross * kPixels, row = top + g;
  const int exchanged_row = g % 2 * 2 + g / 2 % 2;  // of the filters, that a lane multiplies, so that banks differ
  const int outputs = groups * kWindow * kWindow;
  float* grad_weight = chunks + (long long)chunk * outputs * (FEATURES + 1);
  float* grad_bias = grad_weight + (long long)outputs * FEATURES;

#pragma unroll 1
  for (int number = first_tile; number < min(tiles, first_tile + tiles_in_chunk); number++) {
    const TilePlace place(number, image, TILE_HEIGHT);
    const bool wanted = image.has_row(place.y + top) && image.has_column(place.x + column);  // the same in a warp
    float sums[kPixels / kQuad][2][kBlocks][4] = {};
#pragma unroll 1
    for (int group = first_group; group < min(groups, first_group + groups_in_slice); group++) {
      const long long start = ((long long)place.batch * groups + group) * CHANNELS * image.pixels();
      load_tile<kChannels, kTileRows, kOddStride>(x_tile, x + start, image, kChannels, place.y - kRadius,
                                                  place.x - kMargin);
      load_tile<kChannels, TILE_HEIGHT, kGradStride, TILE_WIDTH>(grad_tile, grad + start, image, kChannels, place.y,
                                                                 place.x);
#pragma unroll
      for (int product = warp; product < kProducts; product += kWarps) {
        const int b = product % kBlocks, n = product / kBlocks % kTapPairs, pass = product / kBlocks / kTapPairs;
        const int k = b * kColumns + g, filter_row = pass * 4 + t;
        const float* weights = weight + ((group * kWindow + filter_row) * kWindow + n * 2) * FEATURES + k;
        Pair pair = {};
        if (filter_row < kWindow && k < FEATURES) {
          pair.v[0] = as_factor(weights[0]);
          if (n * 2 + 1 < kWindow) pair.v[1] = as_factor(weights[FEATURES]);
        }
        pairs[product * kWarp + lane] = pair;
      }
      __syncthreads();
#pragma unroll 1
      for (int pass = 0; pass < kPasses; pass++) {
        float products[kFours][kWeightBlocks][4] = {};
        if (wanted) {
          // Row pass * 4 + t of the filters' gradient. The factors of rows below the filter are zero.
          unsigned grad_filter[kTapPairs * 2][kPixels];
          {
            float formed[kTapPairs * 2][kPixels] = {};
#pragma unroll
            for (int c = 0; c < kChannels; c++) {
              const int filter_row = min(pass * 4 + t, kWindow - 1);
              const Window<kPixels> window(x_tile + (c * kTileRows + row + filter_row) * kOddStride + column);
              float pixels[kPixels];
              read_run(pixels, grad_tile + (c * TILE_HEIGHT + row) * kGradStride + column);
#pragma unroll
              for (int tap = 0; tap < kWindow; tap++)
#pragma unroll
                for (int j = 0; j < kPixels; j++) formed[tap][j] += pixels[j] * window.at(tap, j);
            }
#pragma unroll
            for (int tap = 0; tap < kTapPairs * 2; tap++)
#pragma unroll
              for (int j = 0; j < kPixels; j++) grad_filter[tap][j] = as_factor(formed[tap][j]);
          }
#pragma unroll
          for (int n = 0; n < kTapPairs; n++) {
            unsigned b[kBlocks][2];
#pragma unroll
            for (int block = 0; block < kBlocks; block++) {
              const Pair pair = pairs[((pass * kTapPairs + n) * kBlocks + block) * kWarp + lane];
              b[block][0] = pair.v[0];
              b[block][1] = pair.v[1];
            }
#pragma unroll
            for (int q = 0; q < kPixels / kQuad; q++) {
              const unsigned *even = grad_filter[n * 2] + q * kQuad, *odd = grad_filter[n * 2 + 1] + q * kQuad;
              const Factors a[2] = {{even[0], even[1], odd[0], odd[1]}, {even[2], even[3], odd[2], odd[3]}};
              multiply_loaded<float>(sums[q], a, b);
            }
          }
#pragma unroll
          for (int q = 0; q < kPixels / kQuad; q++) {
            if (q) __syncwarp();  // all lanes have read the first half
#pragma unroll
            for (int tap = 0; tap < kWindow; tap++) {
              const unsigned* from = grad_filter[tap] + q * kQuad;
              *reinterpret_cast<Factors*>(exchange + (tap * 4 + t) * kRun + g * kQuad) = {from[0], from[1], from[2],
                                                                                           from[3]};
            }
            __syncwarp();
#pragma unroll
            for (int half = 0; half < 2; half++) {  // of the rows of pixels
              float features[kWeightBlocks][kQuad];
              load_quads(features, z + ((long long)place.batch * FEATURES + g) * image.pixels(),
                         kColumns * image.pixels(), image, (FEATURES - g + kColumns - 1) / kColumns,
                         place.y + top + half * 4 + t, place.x + column + q * kQuad);
              Factors values[kFours][2];
#pragma unroll
              for (int m = 0; m < kFours; m++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                  values[m][i] = *reinterpret_cast<const Factors*>(
                      exchange + ((m * 4 + i * 2 + g / 4) * 4 + exchanged_row) * kRun + (half * 4 + t) * kQuad);
#pragma unroll
              for (int j = 0; j < kQuad; j += 2) {
                Factors a[kFours];
                unsigned b[kWeightBlocks][2];
#pragma unroll
                for (int m = 0; m < kFours; m++)
                  a[m] = {values[m][0].v[j], values[m][1].v[j], values[m][0].v[j + 1], values[m][1].v[j + 1]};
#pragma unroll
                for (int block = 0; block < kWeightBlocks; block++)
#pragma unroll
                  for (int odd = 0; odd < 2; odd++) {
                    const bool of_bias = block == FEATURES / kColumns && g == FEATURES % kColumns;
                    b[block][odd] = as_factor(of_bias ? 1 : features[block][j + odd]);
                  }
                multiply_loaded<float>(products, a, b);
              }
            }
          }
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < kSums; i++)
          exchange[i * kWarp + lane] = products[i / 4 / kWeightBlocks][i / 4 % kWeightBlocks][i % 4];
        __syncthreads();
#pragma unroll 1
        for (int i = warp; i < kSums; i += kWarps) {
          float sum = 0;
          for (int w = 0; w < kWarps; w++) sum += exchanges[w * kExchange + i * kWarp + lane];
          const int filter_row = pass * 4 + exchanged_row, k = i / 4 % kWeightBlocks * kColumns + t * 2 + i % 2;
          const int tap = i / 4 / kWeightBlocks * 4 + i / 2 % 2 * 2 + g / 4;
          if (filter_row >= kWindow || tap >= kWindow || k > FEATURES) continue;
          const int output = (group * kWindow + filter_row) * kWindow + tap;
          float* to = k < FEATURES ? grad_weight + (long long)output * FEATURES + k : grad_bias + output;
          *to = number > first_tile ? *to + sum : sum;
        }
        if (pass + 1 < kPasses) __syncthreads();  // all threads have read the sums
      }
    }
#pragma unroll
    for (int block = 0; block < kBlocks; block++)
#pragma unroll
      for (int odd = 0; odd < 2; odd++) {
        const int k = block * kColumns + t * 2 + odd;
        if (k >= FEATURES || !wanted) continue;
        const long long plane = ((long long)place.batch * FEATURES + k) * image.pixels();
        const long long planes = (long long)batch * FEATURES * image.pixels();
#pragma unroll
        for (int q = 0; q < kPixels / kQuad; q++) {
          const float quad[kQuad] = {sums[q][0][block][odd], sums[q][0][block][odd + 2],
                                     sums[q][1][block][odd], sums[q][1][block][odd + 2]};
          const int y = place.y + row, left = place.x + column + q * kQuad;
          if (grad_z_slices)
            store_quad(grad_z_slices + slice * planes + plane, image, y, left, quad);
          else
            store_quad(grad_z + plane, image, y, left, quad);
        }
      }
  }
}
