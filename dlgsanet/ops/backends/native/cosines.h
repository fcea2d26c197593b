// Cosines between channels: their products over the pixels, divided by both norms.
#pragma once

#include "vector.h"

namespace dlgsanet {

constexpr float least_divisor = DLGSANET_NORMALIZE_EPS;

inline float divisor(float norm) { return std::max(norm, least_divisor); }

}  // namespace dlgsanet
