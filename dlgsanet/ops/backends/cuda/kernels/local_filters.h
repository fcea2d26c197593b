// Filters of a tile that are formed from its features and applied at once, for several groups of channels.
//
// Filters are products on tensor cores; their bias is the weight of a feature of ones. `local_filters_products.h` and
// `local_filters_fma.h` define how a warp forms the filters of a group and applies them to a strip of 8 columns of the
// tile: by products, or by other multiply-adds.
#pragma once
#include "projection.h"

// Also from the command line:
//   WINDOW    K
//   SHARE     channels that share a filter
//   FEATURES  D, channels of z
//   MARGIN    columns of the border on either side: at least the radius, and whole quads
//   PRODUCTS  whether filters are applied by products
constexpr int kRadius = WINDOW / 2;
constexpr int kStrips = TILE_WIDTH / kColumns, kAtOnce = kWarps / kStrips;  // groups that warps filter at once
constexpr int kTileRows = TILE_HEIGHT + 2 * kRadius, kTileColumns = TILE_WIDTH + 2 * MARGIN;
constexpr int kFirst = MARGIN - kRadius;              // the first column that a strip's first pixel needs
constexpr int kFeatureSteps = FEATURES / kTerms + 1;  // of products that form filters; there is a feature of ones

// Rows and planes of the tile in shared memory. Of float, rows that neighbouring lanes access are in different banks,
// and so are those of two planes; of 16 bits, 8 rows of a plane, or of 8 planes.
constexpr int kFloatStride = kTileColumns + 2, kFloatPlane = (kTileRows * kFloatStride + 15) / 32 * 32 + 16;
constexpr int kHalfStride = kTileColumns, kHalfPlane = kTileRows * kHalfStride + kColumns;
static_assert(kHalfStride % 16 == 8 && kHalfPlane % 16 == 8, "see above");

// Where a number of the expansion's matrices comes from, and that of the next term: a tap of a filter, and a feature.
struct Tap {
  int row, column, feature;
};

// Two neighbouring pixels of a feature: of 16 bits, in a word; else as float.
#if TERMS == 16
typedef unsigned Values;
__device__ __forceinline__ Values values_of(float number) { return pack<Scalar>(number, number); }

// Of two features, the values of one of the pixels.
__device__ __forceinline__ unsigned of_pixel(int i, const Values (&values)[2]) {
  return i ? values[0] >> 16 | (values[1] & 0xffff0000u) : (values[0] & 0xffffu) | values[1] << 16;
}
#else
typedef Pair<float> Values;
__device__ __forceinline__ Values values_of(float number) { return {number, number}; }
#endif

#if PRODUCTS
#include "local_filters_products.h"
#else
#include "local_filters_fma.h"
#endif
static_assert(kRadius <= MARGIN && TILE_HEIGHT == 8, "as lanes access the tile");
