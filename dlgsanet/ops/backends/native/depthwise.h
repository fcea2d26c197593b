// Depth-wise convolutions of rows with margins of zeros.
#pragma once

#include "image.h"
#include "vector.h"

namespace dlgsanet {

// `Down` rows of a feature from row y on, and the rows above and below them.
template <int Down>
struct Neighbours {
    Rows rows[Down + 2];

    Neighbours(const RowRing& feature, Index y) {
        for (int n = 0; n < Down + 2; n++) rows[n] = feature[y - 1 + n];
    }
};

// The addresses of channel c in some rows.
template <int Down>
struct Addresses {
    float* row[Down];

    Addresses(const Rows* rows, Index c) {
        for (int n = 0; n < Down; n++) row[n] = rows[n].row(c);
    }

    void store_all(Index x, const vec* values) const {
        for (int n = 0; n < Down; n++) store(row[n] + x, values[n]);
    }
};

// `Down` rows of channel c of a 3x3 convolution, from column `first` on: use(x, sums) receives one register of each row
// for x = 0, lanes, ... `use` should hold pointers by value. Each value of the source is loaded once for all rows. With
// two rows there are no more loads than multiply-adds. The value of a pixel does not depend on `Down`. `Flipped`: the
// taps are in reverse order, for the gradient of the source.
template <int Down, bool Flipped = false, class Use>
inline void depthwise_3x3(const Neighbours<Down>& source, Index c, Index first, Index columns, const float* weight,
                          const Use& use) {
    vec weights[9];
    for (int t = 0; t < 9; t++) weights[t] = fill(weight[Flipped ? 8 - t : t]);
    const float* rows[Down + 2];
    for (int n = 0; n < Down + 2; n++) rows[n] = source.rows[n].row(c) + first - 1;
    for (Index x = 0; x < columns; x += lanes) {
        vec sums[Down]{};
#pragma GCC unroll 4
        for (int n = 0; n < Down + 2; n++)
#pragma GCC unroll 3
            for (int j = 0; j < 3; j++) {
                const vec value = in_register(load(rows[n] + x + j));
#pragma GCC unroll 2
                for (int i = 0; i < Down; i++)
                    if (n >= i && n - i < 3) sums[i] += value * weights[3 * (n - i) + j];
            }
        use(x, sums);
    }
}

// A K x K convolution, row by row. Row y of the source is added to the K rows of sums around it, so each of its values
// is loaded once for all of them. After that, row y - K / 2 of the sums is complete.
class RunningDepthwise {
public:
    template <class Arena>
    // The last `kept` complete rows remain.
    RunningDepthwise(Arena& arena, Index channels, Index width, Index window_size, Index kept = 1)
        : window_size_(window_size), sums_(arena, channels, width, window_size + kept - 1, 0) {}

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
