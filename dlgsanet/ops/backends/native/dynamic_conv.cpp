// The fused dynamic depth-wise convolution outside a layer: for training, and for callers of the operator.

#include "dynamic_conv.h"
#include "image.h"
#include "parallel.h"

using namespace dlgsanet;

namespace {

struct Scratch {
    RowRing source;
    Rows z[filtered_together], out[filtered_together];
    Filters filters;

    Scratch(Arena& arena, const FilterMaker& make, Index channels, Index width)
        : source(arena, channels, width, make.window_size + filtered_together - 1, make.window_size / 2),
          filters(arena, make) {
        for (int n = 0; n < filtered_together; n++) {
            z[n] = arena.rows(make.inputs, width + lanes);
            out[n] = arena.rows(channels, width + lanes);
        }
    }
};

}  // namespace

DLGSANET_API bool dlgsanet_fused_dynamic_depthwise_conv(const float* x, const float* z, const float* weight,
                                                      const float* bias, float* out, Index batch, Index channels,
                                                      Index inputs, Index groups, Index window_size, Index height,
                                                      Index width, int threads) {
    const Shape shape{batch, channels, height, width}, z_shape{batch, inputs, height, width};
    const FilterMaker maker{weight, bias, groups, window_size, inputs};
    const Tiling tiles(shape, (window_size + 2) * channels + inputs, window_size / 2);
    const Index r = window_size / 2;
    auto make = [&](Arena& arena) { return Scratch(arena, maker, channels, tiles.width()); };

    return parallel(threads, tiles.count(), make, [&](Index task, bool follows, const Scratch& s) {
        const Tile tile = tiles[task];
        const Index left = std::max<Index>(0, tile.left - r), right = std::min(width, tile.right + r);
        auto read = [&](Index y) {
            if (y < 0 || y >= height) return s.source.clear(y);
            Strip{shape, tile.image, y, left, right}.read(x, s.source[y].at(left - tile.left));
            s.source.clear_around(y, left - tile.left, right - tile.left);
        };
        for (Index y = tile.first_row(r, follows); y < tile.top + r; y++) read(y);
        for (Index y = tile.top; y < tile.bottom; y += filtered_together) {
            const Index rows = std::min<Index>(filtered_together, tile.bottom - y);
            for (Index n = 0; n < rows; n++) {
                read(y + n + r);
                z_shape.strip(y + n, tile, 0).read(z, s.z[n]);
            }
            dynamic_conv_rows(maker, channels, s.filters, rows, s.z, s.source, y, s.out, tile.columns());
            for (Index n = 0; n < rows; n++)
                shape.strip(y + n, tile, 0).write(s.out[n], out);
        }
    });
}
