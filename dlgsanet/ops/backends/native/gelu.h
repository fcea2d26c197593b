// The exact (erf) GELU and its derivative, to the accuracy of float32.
#pragma once

#include "vector.h"

namespace dlgsanet {

// 1/2 + x * R(x^2) in [-end, end], and constant outside. The polynomials were fitted for this project by
// reweighted least squares at Chebyshev points, in t = 2 (x / end)^2 - 1.
template <int Terms>
inline vec half_plus_odd(vec x, float end, const float (&R)[Terms]) {
    vec inside = x < -end ? fill(-end) : x;  // keeps NaN
    inside = inside > end ? fill(end) : inside;
    const vec t = inside * inside * (2.f / (end * end)) - 1.f;
    vec r = fill(R[Terms - 1]);
    for (int i = Terms - 2; i >= 0; i--) r = r * t + R[i];
    return inside * r + 0.5f;
}

// The normal distribution function Phi. The error of gelu(x) = x * Phi(x) is at most 7e-7.
inline vec normal_cdf(vec x) {
    constexpr float R[] = {0.13465934991836548f,    -0.06712678074836731f,   0.04964565858244896f,
                           -0.03976457193493843f,   0.032034147530794144f,   -0.02503100596368313f,
                           0.01851809397339821f,    -0.01281849667429924f,   0.008489524014294147f,
                           -0.005366820842027664f,  0.002767768455669284f,   -0.0011124573647975922f,
                           0.0007696850807406008f,  -0.0006318962550722063f, 0.00020589027553796768f};
    const vec phi = half_plus_odd(x, 5.25f, R);
    return x < -5.25f ? vec{} : phi;
}

inline vec gelu(vec x) { return x * normal_cdf(x); }

// The error is at most 4e-7.
inline vec gelu_derivative(vec x) {
    constexpr float R[] = {0.12875916063785553f,   -0.06574012339115143f,  0.05367128551006317f,
                           -0.0537266805768013f,   0.06017911434173584f,   -0.06884419173002243f,
                           0.07539383322000504f,   -0.07300145924091339f,  0.06045766919851303f,
                           -0.05282973498106003f,  0.0499076247215271f,    -0.028241075575351715f,
                           0.003813574556261301f,  -0.006086358800530434f, 0.01221425924450159f,
                           -0.005017741583287716f};
    return half_plus_odd(x, 5.5f, R);
}

}  // namespace dlgsanet
