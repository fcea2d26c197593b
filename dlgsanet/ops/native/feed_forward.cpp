// The gated depth-wise feed-forward network (Restormer, section 3.2): x + proj_out(gelu(a) * b) with
// a, b = depthwise_3x3(proj_in(norm(x))). Of the hidden feature only three rows of a tile exist at a time.

#include "depthwise.h"
#include "gelu.h"
#include "gemm.h"
#include "image.h"
#include "layer_norm.h"
#include "parallel.h"

using namespace dlgsanet;

namespace {

struct Scratch {
    Rows input, gated, output;
    RowRing hidden;

    Scratch(Arena& arena, Index channels, Index half, Index width)
        : input(arena.rows(channels, width + 2)),
          gated(arena.rows(half, width)),
          output(arena.rows(channels, width)),
          hidden(arena, 2 * half, width, 3, 1) {}
};

// gated[c] = gelu(a[c]) * b[c] of row y.
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
    const Weights enter(proj_in, 2 * half, channels), leave(proj_out, channels, half);
    auto make = [&](Arena& arena) { return Scratch(arena, channels, half, tiles.width()); };

    return parallel(threads, tiles.count(), make, [&](Index task, const Scratch& s) {
        const Tile tile = tiles[task];
        const Index left = std::max<Index>(0, tile.left - 1), right = std::min(width, tile.right + 1);
        for (Index y = tile.top - 1; y <= tile.bottom; y++) {
            if (y < 0 || y >= height) {
                s.hidden.clear(y);
            } else {
                Strip{shape, tile.image, y, left, right}.read(x, s.input);
                layer_norm(s.input, channels, right - left, norm_weight, norm_bias);
                gemm<Start::zero>(enter, s.input, s.hidden[y].at(left - tile.left), right - left);
                s.hidden.clear_around(y, left - tile.left, right - tile.left);
            }
            if (y <= tile.top) continue;
            gate(s.hidden, y - 1, depthwise, s.gated, tile.columns());
            gemm<Start::zero>(leave, s.gated, s.output, tile.columns());
            Strip{shape, tile.image, y - 1, tile.left, tile.right}.write_sum(s.output, x, out);
        }
    });
}
