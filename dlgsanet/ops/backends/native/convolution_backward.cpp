// The gradient of a 3x3 convolution with respect to its weights; see minimal_filtering.h. The gradient with respect to
// the image is a convolution itself.

#include "gemm.h"
#include "minimal_filtering.h"
#include "parallel.h"
#include "partial_sums.h"

using namespace dlgsanet;

namespace {

constexpr int products = FilteredRows::products, taps = FilteredRows::taps;

struct Scratch {
    FilteredRows rows;
    Rows grad[products];                 // [O, columns], of the products; the first and last are rows of grad
    Rows sources_by_pixel;               // [columns + 2, C]
    float* grad_bias;                    // one register for each output

    Scratch(Arena& arena, Index channels, Index outputs, Index width)
        : rows(arena, channels, width),
          sources_by_pixel(arena.rows(round_up(width + 2, lanes), channels)),
          grad_bias(arena.take(outputs * lanes)) {
        for (Rows& row : grad) row = arena.rows(outputs, width);
    }

    void transform_gradient(Index outputs, Index columns) const {
        for (Index o = 0; o < outputs; o++) {
            vec sum = load(grad_bias + o * lanes);  // columns past the last one are zero
            for (Index x = 0; x < columns; x += lanes) {
                const vec first = load(grad[0].row(o) + x), second = load(grad[3].row(o) + x);
                sum += first + second;
                store(grad[1].row(o) + x, first + second);
                store(grad[2].row(o) + x, first - second);
            }
            store(grad_bias + o * lanes, sum);
        }
    }

    // Add the gradients of the transformed filters, [4, 3, O, C].
    void multiply(Index outputs, Index columns, Rows sums) const {
        const Index channels = rows.image.channels;
        for (int n = 0; n < products; n++) {
            transpose(rows.sources[n], channels, columns + 2, sources_by_pixel);
            for (int t = 0; t < taps; t++, sums = sums.below(outputs))
                gemm<Start::accumulate>({grad[n], outputs, columns}, sources_by_pixel.below(t), sums, channels);
        }
    }
};

}  // namespace

// `parts` must be zero on entry. For each strip it receives, with rows padded to column_step, the gradients [4, 3, O,
// C] of e, (e + f + g) / 2, (e - f + g) / 2 and -g at each column of the filters, and the gradient of the bias [O]. The
// part of the first strip receives the sums over all strips.
DLGSANET_API bool dlgsanet_convolution_backward(const float* grad, const float* x, float* parts, Index batch,
                                                Index channels, Index outputs, Index height, Index width, int threads) {
    const Shape shape{batch, channels, height, width}, out_shape{batch, outputs, height, width};
    const Strips strips{batch, height};
    const Index pitch = round_up(channels, column_step), matrices = products * taps * outputs * pitch;
    const Index floats = matrices + outputs;
    auto make = [&](Arena& arena) { return Scratch(arena, channels, outputs, width); };

    const bool done = parallel(threads, strips.count(), make, [&](Index task, const Scratch& s) {
        const Tile tile{strips.image(task), strips.top(task), strips.bottom(task), 0, width};
        std::memset(s.grad_bias, 0, sizeof(float) * outputs * lanes);
        for (Index y = tile.top - 1; y <= tile.top; y++) s.rows.read(shape, x, tile, y);
        for (Index y = tile.top; y < tile.bottom; y += 2) {
            for (Index n = 0; n < 2; n++) s.rows.read(shape, x, tile, y + n + 1);
            s.rows.transform(y, width);
            out_shape.strip(y, tile, 0).read(grad, s.grad[0]);
            if (y + 1 < tile.bottom)
                out_shape.strip(y + 1, tile, 0).read(grad, s.grad[3]);
            else
                for (Index o = 0; o < outputs; o++) std::fill(s.grad[3].row(o), s.grad[3].row(o) + width, 0.f);
            s.transform_gradient(outputs, width);
            s.multiply(outputs, width, {parts + task * floats, pitch});
        }
        for (Index o = 0; o < outputs; o++) parts[task * floats + matrices + o] = sum_lanes(s.grad_bias + o * lanes);
    });
    sum_up(parts, strips.count(), floats);
    return done;
}
