// Channel attention with ReLU without gradients, in three kernels:
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
#include "hidden.h"

// Also from the command line:
//   HEADS, HEADS_IN_CHUNK  all heads, and those of which a chunk has q and k
//   VALUE_PARTS, VALUE_CHUNKS  times 16 channels of v in a chunk, and the number of chunks
//   MATRIX_THREADS  threads of a block of attention_matrices
//   VALUE_ELEMENTS  numbers in the shared memory of a block of attention_values; SHARED_ELEMENTS: of attention_sums
//   NORM_EPS     added to sums of squares
typedef Hidden<2, 0> Keys;  // q and k
typedef Hidden<VALUE_PARTS, 0> Values;

constexpr int kShare = CHANNELS / HEADS;        // channels of a head
constexpr int kSums = (kShare + 2) * kShare;    // of a head: of products of q and k, then of squares of q and of k
// The matrix of a window has factors a of products, of kNeighbours numbers each, for the channels of all chunks.
constexpr int kValueSteps = VALUE_PARTS * kRows / kTerms;        // of products with the values of a chunk
constexpr int kFactors = kValueSteps * kOutputs * kWarp;         // Factors of a chunk
constexpr int kMatrix = VALUE_CHUNKS * kFactors * 4 * kNeighbours;  // numbers of a window's matrix
constexpr int kFeatureSteps = kPixels / kTerms;                  // of products of features
constexpr int kStepsOfRow = TILE_WIDTH / kTerms;                 // of which a row of the tile has so many
constexpr int kGroups = MATRIX_THREADS / kSums;  // that add up the cells of a window

static_assert(kShare * HEADS == CHANNELS && HEADS_IN_CHUNK * kShare <= kRows && kGroups >= 1, "heads are not divided");
static_assert(SHARED_ELEMENTS == Keys::kWords + 2 * kRows * kFeatureStride, "the layout of attention_sums");
static_assert(VALUE_ELEMENTS == Values::kWords + VALUE_PARTS * kValueRows * kValueStride + kFactors * 4,
              "the layout of attention_values");

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
  const int matrix = column / kTerms * kOutputs + row / kRows, term = column % kTerms;
  const int lane = row % 8 * 4 + term % (kTerms / 2) / kNeighbours, word = row % kRows / 8 + term / (kTerms / 2) * 2;
  return ((matrix * kWarp + lane) * 4 + word) * kNeighbours + column % kNeighbours;
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
  unsigned* features = reinterpret_cast<unsigned*>(shared) + Keys::kWords;  // [2][kRows][kFeatureStride]
  const Axis rows(down, height, TILE_HEIGHT), columns(across, width, TILE_WIDTH);
  sums += (long long)tile.batch * rows.count * columns.count * (HEADS * kSums);

  // A warp forms 16 x 8 sums of products of channels: of q with k, q with q, or k with k, of which the diagonal counts.
  const int kind = warp / 2, block = warp % 2 * 8;
  const unsigned* a_from = features + ((kind == 2 ? kRows : 0) + lane % 16) * kFeatureStride +
                           lane / 16 * kFeatureHalf;
  const unsigned* b_from = features + ((kind == 1 ? 0 : kRows) + block + lane % 8) * kFeatureStride +
                           lane / 8 % 2 * kFeatureHalf;
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
      for (int part = 0; part < 2; part++) store_features(features + part * kRows * kFeatureStride, filtered[part]);
    }
    __syncthreads();
    if (kind > 2) continue;
#pragma unroll 1
    for (int i = rows.tiles[tile.top / TILE_HEIGHT]; i < rows.tiles[tile.top / TILE_HEIGHT + 1]; i++)
#pragma unroll 1
      for (int j = columns.tiles[tile.left / TILE_WIDTH]; j < columns.tiles[tile.left / TILE_WIDTH + 1]; j++) {
        const int top = rows.pieces[i].start - tile.top, bottom = rows.pieces[i].stop - tile.top;
        const int left = columns.pieces[j].start - tile.left, right = columns.pieces[j].stop - tile.left;
        unsigned inside[kStepsOfRow][2] = {};  // bits of the pixels of a word b
#pragma unroll
        for (int step = 0; step < kStepsOfRow; step++)
#pragma unroll
          for (int n = 0; n < 2; n++)
#pragma unroll
            for (int k = 0; k < kNeighbours; k++) {
              const int column = n * kColumns + (step * 4 + t) * kNeighbours + k;
              if (column >= left && column < right) inside[step][n] |= 0xffffffffu >> (kNeighbours - 1) * 16 << k * 16;
            }
        float products[2][1][1][4] = {};  // of even and odd steps
#pragma unroll
        for (int step = 0; step < kFeatureSteps; step++) {
          const int row = step / kStepsOfRow;
          Factors a[1];
          unsigned b[1][2];
          load_matrices(a[0].v, a_from + step * 4);
          load_matrices(b[0], b_from + step * 4);
#pragma unroll
          for (int n = 0; n < 2; n++)
            b[0][n] = row >= top && row < bottom ? b[0][n] & inside[step % kStepsOfRow][n] : 0;
          multiply_loaded<Factor>(products[step % 2], a, b);
        }
        float* of_cell = sums + ((long long)i * columns.count + j) * (HEADS * kSums);
#pragma unroll
        for (int n = 0; n < 4; n++)
          if (to[n] >= 0 && (HEADS % HEADS_IN_CHUNK == 0 || chunk * HEADS_IN_CHUNK + to[n] / kSums < HEADS))
            of_cell[to[n]] = products[0][0][0][n] + products[1][0][0][n];
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
    for (int column = CHANNELS; column < VALUE_CHUNKS * VALUE_PARTS * kRows; column++)
      matrices[place_in_matrix(threadIdx.x, column)] = 0;
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
  unsigned* values = reinterpret_cast<unsigned*>(shared) + Values::kWords;  // [VALUE_PARTS][kValueRows][kValueStride]
  Factors* factors = reinterpret_cast<Factors*>(values + VALUE_PARTS * kValueRows * kValueStride);
  const Places places;
  const Axis rows(down, height, TILE_HEIGHT), columns(across, width, TILE_WIDTH);
  const int first_row = rows.tiles[tile.top / TILE_HEIGHT], first_column = columns.tiles[tile.left / TILE_WIDTH];
  matrices += (long long)tile.batch * windows_down * windows_across * kMatrix;

  float sums[kOutputs][kAdded][4] = {};
#pragma unroll 1
  for (int chunk = 0; chunk < VALUE_CHUNKS; chunk++, weights += Values::kChunk, matrices += kMatrix / VALUE_CHUNKS) {
    hidden.project(weights);
    __syncthreads();
    {
      float filtered[VALUE_PARTS][2][4];
      hidden.filter(filtered, weights);
#pragma unroll
      for (int part = 0; part < VALUE_PARTS; part++)
        places.store(values + part * kValueRows * kValueStride, filtered[part]);
    }
#pragma unroll 1
    for (int i = first_row; i < rows.tiles[tile.top / TILE_HEIGHT + 1]; i++)
#pragma unroll 1
      for (int j = first_column; j < columns.tiles[tile.left / TILE_WIDTH + 1]; j++) {
        const Piece high = rows.pieces[i], wide = columns.pieces[j];
        if (i > first_row || j > first_column) __syncthreads();
        for (int item = threadIdx.x; item < kFactors; item += THREADS) {
          float mean[4 * kNeighbours] = {};
#pragma unroll
          for (int n = 0; n < 4; n++) {
            const int window = (n / 2 ? high.last_window : high.first_window) * windows_across +
                               (n % 2 ? wide.last_window : wide.first_window);
            const Quad* from = reinterpret_cast<const Quad*>(matrices + (long long)window * kMatrix);
#pragma unroll
            for (int k = 0; k < 4 * kNeighbours; k++) mean[k] += from[item * kNeighbours + k / 4].v[k % 4];
          }
          Factors word;
#pragma unroll
          for (int k = 0; k < 4; k++) word.v[k] = as_factor<Scalar>(mean + k * kNeighbours);
          factors[item] = word;
        }
        __syncthreads();
        if (tile.top + warp < high.start || tile.top + warp >= high.stop) continue;
#pragma unroll
        for (int step = 0; step < kValueSteps; step++) {
          unsigned b[kAdded][2];
          places.load(b, values + step * kTermRows * kValueStride);
#pragma unroll
          for (int n = 0; n < kAdded; n++) {
            const int column = tile.left + n * kColumns + g;
            if (column < wide.start || column >= wide.stop) b[n][0] = b[n][1] = 0;
          }
          multiply(sums, factors + step * kOutputs * kWarp + lane, b);
        }
      }
  }

  out += tile.batch * CHANNELS * ((long long)height * width);
  tile.add(sums, x, out, channel_stride, height, width, paired);
}
