// Channel attention with ReLU without gradients, for x of 16 bits, in three kernels:
//
//   q, k, v = depthwise_3x3(weight @ normalised(x) + bias)
//   matrix = proj_out @ relu(q k^T / (|q| |k|) * temperature), of each head and window of test-time local conversion
//   out = x + (the mean of the matrices of a pixel's windows) @ v
//
// (DLGSANet, section 3.3). weight and bias contain scale and shift of the normalisation. `attention_sums` adds up q k^T
// and the squares of q and k over the pixels of each cell, `attention_matrices` those of a window's cells, and
// `attention_values` computes the last line. Hidden channels are computed in shared memory, twice in all, and never
// written to global memory. A cell is the part of a tile in which all pixels lie in the same windows: a piece of rows
// and a piece of columns (`dlgsanet.ops.windows`).
#include "hidden_16bit.h"

// Also from the command line:
//   HEADS, HEADS_IN_CHUNK  all heads, and those of which a chunk has q and k
//   VALUE_PARTS, VALUE_CHUNKS  chunks of so many times 16 channels of v
//   MATRIX_THREADS  threads of a block of attention_matrices
//   VALUE_ELEMENTS  numbers in the shared memory of a block of attention_values; SHARED_ELEMENTS: of attention_sums
//   NORM_EPS     added to sums of squares
typedef Hidden<2, 0> Keys;  // q and k
typedef Hidden<VALUE_PARTS, 0> Values;

constexpr int kShare = CHANNELS / HEADS;        // channels of a head
constexpr int kSums = (kShare + 2) * kShare;    // of a head: of products of q and k, then of squares of q and of k
constexpr int kMatrices = kSteps * kOutputs;    // of 16 x 16 numbers, of a window
constexpr int kMatrix = kMatrices * kWarp * 8;  // numbers of a window's matrix, in the order of factors a of products
// q and k in shared memory: words of two pixels, of the left half of the tile's columns and of the right one.
constexpr int kFeature = kPixels / 2 + 4;
constexpr int kGroups = MATRIX_THREADS / kSums;  // that add up the cells of a window

static_assert(kShare * HEADS == CHANNELS && HEADS_IN_CHUNK * kShare <= kRows && kGroups >= 1, "heads are not divided");
static_assert(SHARED_ELEMENTS == Keys::kWords + 2 * kRows * kFeature, "the layout of attention_sums");
static_assert(VALUE_ELEMENTS == Values::kWords + VALUE_CHUNKS * VALUE_PARTS * kRows / 2 * kValueStride +
                                    kMatrices * kWarp * 4,
              "the layout of attention_values");
static_assert(kFeature % 8 == 4, "rows that neighbouring lanes access are in different banks");

struct alignas(16) Quad {
  float v[4];
};

// Pieces of an axis: pixels [start, stop), and the first and the last window that contain them.
struct Piece {
  int start, stop, first_window, last_window;
};

struct Range {
  int first, stop;
};

// An axis of the image, from a table: for each tile the number of its first piece, and the number of all pieces; the
// pieces; for each window the first of its pieces, and the end of them.
struct Axis {
  const int* tiles;
  const Piece* pieces;
  const Range* windows;
  int count;  // of the pieces

  __device__ Axis(const int* table, int size, int tile_size) {
    const int number = (size + tile_size - 1) / tile_size;
    tiles = table;
    count = table[number];
    pieces = reinterpret_cast<const Piece*>(table + number + 1);
    windows = reinterpret_cast<const Range*>(pieces + count);
  }
};

__device__ __forceinline__ int place_in_matrix(int row, int column) {
  const int matrix = column / kTerms * kOutputs + row / kRows, lane = row % 8 * 4 + column % 8 / 2;
  const int word = row % kRows / 8 + column % kTerms / 8 * 2;
  return (matrix * kWarp + lane) * 8 + word * 2 + column % 2;
}

// sums [B, cells, HEADS, kSums]
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_sums(const Scalar* __restrict__ x, const unsigned* __restrict__ weights, const int* __restrict__ down,
                   const int* __restrict__ across, float* __restrict__ sums, long long batch_stride,
                   unsigned channel_stride, int height, int width) {
  SHARED_MEMORY(shared);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const Tile tile(blockIdx.x, height, width);
  x += tile.batch * batch_stride;
  const Keys hidden(reinterpret_cast<unsigned*>(shared), tile, x, channel_stride, height, width);
  unsigned* features = hidden.planes + Keys::kWords;  // [2][kRows][kFeature]
  const Axis rows(down, height, TILE_HEIGHT), columns(across, width, TILE_WIDTH);
  sums += (long long)tile.batch * rows.count * columns.count * (HEADS * kSums);

  // A warp forms 16 x 8 sums of products of channels: of q with k, q with q, or k with k, of which the diagonal counts.
  const int kind = warp / 2, block = warp % 2 * 8;
  const unsigned* a_from = features + (kind == 2 ? kRows : 0) * kFeature + lane % 16 * kFeature + lane / 16 * 32;
  const unsigned* b_from = features + (kind == 1 ? 0 : kRows) * kFeature + (block + lane % 8) * kFeature +
                           lane / 8 % 2 * 32;
  int to[4];  // in the sums of a chunk
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int row = g + i / 2 * 8, column = block + t * 2 + i % 2, head = row / kShare;
    const bool counts = head < HEADS_IN_CHUNK && (kind ? row == column : column / kShare == head);
    to[i] = counts ? head * kSums + (kind ? kShare + kind - 1 : row % kShare) * kShare + column % kShare : -1;
  }

#pragma unroll 1
  for (int chunk = 0; chunk < CHUNKS; chunk++, weights += Keys::kChunk, sums += HEADS_IN_CHUNK * kSums) {
    hidden.project(weights);
    __syncthreads();
    {
      float filtered[2][2][4];
      hidden.filter(filtered, weights);
#pragma unroll
      for (int part = 0; part < 2; part++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
          unsigned* row = features + (part * kRows + 2 * warp + c) * kFeature + lane;
          row[0] = pack<Scalar>(filtered[part][c][0], filtered[part][c][1]);
          row[32] = pack<Scalar>(filtered[part][c][2], filtered[part][c][3]);
        }
    }
    __syncthreads();
    if (kind > 2) continue;
#pragma unroll 1
    for (int i = rows.tiles[tile.top / TILE_HEIGHT]; i < rows.tiles[tile.top / TILE_HEIGHT + 1]; i++)
#pragma unroll 1
      for (int j = columns.tiles[tile.left / TILE_WIDTH]; j < columns.tiles[tile.left / TILE_WIDTH + 1]; j++) {
        const int top = rows.pieces[i].start - tile.top, bottom = rows.pieces[i].stop - tile.top;
        const int left = columns.pieces[j].start - tile.left, right = columns.pieces[j].stop - tile.left;
        unsigned inside[2] = {};
#pragma unroll
        for (int n = 0; n < 4; n++) {
          const int column = n / 2 * 8 + t * 2 + n % 2;
          if (column >= left && column < right) inside[n / 2] |= n % 2 ? 0xffff0000u : 0xffffu;
        }
        float products[4] = {};
#pragma unroll
        for (int row = 0; row < TILE_HEIGHT; row++) {
          unsigned a[4], b[2];
          load_matrices(a, a_from + row * 4);
          load_matrices(b, b_from + row * 4);
#pragma unroll
          for (int n = 0; n < 2; n++) b[n] = row >= top && row < bottom ? b[n] & inside[n] : 0;
          multiply_add<Scalar>(products, a, b);
        }
        float* of_cell = sums + ((long long)i * columns.count + j) * (HEADS * kSums);
#pragma unroll
        for (int n = 0; n < 4; n++)
          if (to[n] >= 0 && (HEADS % HEADS_IN_CHUNK == 0 || chunk * HEADS_IN_CHUNK + to[n] / kSums < HEADS))
            of_cell[to[n]] = products[n];
      }
  }
}

// matrices [B, windows, kMatrix]: a quarter of the matrix of each window. A block computes the columns of a head.
extern "C" __global__ void __launch_bounds__(MATRIX_THREADS)
    attention_matrices(const float* __restrict__ sums, const Scalar* __restrict__ temperature,
                       const Scalar* __restrict__ projection, const int* __restrict__ down,
                       const int* __restrict__ across, float* __restrict__ matrices, int height, int width,
                       int windows_down, int windows_across) {
  SHARED_MEMORY(of_groups);                       // [kGroups][kSums]
  float* total = of_groups + kGroups * kSums;     // [kSums]
  float* weights = total + kSums;                 // [kShare][kShare], of attention
  const Axis rows(down, height, TILE_HEIGHT), columns(across, width, TILE_WIDTH);
  const int head = blockIdx.x % HEADS, window = blockIdx.x / HEADS % (windows_down * windows_across);
  const long long batch = blockIdx.x / HEADS / (windows_down * windows_across);
  const Range high = rows.windows[window / windows_across], wide = columns.windows[window % windows_across];
  sums += (batch * rows.count * columns.count * HEADS + head) * kSums;
  matrices += (batch * windows_down * windows_across + window) * kMatrix;

  const int group = threadIdx.x / kSums, own = threadIdx.x % kSums;
  if (group < kGroups) {
    float sum = 0;
    for (int i = high.first + group; i < high.stop; i += kGroups) {
      const float* of_row = sums + (long long)i * columns.count * (HEADS * kSums) + own;
#pragma unroll 4
      for (int j = wide.first; j < wide.stop; j++) sum += of_row[(long long)j * (HEADS * kSums)];
    }
    of_groups[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kSums) {
    float sum = 0;
    for (int i = 0; i < kGroups; i++) sum += of_groups[i * kSums + threadIdx.x];
    total[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kShare * kShare) {
    const float* squares = total + kShare * kShare;
    const float scale = rsqrtf(squares[threadIdx.x / kShare] + NORM_EPS) *
                        rsqrtf(squares[kShare + threadIdx.x % kShare] + NORM_EPS);
    const float weight = total[threadIdx.x] * scale * widen(temperature[head]);
    weights[threadIdx.x] = weight < 0 ? 0 : 0.25f * weight;  // keeps NaN
  }
  __syncthreads();
  const Scalar* factors = projection + head * kShare;
  for (int i = threadIdx.x; i < kOutputs * kRows * kShare; i += MATRIX_THREADS) {
    const int row = i / kShare, column = i % kShare;
    float sum = 0;
    if (row < CHANNELS)
#pragma unroll
      for (int n = 0; n < kShare; n++) sum += widen(factors[row * CHANNELS + n]) * weights[n * kShare + column];
    matrices[place_in_matrix(row, head * kShare + column)] = sum;
  }
  if (head == 0 && threadIdx.x < kOutputs * kRows)  // columns that no head has
    for (int column = CHANNELS; column < kSteps * kTerms; column++) matrices[place_in_matrix(threadIdx.x, column)] = 0;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_values(const Scalar* __restrict__ x, const unsigned* __restrict__ weights,
                     const float* __restrict__ matrices, const int* __restrict__ down, const int* __restrict__ across,
                     Scalar* __restrict__ out, long long batch_stride, unsigned channel_stride, int height, int width,
                     int paired, int windows_down, int windows_across) {
  SHARED_MEMORY(shared);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4;
  const Tile tile(blockIdx.x, height, width);
  x += tile.batch * batch_stride;
  const Values hidden(reinterpret_cast<unsigned*>(shared), tile, x, channel_stride, height, width);
  unsigned* values = hidden.planes + Values::kWords;  // [VALUE_CHUNKS][VALUE_PARTS][kRows / 2][kValueStride]
  const Places places;
  Factors* factors = reinterpret_cast<Factors*>(values + VALUE_CHUNKS * VALUE_PARTS * kRows / 2 * kValueStride);

#pragma unroll 1
  for (int chunk = 0; chunk < VALUE_CHUNKS; chunk++, weights += Values::kChunk) {
    if (chunk) __syncthreads();
    hidden.project(weights);
    __syncthreads();
    float filtered[VALUE_PARTS][2][4];
    hidden.filter(filtered, weights);
#pragma unroll
    for (int part = 0; part < VALUE_PARTS; part++)
      places.store(values + (chunk * VALUE_PARTS + part) * kRows / 2 * kValueStride, filtered[part]);
  }

  float sums[kOutputs][kAdded][4] = {};
  const Axis rows(down, height, TILE_HEIGHT), columns(across, width, TILE_WIDTH);
  matrices += (long long)tile.batch * windows_down * windows_across * kMatrix;
  const int first_row = rows.tiles[tile.top / TILE_HEIGHT], first_column = columns.tiles[tile.left / TILE_WIDTH];
#pragma unroll 1
  for (int i = first_row; i < rows.tiles[tile.top / TILE_HEIGHT + 1]; i++)
#pragma unroll 1
    for (int j = first_column; j < columns.tiles[tile.left / TILE_WIDTH + 1]; j++) {
      const Piece high = rows.pieces[i], wide = columns.pieces[j];
      if (i > first_row || j > first_column) __syncthreads();
      for (int item = threadIdx.x; item < kMatrices * kWarp; item += THREADS) {
        float mean[8] = {};
#pragma unroll
        for (int n = 0; n < 4; n++) {
          const int window = (n / 2 ? high.last_window : high.first_window) * windows_across +
                             (n % 2 ? wide.last_window : wide.first_window);
          const Quad* from = reinterpret_cast<const Quad*>(matrices + (long long)window * kMatrix) + item * 2;
#pragma unroll
          for (int k = 0; k < 8; k++) mean[k] += from[k / 4].v[k % 4];
        }
        Factors word;
#pragma unroll
        for (int k = 0; k < 4; k++) word.v[k] = pack<Scalar>(mean[2 * k], mean[2 * k + 1]);
        factors[item] = word;
      }
      __syncthreads();
      if (tile.top + warp < high.start || tile.top + warp >= high.stop) continue;
#pragma unroll
      for (int step = 0; step < kSteps; step++) {
        unsigned b[kAdded][2];
        places.load(b, values + step * kRows / 2 * kValueStride);
#pragma unroll
        for (int n = 0; n < kAdded; n++) {
          const int column = tile.left + n * kColumns + g;
          if (column < wide.start || column >= wide.stop) b[n][0] = b[n][1] = 0;
        }
        multiply(sums, factors + step * kOutputs * kWarp + lane, b);
      }
    }

  out += tile.batch * CHANNELS * ((long long)height * width);
  tile.add(sums, x, out, channel_stride, height, width, paired);
}
