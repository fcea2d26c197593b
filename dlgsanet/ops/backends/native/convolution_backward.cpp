// The gradient of a 3x3 convolution with respect to its weights; see minimal_filtering.h. The gradient with respect to
// the image is a convolution itself.

#include "depthwise.h"
#include "gemm.h"
#include "minimal_filtering.h"
#include "parallel.h"
#include "partial_sums.h"

using namespace dlgsanet;

namespace {

constexpr int together = FilteredRows::together, products = FilteredRows::products, taps = FilteredRows::taps;
constexpr float root = FilteredRows::root;

struct Scratch {
    FilteredRows rows;
    Rows grad[products];    // [O, columns], of the products
    Rows sources_by_pixel;  // [columns + 2, C]
    float* grad_bias;       // one register for each output

    Scratch(Arena& arena, Index channels, Index outputs, Index width)
        : rows(arena, channels, width),
          sources_by_pixel(arena.rows(round_up(width + 2, lanes), channels)),
          grad_bias(arena.take(outputs * lanes)) {
        for (Rows& row : grad) row = arena.rows(outputs, width);
    }

    // Where row n of the gradient is before the transformation: the first and the last product have its first and last.
    Rows grad_row(int n) const { return grad[n + 1 < together ? n : products - 1]; }

    void transform_gradient(Index outputs, Index columns) const {
        for (Index o = 0; o < outputs; o++) {
            const Addresses<products> at(grad, o);
            vec sum = load(grad_bias + o * lanes);  // columns past the last one are zero
            for (Index x = 0; x < columns; x += lanes) {
                const vec first = load(at.row[0] + x), second = load(at.row[1] + x), third = load(at.row[2] + x),
                          fourth = load(at.row[5] + x);
                const vec even = first + 2 * third, odd = root * (second + 2 * fourth);
                const vec other_even = first + 0.5f * third, other_odd = root / 2 * (second + 0.5f * fourth);
                sum += first + second + third + fourth;
                const vec values[] = {first,                  even + odd,             even - odd,
                                      other_even + other_odd, other_even - other_odd, fourth};
                at.store_all(x, values);
            }
            store(grad_bias + o * lanes, sum);
        }
    }

    // Add the gradients of the transformed filters, [6, 3, O, C].
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

DLGSANET_API bool dlgsanet_convolution_backward(const float* grad, const float* x, float* grad_weight, float* grad_bias,
                                                Index batch, Index channels, Index outputs, Index height, Index width,
                                                int threads) {
    const Shape shape{batch, channels, height, width}, out_shape{batch, outputs, height, width};
    const Strips strips{batch, height};
    // The gradients of the transformed filters, then that of the bias.
    const Index pitch = round_up(channels, column_step), bias_at = products * taps * outputs * pitch;
    const PartialSums sums(strips.count(), bias_at + outputs);
    auto make = [&](Arena& arena) { return Scratch(arena, channels, outputs, width); };

    const bool done = sums && parallel(threads, strips.count(), make, [&](Index task, bool, const Scratch& s) {
        const Tile tile{strips.image(task), strips.top(task), strips.bottom(task), 0, width};
        float* part = sums.begin(task);
        std::memset(s.grad_bias, 0, sizeof(float) * outputs * lanes);
        for (Index y = tile.top - 1; y <= tile.top; y++) s.rows.read(shape, x, tile, y);
        for (Index y = tile.top; y < tile.bottom; y += together) {
            for (Index n = 0; n < together; n++) s.rows.read(shape, x, tile, y + n + 1);
            s.rows.transform(y, width);
            for (int n = 0; n < together; n++) {
                const Rows row = s.grad_row(n);
                if (y + n < tile.bottom)
                    out_shape.strip(y + n, tile, 0).read(grad, row);
                else
                    for (Index o = 0; o < outputs; o++) std::fill(row.row(o), row.row(o) + width, 0.f);
            }
            s.transform_gradient(outputs, width);
            s.multiply(outputs, width, {part, pitch});
        }
        for (Index o = 0; o < outputs; o++) part[bias_at + o] = sum_lanes(s.grad_bias + o * lanes);
    });
    if (!done) return false;
    const float* total = sums.total();
    std::copy(total + bias_at, total + bias_at + outputs, grad_bias);
    // Of filters with the rows g, h, i the sums are the gradients of g, (g +- r h + 2 i) / 6, (2 g +- r h + i) / 3, i.
    for (Index o = 0; o < outputs; o++)
        for (Index c = 0; c < channels; c++, grad_weight += 9)
            for (int t = 0; t < taps; t++) {
                auto of = [&](int n) { return total[((n * taps + t) * outputs + o) * pitch + c]; };
                const float even = of(1) + of(2), odd = of(1) - of(2);
                const float other_even = of(3) + of(4), other_odd = of(3) - of(4);
                grad_weight[t] = of(0) + even / 6 + other_even / 1.5f;
                grad_weight[taps + t] = (odd / 6 + other_odd / 3) * root;
                grad_weight[2 * taps + t] = (even + other_even) / 3 + of(5);
            }
    return true;
}
