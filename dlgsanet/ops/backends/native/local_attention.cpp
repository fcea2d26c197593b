// Multi-head dynamic local self-attention (DLGSANet, section 3.2), from the normalisation to the residual connection:
// x + proj_out(dynamic convolution of y with filters formed from z); y and z as in local_features.h. Only the rows of y
// in the window exist at a time. For training it keeps y, z and the result of the dynamic convolution.

#include "dynamic_conv.h"
#include "local_features.h"

using namespace dlgsanet;

DLGSANET_API bool dlgsanet_dynamic_local_attention(
    const float* x, const float* norm_weight, const float* norm_bias, const float* proj_in,
    const float* squeeze_weight, const float* squeeze_bias, const float* spatial_weight, const float* spatial_bias,
    const float* filter_weight, const float* filter_bias, const float* proj_out, float* y, float* z, float* filtered,
    float* out, Index batch, Index channels, Index squeezed, Index groups, Index window_size, Index height, Index width,
    Index kept, int threads) {
    struct Scratch {
        LocalFeatureRows features;
        Filters filters;
        Rows filtered[filtered_together], output;
    };
    const Shape shape{batch, channels, height, width}, z_shape{batch, squeezed, height, width};
    const FilterMaker maker{filter_weight, filter_bias, groups, window_size, squeezed};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj_in, channels, channels}};
    const LocalFeatures layer{
        enter, {squeeze_weight, squeezed, channels, squeeze_bias}, spatial_weight, spatial_bias, window_size};
    const Weights leave(proj_out, channels, channels);
    const Tiling tiles(shape, (window_size + 3) * channels + (window_size + 1) * squeezed, window_size / 2);
    auto make = [&](Arena& arena) {
        Scratch s{LocalFeatureRows(arena, layer, tiles.width(), filtered_together), Filters(arena, maker), {},
                  arena.rows(channels, tiles.width())};
        for (Rows& row : s.filtered) row = arena.rows(channels, tiles.width());
        return s;
    };

    return parallel(threads, tiles.count(), make, [&](Index task, bool follows, const Scratch& s) {
        const Tile tile = tiles[task];
        const Index r = layer.r();
        for (Index row = tile.first_row(r, follows); row < tile.top + r; row++) s.features.make(row, tile);
        for (Index top = tile.top; top < tile.bottom; top += filtered_together) {
            const Index rows = std::min<Index>(filtered_together, tile.bottom - top);
            Ahead ahead(lines_per_block((kept ? 4 : streams ? 1 : 2) * channels / 2, channels));
            for (Index n = 0; n < rows; n++) {
                shape.strip(top + n + r + filtered_together, tile, r).expect(x, ahead);
                shape.strip(top + n, tile, 0).expect_past(out, ahead);
                if (!kept) continue;
                shape.strip(top + n, tile, 0).expect(y, ahead);
                shape.strip(top + n, tile, 0).expect(filtered, ahead);
            }
            Rows features[filtered_together];
            for (Index n = 0; n < rows; n++) {
                s.features.make(top + n + r, tile, &ahead);
                features[n] = s.features.z[top + n];
            }
            dynamic_conv_rows(maker, channels, s.filters, rows, features, s.features.projected, top, s.filtered,
                              tile.columns());
            for (Index n = 0; n < rows; n++) {
                const Strip strip = shape.strip(top + n, tile, 0);
                if (kept) {
                    strip.write(s.features.projected[top + n], y);
                    z_shape.strip(top + n, tile, 0).write(features[n], z);
                    strip.write(s.filtered[n], filtered);
                }
                gemm<Start::zero>(leave, s.filtered[n], s.output, tile.columns(), &ahead);
                strip.write_past(s.output, x, out);
            }
        }
    });
}
