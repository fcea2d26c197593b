// The exact (erf) GELU and its derivative, to the accuracy of float32.
#pragma once

#include "vector.h"

namespace dlgsanet {

// The normal distribution function Phi(-t) = 1/2 * q(t)^-8 for t >= 0, with q(0) = 1. The polynomial q was fitted for
// this project by reweighted least squares on [0, 6], to t * Phi(-t) and to the density.
constexpr int tail_degree = 8;
constexpr float tail[tail_degree] = {0.0997355357f, 0.0447634682f, 0.00866830349f, 0.000867956551f,
                                     0.000200213704f, 5.93955519e-05f, -8.36593881e-06f, 2.20113179e-06f};
// Phi(-16) is 0 in float32. The bound avoids infinite powers of q.
constexpr float tail_end = 16.f;

inline vec power_8(vec v) {
    v *= v;
    v *= v;
    return v * v;
}

inline vec tail_polynomial(vec t) {
    vec q = fill(tail[tail_degree - 1]);
    for (int i = tail_degree - 2; i >= 0; i--) q = q * t + tail[i];
    return q * t + 1.f;
}

// gelu(x) = x * Phi(x) = max(x, 0) - |x| * Phi(-|x|). The error is at most 2e-7 plus rounding.
inline vec gelu(vec x) {
    const vec t = at_most(magnitude(x), tail_end);
    const vec power = power_8(tail_polynomial(t));
    return at_least(x, 0.f) - t / (power + power);
}

struct GeluAndDerivative {
    vec value, derivative;
};

// The derivative is Phi(x) + x * Phi'(x). Its error is at most 5e-7.
inline GeluAndDerivative gelu_and_derivative(vec x) {
    const vec t = at_most(magnitude(x), tail_end);
    vec slope = fill(4.f * tail_degree * tail[tail_degree - 1]);  // 4 q'
    for (int i = tail_degree - 2; i >= 0; i--) slope = slope * t + 4.f * (i + 1) * tail[i];
    const vec inverse = 1.f / tail_polynomial(t), power = power_8(inverse);
    const vec negative = power * (0.5f - t * inverse * slope);
    return {at_least(x, 0.f) - 0.5f * t * power, x < 0.f ? negative : 1.f - negative};
}

}  // namespace dlgsanet
