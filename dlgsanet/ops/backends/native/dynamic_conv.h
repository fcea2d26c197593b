// The dynamic depth-wise convolution of rows of pixels. Its filters are formed from the feature z, in registers or for
// a few pixels at a time (DLGSANet, section 3.2): filters = weight @ z + bias, out[c] = sum over taps of filter[tap] *
// source[c] at the tap.
#pragma once

#include "gemm.h"
#include "image.h"
#include "parallel.h"

namespace dlgsanet {

// How filters are formed: weight [G * K * K, D] and bias [G * K * K].
struct FilterMaker {
    const float *weight, *bias;
    Index groups, window_size, inputs;

    Index taps() const { return window_size * window_size; }
    const float* weight_of(Index group) const { return weight + group * taps() * inputs; }
    const float* bias_of(Index group) const { return bias + group * taps(); }
};

constexpr int filtered_together = many_registers ? 1 : 2;  // rows

// Filters [K * K, columns] of a group for some columns of the rows that are filtered together.
struct Filters {
    static constexpr Index most_columns = 32;

    Rows rows[filtered_together];

    Filters(Arena& arena, const FilterMaker& make) {
        for (Rows& row : rows) row = arena.rows(many_registers ? 0 : make.taps(), most_columns);
    }
};

// With 32 registers: `Channels` channels of a group from channel `first`, and `Vectors` registers of columns from
// column x. It processes `Taps` taps of a row at a time, so that filters and sums stay in registers.
template <int Channels, int Taps, int Vectors>
inline void filter_block(const FilterMaker& make, Index group, Index first, Index x, Rows z, const RowRing& source,
                         Index y, Rows out) {
    vec sum[Channels][Vectors]{};
    const float *weight = make.weight_of(group), *bias = make.bias_of(group);
    const Index r = make.window_size / 2;
    for (Index i = 0; i < make.window_size; i++) {
        const Rows row = source[y + i - r];
        for (Index j = 0; j < make.window_size; j += Taps, weight += Taps * make.inputs, bias += Taps) {
            vec filter[Taps][Vectors];
            for (int t = 0; t < Taps; t++)
                for (int v = 0; v < Vectors; v++) filter[t][v] = fill(bias[t]);
            for (Index d = 0; d < make.inputs; d++) {
                vec feature[Vectors];
                for (int v = 0; v < Vectors; v++) feature[v] = load(z.row(d) + x + v * lanes);
                for (int t = 0; t < Taps; t++)
                    for (int v = 0; v < Vectors; v++) filter[t][v] += feature[v] * weight[t * make.inputs + d];
            }
            const float* taps = row.row(first) + x + j - r;
#pragma GCC unroll 8
            for (int t = 0; t < Taps; t++)
                for (int c = 0; c < Channels; c++)
                    for (int v = 0; v < Vectors; v++)
                        sum[c][v] += filter[t][v] * load(taps + c * row.pitch + t + v * lanes);
        }
    }
    for (int c = 0; c < Channels; c++)
        for (int v = 0; v < Vectors; v++) store(out.row(first + c) + x + v * lanes, sum[c][v]);
}

template <int Channels, int Taps>
inline void filter_channels(const FilterMaker& make, Index group, Index first, Index count, Rows z,
                            const RowRing& source, Index y, Rows out, Index columns) {
    for (; count >= Channels; first += Channels, count -= Channels) {
        Index x = 0;
        for (; x + lanes < columns; x += 2 * lanes)
            filter_block<Channels, Taps, 2>(make, group, first, x, z, source, y, out);
        for (; x < columns; x += lanes) filter_block<Channels, Taps, 1>(make, group, first, x, z, source, y, out);
    }
    if constexpr (Channels > 1)
        if (count) filter_channels<Channels - 1, Taps>(make, group, first, count, z, source, y, out, columns);
}

template <int Taps>
inline void filter_groups(const FilterMaker& make, Index channels, Rows z, const RowRing& source, Index y, Rows out,
                          Index columns) {
    constexpr int most = 6;  // channels computed together
    const Index share = channels / make.groups;
    for (Index group = 0; group < make.groups; group++)
        filter_channels<most, Taps>(make, group, group * share, share, z, source, y, out, columns);
}

inline void filter_row(const FilterMaker& make, Index channels, Rows z, const RowRing& source, Index y, Rows out,
                       Index columns) {
    if (make.window_size % 7 == 0)
        filter_groups<7>(make, channels, z, source, y, out, columns);
    else if (make.window_size % 5 == 0)
        filter_groups<5>(make, channels, z, source, y, out, columns);
    else if (make.window_size % 3 == 0)
        filter_groups<3>(make, channels, z, source, y, out, columns);
    else
        filter_groups<1>(make, channels, z, source, y, out, columns);
}

// With 16 registers filters are in memory, and `Down` rows are computed together: row n of the source around a pixel is
// row n of the window of the first one and row n - 1 of that of the second one. So each value of the source is loaded
// once for both. This adds one row of the source, with the given rows of the filters.
template <int Channels, bool First, bool Second>
inline void apply_row(const float* source, Index pitch, const float* first, const float* second, Index filter_pitch,
                      Index window_size, vec (&sum)[2][Channels]) {
    for (Index j = 0; j < window_size; j++) {
        const vec above = First ? load(first + j * filter_pitch) : vec{};
        const vec below = Second ? load(second + j * filter_pitch) : vec{};
        for (int c = 0; c < Channels; c++) {
            const vec value = in_register(load(source + c * pitch + j));
            if (First) sum[0][c] += above * value;
            if (Second) sum[1][c] += below * value;
        }
    }
}

// Columns from `start` on of channels from `first` on; filters begin at column `start`.
template <int Channels, int Down>
inline void apply_filters(const Filters& filters, Index window_size, Index first, Index count, const RowRing& source,
                          Index y, const Rows* out, Index start, Index columns) {
    const Index r = window_size / 2, pitch = filters.rows[0].pitch, step = window_size * pitch;
    for (; count >= Channels; first += Channels, count -= Channels)
        for (Index x = 0; x < columns; x += lanes) {
            vec sum[2][Channels]{};
            Rows row = source[y - r];
            auto at = [&] { return row.row(first) + start + x - r; };
            const float *above = filters.rows[0].start + x, *below = filters.rows[Down - 1].start + x;
            apply_row<Channels, true, false>(at(), row.pitch, above, below, pitch, window_size, sum);
            for (Index n = 1; n < window_size; n++) {
                row = source.after(row);
                above += step;
                apply_row<Channels, true, Down == 2>(at(), row.pitch, above, below, pitch, window_size, sum);
                below += step;
            }
            if (Down == 2) {
                row = source.after(row);
                apply_row<Channels, false, true>(at(), row.pitch, above, below, pitch, window_size, sum);
            }
            for (int i = 0; i < Down; i++)
                for (int c = 0; c < Channels; c++) store(out[i].row(first + c) + start + x, sum[i][c]);
        }
    if constexpr (Channels > 1)
        if (count)
            apply_filters<Channels - 1, Down>(filters, window_size, first, count, source, y, out, start, columns);
}

template <int Down>
inline void filter_rows(const FilterMaker& make, Index channels, const Filters& filters, const Rows* z,
                        const RowRing& source, Index y, const Rows* out, Index columns) {
    const Index share = channels / make.groups;
    for (Index start = 0; start < columns; start += Filters::most_columns)
        for (Index group = 0; group < make.groups; group++) {
            const Weights weights(make.weight_of(group), make.taps(), make.inputs, make.bias_of(group));
            const Index size = std::min(Filters::most_columns, columns - start);
            for (int i = 0; i < Down; i++) gemm<Start::bias>(weights, z[i].at(start), filters.rows[i], size);
            apply_filters<6, Down>(filters, make.window_size, group * share, share, source, y, out, start, size);
        }
}

// out[n][c][columns] for all channels of row y + n, for `rows` rows, at most filtered_together. z and out must have
// space for pairs of registers.
inline void dynamic_conv_rows(const FilterMaker& make, Index channels, const Filters& filters, Index rows,
                              const Rows* z, const RowRing& source, Index y, const Rows* out, Index columns) {
    if constexpr (many_registers)
        filter_row(make, channels, z[0], source, y, out[0], columns);
    else if (rows == 1)
        filter_rows<1>(make, channels, filters, z, source, y, out, columns);
    else
        filter_rows<2>(make, channels, filters, z, source, y, out, columns);
}

}  // namespace dlgsanet
