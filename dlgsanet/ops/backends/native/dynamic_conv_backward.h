// Gradients of the fused dynamic depth-wise convolution. Filters are formed again, row by row. Filters and their
// gradients exist for one row of one group at a time.
#pragma once

#include "dynamic_conv.h"
#include "gemm.h"
#include "image.h"
#include "parallel.h"
#include "partial_sums.h"

namespace dlgsanet {

constexpr int differentiated_together = 2;  // rows

struct DynamicConvScratch {
    static constexpr int together = differentiated_together;

    RowRing x, grad, grad_x, filters;
    // z_by_pixel [columns, D + 1]; the last value of a pixel is 1, for the bias. grad_filters [K * K, columns] of a
    // group.
    Rows z[together], grad_z[together], z_by_pixel[together], grad_filters[together];
    Rows weight_transposed;  // for each group [D, K * K]

    DynamicConvScratch(Arena& arena, const FilterMaker& make, Index channels, Index width)
        : x(arena, channels, width, make.window_size + together - 1, make.window_size / 2),
          grad(arena, channels, width, together, make.window_size / 2),
          grad_x(arena, channels, width, make.window_size + together - 1, make.window_size / 2),
          filters(arena, make.taps(), width, 1, make.window_size / 2),
          weight_transposed(arena.rows(make.groups * make.inputs, make.taps())) {
        for (Index n = 0; weight_transposed.start && n < make.groups * make.inputs; n++)
            for (Index t = 0; t < make.taps(); t++)
                weight_transposed.row(n)[t] = make.weight_of(n / make.inputs)[t * make.inputs + n % make.inputs];
        for (int n = 0; n < together; n++) {
            z[n] = arena.rows(make.inputs, width);
            grad_z[n] = arena.rows(make.inputs, width);
            z_by_pixel[n] = arena.rows(round_up(width, lanes), make.inputs + 1);
            grad_filters[n] = arena.rows(make.taps(), width);
        }
    }
};

// One row of taps of one or two rows, see `correlate`: `above` and `below` are the gradients of these rows of a
// register of pixels, `first` and `second` those of their filters.
template <int Channels, bool First, bool Second>
inline void correlate_row(const vec (&above)[Channels], const vec (&below)[Channels], const float* x, Index pitch,
                          float* first, float* second, Index filter_pitch, bool add, Index window_size) {
    for (Index j = 0; j < window_size; j++) {
        float *up = first + j * filter_pitch, *down = second + j * filter_pitch;
        vec of_first = First && add ? load(up) : vec{}, of_second = Second && add ? load(down) : vec{};
        for (int c = 0; c < Channels; c++) {
            const vec value = in_register(load(x + c * pitch + j));
            if (First) of_first += above[c] * value;
            if (Second) of_second += below[c] * value;
        }
        if (First) store(up, of_first);
        if (Second) store(down, of_second);
    }
}

// grad_filters[n][tap] = (or +=, if `add`) the sum of grad * x at the tap over `count` channels from `first`, for the
// `Down` rows from y on. Each value of x is loaded once for all rows, as in dynamic_conv.h.
template <int Channels, int Down>
void correlate(const DynamicConvScratch& s, Index first, Index count, bool add, Index window_size, Index y,
               Index columns) {
    const Index r = window_size / 2, pitch = s.grad_filters[0].pitch, step = window_size * pitch;
    const Rows grads[2] = {s.grad[y], s.grad[y + Down - 1]};
    for (; count >= Channels; first += Channels, count -= Channels, add = true)
        for (Index q = 0; q < columns; q += lanes) {
            vec above[Channels], below[Channels];
            for (int c = 0; c < Channels; c++) {
                above[c] = load(grads[0].row(first + c) + q);
                below[c] = load(grads[1].row(first + c) + q);
            }
            Rows row = s.x[y - r];
            auto at = [&] { return row.row(first) + q - r; };
            float *up = s.grad_filters[0].start + q, *down = s.grad_filters[Down - 1].start + q;
            correlate_row<Channels, true, false>(above, below, at(), row.pitch, up, down, pitch, add, window_size);
            for (Index n = 1; n < window_size; n++) {
                row = s.x.after(row);
                up += step;
                correlate_row<Channels, true, Down == 2>(above, below, at(), row.pitch, up, down, pitch, add,
                                                         window_size);
                down += step;
            }
            if (Down == 2) {
                row = s.x.after(row);
                correlate_row<Channels, false, true>(above, below, at(), row.pitch, up, down, pitch, add, window_size);
            }
        }
    if constexpr (Channels > 1)
        if (count) correlate<Channels - 1, Down>(s, first, count, add, window_size, y, columns);
}

// Add the contribution of row y to the gradients of rows y + i - r to y + i + Down - 1 - r of x; i is the first of
// `Down` rows of the window. Each value of the gradient is loaded once for all of them.
template <int Channels, int Down>
void spread(const DynamicConvScratch& s, Index first, Index count, Index window_size, Index y, Index i, Index columns) {
    const Index r = window_size / 2;
    const Rows grad = s.grad[y], filters = s.filters[0].below(i * window_size);
    Rows out[Down];
    for (int n = 0; n < Down; n++) out[n] = s.grad_x[y + i + n - r];
    for (; count >= Channels; first += Channels, count -= Channels)
        for (Index q = 0; q < columns; q += lanes) {
            vec sum[Down][Channels];
            for (int n = 0; n < Down; n++)
                for (int c = 0; c < Channels; c++) sum[n][c] = load(out[n].row(first + c) + q);
            for (Index j = 0; j < window_size; j++) {
                vec filter[Down];
                for (int n = 0; n < Down; n++) filter[n] = load(filters.row(n * window_size + j) + q + r - j);
                for (int c = 0; c < Channels; c++) {
                    const vec value = in_register(load(grad.row(first + c) + q + r - j));
                    for (int n = 0; n < Down; n++) sum[n][c] += filter[n] * value;
                }
            }
            for (int n = 0; n < Down; n++)
                for (int c = 0; c < Channels; c++) store(out[n].row(first + c) + q, sum[n][c]);
        }
    if constexpr (Channels > 1)
        if (count) spread<Channels - 1, Down>(s, first, count, window_size, y, i, columns);
}

// The same for rows [i, stop) of the window.
template <int Down>
void spread_rows(const DynamicConvScratch& s, Index first, Index count, Index window_size, Index y, Index i, Index stop,
                 Index columns) {
    for (; i + Down <= stop; i += Down) spread<6, Down>(s, first, count, window_size, y, i, columns);
    if constexpr (Down > 1)
        if (i < stop) spread_rows<Down - 1>(s, first, count, window_size, y, i, stop, columns);
}

// Write the sums [G * K * K, D + 1] to the gradients of weight and bias.
inline void hand_out_filters(const FilterMaker& make, Rows sums, float* grad_weight, float* grad_bias) {
    const Index outputs = make.groups * make.taps();
    hand_out(sums, outputs, make.inputs, grad_weight);
    for (Index n = 0; n < outputs; n++) grad_bias[n] = sums.row(n)[make.inputs];
}

struct DynamicConvBackward {
    static constexpr int together = differentiated_together;

    const Shape &shape, &z_shape;
    const FilterMaker& make;
    const float *x, *z;
    float *grad_x, *grad_z;
    Rows grad_weight;  // [G * K * K, D + 1], the part of this strip; the last column is the gradient of bias
    Index image, top, bottom;

    Index r() const { return make.window_size / 2; }
    Strip strip(const Shape& shape, Index y) const { return {shape, image, y, 0, shape.width}; }

    // Rows of the strip need r more rows of x on both sides. Rows of the gradient of x are complete r rows later.
    // gradient(y, inside, to, ahead) must store row y of the gradient of the result; it is in the strip if `inside`.
    // expect(y, ahead) may have `ahead` request its memory for row y.
    template <class Gradient, class Expect>
    void run(const DynamicConvScratch& s, const Gradient& gradient, const Expect& expect) const {
        const Index first = std::max<Index>(0, top - r()), stop = std::min(shape.height, bottom + r());
        for (Index y = top - r(); y < top + r(); y++) read_x(y, s);
        for (Index y = first; y < first + r(); y++) s.grad_x.clear(y);
        for (Index y = first, rows; y < stop; y += rows) {
            const bool inside = y >= top && y < bottom;
            rows = inside ? std::min<Index>(together, bottom - y) : 1;
            Ahead ahead(lines_per_block(4 * shape.channels, 2 * make.groups * make.taps()));
            for (Index n = 0; n < rows; n++) {
                strip(shape, y + n + r() + rows).expect(x, ahead);
                expect(y + n + rows, ahead);
                strip(z_shape, y + n + rows).expect(z, ahead);
                strip(shape, y + n - r()).expect(grad_x, ahead);
            }
            for (Index n = 0; n < rows; n++) {
                if (inside) read_x(y + n + r(), s);
                s.grad_x.clear(y + n + r());
                gradient(y + n, inside, s.grad[y + n], ahead);
                strip(z_shape, y + n).read(z, s.z[n]);
            }
            differentiate(y, rows, inside, s, ahead);
            for (Index done = y - r(); done < y + rows - r(); done++) write(done, s);
        }
        for (Index done = stop - r(); done < bottom; done++) write(done, s);
    }

    void write(Index y, const DynamicConvScratch& s) const {
        if (y >= top && y < bottom) strip(shape, y).write(s.grad_x[y], grad_x);
    }

    void read_x(Index y, const DynamicConvScratch& s) const {
        if (y < 0 || y >= shape.height)
            s.x.clear(y);
        else
            strip(shape, y).read(x, s.x[y]);
    }

    // The contributions of `rows` rows from y on. All of them are in the strip, if `inside`, or none.
    void differentiate(Index y, Index rows, bool inside, const DynamicConvScratch& s, Ahead& ahead) const {
        const Index width = shape.width, share = shape.channels / make.groups, k = make.window_size;
        for (Index n = 0; n < rows && inside; n++) {
            transpose(s.z[n], make.inputs, width, s.z_by_pixel[n]);
            for (Index x = 0; x < width; x++) s.z_by_pixel[n].row(x)[make.inputs] = 1.f;
        }
        for (Index group = 0; group < make.groups; group++) {
            for (Index n = 0; n < rows; n++) spread_row(y + n, group, s.z[n], s, ahead);
            if (!inside) continue;
            if (rows == 2)
                correlate<6, 2>(s, group * share, share, false, k, y, width);
            else
                correlate<6, 1>(s, group * share, share, false, k, y, width);
            for (Index n = 0; n < rows; n++) differentiate_filters(group, n, s, ahead);
        }
        for (Index n = 0; n < rows && inside; n++) strip(z_shape, y + n).write(s.grad_z[n], grad_z);
    }

    // Add the contribution of a row to the gradient of x in the strip.
    void spread_row(Index y, Index group, Rows z, const DynamicConvScratch& s, Ahead& ahead) const {
        const Index share = shape.channels / make.groups, k = make.window_size;
        const Weights form(make.weight_of(group), make.taps(), make.inputs, make.bias_of(group));
        gemm<Start::bias>(form, z, s.filters[0], shape.width, &ahead);
        spread_rows<many_registers ? 4 : 2>(s, group * share, share, k, y, std::max<Index>(0, top - y + r()),
                                            std::min(k, bottom - y + r()), shape.width);
    }

    // The gradients of z and of the weights from those of the filters in row n of those processed together.
    void differentiate_filters(Index group, Index n, const DynamicConvScratch& s, Ahead& ahead) const {
        const Index taps = make.taps();
        const Weights back(s.weight_transposed.below(group * make.inputs), make.inputs, taps);
        if (group == 0)
            gemm<Start::zero>(back, s.grad_filters[n], s.grad_z[n], shape.width);
        else
            gemm<Start::accumulate>(back, s.grad_filters[n], s.grad_z[n], shape.width);
        gemm<Start::accumulate>(Weights(s.grad_filters[n], taps, shape.width), s.z_by_pixel[n],
                                grad_weight.below(group * taps), make.inputs + 1, &ahead);
    }
};

}  // namespace dlgsanet
