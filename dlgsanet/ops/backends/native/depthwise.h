// Depth-wise convolutions of rows with margins of zeros.
#pragma once

#include "image.h"
#include "vector.h"

namespace dlgsanet {

// One register of a 3x3 convolution; above, here and below point to its first column in three rows.
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

// A K x K convolution, row by row. Row y of the source is added to the K rows of sums around it, so each of its values
// is loaded once for all of them. After that, row y - K / 2 of the sums is complete.
class RunningDepthwise {
public:
    template <class Arena>
    RunningDepthwise(Arena& arena, Index channels, Index width, Index window_size)
        : window_size_(window_size), sums_(arena, channels, width, window_size, 0) {}

    Rows operator[](Index y) const { return sums_[y]; }

    // weight [C, K, K]; the source has margins of K / 2 columns.
    void add(Index y, Rows source, const float* weight, const float* bias, Index columns) const {
        begin(y + window_size_ / 2, bias, columns);
        for (Index c = 0; c < sums_.channels; c++)
            add_rows<7>(y, 0, c, source.row(c) - window_size_ / 2, weight + c * window_size_ * window_size_, columns);
    }

    // Set row `first` of the sums to the bias, or to 0 if bias is null. The row may lie outside the image.
    void begin(Index first, const float* bias, Index columns) const {
        for (Index c = 0; c < sums_.channels; c++)
            std::fill(sums_[first].row(c), sums_[first].row(c) + round_up(columns, lanes), bias ? bias[c] : 0.f);
    }

private:
    // Process the window's rows from row i, `Down` at a time.
    template <int Down>
    void add_rows(Index y, Index i, Index c, const float* source, const float* weight, Index columns) const {
        for (; i + Down <= window_size_; i += Down) {
            float* out[Down];
            for (int n = 0; n < Down; n++) out[n] = sums_[y - i - n + window_size_ / 2].row(c);
            for (Index x = 0; x < columns; x += lanes) {
                vec sum[Down];
                for (int n = 0; n < Down; n++) sum[n] = load(out[n] + x);
                for (Index j = 0; j < window_size_; j++) {
                    const vec value = load(source + x + j);
                    for (int n = 0; n < Down; n++) sum[n] += value * weight[(i + n) * window_size_ + j];
                }
                for (int n = 0; n < Down; n++) store(out[n] + x, sum[n]);
            }
        }
        if constexpr (Down > 1)
            if (i < window_size_) add_rows<Down - 1>(y, i, c, source, weight, columns);
    }

    Index window_size_;
    RowRing sums_;
};

}  // namespace dlgsanet
