// Depth-wise convolutions of rows with margins of zeros.
#pragma once

#include "image.h"
#include "vector.h"

namespace dlgsanet {

// One register of a 3x3 convolution; above, here and below point at the register's first column in three rows.
inline vec depthwise_3x3(const float* above, const float* here, const float* below, const float* weight) {
    vec even = load(above - 1) * weight[0], odd = load(above) * weight[1];
    even += load(above + 1) * weight[2];
    odd += load(here - 1) * weight[3];
    even += load(here) * weight[4];
    odd += load(here + 1) * weight[5];
    even += load(below - 1) * weight[6];
    odd += load(below) * weight[7];
    even += load(below + 1) * weight[8];
    return even + odd;
}

// out[c][columns] = bias[c] + a K x K convolution with weight[c][K][K] of the rows around y.
inline void depthwise(const RowRing& rows, Index y, Index window_size, const float* weight, const float* bias, Rows out,
                      Index columns) {
    const Index r = window_size / 2;
    for (Index c = 0; c < rows.channels; c++, weight += window_size * window_size)
        for (Index x = 0; x < columns; x += lanes) {
            vec sum[2] = {fill(bias[c]), vec{}};
            for (Index i = 0; i < window_size; i++) {
                const float* row = rows[y + i - r].row(c) + x - r;
                for (Index j = 0; j < window_size; j++) sum[j % 2] += load(row + j) * weight[i * window_size + j];
            }
            store(out.row(c) + x, sum[0] + sum[1]);
        }
}

}  // namespace dlgsanet
