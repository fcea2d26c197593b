// Products of a small matrix with many pixels. All operands are in the cache.
#pragma once

#include "ahead.h"
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

// The transpose of a matrix, with memory of an arena.
template <class Arena>
Weights transposed(Arena& arena, const Weights& a) {
    const Rows to = arena.rows(a.inner, a.rows);
    for (Index m = 0; to.start && m < a.rows; m++)
        for (Index k = 0; k < a.inner; k++) to.row(k)[m] = a.row(m)[k];
    return {to, a.inner, a.rows};
}

constexpr int block_rows = 6, block_registers = many_registers ? 4 : 2;  // of a block that is kept in registers

// `Down` rows and `Across` registers of columns of the product.
template <int Down, int Across, Start start, int Taps>
inline void gemm_block(const Weights& a, Index m, Rows x, Rows out) {
    vec sum[Down][Across];
    const float* weights[Down];
    for (int i = 0; i < Down; i++) {
        weights[i] = a.row(m + i);
        for (int n = 0; n < Across; n++)
            sum[i][n] = start == Start::accumulate ? load(out.row(m + i) + n * lanes)
                        : start == Start::bias     ? fill(a.bias[m + i])
                                                   : vec{};
    }
    const float* source = x.start;
    for (Index k = 0; k < a.inner; k++, source += x.pitch) {
#pragma GCC unroll 3
        for (int t = 0; t < Taps; t++) {
            vec column[Across];
            for (int n = 0; n < Across; n++) column[n] = load(source + t + n * lanes);
            for (int i = 0; i < Down; i++)
                for (int n = 0; n < Across; n++) sum[i][n] += column[n] * weights[i][k * Taps + t];
        }
    }
    for (int i = 0; i < Down; i++)
        for (int n = 0; n < Across; n++) store(out.row(m + i) + n * lanes, sum[i][n]);
}

// Rows from m on, in as few blocks of at most `Down` rows as possible, whose sizes differ by at most one row: the sums
// of a small block wait for each other.
template <int Down, int Across, Start start, int Taps>
inline void gemm_down(const Weights& a, Index m, Rows x, Rows out, Ahead* ahead) {
    const Index rest = a.rows - m, blocks = (rest + Down - 1) / Down, smaller = blocks * Down - rest;
    for (Index n = smaller; n < blocks; n++, m += Down) {
        gemm_block<Down, Across, start, Taps>(a, m, x, out);
        if (ahead) ahead->after_block();
    }
    if constexpr (Down > 1)
        if (m < a.rows) gemm_down<Down - 1, Across, start, Taps>(a, m, x, out, ahead);
}

template <int Across, Start start, int Taps>
inline void gemm_across(const Weights& a, Rows x, Rows out, Index columns, Ahead* ahead) {
    Index n = 0;
    for (; n + (Across - 1) * lanes < columns; n += Across * lanes)
        gemm_down<block_rows, Across, start, Taps>(a, 0, x.at(n), out.at(n), ahead);
    if constexpr (Across > 1)
        if (n < columns) gemm_across<Across - 1, start, Taps>(a, x.at(n), out.at(n), columns - n, ahead);
}

// out[m][n] = start + sum_k a[m][k] * x[k][n]. Columns are read and written in whole registers: x and out must have
// space for `columns` rounded up to `lanes`. With taps it is a convolution along the rows of x: the matrix is [rows,
// inner, Taps], and out[m][n] = start + sum_kt a[m][k][t] * x[k][n + t].
template <Start start, int Taps = 1>
void gemm(const Weights& a, Rows x, Rows out, Index columns, Ahead* ahead = nullptr) {
    gemm_across<block_registers, start, Taps>(a, x, out, columns, ahead);
}

// Cache lines to request after every block, so that a product with `rows` rows requests `lines` of them for every line
// of its columns.
inline Index lines_per_block(Index lines, Index rows) {
    constexpr Index lines_across = std::max<Index>(1, block_registers * lanes / floats_of_line);
    const Index blocks = (rows + block_rows - 1) / block_rows;
    return (lines * lines_across + blocks - 1) / blocks;
}

}  // namespace dlgsanet
