// 3x3 convolutions: see minimal_filtering.h.

#include "gemm.h"
#include "minimal_filtering.h"
#include "parallel.h"

using namespace dlgsanet;

namespace {

constexpr int products = FilteredRows::products, taps = FilteredRows::taps;

struct Scratch {
    FilteredRows rows;
    Rows filters[products];  // [O, C, 3], the second factors of the products
    Rows out[2], difference;

    Scratch(Arena& arena, const float* weight, Index channels, Index outputs, Index width)
        : rows(arena, channels, width), difference(arena.rows(outputs, width)) {
        for (Rows& filter : filters) filter = arena.rows(outputs, taps * channels);
        for (Rows& row : out) row = arena.rows(outputs, width);
        if (difference.start) transform_filters(weight, channels, outputs);
    }

    // weight [O, C, 3, 3].
    void transform_filters(const float* weight, Index channels, Index outputs) const {
        for (Index o = 0; o < outputs; o++)
            for (Index n = 0; n < taps * channels; n++) {
                const float* filter = weight + 9 * (o * channels + n / taps) + n % taps;
                const float above = filter[0], at = filter[3], below = filter[6];
                filters[0].row(o)[n] = above;
                filters[1].row(o)[n] = 0.5f * (above + below + at);
                filters[2].row(o)[n] = 0.5f * (above + below - at);
                filters[3].row(o)[n] = -below;
            }
    }

    // Two rows of the result from the sources.
    void convolve(const float* bias, Index outputs, Index columns, Ahead* ahead) const {
        auto filter = [&](int n) { return Weights(filters[n], outputs, rows.image.channels); };
        Weights second = filter(1);
        second.bias = bias;
        gemm<Start::bias, taps>(second, rows.sources[1], out[0], columns, ahead);
        gemm<Start::zero, taps>(filter(2), rows.sources[2], difference, columns, ahead);
        for (Index o = 0; o < outputs; o++)
            for (Index x = 0; x < columns; x += lanes) {
                const vec u = load(out[0].row(o) + x), v = load(difference.row(o) + x);
                store(out[0].row(o) + x, u + v);
                store(out[1].row(o) + x, u - v);
            }
        gemm<Start::accumulate, taps>(filter(0), rows.sources[0], out[0], columns, ahead);
        gemm<Start::accumulate, taps>(filter(3), rows.sources[3], out[1], columns, ahead);
    }
};

// Write row y of a tile, `from` [factor^2 * C, columns], after a pixel shuffle: as `factor` rows of out [B, C, factor *
// H, factor * W], which has this shape.
void write_shuffled(const Shape& shape, const Tile& tile, Index y, Rows from, Index factor, bool add, float* out) {
    for (Index o = 0; o < shape.channels * factor * factor; o++) {
        const Index channel = o / (factor * factor), down = o / factor % factor, across = o % factor;
        float* to = out + (tile.image * shape.channels + channel) * shape.pixels() +
                    (y * factor + down) * shape.width + tile.left * factor + across;
        const float* values = from.row(o);
        for (Index x = 0; x < tile.columns(); x++) to[x * factor] = values[x] + (add ? to[x * factor] : 0.f);
    }
}

}  // namespace

// out = pixel_shuffle(the convolution of x, factor); with `add`, out += it.
DLGSANET_API bool dlgsanet_convolution(const float* x, const float* weight, const float* bias, float* out, Index batch,
                                       Index channels, Index outputs, Index factor, Index height, Index width,
                                       Index add, int threads) {
    const Shape shape{batch, channels, height, width};
    const Shape out_shape{batch, outputs / (factor * factor), height * factor, width * factor};
    const Tiling tiles(shape, 8 * channels + 3 * outputs, 1, threads);
    auto make = [&](Arena& arena) { return Scratch(arena, weight, channels, outputs, tiles.width()); };

    return parallel(threads, tiles.count(), make, [&](Index task, const Scratch& s) {
        const Tile tile = tiles[task];
        for (Index y = tile.top - 1; y <= tile.top; y++) s.rows.read(shape, x, tile, y);
        for (Index y = tile.top; y < tile.bottom; y += 2) {
            Ahead ahead(lines_per_block((channels + outputs + 1) / 2, outputs));
            for (Index n = 0; n < 2; n++) {
                s.rows.read(shape, x, tile, y + n + 1);
                shape.strip(y + n + 3, tile, 1).expect(x, ahead);
                if (factor == 1) out_shape.strip(y + n, tile, 0).expect(out, ahead);
            }
            s.rows.transform(y, tile.columns());
            s.convolve(bias, outputs, tile.columns(), &ahead);
            for (Index n = 0; n < 2 && y + n < tile.bottom; n++) {
                const Strip strip = out_shape.strip(y + n, tile, 0);
                if (factor > 1)
                    write_shuffled(out_shape, tile, y + n, s.out[n], factor, add, out);
                else if (add)
                    strip.write_sum(s.out[n], out, out);
                else
                    strip.write(s.out[n], out);
            }
        }
    });
}
