// The exact (erf) GELU and its derivative, to the accuracy of float32.
#pragma once

#include "vector.h"

namespace dlgsanet {

// The normal distribution function Phi(-t) = 1/2 * p(t)^8 for t >= 0, with p(0) = 1. The polynomial p was fitted for
// this project by reweighted least squares on [0, 6], to the GELU and its derivative; its error is 1e-8 there.
constexpr float tail[] = {1.f,           -0.0997354761f,  -0.034815941f,   -0.000736407819f, 0.00164433289f,
                          3.51229392e-05f, -6.49422873e-05f, 8.01999704e-06f, -3.12804161e-07f};
// The derivative of 4 p.
constexpr float slope[] = {4 * tail[1],     4 * 2 * tail[2], 4 * 3 * tail[3], 4 * 4 * tail[4],
                           4 * 5 * tail[5], 4 * 6 * tail[6], 4 * 7 * tail[7], 4 * 8 * tail[8]};
// p decreases to this point, where p^8 is 0 for float32.
constexpr float tail_end = 8.8f;

// The odd powers of t apart from the even ones, so that less waits for the result before it.
template <int Count>
inline vec polynomial(const float (&coefficients)[Count], vec t) {
    const vec square = t * t;
    vec last = fill(coefficients[Count - 1]), other = fill(coefficients[Count - 2]);
    for (int i = Count - 3; i >= 0; i -= 2) last = last * square + coefficients[i];
    for (int i = Count - 4; i >= 0; i -= 2) other = other * square + coefficients[i];
    return Count % 2 ? other * t + last : last * t + other;
}

// gelu(x) = x * Phi(x) = max(x, 0) - |x| * Phi(-|x|). The error is at most 1e-8 plus rounding.
inline vec gelu(vec x) {
    const vec t = at_most(magnitude(x), tail_end);
    vec power = polynomial(tail, t);
    for (int i = 0; i < 3; i++) power *= power;
    return at_least(x, 0.f) - 0.5f * t * power;
}

struct GeluAndDerivative {
    vec value, derivative;
};

// The derivative is Phi(x) + x * Phi'(x). Its error is at most 2e-8 plus rounding.
inline GeluAndDerivative gelu_and_derivative(vec x) {
    const vec t = at_most(magnitude(x), tail_end);
    const vec p = polynomial(tail, t), square = p * p, power_7 = square * square * square * p;
    const vec negative = power_7 * (0.5f * p + t * polynomial(slope, t));
    return {at_least(x, 0.f) - 0.5f * t * (power_7 * p), x < 0.f ? negative : 1.f - negative};
}

}  // namespace dlgsanet
