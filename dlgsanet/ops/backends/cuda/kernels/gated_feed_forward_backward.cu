// The gradients of the gated feed-forward layer (`gated_feed_forward.cu`), from x and the gradient of its result alone:
// hidden channels are computed again.
//
// A block computes one tile of pixels after another. The gradient of x needs that of filtered channels in the tile with
// a border of one pixel, which needs hidden channels in the tile with a border of two, the halo tile. Each warp
// normalises some pixels of the halo tile, scales and shifts them, and keeps them in registers as factors of the first
// projection. Hidden channels are then computed in chunks of 16 of a and the same 16 of b, in four steps with a barrier
// after each: they are projected to shared memory; they are filtered, and the gradients of the filtered ones are formed
// with that of the gate, which is proj_out^T @ grad; the gradients of the filters' taps and of the hidden channels are
// formed, and that of proj_out is added up; those of proj_in and of the normalised pixels are.
//
// Where the last tiles are fewer than the blocks, several blocks share one: each computes some of its chunks, and
// writes the gradient of the normalised pixels from these. `gated_feed_forward_finish` adds them up and does the rest.
//
// Gradients of weights are added to the block's own row of sums, each number by the same thread, so that the results do
// not depend on the order of threads or blocks. `add_rows` adds up the rows. Factors of products are in TF32 for x of
// 16 bits too, and all else is in float32.
#include "hidden_32bit.h"

// Constants besides those of `halo_tile.h`: HIDDEN, the hidden channels of each half.
constexpr int kBorderWidth = TILE_WIDTH + 2;  // of the tile with a border of one pixel
constexpr int kBorderPixels = kBorderWidth * (TILE_HEIGHT + 2);
constexpr int kGroups = (kBorderPixels + kWarps * kColumns - 1) / (kWarps * kColumns);  // of 8 pixels of it, of a warp
constexpr int kRun = kGroups * 2;            // pixels of a row that a lane has
constexpr int kOwnSteps = kPixels / kTerms;  // of products that add up the tile's pixels
constexpr int kPairs = kWarps / 2;           // of warps: in products of pixels both have the same rows, or columns
constexpr int kMatricesOfPair = (kOutputs + kPairs - 1) / kPairs, kColumnsOfPair = (kSteps + kPairs - 1) / kPairs;
constexpr int kTaps = 9, kPadded = kOutputs * kRows;  // channels in whole matrices
// Arrays in shared memory, in words: planes of channels with a border and without one.
constexpr int kBorderPlane = kGroups * kWarps * kColumns + 8, kGradPlane = kBorderPlane + 4, kOwnPlane = kPixels + 4;
constexpr int kHidden = kHalves * kRows * kPlane, kOfFiltered = kHalves * kRows * kBorderPlane;
constexpr int kGated = kRows * kOwnPlane, kOfHidden = kHalves * kRows * kOwnPlane;
constexpr int kTapSums = kHalves * kRows * kTaps;          // of half of the warps
constexpr int kLaneSums = 2 * kPadded * (kWarps * 4 + 1);  // in place of the gradients of filtered channels
static_assert(BORDER == 2 && TERMS == 8, "hidden channels are needed there; factors are in TF32");
static_assert(kBorderPlane % 32 == 8 && kGradPlane % 32 == 12 && kOwnPlane % 32 == 4,
              "most rows that lanes access at once are in different banks");
static_assert(kBorderWidth % kRun == 0, "a run does not go on in the next row");
static_assert(TILE_WIDTH == 2 * kTerms, "two steps of products are a row of the tile");
constexpr int kOfChunk = kHidden + kOfFiltered + kGated + kOfHidden + 2 * kTapSums;
static_assert(SHARED_ELEMENTS == kOfChunk + kPadded * (kGradPlane + kOwnPlane), "the layout below");
static_assert(kLaneSums <= kOfFiltered, "see above");

// Weights of a chunk, in words: matrices of the projection, of the gate's gradient and of the projection's backward
// pass as factors a of products, then the filters, [kHalves][kRows][kFilter].
constexpr int kOfGate = kSteps * kHalves, kBack = kOfGate + kSteps, kBackSteps = kHalves * kRows / kTerms;
constexpr int kFilters = (kBack + kBackSteps * kOutputs) * kWarp * 4, kChunk = kFilters + kHalves * kRows * kFilter;

constexpr int kOfNormalised = kOutputs * kAdded * 4;  // numbers of the gradient of normalised pixels, of a thread

// Gradients of weights in a row of sums.
constexpr int kOfShift = CHANNELS, kOfProjIn = 2 * CHANNELS, kOfTaps = kOfProjIn + kHalves * HIDDEN * CHANNELS;
constexpr int kOfProjOut = kOfTaps + kHalves * HIDDEN * kTaps, kNumbers = kOfProjOut + HIDDEN * CHANNELS;

extern "C" __global__ void __launch_bounds__(THREADS)
    pack_for_backward(const Scalar* __restrict__ proj_in, const Scalar* __restrict__ depthwise,
                      const Scalar* __restrict__ proj_out, unsigned* __restrict__ weights) {
  const int i = blockIdx.x * THREADS + threadIdx.x, first = i / kChunk * kRows, word = i % kChunk;
  if (first >= CHUNKS * kRows) return;
  if (word >= kFilters) {
    const int row = (word - kFilters) / kFilter, channel = row / kRows * HIDDEN + first + row % kRows;
    const bool there = first + row % kRows < HIDDEN;
    weights[i] = there ? taps_of(depthwise + channel * kTaps, (word - kFilters) % kFilter, 1) : 0;
    return;
  }
  const Element of(word);
  const bool back = of.matrix >= kBack, gate = !back && of.matrix >= kOfGate;
  const int matrix = of.matrix - (back ? kBack : gate ? kOfGate : 0);
  int half = 0, hidden = first + of.row, channel = matrix * kTerms + of.term;
  if (back) {
    const int term = matrix / kOutputs * kTerms + of.term;
    half = term / kRows, hidden = first + term % kRows, channel = matrix % kOutputs * kRows + of.row;
  } else if (!gate) {
    half = matrix % kHalves, channel = matrix / kHalves * kTerms + of.term;
  }
  float value = 0;
  if (hidden < HIDDEN && channel < CHANNELS)
    value = widen(gate ? proj_out[channel * HIDDEN + hidden] : proj_in[(half * HIDDEN + hidden) * CHANNELS + channel]);
  weights[i] = as_factor<float>(&value);
}

// Of a gated channel gelu(a) * b with the gradient of_gated: the channel, and the gradients of a and b. Phi(x), the
// normal distribution, is exact to 8e-8 (Abramowitz and Stegun, 26.2.17).
struct Gate {
  float gated, of_a, of_b;

  __device__ __forceinline__ Gate(float a, float b, float of_gated) {
    const float s = fabsf(a), t = approximate_reciprocal(1 + 0.2316419f * s);
    const float density = 0.39894228f * approximate_exp2(-0.72134752f * s * s);
    float tail = 1.330274429f;
    tail = tail * t - 1.821255978f;
    tail = tail * t + 1.781477937f;
    tail = tail * t - 0.356563782f;
    tail = tail * t + 0.31938153f;
    tail *= t * density;
    const float share = a > 0 ? 1 - tail : tail, gelu = a * share;
    gated = gelu * b;
    of_a = of_gated * b * (share + a * density);
    of_b = of_gated * gelu;
  }
};

// Over the channels of a pixel, of which lanes 4 apart have some.
__device__ __forceinline__ float sum_over_channels(const float (&values)[kOutputs * 2]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kOutputs * 2; i++) sum += values[i];
#pragma unroll
  for (int mask = 4; mask < kWarp; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  return sum;
}

// A number of a block's row of sums, which begins with its first tile.
__device__ __forceinline__ void add_to(float* sum, float value, bool first) { *sum = first ? value : *sum + value; }

__device__ __forceinline__ void read_taps(float (&taps)[kFilter], const unsigned* __restrict__ weights, int channel) {
#pragma unroll
  for (int i = 0; i < kFilter / 4; i++) {
    const Factors quad = reinterpret_cast<const Factors*>(weights + kFilters + channel * kFilter)[i];
#pragma unroll
    for (int j = 0; j < 4; j++) taps[i * 4 + j] = __uint_as_float(quad.v[j]);
  }
}

// The gradient of x from that of its normalised pixels, and the sums of the gradients of scale and shift. Lanes of the
// same t have the channels of the same pixels. lane_sums: shared memory for kLaneSums numbers.
__device__ __forceinline__ void finish(const float (&of_normalised)[kOutputs][kAdded][4], const Tile& tile,
                                       const Scalar* __restrict__ grad, const Scalar* __restrict__ x,
                                       const Scalar* __restrict__ scale, Scalar* __restrict__ grad_x, float* lane_sums,
                                       float* sums, bool first, int height, int width) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const unsigned plane = (unsigned)height * width;
  const long long image = (long long)tile.batch * CHANNELS * plane;
  float of_scale[kOutputs * 2] = {}, of_shift[kOutputs * 2] = {};
#pragma unroll
  for (int n = 0; n < kAdded; n++) {
    const int row = tile.top + warp, column = tile.left + n * kColumns + t * 2;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const bool inside = row < height && column + j < width;
      const long long at = image + (long long)g * plane + (long long)row * width + column + j;
      float values[kOutputs * 2], of_scaled[kOutputs * 2];
#pragma unroll
      for (int i = 0; i < kOutputs * 2; i++) {
        Scalar value = {};
        if (inside && i * 8 + g < CHANNELS) value = x[at + (long long)(i * 8) * plane];
        values[i] = widen(value);
      }
      const float mean = sum_over_channels(values) * (1.0f / CHANNELS);
      float squares[kOutputs * 2];
#pragma unroll
      for (int i = 0; i < kOutputs * 2; i++) {
        values[i] = i * 8 + g < CHANNELS ? values[i] - mean : 0;
        squares[i] = values[i] * values[i];
      }
      const float deviation = rsqrtf(sum_over_channels(squares) * (1.0f / CHANNELS) + EPS);
#pragma unroll
      for (int i = 0; i < kOutputs * 2; i++) {
        const float of_value = inside ? of_normalised[i / 2][n][i % 2 * 2 + j] : 0;
        values[i] *= deviation;
        of_shift[i] += of_value;
        of_scale[i] += of_value * values[i];
        of_scaled[i] = i * 8 + g < CHANNELS ? of_value * widen(scale[i * 8 + g]) : 0;
        squares[i] = of_scaled[i] * values[i];
      }
      const float of_mean = sum_over_channels(of_scaled) * (1.0f / CHANNELS);
      const float of_deviation = sum_over_channels(squares) * (1.0f / CHANNELS);
#pragma unroll
      for (int i = 0; i < kOutputs * 2; i++)
        if (inside && i * 8 + g < CHANNELS) {
          const long long place = at + (long long)(i * 8) * plane;
          narrow(widen(grad[place]) + deviation * (of_scaled[i] - of_mean - values[i] * of_deviation), grad_x[place]);
        }
    }
  }
#pragma unroll
  for (int i = 0; i < kOutputs * 2; i++) {
    float* const to = lane_sums + (i * 8 + g) * (kWarps * 4 + 1) + warp * 4 + t;
    to[0] = of_scale[i];
    to[kPadded * (kWarps * 4 + 1)] = of_shift[i];
  }
  __syncthreads();
  if (threadIdx.x < 2 * CHANNELS) {
    const int kind = threadIdx.x / CHANNELS, channel = threadIdx.x % CHANNELS;
    const float* from = lane_sums + (kind * kPadded + channel) * (kWarps * 4 + 1);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps * 4; i++) sum += from[i];
    add_to(sums + kind * kOfShift + channel, sum, first);
  }
}

// Of tiles, the first `whole` are computed by one block each, the others by `shares` blocks, of share_chunks chunks
// each.
// shared_out [units - whole][kOfNormalised][THREADS].
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gated_feed_forward_backward(const Scalar* __restrict__ grad, const Scalar* __restrict__ x,
                                const Scalar* __restrict__ scale, const Scalar* __restrict__ shift,
                                const unsigned* __restrict__ all_weights, Scalar* __restrict__ grad_x,
                                float* __restrict__ sums, float* __restrict__ shared_out, int height, int width,
                                int whole, int units, int shares, int share_chunks, int blocks) {
  SHARED_MEMORY(shared);
  float* const hidden = shared;                                            // [kHalves * kRows][kPlane]
  float* const of_filtered = hidden + kHidden;                             // [kHalves * kRows][kBorderPlane]
  unsigned* const gated = reinterpret_cast<unsigned*>(of_filtered + kOfFiltered);  // [kRows][kOwnPlane]
  unsigned* const of_hidden = gated + kGated;                              // [kHalves * kRows][kOwnPlane]
  float* const tap_sums = reinterpret_cast<float*>(of_hidden + kOfHidden);  // [2][kTapSums]
  unsigned* const grads = reinterpret_cast<unsigned*>(tap_sums + 2 * kTapSums);  // [kPadded][kGradPlane]
  unsigned* const own_pixels = grads + kPadded * kGradPlane;             // normalised, [kPadded][kOwnPlane]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const unsigned plane = (unsigned)height * width;
  const Own own;
  // In the tile with a border a lane has a run of pixels, which are pairs of columns of products one after the other:
  // where it begins, and bits of the pixels that are in the tile.
  const int run = warp * kGroups * kColumns + t * kRun;
  int in_halo = g * kPlane + run / kBorderWidth * kHaloWidth + run % kBorderWidth;
  int in_tile = g * kOwnPlane + (run / kBorderWidth - 1) * TILE_WIDTH + run % kBorderWidth - 1, is_own = 0;
  int column_of_grads = t * kGradPlane + warp * kGroups * kColumns + g / 2 * kRun + g % 2;
  keep(in_halo);
  keep(in_tile);
  keep(column_of_grads);
#pragma unroll
  for (int i = 0; i < kRun; i++) {
    const int row = run / kBorderWidth, column = run % kBorderWidth + i;
    if (row >= 1 && row <= TILE_HEIGHT && column >= 1 && column <= TILE_WIDTH) is_own |= 1 << i;
  }
  sums += (long long)blockIdx.x * kNumbers;

#pragma unroll 1
  for (int unit = blockIdx.x; unit < units; unit += blocks) {
    const bool first = unit == blockIdx.x;
    const int share = unit - whole, chunks = share < 0 ? CHUNKS : share_chunks;
    const int first_chunk = share < 0 ? 0 : share % shares * share_chunks;
    const Tile tile(share < 0 ? unit : whole + share / shares, height, width);
    const long long image = (long long)tile.batch * CHANNELS * plane;
    unsigned normalised[kSteps][kProjected][2];
    {
      float values[kProjected][kValues];
      tile.normalise(values, x + image, plane, height, width);
#pragma unroll
      for (int n = 0; n < kProjected; n++) {
        const int pixel = (warp * kProjected + n) * kColumns + g;
        const int row = pixel / kHaloWidth - BORDER, column = pixel % kHaloWidth - BORDER;
        const bool inside = pixel < kHaloPixels && (unsigned)(tile.top + row) < (unsigned)height &&
                            (unsigned)(tile.left + column) < (unsigned)width;
        const bool is_own = (unsigned)row < TILE_HEIGHT && (unsigned)column < TILE_WIDTH;
#pragma unroll
        for (int i = 0; i < kValues; i++) {
          const int channel = i * 4 + t;
          float value = 0;
          if (inside && channel < CHANNELS) value = values[n][i] * widen(scale[channel]) + widen(shift[channel]);
          normalised[i / 2][n][i % 2] = as_factor<float>(&value);
          if (is_own) own_pixels[channel * kOwnPlane + row * TILE_WIDTH + column] = normalised[i / 2][n][i % 2];
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kGroups * kWarps * kColumns / kWarp; n++) {
      const int pixel = n * kWarp + lane;
      const int row = tile.top - 1 + pixel / kBorderWidth, column = tile.left - 1 + pixel % kBorderWidth;
      const bool has_row = (unsigned)row < (unsigned)height, has_column = (unsigned)column < (unsigned)width;
      const bool inside = pixel < kBorderPixels && has_row && has_column;
      const Scalar* from = grad + image + (long long)warp * plane + (long long)row * width + column;
#pragma unroll
      for (int i = 0; i < kPadded / kWarps; i++) {
        Scalar value = {};
        if (inside && warp + i * kWarps < CHANNELS) value = from[(long long)(i * kWarps) * plane];
        const float wide = widen(value);
        grads[(warp + i * kWarps) * kGradPlane + pixel] = as_factor<float>(&wide);
      }
    }

    float of_normalised[kOutputs][kAdded][4] = {};
#pragma unroll 1
    for (int chunk = first_chunk; chunk < CHUNKS && chunk < first_chunk + chunks; chunk++) {
      const unsigned* weights = all_weights + chunk * kChunk;
      const Factors* matrices = reinterpret_cast<const Factors*>(weights) + lane;
      {
        float projected[kHalves][kProjected][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; step++)
          multiply(projected, matrices + step * kHalves * kWarp, normalised[step]);
#pragma unroll
        for (int half = 0; half < kHalves; half++)
#pragma unroll
          for (int n = 0; n < kProjected; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
              *reinterpret_cast<Pair<float>*>(hidden + (half * kRows + i * 8 + g) * kPlane +
                                              (warp * kProjected + n) * kColumns + t * 2) =
                  {projected[half][n][i * 2], projected[half][n][i * 2 + 1]};
      }
      __syncthreads();

      float of_gated[1][kGroups][4] = {};
#pragma unroll
      for (int step = 0; step < kSteps; step++) {
        unsigned b[kGroups][2];
#pragma unroll
        for (int n = 0; n < kGroups; n++)
#pragma unroll
          for (int i = 0; i < 2; i++)
            b[n][i] = grads[column_of_grads + (step * kTerms + i * 4) * kGradPlane + n * 2];
        multiply(of_gated, matrices + (kOfGate + step) * kWarp, b);
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float taps[kHalves][kFilter];
#pragma unroll
        for (int half = 0; half < kHalves; half++) read_taps(taps[half], weights, half * kRows + i * 8 + g);
        float filtered[kHalves][kRun] = {};
#pragma unroll
        for (int half = 0; half < kHalves; half++)
#pragma unroll
          for (int r = 0; r < 3; r++) {
            Pixels<kRun + 2> pixels;
            pixels.read(hidden + in_halo + (half * kRows + i * 8) * kPlane + r * kHaloWidth);
#pragma unroll
            for (int c = 0; c < kRun; c++)
#pragma unroll
              for (int j = 0; j < 3; j++) filtered[half][c] += taps[half][r * 3 + j] * pixels.v[c + j];
          }
#pragma unroll
        for (int n = 0; n < kGroups; n++) {
          const Gate left(filtered[0][n * 2], filtered[1][n * 2], of_gated[0][n][i * 2]);
          const Gate right(filtered[0][n * 2 + 1], filtered[1][n * 2 + 1], of_gated[0][n][i * 2 + 1]);
          float* const to = of_filtered + (i * 8 + g) * kBorderPlane + run + n * 2;
          *reinterpret_cast<Pair<float>*>(to) = {left.of_a, right.of_a};
          *reinterpret_cast<Pair<float>*>(to + kRows * kBorderPlane) = {left.of_b, right.of_b};
          unsigned* const own_to = gated + in_tile + i * 8 * kOwnPlane + n * 2;
          if (is_own >> n * 2 & 1) own_to[0] = as_factor<float>(&left.gated);
          if (is_own >> n * 2 & 2) own_to[1] = as_factor<float>(&right.gated);
        }
      }
      __syncthreads();

#pragma unroll
      for (int j = 0; j < kMatricesOfPair; j++) {
        const int m = warp / 2 + j * kPairs, n = warp % 2;
        if (m >= kOutputs) continue;
        const unsigned* a = grads + (m * kRows + g) * kGradPlane + kBorderWidth + 1 + t;
        const unsigned* b = gated + (n * kColumns + lane % 8) * kOwnPlane + lane / 8 * 4;
        float of_projection[1][1][4] = {};
#pragma unroll
        for (int step = 0; step < kOwnSteps; step += 2) {
          unsigned pair[4];
          load_matrices(pair, b + step * kTerms);
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const unsigned* at = a + step / 2 * kBorderWidth + i * kColumns;
            const Factors factors[1] = {{at[0], at[8 * kGradPlane], at[4], at[8 * kGradPlane + 4]}};
            const unsigned of_pixels[1][2] = {{pair[i * 2], pair[i * 2 + 1]}};
            multiply_loaded<Factor>(of_projection, factors, of_pixels);
          }
        }
        const int channel = m * kRows + g, column = chunk * kRows + n * kColumns + t * 2;
        float* to = sums + kOfProjOut + channel * HIDDEN + column;
        keep(to);
#pragma unroll
        for (int i = 0; i < 4; i++)
          if (channel + i / 2 * 8 < CHANNELS && column + i % 2 < HIDDEN)
            add_to(to + i / 2 * 8 * HIDDEN + i % 2, of_projection[0][0][i], first);
      }
      {
        float of_taps[kHalves][kTaps] = {};
#pragma unroll
        for (int half = 0; half < kHalves; half++) {
          const int channel = half * kRows + own.channel;
          float taps[kFilter];
          read_taps(taps, weights, channel);
          const float* of_from = of_filtered + channel * kBorderPlane + own.row * kBorderWidth + own.column;
          const float* from = hidden + channel * kPlane + (own.row + 1) * kHaloWidth + own.column;
          unsigned* to = of_hidden + channel * kOwnPlane + own.row * TILE_WIDTH + own.column;
          Window ofs[3], rows[3];
#pragma unroll
          for (int row = 0; row < 6; row++) {
            ofs[row % 3].read(of_from + row * kBorderWidth);
            rows[row % 3].read_after(from + row * kHaloWidth);
            if (row < 2) continue;
            float result[2] = {};
#pragma unroll
            for (int c = 0; c < 2; c++)
#pragma unroll
              for (int i = 0; i < 3; i++)
#pragma unroll
                for (int j = 0; j < 3; j++) {
                  result[c] += taps[8 - i * 3 - j] * ofs[(row - 2 + i) % 3].v[c + j];
                  of_taps[half][i * 3 + j] += ofs[(row - 1) % 3].v[c + 1] * rows[(row - 2 + i) % 3].v[c + j];
                }
            *reinterpret_cast<Pair<unsigned>*>(to + (row - 2) * TILE_WIDTH) =
                {as_factor<float>(result), as_factor<float>(result + 1)};
          }
        }
        // Over the eight lanes of a channel: those of its left columns keep the sums of a, the others those of b.
        const int half = lane / 4 % 2;
        float* const to = tap_sums + warp / 4 * kTapSums + (half * kRows + own.channel) * kTaps;
#pragma unroll
        for (int i = 0; i < kTaps; i++) {
          float sum = (half ? of_taps[1][i] : of_taps[0][i]) +
                      __shfl_xor_sync(0xffffffffu, half ? of_taps[0][i] : of_taps[1][i], 4);
#pragma unroll
          for (int mask = 1; mask < 4; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
          if (t == 0) to[i] = sum;
        }
      }
      __syncthreads();

#pragma unroll
      for (int step = 0; step < kBackSteps; step++) {
        unsigned b[kAdded][2];
#pragma unroll
        for (int n = 0; n < kAdded; n++)
#pragma unroll
          for (int i = 0; i < 2; i++)
            b[n][i] = of_hidden[(step * kTerms + i * 4 + t) * kOwnPlane + (warp * kAdded + n) * kColumns + g];
        multiply(of_normalised, matrices + (kBack + step * kOutputs) * kWarp, b);
      }
      {
        const int half = warp % 2, first_n = warp / 2;
        const unsigned* a = of_hidden + (half * kRows + lane % 16) * kOwnPlane + lane / 16 * 4;
        const unsigned* b = own_pixels + (first_n * kColumns + lane % 8) * kOwnPlane + lane / 8 * 4;
        float of_projection[kColumnsOfPair][1][1][4] = {};
#pragma unroll
        for (int step = 0; step < kOwnSteps; step += 2) {
          Factors factors[2][1];
#pragma unroll
          for (int i = 0; i < 2; i++) load_matrices(factors[i][0].v, a + (step + i) * kTerms);
#pragma unroll
          for (int j = 0; j < kColumnsOfPair; j++) {
            if (first_n + j * kPairs >= kSteps) continue;
            unsigned pair[4];
            load_matrices(pair, b + j * kPairs * kColumns * kOwnPlane + step * kTerms);
#pragma unroll
            for (int i = 0; i < 2; i++) {
              const unsigned of_pixels[1][2] = {{pair[i * 2], pair[i * 2 + 1]}};
              multiply_loaded<Factor>(of_projection[j], factors[i], of_pixels);
            }
          }
        }
        const int row = chunk * kRows + g, channel = first_n * kColumns + t * 2;
        float* to = sums + kOfProjIn + (half * HIDDEN + row) * CHANNELS + channel;
        keep(to);
#pragma unroll
        for (int j = 0; j < kColumnsOfPair; j++)
#pragma unroll
          for (int i = 0; i < 4; i++)
            if (row + i / 2 * 8 < HIDDEN && channel + j * kPairs * kColumns + i % 2 < CHANNELS)
              add_to(to + i / 2 * 8 * CHANNELS + j * kPairs * kColumns + i % 2, of_projection[j][0][0][i], first);
      }
#pragma unroll
      for (int j = 0; j < (kTapSums + THREADS - 1) / THREADS; j++) {
        const int i = j * THREADS + threadIdx.x, row = i / kTaps, channel = chunk * kRows + row % kRows;
        if (i < kTapSums && channel < HIDDEN)
          add_to(sums + kOfTaps + (row / kRows * HIDDEN + channel) * kTaps + i % kTaps,
                 tap_sums[i] + tap_sums[kTapSums + i], first);
      }
    }

    if (share < 0) {
      finish(of_normalised, tile, grad, x, scale, grad_x, of_filtered, sums, first, height, width);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kOfNormalised; i++)
      shared_out[((long long)share * kOfNormalised + i) * THREADS + threadIdx.x] =
          of_normalised[i / (kAdded * 4)][i / 4 % kAdded][i % 4];
  }
}

// Of a tile that `shares` blocks share, one for each block.
extern "C" __global__ void __launch_bounds__(THREADS)
    gated_feed_forward_finish(const Scalar* __restrict__ grad, const Scalar* __restrict__ x,
                              const Scalar* __restrict__ scale, const float* __restrict__ shared_out,
                              Scalar* __restrict__ grad_x, float* __restrict__ sums, int height, int width, int whole,
                              int shares) {
  SHARED_MEMORY(lane_sums);
  const Tile tile(whole + blockIdx.x, height, width);
  shared_out += (long long)blockIdx.x * shares * (kOfNormalised * THREADS) + threadIdx.x;
  float of_normalised[kOutputs][kAdded][4] = {};
#pragma unroll 1
  for (int share = 0; share < shares; share++, shared_out += kOfNormalised * THREADS)
#pragma unroll
    for (int i = 0; i < kOfNormalised; i++)
      of_normalised[i / (kAdded * 4)][i / 4 % kAdded][i % 4] += shared_out[i * THREADS];
  sums += (long long)blockIdx.x * kNumbers;
  finish(of_normalised, tile, grad, x, scale, grad_x, lane_sums, sums, false, height, width);
}

// out [kNumbers]: the sum of rows [count][kNumbers]. A block adds up kWarp numbers, each of its warps some of the rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_rows(const float* __restrict__ rows, Scalar* __restrict__ out, int count) {
  SHARED_MEMORY(shared);  // [kWarps][kWarp]
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, i = blockIdx.x * kWarp + lane;
  float sum = 0;
  if (i < kNumbers)
    for (int row = warp; row < count; row += kWarps) sum += rows[(long long)row * kNumbers + i];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (warp || i >= kNumbers) return;
  for (int other = 1; other < kWarps; other++) sum += shared[other * kWarp + lane];
  narrow(sum, out[i]);
}
