// The fused dynamic depth-wise convolution outside a layer: for training, and for callers of the operator.

#include "dynamic_conv.h"
#include "image.h"
#include "parallel.h"

using namespace dlgsanet;

namespace {

struct Scratch {
    RowRing source;
    Rows z, out;

    Scratch(Arena& arena, const FilterMaker& make, Index channels, Index width)
        : source(arena, channels, width, make.window_size, make.window_size / 2),
          z(arena.rows(make.inputs, width + lanes)),
          out(arena.rows(channels, width + lanes)) {}
};

}  // namespace

DLGSANET_API bool dlgsanet_fused_dynamic_depthwise_conv(const float* x, const float* z, const float* weight,
                                                      const float* bias, float* out, Index batch, Index channels,
                                                      Index inputs, Index groups, Index window_size, Index height,
                                                      Index width, int threads) {
    const Shape shape{batch, channels, height, width}, z_shape{batch, inputs, height, width};
    const FilterMaker maker{weight, bias, groups, window_size, inputs};
    const Tiling tiles(shape, (window_size + 1) * channels + inputs, threads);
    const Index r = window_size / 2;
    auto make = [&](Arena& arena) { return Scratch(arena, maker, channels, tiles.width()); };

    return parallel(threads, tiles.count(), make, [&](Index task, const Scratch& s) {
        const Tile tile = tiles[task];
        const Index left = std::max<Index>(0, tile.left - r), right = std::min(width, tile.right + r);
        for (Index y = tile.top - r; y < tile.bottom + r; y++) {
            if (y < 0 || y >= height) {
                s.source.clear(y);
            } else {
                Strip{shape, tile.image, y, left, right}.read(x, s.source[y].at(left - tile.left));
                s.source.clear_around(y, left - tile.left, right - tile.left);
            }
            if (y < tile.top + r) continue;
            const Strip row{shape, tile.image, y - r, tile.left, tile.right};
            Strip{z_shape, row.image, row.y, row.left, row.right}.read(z, s.z);
            dynamic_conv_row(maker, channels, s.z, s.source, row.y, s.out, tile.columns());
            row.write(s.out, out);
        }
    });
}
