// Gradients of the fused dynamic depth-wise convolution. Filters are formed again, row by row. Filters and their
// gradients exist for one row of one group at a time.

#include "dynamic_conv.h"
#include "gemm.h"
#include "image.h"
#include "parallel.h"
#include "partial_sums.h"

using namespace dlgsanet;

namespace {

struct Scratch {
    RowRing x, grad, grad_x;
    Rows z, grad_z, z_by_pixel;  // z_by_pixel [columns, D + 1]; the last value of a pixel is 1, for the bias
    RowRing filters;
    Rows grad_filters;  // [K * K, columns] of one group

    Scratch(Arena& arena, const FilterMaker& make, Index channels, Index width)
        : x(arena, channels, width, make.window_size, make.window_size / 2),
          grad(arena, channels, width, 1, make.window_size / 2),
          grad_x(arena, channels, width, make.window_size, make.window_size / 2),
          z(arena.rows(make.inputs, width)),
          grad_z(arena.rows(make.inputs, width)),
          z_by_pixel(arena.rows(round_up(width, lanes), make.inputs + 1)),
          filters(arena, make.taps(), width, 1, make.window_size / 2),
          grad_filters(arena.rows(make.taps(), width)) {}
};

// grad_filters[tap] = (or +=, if `add`) the sum of grad * x at the tap over `count` channels from `first`, for row y.
template <int Channels>
void correlate(const Scratch& s, Index first, Index count, bool add, Index window_size, Index y, Index columns) {
    const Index r = window_size / 2;
    const Rows grad = s.grad[0];
    for (; count >= Channels; first += Channels, count -= Channels, add = true)
        for (Index q = 0; q < columns; q += lanes) {
            vec here[Channels];
            for (int c = 0; c < Channels; c++) here[c] = load(grad.row(first + c) + q);
            for (Index i = 0; i < window_size; i++) {
                const Rows x = s.x[y + i - r];
                for (Index j = 0; j < window_size; j++) {
                    float* out = s.grad_filters.row(i * window_size + j) + q;
                    vec sum = add ? load(out) : vec{};
                    for (int c = 0; c < Channels; c++) sum += here[c] * load(x.row(first + c) + q + j - r);
                    store(out, sum);
                }
            }
        }
    if constexpr (Channels > 1)
        if (count) correlate<Channels - 1>(s, first, count, add, window_size, y, columns);
}

// Add the contribution of row y to the gradient of row y + i - r of x; i is the row of the window.
template <int Channels>
void spread(const Scratch& s, Index first, Index count, Index window_size, Index y, Index i, Index columns) {
    const Index r = window_size / 2;
    const Rows grad = s.grad[0], filters = s.filters[0].below(i * window_size), out = s.grad_x[y + i - r];
    for (; count >= Channels; first += Channels, count -= Channels)
        for (Index q = 0; q < columns; q += lanes) {
            vec sum[Channels];
            for (int c = 0; c < Channels; c++) sum[c] = load(out.row(first + c) + q);
            for (Index j = 0; j < window_size; j++) {
                const vec filter = load(filters.row(j) + q + r - j);
                for (int c = 0; c < Channels; c++) sum[c] += filter * load(grad.row(first + c) + q + r - j);
            }
            for (int c = 0; c < Channels; c++) store(out.row(first + c) + q, sum[c]);
        }
    if constexpr (Channels > 1)
        if (count) spread<Channels - 1>(s, first, count, window_size, y, i, columns);
}

struct Task {
    const Shape &shape, &z_shape;
    const FilterMaker& make;
    const float *x, *z, *grad, *weight_transposed;  // [G, D, K * K]
    float *grad_x, *grad_z;
    Rows grad_weight;  // [G * K * K, D + 1], the part of this strip
    Index image, top, bottom;

    Index r() const { return make.window_size / 2; }
    Strip strip(const Shape& shape, Index y) const { return {shape, image, y, 0, shape.width}; }

    void run(const Scratch& s) const {
        const Index height = shape.height, first = std::max<Index>(0, top - r());
        for (Index y = first - r(); y < first + r(); y++) read_x(y, s);
        for (Index y = first; y < bottom + r(); y++) {
            read_x(y + r(), s);
            s.grad_x.clear(y + r());
            if (y == first)
                for (Index above = y - r(); above < y + r(); above++) s.grad_x.clear(above);
            if (y < height) differentiate(y, s);
            const Index done = y - r();
            if (done >= top && done < bottom) strip(shape, done).write(s.grad_x[done], grad_x);
        }
    }

    void read_x(Index y, const Scratch& s) const {
        if (y < 0 || y >= shape.height)
            s.x.clear(y);
        else
            strip(shape, y).read(x, s.x[y]);
    }

    void differentiate(Index y, const Scratch& s) const {
        const Index width = shape.width, share = shape.channels / make.groups, taps = make.taps();
        const bool inside = y >= top && y < bottom;
        strip(z_shape, y).read(z, s.z);
        strip(shape, y).read(grad, s.grad[0]);
        if (inside) {
            transpose(s.z, make.inputs, width, s.z_by_pixel);
            for (Index x = 0; x < width; x++) s.z_by_pixel.row(x)[make.inputs] = 1.f;
        }
        for (Index group = 0; group < make.groups; group++) {
            const Weights form(make.weight_of(group), taps, make.inputs, make.bias_of(group));
            gemm<Start::bias>(form, s.z, s.filters[0], width);
            for (Index i = 0; i < make.window_size; i++)
                if (y + i - r() >= top && y + i - r() < bottom)
                    spread<6>(s, group * share, share, make.window_size, y, i, width);
            if (!inside) continue;
            correlate<6>(s, group * share, share, false, make.window_size, y, width);
            const Weights back(weight_transposed + group * taps * make.inputs, make.inputs, taps);
            if (group == 0)
                gemm<Start::zero>(back, s.grad_filters, s.grad_z, width);
            else
                gemm<Start::accumulate>(back, s.grad_filters, s.grad_z, width);
            gemm<Start::accumulate>(Weights(s.grad_filters, taps, width), s.z_by_pixel, grad_weight.below(group * taps),
                                    make.inputs + 1);
        }
        if (inside) strip(z_shape, y).write(s.grad_z, grad_z);
    }
};

}  // namespace

// Writes grad_x, grad_z and `parts`, which must be zero on entry: for each strip [G * K * K, D + 1 rounded up to
// column_step], the gradients of weight and, as the last column, of bias. The part of the first strip receives the sums
// over all strips.
DLGSANET_API bool dlgsanet_fused_dynamic_depthwise_conv_backward(
    const float* grad, const float* x, const float* z, const float* weight, const float* bias,
    const float* weight_transposed, float* grad_x, float* grad_z, float* parts, Index batch, Index channels,
    Index inputs, Index groups, Index window_size, Index height, Index width, int threads) {
    const Shape shape{batch, channels, height, width}, z_shape{batch, inputs, height, width};
    const FilterMaker maker{weight, bias, groups, window_size, inputs};
    const Strips strips{batch, height};
    const Index pitch = round_up(inputs + 1, column_step), floats = groups * maker.taps() * pitch;
    auto make = [&](Arena& arena) { return Scratch(arena, maker, channels, width); };

    const bool done = parallel(threads, strips.count(), make, [&](Index task, const Scratch& s) {
        Task{shape, z_shape, maker, x, z, grad, weight_transposed, grad_x, grad_z, Rows{parts + task * floats, pitch},
             strips.image(task), strips.top(task), strips.bottom(task)}
            .run(s);
    });
    sum_up(parts, strips.count(), floats);
    return done;
}
