// Layer normalisation over the channels of each pixel.
#pragma once

#include <cmath>

#include "vector.h"

namespace dlgsanet {

// Normalise `Across` registers of pixels to mean 0 and variance 1 over the channels, in place. Then apply weight and
// bias, if given. `scale`, if given, receives the factors by which the centred values are multiplied.
template <int Across>
inline void normalise_block(Rows x, Index channels, const float* weight, const float* bias, float* scale) {
    constexpr float eps = DLGSANET_LAYER_NORM_EPS;
    const float share = 1.f / channels;
    vec mean[Across]{}, rest[Across]{}, squares[Across]{};
    for (Index c = 0; c < channels; c++)
        for (int n = 0; n < Across; n++) mean[n] += load(x.row(c) + n * lanes);
    for (int n = 0; n < Across; n++) mean[n] *= share;
    for (Index c = 0; c < channels; c++)
        for (int n = 0; n < Across; n++) {
            const vec centred = load(x.row(c) + n * lanes) - mean[n];
            rest[n] += centred;
            squares[n] += centred * centred;
        }
    float factors[Across * lanes];
    for (int n = 0; n < Across; n++) {
        // The rounding error of the mean is significant if the channels are almost equal.
        rest[n] *= share;
        store(factors + n * lanes, at_least(squares[n] * share - rest[n] * rest[n], 0.f) + eps);
    }
    for (float& value : factors) value = 1.f / std::sqrt(value);
    for (int n = 0; n < Across; n++) {
        squares[n] = load(factors + n * lanes);
        if (scale) store(scale + n * lanes, squares[n]);
    }
    for (Index c = 0; c < channels; c++)
        for (int n = 0; n < Across; n++) {
            float* at = x.row(c) + n * lanes;
            const vec normed = (load(at) - mean[n] - rest[n]) * squares[n];
            store(at, weight ? normed * weight[c] + bias[c] : normed);
        }
}

template <int Across>
inline void normalise_columns(Rows x, Index channels, Index columns, const float* weight, const float* bias,
                              float* scale) {
    Index n = 0;
    for (; n + (Across - 1) * lanes < columns; n += Across * lanes)
        normalise_block<Across>(x.at(n), channels, weight, bias, scale ? scale + n : nullptr);
    if constexpr (Across > 1)
        if (n < columns)
            normalise_columns<Across - 1>(x.at(n), channels, columns - n, weight, bias, scale ? scale + n : nullptr);
}

constexpr int normalised_together = 4;  // registers; the sums of fewer would wait for each other

// x[channels][columns] in place.
inline void layer_norm(Rows x, Index channels, Index columns, const float* weight, const float* bias) {
    normalise_columns<normalised_together>(x, channels, columns, weight, bias, nullptr);
}

// The same without weight and bias, for the gradient; scale[columns] is the inverse standard deviation.
inline void normalise(Rows x, Index channels, Index columns, float* scale) {
    normalise_columns<normalised_together>(x, channels, columns, nullptr, nullptr, scale);
}

}  // namespace dlgsanet
