// Gradient with respect to x (see fused_grad_x.cu), with filters formed on tensor cores in TF32.
//
// A block computes a tile of eight groups, a warp 8 x 4 pixels: lane 4 g + t the quad g of groups 2 t and 2 t + 1. The
// 16 rows of a product are pixels 2 m and 2 m + 1 of quads g, its 8 columns are groups, and it adds up features. For
// one tap its pixels are those that the tap reads, so that a lane gets the filters that it applies, without shuffles. A
// feature that is 1 everywhere adds the bias.
#include "exact.h"
#include "tile.h"

//   FEATURES  D, channels of z
constexpr int kGroups = 8, kLaneGroups = 2, kPairs = kQuad / 2, kWarps = kThreads / kWarp;
constexpr int kSteps = FEATURES / 8 + 1;            // over features; one of them is for the bias
constexpr int kNear = kQuad + kWindow - 1;          // pixels of a row that a quad's taps read
constexpr int kLaneRows = (kTileRows + 1) / 4 * 4 + 2;  // of a plane, so that lanes use different banks, with
constexpr int kOddStride = kStride + kQuad;             // an odd number of quads in a row
constexpr int kPlane = kLaneRows * kOddStride;
constexpr int kOwn = kLaneGroups * kChannels;           // planes of a lane's groups; those of lanes t are
constexpr int kApart = kOwn * kPlane + (8 + 32 - kOwn * kPlane % 32) % 32;  // so many numbers apart
constexpr int kEntries = kWarp * 2;                     // of the weights of a product
constexpr int kTapsOfHalf = (kWindow + 1) / 2;
static_assert(kThreads == 2 * kEntries, "a thread copies half of the taps of an entry");
static_assert(kWarp == 32 && kWindow <= 7 && kParts == 1, "the sizes that this kernel serves");
static_assert(TILE_WIDTH == 4 * kQuad && TILE_HEIGHT == 2 * kWarps, "a warp computes eight quads");
static_assert(SHARED_ELEMENTS == kGroups / kLaneGroups * kApart + FEATURES * kPlane + kSteps * kWindow * kEntries,
               "the layout below");

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    fused_grad_x_mma(const Scalar* __restrict__ grad, const Scalar* __restrict__ z, const float* __restrict__ weight,
                     const float* __restrict__ bias, Scalar* __restrict__ grad_x, int groups, int height, int width,
                     int vectorized) {
  SHARED_MEMORY(shared);
  float* z_tile = shared + kGroups / kLaneGroups * kApart;  // [FEATURES][kLaneRows][kOddStride]
  float* weights = z_tile + FEATURES * kPlane;              // of a row: [kSteps][kWindow][kWarp][2]
  const Image image = {height, width, vectorized != 0};
  const int shares = ceil_div(groups, kGroups), first = blockIdx.x % shares * kGroups;
  const TilePlace place(blockIdx.x / shares, image, TILE_HEIGHT);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int row = warp * 2 + g / 4, column = g % 4 * kQuad;
  const bool wanted = image.has_row(place.y + warp * 2);  // the same in a warp

  const long long plane = ((long long)place.batch * groups + first) * kChannels;
#pragma unroll 1
  for (int of = 0; of < kGroups / kLaneGroups; of++)
    load_tile<kOwn, kLaneRows, kOddStride>(shared + of * kApart, grad + (plane + of * kOwn) * image.pixels(), image,
                                           (groups - first) * kChannels - of * kOwn, place.y - kRadius,
                                           place.x - kMargin);
  load_tile<FEATURES, kLaneRows, kOddStride>(z_tile, z + (long long)place.batch * FEATURES * image.pixels(), image,
                                             FEATURES, place.y - kRadius, place.x - kMargin);
  const int entry = threadIdx.x % kEntries, first_tap = threadIdx.x / kEntries * kTapsOfHalf;
  const int group = first + entry / 8, k = entry / 2 % 4 + entry % 2 * 4;
  const int taps = group < groups ? kWindow - first_tap : 0;
  const float* of_group = weight + (long long)(group * kWindow * kWindow + first_tap) * FEATURES + k;
  float sums[kOwn][kQuad] = {};
#pragma unroll 1
  for (int i = 0; i < kWindow; i++) {
    // Half of the threads copy the first kTapsOfHalf taps, each thread one entry of a lane.
    const float* from = of_group + (long long)((kWindow - 1 - i) * kWindow) * FEATURES;
    float values[kTapsOfHalf][kSteps];
#pragma unroll
    for (int n = 0; n < kTapsOfHalf; n++)
#pragma unroll
      for (int step = 0; step < kSteps; step++) {
        values[n][step] = 0;
        if (n >= taps) continue;
        if (k + step * 8 < FEATURES) values[n][step] = from[n * FEATURES + step * 8];
        if (k + step * 8 == FEATURES && bias)
          values[n][step] = bias[(group * kWindow + kWindow - 1 - i) * kWindow + first_tap + n];
      }
    __syncthreads();  // all threads have read the weights of the last row
#pragma unroll
    for (int n = 0; n < kTapsOfHalf; n++)
#pragma unroll
      for (int step = 0; step < kSteps; step++)
        if (first_tap + n < kWindow)
          weights[(step * kWindow + first_tap + n) * kEntries + entry] = __uint_as_float(as_factor(values[n][step]));
    __syncthreads();
    if (!wanted) continue;
    const int offset = (row + i) * kOddStride + column;
    float filter[kWindow][kPairs][1][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      unsigned near[2][kNear], heads[2][kNear], rests[2][kNear];  // of features k = step * 8 + t, and 4 later
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int least = step * 8 + half * 4, k = least + t;
        const Window window(z_tile + (least + 3 < FEATURES ? k : min(k, FEATURES - 1)) * kPlane + offset);
#pragma unroll
        for (int j = 0; j < kNear; j++)
          near[half][j] = as_factor(least + 3 < FEATURES || k < FEATURES ? window.at(0, j) : k == FEATURES);
        if (EXACT) split(heads[half], rests[half], near[half]);
      }
#pragma unroll
      for (int tap = 0; tap < kWindow; tap++) {
        const float* pair = weights + ((step * kWindow + tap) * kWarp + lane) * 2;
        const unsigned b[2] = {__float_as_uint(pair[0]), __float_as_uint(pair[1])};
        const auto multiply = [&](const unsigned(&of_z)[2][kNear], const unsigned(&of_weights)[1][2]) {
          Factors a[kPairs];
#pragma unroll
          for (int m = 0; m < kPairs; m++) {
            const int j = kWindow - 1 - tap + m * 2;
            a[m] = {of_z[0][j], of_z[0][j + 1], of_z[1][j], of_z[1][j + 1]};
          }
          multiply_each<float>(filter[tap], a, of_weights);
        };
        if constexpr (EXACT) {
          unsigned heads_of_b[1][2], rests_of_b[1][2];
          split(heads_of_b[0], rests_of_b[0], b);
          multiply(heads, rests_of_b);
          multiply(rests, heads_of_b);
          multiply(heads, heads_of_b);
        } else {
          const unsigned factors[1][2] = {b[0], b[1]};
          multiply(near, factors);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kOwn; c++) {
      const Window window(shared + t * kApart + c * kPlane + offset);
#pragma unroll
      for (int tap = 0; tap < kWindow; tap++)
#pragma unroll
        for (int j = 0; j < kQuad; j++)
          sums[c][j] += filter[tap][j / 2][0][j % 2 * 2 + c / kChannels] * window.at(kWindow - 1 - tap, j);
    }
  }
#pragma unroll
  for (int c = 0; c < kOwn; c++)
    if (first + t * kLaneGroups + c / kChannels < groups)
      store_quad(grad_x + (plane + t * kOwn + c) * image.pixels(), image, place.y + row, place.x + column, sums[c]);
}
