// Multi-head dynamic local self-attention (DLGSANet, section 3.2), from the normalisation to the residual connection:
// y = proj_in(norm(x)); z = depthwise_KxK(squeeze(y)); x + proj_out(dynamic convolution of y, filters formed from z).
// Only the window's rows of y and squeeze(y) exist at a time.

#include "depthwise.h"
#include "dynamic_conv.h"
#include "normed_projection.h"
#include "parallel.h"

using namespace dlgsanet;

namespace {

struct Scratch {
    Rows normed, filtered, output;
    RowRing projected, squeezed;
    RunningDepthwise z;

    Scratch(Arena& arena, const FilterMaker& maker, Index channels, Index width)
        : normed(arena.rows(channels, width + 2 * maker.window_size)),
          filtered(arena.rows(channels, width)),
          output(arena.rows(channels, width)),
          projected(arena, channels, width, maker.window_size, maker.window_size / 2),
          squeezed(arena, maker.inputs, width, 1, maker.window_size / 2),
          z(arena, maker.inputs, width, maker.window_size) {}
};

}  // namespace

DLGSANET_API bool dlgsanet_dynamic_local_attention(
    const float* x, const float* norm_weight, const float* norm_bias, const float* proj_in,
    const float* squeeze_weight, const float* squeeze_bias, const float* spatial_weight, const float* spatial_bias,
    const float* filter_weight, const float* filter_bias, const float* proj_out, float* out, Index batch,
    Index channels, Index squeezed, Index groups, Index window_size, Index height, Index width, int threads) {
    const Shape shape{batch, channels, height, width};
    const FilterMaker maker{filter_weight, filter_bias, groups, window_size, squeezed};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj_in, channels, channels}};
    const Weights squeeze(squeeze_weight, squeezed, channels, squeeze_bias), leave(proj_out, channels, channels);
    const Tiling tiles(shape, (window_size + 3) * channels + (window_size + 1) * squeezed, threads);
    const Index r = window_size / 2;
    auto make = [&](Arena& arena) { return Scratch(arena, maker, channels, tiles.width()); };

    return parallel(threads, tiles.count(), make, [&](Index task, const Scratch& s) {
        const Tile tile = tiles[task];
        const Index from = std::max(-r, -tile.left), to = std::min(width - tile.left, tile.columns() + r);
        for (Index y = tile.top - r; y < tile.bottom + r; y++) {
            enter.make_row(y, tile, r, s.normed, s.projected);
            if (y < 0 || y >= height) {
                s.z.begin(y + r, spatial_bias, tile.columns());
            } else {
                gemm<Start::bias>(squeeze, s.projected[y].at(from), s.squeezed[0].at(from), to - from);
                s.squeezed.clear_around(0, from, to);
                s.z.add(y, s.squeezed[0], spatial_weight, spatial_bias, tile.columns());
            }
            if (y < tile.top + r) continue;
            const Strip row{shape, tile.image, y - r, tile.left, tile.right};
            dynamic_conv_row(maker, channels, s.z[row.y], s.projected, row.y, s.filtered, tile.columns());
            gemm<Start::zero>(leave, s.filtered, s.output, tile.columns());
            row.write_sum(s.output, x, out);
        }
    });
}
