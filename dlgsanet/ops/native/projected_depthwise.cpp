// depthwise_3x3(proj(norm(x))) by itself and its gradients, for the training of channel attention.

#include "projected_depthwise_backward.h"

using namespace dlgsanet;

DLGSANET_API bool dlgsanet_projected_depthwise(const float* x, const float* norm_weight, const float* norm_bias,
                                               const float* proj, const float* depthwise, float* out, Index batch,
                                               Index channels, Index hidden, Index height, Index width, int threads) {
    struct Scratch {
        Rows normed, convolved;
        RowRing projected;
    };
    const Shape shape{batch, channels, height, width}, out_shape{batch, hidden, height, width};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj, hidden, channels}};
    const Tiling tiles(shape, 4 * hidden + channels, threads);
    auto make = [&](Arena& arena) {
        return Scratch{arena.rows(channels, tiles.width() + 2), arena.rows(hidden, tiles.width()),
                       RowRing(arena, hidden, tiles.width(), 3, 1)};
    };

    return parallel(threads, tiles.count(), make, [&](Index task, const Scratch& s) {
        const Tile tile = tiles[task];
        for (Index y = tile.top - 1; y <= tile.bottom; y++) {
            enter.make_row(y, tile, 1, s.normed, s.projected);
            if (y <= tile.top) continue;
            const Rows above = s.projected[y - 2], here = s.projected[y - 1], below = s.projected[y];
            for (Index c = 0; c < hidden; c++)
                for (Index q = 0; q < tile.columns(); q += lanes)
                    store(s.convolved.row(c) + q,
                          depthwise_3x3(above.row(c) + q, here.row(c) + q, below.row(c) + q, depthwise + 9 * c));
            Strip{out_shape, tile.image, y - 1, tile.left, tile.right}.write(s.convolved, out);
        }
    });
}

// grad_x, and `parts`, zero on entry: what ProjectedDepthwise hands in for each strip. The first strip's place gets the
// sums over all of them.
DLGSANET_API bool dlgsanet_projected_depthwise_backward(const float* grad, const float* x, const float* norm_weight,
                                                        const float* norm_bias, const float* proj,
                                                        const float* depthwise, const float* proj_transposed,
                                                        const float* depthwise_flipped, float* grad_x, float* parts,
                                                        Index batch, Index channels, Index hidden, Index height,
                                                        Index width, int threads) {
    const Shape shape{batch, channels, height, width}, grad_shape{batch, hidden, height, width};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj, hidden, channels}};
    const ProjectedDepthwise layer{enter, depthwise, depthwise_flipped, proj_transposed};
    const Strips strips{batch, height};
    auto make = [&](Arena& arena) { return ProjectedDepthwiseBackward(arena, layer); };

    const bool done = parallel(threads, strips.count(), make, [&](Index task, const ProjectedDepthwiseBackward& back) {
        const Tile tile{strips.image(task), strips.top(task), strips.bottom(task), 0, width};
        auto gradient = [&](Index y, Rows out) { Strip{grad_shape, tile.image, y, 0, width}.read(grad, out); };
        auto write = [&](Index y, Rows row) { Strip{shape, tile.image, y, 0, width}.write(row, grad_x); };
        back.run(tile, parts + task * layer.floats(), gradient, write);
    });
    sum_up(parts, strips.count(), layer.floats());
    return done;
}
