// Products of pairs of rows of a matrix, summed over columns. All operands are in the cache.
#pragma once

#include "vector.h"

namespace dlgsanet {

// A range of columns. Kernels may read whole registers, but other columns do not matter.
struct Columns {
    Index start, size;

    // use(x, here) for each register: here(v) is v with zeros in place of other columns.
    template <class Use>
    void each_register(const Use& use) const {
        const Index whole = start + size / lanes * lanes, rest = size % lanes;
        for (Index x = start; x < whole; x += lanes) use(x, [](vec v) { return v; });
        if (rest) use(whole, [=](vec v) { return first_lanes(v, rest); });
    }
};

// sums[i][j] += row q + i times row k + j, summed over columns and `count` matrices. Each sum is a register of partial
// sums. `Q` by `K` sums are kept in registers.
template <int Q, int K>
inline void multiply_block(const Rows* matrices, Index count, Index q, Index k, Columns columns, float* sums,
                           Index pitch) {
    vec sum[Q][K];
    for (int i = 0; i < Q; i++)
        for (int j = 0; j < K; j++) sum[i][j] = load(sums + (i * pitch + j) * lanes);
    for (Index y = 0; y < count; y++)
        columns.each_register([&](Index x, const auto& here) {
            vec keys[K];
            for (int j = 0; j < K; j++) keys[j] = here(load(matrices[y].row(k + j) + x));
            for (int i = 0; i < Q; i++) {
                const vec query = here(load(matrices[y].row(q + i) + x));
                for (int j = 0; j < K; j++) sum[i][j] += query * keys[j];
            }
        });
    for (int i = 0; i < Q; i++)
        for (int j = 0; j < K; j++) store(sums + (i * pitch + j) * lanes, sum[i][j]);
}

template <int Q, int K>
inline void multiply_across(const Rows* matrices, Index count, Index q, Index k, Index k_end, Columns columns,
                            float* sums, Index pitch) {
    for (; k + K <= k_end; k += K, sums += K * lanes)
        multiply_block<Q, K>(matrices, count, q, k, columns, sums, pitch);
    if constexpr (K > 1)
        if (k < k_end) multiply_across<Q, K - 1>(matrices, count, q, k, k_end, columns, sums, pitch);
}

template <int Q>
inline void multiply_down(const Rows* matrices, Index count, Index q, Index q_end, Index k, Index k_end,
                          Columns columns, float* sums) {
    const Index pitch = k_end - k;
    for (; q + Q <= q_end; q += Q, sums += Q * pitch * lanes)
        multiply_across<Q, many_registers ? 4 : 3>(matrices, count, q, k, k_end, columns, sums, pitch);
    if constexpr (Q > 1)
        if (q < q_end) multiply_down<Q - 1>(matrices, count, q, q_end, k, k_end, columns, sums);
}

// The same sums for rows [q, q_end) and rows [k, k_end).
inline void multiply_rows(const Rows* matrices, Index count, Index q, Index q_end, Index k, Index k_end,
                          Columns columns, float* sums) {
    multiply_down<4>(matrices, count, q, q_end, k, k_end, columns, sums);
}

// sums[i] += the squares of rows [q, q_end), summed in the same way.
template <int Q>
inline void add_squares(const Rows* matrices, Index count, Index q, Index q_end, Columns columns, float* sums) {
    for (; q + Q <= q_end; q += Q, sums += Q * lanes) {
        vec sum[Q];
        for (int i = 0; i < Q; i++) sum[i] = load(sums + i * lanes);
        for (Index y = 0; y < count; y++)
            columns.each_register([&](Index x, const auto& here) {
                for (int i = 0; i < Q; i++) {
                    const vec value = here(load(matrices[y].row(q + i) + x));
                    sum[i] += value * value;
                }
            });
        for (int i = 0; i < Q; i++) store(sums + i * lanes, sum[i]);
    }
    if constexpr (Q > 1)
        if (q < q_end) add_squares<Q / 2>(matrices, count, q, q_end, columns, sums);
}

}  // namespace dlgsanet
