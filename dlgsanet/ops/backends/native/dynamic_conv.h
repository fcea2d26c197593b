// The dynamic depth-wise convolution of one row of pixels. Its filters are formed in registers from the feature z
// (DLGSANet, section 3.2): filters = weight @ z + bias, out[c] = sum over taps of filter[tap] * source[c] at the tap.
#pragma once

#include "image.h"
#include "vector.h"

namespace dlgsanet {

// How filters are formed: weight [G * K * K, D] and bias [G * K * K].
struct FilterMaker {
    const float *weight, *bias;
    Index groups, window_size, inputs;

    Index taps() const { return window_size * window_size; }
    const float* weight_of(Index group) const { return weight + group * taps() * inputs; }
    const float* bias_of(Index group) const { return bias + group * taps(); }
};

// Computes `Channels` channels of a group from channel `first`, and `Vectors` registers of columns from column x. It
// processes `Taps` taps of a row at a time, so that filters and sums stay in registers.
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
        if constexpr (many_registers)
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

// out[c][columns] for all channels of row y. z and out must have space for pairs of registers.
inline void dynamic_conv_row(const FilterMaker& make, Index channels, Rows z, const RowRing& source, Index y, Rows out,
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

}  // namespace dlgsanet
