// Layer normalisation over the channels of each pixel.
#pragma once

#include <cmath>

#include "vector.h"

namespace dlgsanet {

// In place on x[channels][columns].
inline void layer_norm(Rows x, Index channels, Index columns, const float* weight, const float* bias) {
    constexpr float eps = 1e-5f;
    const float share = 1.f / channels;
    for (Index n = 0; n < columns; n += lanes) {
        vec mean{}, rest{}, squares{};
        for (Index c = 0; c < channels; c++) mean += load(x.row(c) + n);
        mean *= share;
        for (Index c = 0; c < channels; c++) {
            const vec centred = load(x.row(c) + n) - mean;
            rest += centred;
            squares += centred * centred;
        }
        // What rounding left in the mean matters where the channels hardly differ.
        rest *= share;
        const vec variance = squares * share - rest * rest;
        float scales[lanes];
        store(scales, variance);
        for (float& value : scales) value = 1.f / std::sqrt(std::max(value, 0.f) + eps);
        const vec scale = load(scales);
        for (Index c = 0; c < channels; c++)
            store(x.row(c) + n, (load(x.row(c) + n) - mean - rest) * scale * weight[c] + bias[c]);
    }
}

}  // namespace dlgsanet
