// Sums over tasks, for example gradients of weights. Each task adds to its own part. The parts are added in the order
// of the tasks, so the result does not depend on the number of threads.
#pragma once

#include <utility>

#include "parallel.h"
#include "vector.h"

namespace dlgsanet {

// The strips of images of `height` rows; each strip is one task. Their number does not depend on the threads. There are
// few strips, so that their sums need little memory.
struct Strips {
    Index batch, height;

    Index per_image() const { return round_up(height, DLGSANET_STRIP_ROWS) / DLGSANET_STRIP_ROWS; }
    Index rows() const { return (height + per_image() - 1) / per_image(); }
    Index count() const { return batch * per_image(); }
    Index image(Index task) const { return task / per_image(); }
    Index top(Index task) const { return task % per_image() * rows(); }
    Index bottom(Index task) const { return std::min(top(task) + rows(), height); }
};

class PartialSums {
public:
    PartialSums(Index tasks, Index floats) : tasks_(tasks), floats_(floats), parts_(tasks * floats) {}

    explicit operator bool() const { return bool(parts_); }  // false: there is not enough memory

    // The part of a task, set to zero. Every task must call it.
    float* begin(Index task) const {
        std::memset(part(task), 0, sizeof(float) * floats_);
        return part(task);
    }

    // The sum over all tasks; it takes the place of the first part.
    float* total() const { return total(0, tasks_); }

    // The sum over `count` tasks from `first` on.
    float* total(Index first, Index count) const {
        float* sum = part(first);
        for (Index task = first + 1; task < first + count; task++)
            for (Index n = 0; n < floats_; n++) sum[n] += part(task)[n];
        return sum;
    }

private:
    float* part(Index task) const { return parts_.start() + task * floats_; }

    Index tasks_, floats_;
    Memory parts_;
};

// Write a matrix of sums [rows, columns] to a tensor.
inline void hand_out(Rows sums, Index rows, Index columns, float* tensor) {
    for (Index m = 0; m < rows; m++, tensor += columns) std::copy(sums.row(m), sums.row(m) + columns, tensor);
}

// The sum of the lanes of a register, in order.
inline float sum_lanes(const float* lane) {
    float sum = 0.f;
    for (int i = 0; i < lanes; i++) sum += lane[i];
    return sum;
}

// Exchange the blocks of `Step` by `Step` floats next to the diagonal, then those of twice the size.
template <int Step, int... I>
inline void transpose_registers(vec (&row)[lanes], std::integer_sequence<int, I...> places) {
#pragma GCC unroll 16
    for (int m = 0; m < lanes; m++)
        if (!(m & Step)) {
            const vec above = row[m], below = row[m + Step];
            row[m] = DLGSANET_SHUFFLE(above, below, (I & Step ? lanes + I - Step : I)...);
            row[m + Step] = DLGSANET_SHUFFLE(above, below, (I & Step ? lanes + I : I + Step)...);
        }
    if constexpr (2 * Step < lanes) transpose_registers<2 * Step>(row, places);
}

// to[n][m] = from[m][n] of `lanes` by `lanes` floats, for n < columns.
inline void transpose_block(Rows from, Index columns, Rows to) {
    vec row[lanes];
#pragma GCC unroll 16
    for (int m = 0; m < lanes; m++) row[m] = load(from.row(m));
    transpose_registers<1>(row, std::make_integer_sequence<int, lanes>());
#pragma GCC unroll 16
    for (int n = 0; n < lanes; n++)
        if (n < columns) store(to.row(n), row[n]);
}

// to[n][m] = from[m][n], for n < columns.
inline void transpose(Rows from, Index rows, Index columns, Rows to) {
    const Index whole = rows / lanes * lanes;
    for (Index m = 0; m < whole; m += lanes)
        for (Index n = 0; n < columns; n += lanes)
            transpose_block(from.below(m).at(n), columns - n, to.below(n).at(m));
    for (Index n = 0; n < columns; n++)
        for (Index m = whole; m < rows; m++) to.row(n)[m] = from.row(m)[n];
}

}  // namespace dlgsanet
