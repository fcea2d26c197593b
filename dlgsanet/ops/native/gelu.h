// The exact (erf) GELU, to float32's accuracy.
#pragma once

#include "vector.h"

namespace dlgsanet {

// x * Phi(x), with Phi(x) = 1/2 + x * R(x^2) for |x| < 5.25, where R is a polynomial of degree 14 fitted for this
// project by reweighted least squares at Chebyshev points; beyond, Phi is 0 or 1 to within 8e-8. Below 7e-7 everywhere.
inline vec gelu(vec x) {
    constexpr float end = 5.25f;
    constexpr float R[] = {0.13465934991836548f,     -0.06712678074836731f,    0.04964565858244896f,
                           -0.03976457193493843f,    0.032034147530794144f,    -0.02503100596368313f,
                           0.01851809397339821f,     -0.01281849667429924f,    0.008489524014294147f,
                           -0.005366820842027664f,   0.002767768455669284f,    -0.0011124573647975922f,
                           0.0007696850807406008f,   -0.0006318962550722063f,  0.00020589027553796768f};
    vec inside = x < -end ? fill(-end) : x;  // NaN stays
    inside = inside > end ? fill(end) : inside;
    const vec t = inside * inside * (2.f / (end * end)) - 1.f;
    vec r = fill(R[14]);
    for (int i = 13; i >= 0; i--) r = r * t + R[i];
    const vec phi = inside * r + 0.5f;
    return x < -end ? vec{} : x * phi;
}

}  // namespace dlgsanet
