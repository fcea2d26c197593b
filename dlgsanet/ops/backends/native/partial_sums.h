// Sums over tasks, for example gradients of weights. Each task writes its own part. The parts are added in the order of
// the tasks, so the result does not depend on the number of threads.
#pragma once

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

// Add all parts [tasks, floats] to the first one.
inline void sum_up(float* parts, Index tasks, Index floats) {
    for (Index task = 1; task < tasks; task++)
        for (Index n = 0; n < floats; n++) parts[n] += parts[task * floats + n];
}

// The sum of the lanes of a register, in order.
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
