// Layer normalisation over the channels of each pixel.
#pragma once

#include <cmath>

#include "vector.h"

namespace dlgsanet {

// Normalise one register of pixels to mean 0 and variance 1 over the channels, in place. Then apply weight and bias, if
// given. Returns the factor by which the centred values are multiplied.
inline vec normalise_columns(Rows x, Index channels, const float* weight = nullptr, const float* bias = nullptr) {
    constexpr float eps = DLGSANET_LAYER_NORM_EPS;
    const float share = 1.f / channels;
    vec mean{}, rest{}, squares{};
    for (Index c = 0; c < channels; c++) mean += load(x.row(c));
    mean *= share;
    for (Index c = 0; c < channels; c++) {
        const vec centred = load(x.row(c)) - mean;
        rest += centred;
        squares += centred * centred;
    }
    // The rounding error of the mean is significant if the channels are almost equal.
    rest *= share;
    float scales[lanes];
    store(scales, squares * share - rest * rest);
    for (float& value : scales) value = 1.f / std::sqrt(std::max(value, 0.f) + eps);
    const vec scale = load(scales);
    for (Index c = 0; c < channels; c++) {
        const vec normed = (load(x.row(c)) - mean - rest) * scale;
        store(x.row(c), weight ? normed * weight[c] + bias[c] : normed);
    }
    return scale;
}

// x[channels][columns] in place.
inline void layer_norm(Rows x, Index channels, Index columns, const float* weight, const float* bias) {
    for (Index n = 0; n < columns; n += lanes) normalise_columns(x.at(n), channels, weight, bias);
}

// The same without weight and bias, for the gradient; scale[columns] is the inverse standard deviation.
inline void normalise(Rows x, Index channels, Index columns, float* scale) {
    for (Index n = 0; n < columns; n += lanes) store(scale + n, normalise_columns(x.at(n), channels));
}

}  // namespace dlgsanet
