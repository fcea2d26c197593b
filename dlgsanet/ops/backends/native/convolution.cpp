// 3x3 convolutions: see minimal_filtering.h.

#include "depthwise.h"
#include "gemm.h"
#include "minimal_filtering.h"
#include "parallel.h"

using namespace dlgsanet;

namespace {

constexpr int together = FilteredRows::together, products = FilteredRows::products, taps = FilteredRows::taps;
constexpr float root = FilteredRows::root;

struct Scratch {
    FilteredRows rows;
    Rows filters[products];  // [O, C, 3], the second factors of the products
    Rows out[together];

    Scratch(Arena& arena, const float* weight, Index channels, Index outputs, Index width)
        : rows(arena, channels, width) {
        for (Rows& filter : filters) filter = arena.rows(outputs, taps * channels);
        for (Rows& row : out) row = arena.rows(outputs, width);
        if (out[0].start) transform_filters(weight, channels, outputs);
    }

    // weight [O, C, 3, 3].
    void transform_filters(const float* weight, Index channels, Index outputs) const {
        for (Index o = 0; o < outputs; o++)
            for (Index n = 0; n < taps * channels; n++) {
                const float* filter = weight + 9 * (o * channels + n / taps) + n % taps;
                const float above = filter[0], at = filter[3], below = filter[6];
                filters[0].row(o)[n] = above;
                filters[1].row(o)[n] = (above + 2 * below + root * at) / 6;
                filters[2].row(o)[n] = (above + 2 * below - root * at) / 6;
                filters[3].row(o)[n] = (2 * above + below + root * at) / 3;
                filters[4].row(o)[n] = (2 * above + below - root * at) / 3;
                filters[5].row(o)[n] = below;
            }
    }

    // Four rows of the result from the sources.
    void convolve(const float* bias, Index outputs, Index columns, Ahead* ahead) const {
        auto filter = [&](int n) { return Weights(filters[n], outputs, rows.image.channels); };
#pragma GCC unroll 4
        for (int n = 1; n < 5; n++)
            gemm<Start::zero, taps>(filter(n), rows.sources[n], out[n - 1], columns, ahead);
        for (Index o = 0; o < outputs; o++) {
            const Addresses<together> at(out, o);
            const vec constant = fill(bias[o]);
            for (Index x = 0; x < columns; x += lanes) {
                const vec p1 = load(at.row[0] + x), p2 = load(at.row[1] + x), p3 = load(at.row[2] + x),
                          p4 = load(at.row[3] + x);
                const vec even = p1 + p2, odd = root * (p1 - p2);
                const vec other_even = p3 + p4, other_odd = root / 4 * (p3 - p4);
                const vec values[] = {constant + even + other_even, constant + odd + 2 * other_odd,
                                      constant + 2 * even + 0.5f * other_even, constant + 2 * odd + other_odd};
                at.store_all(x, values);
            }
        }
        gemm<Start::accumulate, taps>(filter(0), rows.sources[0], out[0], columns, ahead);
        gemm<Start::accumulate, taps>(filter(5), rows.sources[5], out[3], columns, ahead);
    }
};

// Write row y of a tile, `from` [factor^2 * C, columns], after a pixel shuffle: as `factor` rows of out [B, C, factor *
// H, factor * W], which has this shape; added to a tensor `to` of this shape if it is not null.
void write_shuffled(const Shape& shape, const Tile& tile, Index y, Rows from, Index factor, const float* to,
                    float* out) {
    for (Index o = 0; o < shape.channels * factor * factor; o++) {
        const Index channel = o / (factor * factor), down = o / factor % factor, across = o % factor;
        const Index start = (tile.image * shape.channels + channel) * shape.pixels() +
                            (y * factor + down) * shape.width + tile.left * factor + across;
        const float* values = from.row(o);
        for (Index x = 0; x < tile.columns(); x++) {
            const Index at = start + x * factor;
            out[at] = values[x] + (to ? to[at] : 0.f);
        }
    }
}

}  // namespace

// out = pixel_shuffle(the convolution of x, factor); with `add`, out = `to` + it, where `to` may be `out`.
DLGSANET_API bool dlgsanet_convolution(const float* x, const float* weight, const float* bias, const float* to,
                                       float* out, Index batch, Index channels, Index outputs, Index factor,
                                       Index height, Index width, Index add, int threads) {
    const Shape shape{batch, channels, height, width};
    const Shape out_shape{batch, outputs / (factor * factor), height * factor, width * factor};
    const Tiling tiles(shape, 12 * channels + 4 * outputs, 1);
    auto make = [&](Arena& arena) { return Scratch(arena, weight, channels, outputs, tiles.width()); };

    return parallel(threads, tiles.count(), make, [&](Index task, bool follows, const Scratch& s) {
        const Tile tile = tiles[task];
        for (Index y = tile.first_row(1, follows); y <= tile.top; y++) s.rows.read(shape, x, tile, y);
        for (Index y = tile.top; y < tile.bottom; y += together) {
            Ahead ahead(lines_per_block((2 * (channels + (add ? 2 : 1) * outputs) + 2) / 3, outputs));
            for (Index n = 0; n < together; n++) {
                s.rows.read(shape, x, tile, y + n + 1);
                shape.strip(y + n + 1 + together, tile, 1).expect(x, ahead);
                if (factor > 1) continue;
                out_shape.strip(y + n, tile, 0).expect(out, ahead);
                if (add && to != out) out_shape.strip(y + n, tile, 0).expect(to, ahead);
            }
            s.rows.transform(y, tile.columns());
            s.convolve(bias, outputs, tile.columns(), &ahead);
            for (Index n = 0; n < together && y + n < tile.bottom; n++) {
                const Strip strip = out_shape.strip(y + n, tile, 0);
                if (factor > 1)
                    write_shuffled(out_shape, tile, y + n, s.out[n], factor, add ? to : nullptr, out);
                else if (add)
                    strip.write_sum(s.out[n], to, out);
                else
                    strip.write(s.out[n], out);
            }
        }
    });
}
