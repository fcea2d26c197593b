// How an image is divided into tiles, and how tiles are moved to shared memory and back.
//
// A block of threads computes one tile of one group of channels. A thread computes kQuad adjacent pixels of a row, so
// that it loads one window of a row into registers and uses it for several taps of several pixels.
#pragma once
#include "scalar.h"

// The compiler's command line gives the constants of an instantiation. `cuda/__init__.py` is their only source:
//   SCALAR       type of x, z, filters, output and their gradients: float, double, Half or BFloat16
//   WINDOW       K, side of the filters: 3, 5, 7 or 9
//   CHANNELS     channels that share a filter
//   TILE_WIDTH, TILE_HEIGHT  size of a tile in pixels
//   QUAD         adjacent pixels that a thread computes
//   VECTOR_BYTES most bytes that a thread loads or stores at once
//   MARGIN       columns kept left and right of a tile: at least the largest radius, and whole quads
//   PARTS, CHANNELS_IN_PART  parts that a group's channels are divided into, and channels of a part
//   TAPS         length of a filter's row in shared memory, padded to whole quads
//   THREADS, BLOCKS  threads of a block, and the fewest blocks per multiprocessor (it limits a thread's registers)
//   WARP         lanes of a warp
//   IN_FLIGHT    loads of quads that a thread starts before it uses the first result
//   SHARED_ELEMENTS  numbers in the shared memory of a block
typedef SCALAR Scalar;
typedef AccumulatorOf<Scalar>::type Accumulator;

constexpr int kWindow = WINDOW;
constexpr int kRadius = WINDOW / 2;
constexpr int kQuad = QUAD;
constexpr int kMargin = MARGIN;
constexpr int kStride = TILE_WIDTH + 2 * kMargin;  // of a row of a tile in shared memory
constexpr int kThreadsAcross = TILE_WIDTH / kQuad;
constexpr int kTaps = TAPS;
constexpr int kThreads = THREADS;
constexpr int kWarp = WARP;
constexpr int kTileRows = TILE_HEIGHT + 2 * kRadius;

// Large groups are divided into parts of equal size, so that the sums of a part fit into registers.
constexpr int kParts = PARTS;
constexpr int kChannels = CHANNELS_IN_PART;

static_assert(kRadius <= kMargin, "the margin must hold the window");

template <typename T>
struct alignas(kQuad * sizeof(T) > VECTOR_BYTES ? VECTOR_BYTES : kQuad * sizeof(T)) Quad {
  T v[kQuad];
};

struct Image {
  int height, width;
  bool vectorized;  // every row of every plane starts at an address from which a quad can be loaded at once

  __device__ long long pixels() const { return (long long)height * width; }
  __device__ bool has_row(int y) const { return (unsigned)y < (unsigned)height; }
  __device__ bool has_column(int x) const { return (unsigned)x < (unsigned)width; }
};

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The position of the tile with a given number. The tiles of an image are numbered row by row.
struct TilePlace {
  int batch, y, x;

  __device__ TilePlace(int tile, const Image& image, int tile_height) {
    const int across = ceil_div(image.width, TILE_WIDTH), down = ceil_div(image.height, tile_height);
    batch = tile / (across * down);
    y = tile / across % down * tile_height;
    x = tile % across * TILE_WIDTH;
  }
};

// The tile of (a part of) a group that a block computes.
struct GroupTile {
  int group, first_channel, channels;
  TilePlace place;
  long long of_group, plane;  // index of the group in the batch, and index of its first channel's plane

  __device__ GroupTile(int block, int groups, const Image& image)
      : group(block / kParts % groups),
        first_channel(block % kParts * kChannels),
        channels(min(kChannels, CHANNELS - first_channel)),
        place(block / (kParts * groups), image, TILE_HEIGHT),
        of_group((long long)place.batch * groups + group),
        plane(of_group * CHANNELS + first_channel) {}
};

// The pixels at an address, as they are in memory: those of columns x ... x + kQuad - 1 of a row. Zero outside the
// image or if the row is not `wanted`.
template <bool kVectorized, typename T>
__device__ __forceinline__ Quad<T> read_at(const T* __restrict__ at, const Image& image, int x, bool wanted) {
  Quad<T> quad = {};
  if constexpr (kVectorized) {
    if (wanted && image.has_column(x)) quad = *reinterpret_cast<const Quad<T>*>(at);
  } else {
#pragma unroll
    for (int j = 0; j < kQuad; j++)
      if (wanted && image.has_column(x + j)) quad.v[j] = at[j];
  }
  return quad;
}

// Pixels (y, x) to (y, x + kQuad - 1) of a plane.
template <bool kVectorized, typename T>
__device__ __forceinline__ Quad<T> read_quad(const T* __restrict__ plane, const Image& image, int y, int x,
                                             bool wanted) {
  return read_at<kVectorized>(plane + (long long)y * image.width + x, image, x, wanted && image.has_row(y));
}

// The same pixels of kCount planes `stride` apart, of which `present` exist. All loads start before one result is used.
template <bool kVectorized, int kCount, typename T>
__device__ __forceinline__ void read_quads(Accumulator (&to)[kCount][kQuad], const T* __restrict__ planes,
                                           long long stride, const Image& image, int present, int y, int x) {
  Quad<T> quads[kCount];
#pragma unroll
  for (int i = 0; i < kCount; i++)
    quads[i] = read_quad<kVectorized>(planes + i * stride, image, y, x, i < present);
#pragma unroll
  for (int i = 0; i < kCount; i++)
#pragma unroll
    for (int j = 0; j < kQuad; j++) to[i][j] = widen(quads[i].v[j]);
}

// With one load for each plane where possible; x is a multiple of kQuad.
template <int kCount, typename T>
__device__ __forceinline__ void load_quads(Accumulator (&to)[kCount][kQuad], const T* __restrict__ planes,
                                           long long stride, const Image& image, int present, int y, int x) {
  if (image.vectorized)
    read_quads<true>(to, planes, stride, image, present, y, x);
  else
    read_quads<false>(to, planes, stride, image, present, y, x);
}

template <typename T>
__device__ __forceinline__ void store_quad(T* __restrict__ plane, const Image& image, int y, int x,
                                           const Accumulator (&from)[kQuad]) {
  if (!image.has_row(y)) return;
  T* at = plane + (long long)y * image.width + x;
  Quad<T> quad;
#pragma unroll
  for (int j = 0; j < kQuad; j++) narrow(from[j], quad.v[j]);
  if (image.vectorized) {
    if (image.has_column(x)) *reinterpret_cast<Quad<T>*>(at) = quad;
  } else {
#pragma unroll
    for (int j = 0; j < kQuad; j++)
      if (image.has_column(x + j)) at[j] = quad.v[j];
  }
}

// Copies rows of planes to shared memory. Each thread has a column of quads and some of the lines (the rows of all
// planes). It starts IN_FLIGHT loads before it stores the first result: otherwise it would wait for each of them.
template <bool kVectorized, int kCount, int kRows, int kRowStride, int kColumns>
__device__ __forceinline__ void copy_tile(Accumulator* tile, const Scalar* __restrict__ planes, const Image& image,
                                          int present, int y, int x) {
  constexpr int kQuads = kColumns / kQuad, kLines = kThreads / kQuads, kAll = kCount * kRows;
  const int column = threadIdx.x % kQuads * kQuad, own = threadIdx.x / kQuads;
  if (own >= kLines) return;  // threads that are left over
  int plane = own / kRows, row = own % kRows;  // of the next line
  const Scalar* at = planes + plane * image.pixels() + (long long)(y + row) * image.width + x + column;
  const long long step = kLines / kRows * image.pixels() + (long long)(kLines % kRows) * image.width;
  const long long next_plane = image.pixels() - (long long)kRows * image.width;
#pragma unroll 1
  for (int first = own; first < kAll; first += kLines * IN_FLIGHT) {
    Quad<Scalar> quads[IN_FLIGHT];
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      const bool wanted = plane < min(kCount, present) && image.has_row(y + row);
      quads[i] = read_at<kVectorized>(at, image, x + column, wanted);
      plane += kLines / kRows;
      row += kLines % kRows;
      at += step;
      if (row >= kRows) {
        plane++;
        row -= kRows;
        at += next_plane;
      }
    }
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      const int line = first + i * kLines;
      if (line >= kAll) break;
      Accumulator* to = tile + line * kRowStride + column;
      Quad<Accumulator> quad;
#pragma unroll
      for (int j = 0; j < kQuad; j++) quad.v[j] = widen(quads[i].v[j]);
      if constexpr (kRowStride % kQuad == 0) {
        *reinterpret_cast<Quad<Accumulator>*>(to) = quad;
      } else {
#pragma unroll
        for (int j = 0; j < kQuad; j++) to[j] = quad.v[j];
      }
    }
  }
}

// Load rows y ... y + kRows - 1 and columns x ... x + kColumns - 1 of kCount planes into
// tile[kCount][kRows][kRowStride]. Planes from number `present` on are filled with zeros.
template <int kCount, int kRows = kTileRows, int kRowStride = kStride, int kColumns = kStride>
__device__ __forceinline__ void load_tile(Accumulator* tile, const Scalar* __restrict__ planes, const Image& image,
                                          int present, int y, int x) {
  if (image.vectorized)
    copy_tile<true, kCount, kRows, kRowStride, kColumns>(tile, planes, image, present, y, x);
  else
    copy_tile<false, kCount, kRows, kRowStride, kColumns>(tile, planes, image, present, y, x);
}

// Whole quads from shared memory.
template <int kCount>
__device__ __forceinline__ void read_run(Accumulator (&to)[kCount], const Accumulator* from) {
#pragma unroll
  for (int q = 0; q < kCount / kQuad; q++) {
    const Quad<Accumulator> quad = reinterpret_cast<const Quad<Accumulator>*>(from)[q];
#pragma unroll
    for (int j = 0; j < kQuad; j++) to[q * kQuad + j] = quad.v[j];
  }
}

// The part of a tile's row that kPixels pixels need: tap t of pixel j reads v[kMargin - kRadius + t + j].
template <int kPixels = kQuad>
struct Window {
  Accumulator v[kPixels + 2 * kMargin];

  __device__ __forceinline__ explicit Window(const Accumulator* row) { read_run(v, row); }
  __device__ __forceinline__ Accumulator at(int tap, int j) const { return v[kMargin - kRadius + tap + j]; }
};

// Neighbouring rows of a tile are swapped so that the loads of eight threads (two rows of four quads, kStride apart)
// use different banks of shared memory.
__device__ __forceinline__ int spread_row(int row) { return (row & ~3) | (row & 1) << 1 | (row >> 1 & 1); }

// The pixels of the tile that a thread computes.
__device__ __forceinline__ int thread_row() { return spread_row(threadIdx.x / kThreadsAcross); }
__device__ __forceinline__ int thread_column() { return threadIdx.x % kThreadsAcross * kQuad; }
