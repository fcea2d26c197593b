// Products of a small matrix with many pixels. All operands are in the cache.
#pragma once

#include "vector.h"

namespace dlgsanet {

enum class Start { zero, bias, accumulate };

// A matrix of weights [rows, inner] with `pitch` floats from row to row, and an optional bias [rows].
struct Weights {
    const float* start;
    Index rows, inner, pitch;
    const float* bias = nullptr;

    Weights(const float* start, Index rows, Index inner, const float* bias = nullptr)
        : start(start), rows(rows), inner(inner), pitch(inner), bias(bias) {}
    Weights(Rows matrix, Index rows, Index inner)
        : start(matrix.start), rows(rows), inner(inner), pitch(matrix.pitch) {}

    const float* row(Index m) const { return start + m * pitch; }
};

// `Down` rows and `Across` registers of columns of the product, kept in registers.
template <int Down, int Across, Start start>
inline void gemm_block(const Weights& a, Index m, Rows x, Rows out) {
    vec sum[Down][Across];
    for (int i = 0; i < Down; i++)
        for (int n = 0; n < Across; n++)
            sum[i][n] = start == Start::accumulate ? load(out.row(m + i) + n * lanes)
                        : start == Start::bias     ? fill(a.bias[m + i])
                                                   : vec{};
    for (Index k = 0; k < a.inner; k++) {
        vec column[Across];
        for (int n = 0; n < Across; n++) column[n] = load(x.row(k) + n * lanes);
        for (int i = 0; i < Down; i++)
            for (int n = 0; n < Across; n++) sum[i][n] += column[n] * a.row(m + i)[k];
    }
    for (int i = 0; i < Down; i++)
        for (int n = 0; n < Across; n++) store(out.row(m + i) + n * lanes, sum[i][n]);
}

// Rows from m: blocks of `Down` rows, then one block of the remaining rows.
template <int Down, int Across, Start start>
inline void gemm_down(const Weights& a, Index m, Rows x, Rows out) {
    for (; m + Down <= a.rows; m += Down) gemm_block<Down, Across, start>(a, m, x, out);
    if constexpr (Down > 1)
        if (m < a.rows) gemm_down<Down - 1, Across, start>(a, m, x, out);
}

template <int Across, Start start>
inline void gemm_across(const Weights& a, Rows x, Rows out, Index columns) {
    Index n = 0;
    for (; n + (Across - 1) * lanes < columns; n += Across * lanes)
        gemm_down<6, Across, start>(a, 0, x.at(n), out.at(n));
    if constexpr (Across > 1)
        if (n < columns) gemm_across<Across - 1, start>(a, x.at(n), out.at(n), columns - n);
}

// out[m][n] = start + sum_k a[m][k] * x[k][n]. Columns are read and written in whole registers: x and out must have
// space for `columns` rounded up to `lanes`.
template <Start start>
void gemm(const Weights& a, Rows x, Rows out, Index columns) {
    gemm_across<many_registers ? 4 : 2, start>(a, x, out, columns);
}

}  // namespace dlgsanet
