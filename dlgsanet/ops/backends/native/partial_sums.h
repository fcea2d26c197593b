// What tasks add up to (the gradients of weights), kept a task apart and summed in the tasks' order, so that the result
// does not depend on the threads.
#pragma once

#include "vector.h"

namespace dlgsanet {

// Images of `height` rows in strips: tasks few enough for their sums to stay small, whatever the number of threads.
struct Strips {
    Index batch, height;

    Index per_image() const { return (height + 63) / 64; }
    Index rows() const { return (height + per_image() - 1) / per_image(); }
    Index count() const { return batch * per_image(); }
    Index image(Index task) const { return task / per_image(); }
    Index top(Index task) const { return task % per_image() * rows(); }
    Index bottom(Index task) const { return std::min(top(task) + rows(), height); }
};

// Add parts [tasks, floats] up to their first.
inline void sum_up(float* parts, Index tasks, Index floats) {
    for (Index task = 1; task < tasks; task++)
        for (Index n = 0; n < floats; n++) parts[n] += parts[task * floats + n];
}

// The sum of a register's lanes, in their order.
inline float sum_lanes(const float* lane) {
    float sum = 0.f;
    for (int i = 0; i < lanes; i++) sum += lane[i];
    return sum;
}

// to[n][m] = from[m][n], for n < columns.
inline void transpose(Rows from, Index rows, Index columns, Rows to) {
    for (Index n = 0; n < columns; n++)
        for (Index m = 0; m < rows; m++) to.row(n)[m] = from.row(m)[n];
}

}  // namespace dlgsanet
