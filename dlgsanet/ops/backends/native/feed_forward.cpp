// The gated depth-wise feed-forward network (Restormer, section 3.2): x + proj_out(gelu(a) * b) with
// a, b = depthwise_3x3(proj_in(norm(x))). Only four rows of the hidden feature of a tile exist at a time.

#include "depthwise.h"
#include "gelu.h"
#include "normed_projection.h"
#include "parallel.h"

using namespace dlgsanet;

namespace {

constexpr int together = 2;  // rows

struct Scratch {
    Rows normed, gated[together], a, output;  // a: one channel
    RowRing hidden;

    Scratch(Arena& arena, Index channels, Index half, Index width)
        : normed(arena.rows(channels, width + 2)),
          a(arena.rows(together, width)),
          output(arena.rows(channels, width)),
          hidden(arena, 2 * half, width, together + 2, 1) {
        for (Rows& row : gated) row = arena.rows(half, width);
    }
};

// gated[n][c] = gelu(a[c]) * b[c] for rows y + n. The rows of one channel of a are kept in `a`.
template <int Down>
void gate(const RowRing& hidden, Index y, const float* depthwise, const Rows* gated, Rows a, Index columns) {
    const Index half = hidden.channels / 2;
    const Neighbours<Down> rows(hidden, y);
    for (Index c = 0; c < half; c++) {
        const Index d = c + half;
        const Addresses<Down> out(gated, c);
        depthwise_3x3(rows, d, 0, columns, depthwise + 9 * d, [=](Index x, const vec* b) { out.store_all(x, b); });
        depthwise_3x3(rows, c, 0, columns, depthwise + 9 * c, [=](Index x, const vec* sums) {
            for (int n = 0; n < Down; n++) store(a.row(n) + x, sums[n]);
        });
        // A loop of its own: there are not enough registers for the constants of both.
        for (Index x = 0; x < columns; x += lanes)
            for (int n = 0; n < Down; n++)
                store(out.row[n] + x, gelu(load(a.row(n) + x)) * load(out.row[n] + x));
    }
}

}  // namespace

// `projected` gets proj_in(norm(x)), as `KeptRows`, of the first `kept` images, all or none.
DLGSANET_API bool dlgsanet_gated_feed_forward(const float* x, const float* norm_weight, const float* norm_bias,
                                            const float* proj_in, const float* depthwise, const float* proj_out,
                                            float* projected, float* out, Index batch, Index channels, Index half,
                                            Index height, Index width, Index kept, int threads) {
    const Shape shape{batch, channels, height, width};
    const KeptRows keep(projected, 2 * half, shape);
    const Tiling tiles(shape, 10 * half + 2 * channels, 1);
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj_in, 2 * half, channels}};
    const Weights leave(proj_out, channels, half);
    auto make = [&](Arena& arena) { return Scratch(arena, channels, half, tiles.width()); };

    return parallel(threads, tiles.count(), make, [&](Index task, bool follows, const Scratch& s) {
        const Tile tile = tiles[task];
        for (Index y = tile.first_row(1, follows); y <= tile.top; y++) enter.make_row(y, tile, 1, s.normed, s.hidden);
        for (Index y = tile.top; y < tile.bottom; y += together) {
            const Index rows = std::min<Index>(together, tile.bottom - y);
            Ahead ahead(lines_per_block((streams ? 1 : 2) * channels, 2 * half));
            for (Index n = 0; n < rows; n++) {
                shape.strip(y + n + 1 + together, tile, 1).expect(x, ahead);
                shape.strip(y + n, tile, 0).expect_past(out, ahead);
            }
            for (Index n = 0; n < rows; n++) enter.make_row(y + n + 1, tile, 1, s.normed, s.hidden, &ahead);
            (rows == 1 ? gate<1> : gate<2>)(s.hidden, y, depthwise, s.gated, s.a, tile.columns());
            for (Index n = 0; n < rows; n++) {
                gemm<Start::zero>(leave, s.gated[n], s.output, tile.columns());
                shape.strip(y + n, tile, 0).write_past(s.output, x, out);
                if (kept) keep.write(s.hidden[y + n], y + n, tile);
            }
        }
    });
}
