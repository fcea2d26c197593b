// Local filters for x of 16 bits, where tensor cores are fast.
//
// They are rounded to its dtype, as PyTorch would store them, and applied by products, too. For a row y of a group's
// filters and a row of a strip, one product is
//
//   [ channels of the group, 16 pixels of row y of the windows ] * [ taps of the 8 pixels' filters, each in a column ]
//
// where column n begins with kFirst + n zeros. The product that forms filters gives lane 4 g + t the pair t of taps of
// pixel g. It needs pair t - (kFirst + g) / 2, or that plus 4, which another of the four lanes has. Where kFirst + g is
// odd, a zero has to come before the taps. So even and odd pixels are terms of their own, with weights of their own.
#pragma once

typedef Scalar Pixel;  // of the tile
constexpr int kTileStride = kHalfStride, kTilePlane = kHalfPlane;

constexpr int kExpansion = WINDOW * kFeatureSteps * kWarp * 4;  // factors b, for even and for odd pixels
static_assert(kFirst + kColumns - 1 + WINDOW <= 16, "the windows of a strip's rows");
static_assert(WINDOW < kColumns && SHARE <= kColumns, "taps and channels as products have them");

// Of a word of a group's factors b.
__device__ __forceinline__ Tap tap_of(int word) {
  const int lane = word / 4 % kWarp, step = word / (4 * kWarp), odd = word / 2 % 2;
  return {step / kFeatureSteps, lane / 4 - odd,
          step % kFeatureSteps * kTerms + (word % 2 * 4 + lane % 4) * kNeighbours};
}

constexpr int kFiltered = TILE_HEIGHT;  // lane 4 g + t has pixels 2 t and 2 t + 1 of all rows of channel g

// z of the tile is kept as factors a of products, [kStrips][TILE_HEIGHT / 2][2][kFeatureSteps][kWarp][4]: of two rows
// of a strip, with zeros for odd or even pixels. Lanes are permuted, so that those that store at once use many banks.
constexpr int kOfParity = kFeatureSteps * kWarp * 4, kOfRows = kOfParity * 2 + 16;
constexpr int kFeatureWords = kStrips * (TILE_HEIGHT / 2) * kOfRows;
__device__ __forceinline__ int permuted(int lane) { return lane ^ lane / 8; }

// Filtered values: rows of channels, in words of two pixels.
constexpr int kChannelStride = kPixels / 2 + 4;
static_assert(kTerms * kChannelStride == kTermRows * kValueStride, "values take no more memory than in other layers");

// Features k and k + 1 of a lane: pixels 2 t and 2 t + 1 of row g of each strip.
__device__ __forceinline__ void store_features(unsigned* features, int k, const Values (&values)[kStrips][2]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  features += k / kTerms * kWarp * 4 + g / 2 * kOfRows + g % 2 + k % kTerms / 8 * 2;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    unsigned* to = features + permuted((t * 2 + i) * 4 + k % 8 / 2) * 4;
    const int parity = (kFirst + i) % 2 * kOfParity;
#pragma unroll
    for (int strip = 0; strip < kStrips; strip++, to += TILE_HEIGHT / 2 * kOfRows) {
      to[parity] = of_pixel(i, values[strip]);
      to[kOfParity - parity] = 0;
    }
  }
}

// Filters a strip of a group's channels. tile: of its first channel; expansion: of the group.
__device__ __forceinline__ void filter_group(float (&filtered)[kFiltered][2], const Scalar* tile,
                                             const unsigned* features, const unsigned* __restrict__ expansion,
                                             int strip) {
  constexpr int kHalf = TILE_HEIGHT / 2, kRowPairs = kHalf / 2;  // half of the rows at a time
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, shift = (kFirst + g) / 2;
  const int source = lane - t + ((t - shift) & 3);
  const unsigned upper = t < shift ? 0 : 0xffffffffu;
  // The upper 8 rows of a product are the group's channels, or one of them again; the lower ones are not used.
  const Scalar* rows = tile + strip * kColumns + min(lane % 8, SHARE - 1) * kTilePlane + lane / 16 * 8;
  const Factors* of_strip = reinterpret_cast<const Factors*>(features + strip * kHalf * kOfRows) + permuted(lane);
  const Factors* weights = reinterpret_cast<const Factors*>(expansion) + lane;
#pragma unroll
  for (int top = 0; top < TILE_HEIGHT; top += kHalf) {
    Factors z[2][kFeatureSteps][kRowPairs];
#pragma unroll
    for (int parity = 0; parity < 2; parity++)
#pragma unroll
      for (int step = 0; step < kFeatureSteps; step++)
#pragma unroll
        for (int i = 0; i < kRowPairs; i++)
          z[parity][step][i] = of_strip[((top / 2 + i) * kOfRows + parity * kOfParity) / 4 + step * kWarp];
    unsigned pixels[kHalf - 1 + WINDOW][4];  // factors a of the rows of the tile
    float sums[kHalf][4] = {};
#pragma unroll
    for (int y = 1 - kHalf; y < WINDOW; y++) {
      const int row = kHalf - 1 + y;
      load_matrices(pixels[row], reinterpret_cast<const unsigned*>(rows + (top + row) * kTileStride));
      if (y < 0) continue;
      float taps[kRowPairs][4] = {};
#pragma unroll
      for (int step = 0; step < kFeatureSteps; step++) {
        const Factors b = weights[(y * kFeatureSteps + step) * kWarp];
#pragma unroll
        for (int parity = 0; parity < 2; parity++)
#pragma unroll
          for (int i = 0; i < kRowPairs; i++)
            multiply_add<Scalar>(taps[i], z[parity][step][i].v, {b.v[parity * 2], b.v[parity * 2 + 1]});
      }
      unsigned pairs[kHalf];
#pragma unroll
      for (int row = 0; row < kHalf; row++) {
        const float* of_row = taps[row / 2] + row % 2 * 2;
        pairs[row] = __shfl_sync(0xffffffffu, pack<Scalar>(of_row[0], of_row[1]), source);
      }
#pragma unroll
      for (int row = 0; row < kHalf; row++)
        multiply_add<Scalar>(sums[row], pixels[row + y], {pairs[row] & upper, pairs[row] & ~upper});
    }
#pragma unroll
    for (int row = 0; row < kHalf; row++)
#pragma unroll
      for (int i = 0; i < 2; i++) filtered[top + row][i] = sums[row][i];
  }
}

// Stores what is filtered as values of the tile.
__device__ __forceinline__ void store_filtered(unsigned* values, const float (&filtered)[kFiltered][2], int group,
                                               int strip) {
  const int lane = threadIdx.x % kWarp, channel = lane / 4;
  if (channel < SHARE)
#pragma unroll
    for (int row = 0; row < TILE_HEIGHT; row++)
      values[(group * SHARE + channel) * kChannelStride + row * kColumns + strip * 4 + lane % 4] =
          pack<Scalar>(filtered[row][0], filtered[row][1]);
}

// Factors b of kTerms filtered channels.
__device__ __forceinline__ void load_filtered(unsigned (&b)[kAdded][2], const unsigned* values, int step) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  unsigned found[4];
  load_transposed(found, values + (step * kTerms + lane % 16) * kChannelStride + warp * kColumns + lane / 16 * 4);
#pragma unroll
  for (int i = 0; i < 4; i++) b[i / 2][i % 2] = found[i];
}
