// The gated depth-wise feed-forward network (Restormer, section 3.2): x + proj_out(gelu(a) * b) with
// a, b = depthwise_3x3(proj_in(norm(x))). Only three rows of the hidden feature of a tile exist at a time.

#include "depthwise.h"
#include "gelu.h"
#include "normed_projection.h"
#include "parallel.h"

using namespace dlgsanet;

namespace {

struct Scratch {
    Rows normed, gated, output;
    RowRing hidden;

    Scratch(Arena& arena, Index channels, Index half, Index width)
        : normed(arena.rows(channels, width + 2)),
          gated(arena.rows(half, width)),
          output(arena.rows(channels, width)),
          hidden(arena, 2 * half, width, 3, 1) {}
};

// gated[c] = gelu(a[c]) * b[c] for row y.
void gate(const RowRing& hidden, Index y, const float* depthwise, Rows gated, Index columns) {
    const Index half = hidden.channels / 2;
    const Rows above = hidden[y - 1], here = hidden[y], below = hidden[y + 1];
    for (Index c = 0; c < half; c++) {
        const Index d = c + half;
        for (Index x = 0; x < columns; x += lanes) {
            const vec a = depthwise_3x3(above.row(c) + x, here.row(c) + x, below.row(c) + x, depthwise + 9 * c);
            const vec b = depthwise_3x3(above.row(d) + x, here.row(d) + x, below.row(d) + x, depthwise + 9 * d);
            store(gated.row(c) + x, gelu(a) * b);
        }
    }
}

}  // namespace

DLGSANET_API bool dlgsanet_gated_feed_forward(const float* x, const float* norm_weight, const float* norm_bias,
                                            const float* proj_in, const float* depthwise, const float* proj_out,
                                            float* out, Index batch, Index channels, Index half, Index height,
                                            Index width, int threads) {
    const Shape shape{batch, channels, height, width};
    const Tiling tiles(shape, 7 * half + 2 * channels, threads);
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj_in, 2 * half, channels}};
    const Weights leave(proj_out, channels, half);
    auto make = [&](Arena& arena) { return Scratch(arena, channels, half, tiles.width()); };

    return parallel(threads, tiles.count(), make, [&](Index task, const Scratch& s) {
        const Tile tile = tiles[task];
        for (Index y = tile.top - 1; y <= tile.bottom; y++) {
            enter.make_row(y, tile, 1, s.normed, s.hidden);
            if (y <= tile.top) continue;
            gate(s.hidden, y - 1, depthwise, s.gated, tile.columns());
            gemm<Start::zero>(leave, s.gated, s.output, tile.columns());
            Strip{shape, tile.image, y - 1, tile.left, tile.right}.write_sum(s.output, x, out);
        }
    });
}
