// Gradient of the fused dynamic depth-wise convolution with respect to z. It is formed from the gradient of the
// filters, of which one row at a time exists, in registers:
//
//   grad_z[k, p] = sum_gt weight[g, t, k] grad_f[t](p)
//
// A block processes a tile for a slice of the groups. `sum_grad_z` adds up the slices, so that the order of additions
// is fixed. With a single slice, the block writes grad_z itself.
#include "expansion.h"
#include "grad_filter.h"

static_assert(kThreads == kThreadsAcross * TILE_HEIGHT, "one thread for each quad of a tile");
static_assert(SHARED_ELEMENTS == kChannels * kTileRows * kStride + kWindow * Expansion::kRow, "the layout below");

extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS)
    fused_grad_z(const Scalar* __restrict__ grad, const Scalar* __restrict__ x, const Accumulator* __restrict__ weight,
                 Scalar* __restrict__ grad_z, Accumulator* __restrict__ grad_z_slices, int batch, int groups,
                 int groups_in_slice, int height, int width, int vectorized) {
  SHARED_MEMORY(shared);
  Accumulator* tile = shared;                                       // [kChannels][kTileRows][kStride]
  Accumulator* expansion = tile + kChannels * kTileRows * kStride;  // [WINDOW][kPass + 1][kTaps]
  const Image image = {height, width, vectorized != 0};
  const int slices = ceil_div(groups, groups_in_slice), slice = blockIdx.x % slices;
  const TilePlace place(blockIdx.x / slices, image, TILE_HEIGHT);
  const int py = place.y + thread_row(), px = place.x + thread_column();

  for (int first = 0; first < kFeatures; first += kPass) {
    Accumulator grad_features[kPass][kQuad] = {};
    for (int group = slice * groups_in_slice; group < min(groups, (slice + 1) * groups_in_slice); group++) {
      if (group > slice * groups_in_slice || first) __syncthreads();  // all threads have read the tile and the weights
      FilterGradient grad_filters(tile, place, image, groups, group);
      Expansion::stage<kWindow>(expansion, weight, nullptr, group, first, 0);
#pragma unroll 1
      for (int i = 0; i < kWindow; i++) {
        Accumulator grad_filter[kWindow][kQuad];
        grad_filters.row(grad_filter, grad, x, i);
#pragma unroll
        for (int k = 0; k < kPass; k++) {
          Accumulator taps[kTaps];
          Expansion::read(taps, expansion + i * Expansion::kRow, k);
#pragma unroll
          for (int t = 0; t < kWindow; t++)
#pragma unroll
            for (int j = 0; j < kQuad; j++) grad_features[k][j] += taps[t] * grad_filter[t][j];
        }
      }
    }
    const long long z_plane = (long long)place.batch * kFeatures + first;
#pragma unroll
    for (int k = 0; k < kPass; k++) {
      if (first + k >= kFeatures) continue;
      if (grad_z_slices)
        store_quad(grad_z_slices + ((long long)slice * batch * kFeatures + z_plane + k) * image.pixels(), image, py, px,
                   grad_features[k]);
      else
        store_quad(grad_z + (z_plane + k) * image.pixels(), image, py, px, grad_features[k]);
    }
  }
}

// grad_z[i] = sum over slices of grad_z_slices[slice][i].
extern "C" __global__ void sum_grad_z(const Accumulator* __restrict__ grad_z_slices, Scalar* __restrict__ grad_z,
                                      int slices, int planes, int height, int width) {
  const long long count = (long long)planes * height * width;
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  Accumulator sum = 0;
  for (int slice = 0; slice < slices; slice++) sum += grad_z_slices[slice * count + i];
  narrow(sum, grad_z[i]);
}
