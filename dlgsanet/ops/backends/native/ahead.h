// Requests memory before it is needed. A core waits if it requests many cache lines at once, so products of matrices
// request a few of them after every block.
#pragma once

#include "vector.h"

namespace dlgsanet {

class Ahead {
public:
    explicit Ahead(Index per_block) : per_block_(per_block) {}

    // `count` runs of `floats` floats, which begin `distance` floats apart. At most `most` calls.
    void add(const float* start, Index floats, Index count, Index distance) {
        const Index lines = (floats + 2 * floats_of_line - 2) / floats_of_line;  // wherever in a line a run begins
        if (stop_ < most && floats > 0 && count > 0) runs_[stop_++] = {start, distance, lines, count};
    }

    void after_block() {
        for (Index n = 0; n < per_block_ && now_ < stop_; n++) {
            Runs& runs = runs_[now_];
            __builtin_prefetch(runs.start + line_ * floats_of_line);
            if (++line_ < runs.lines) continue;
            line_ = 0;
            runs.start += runs.distance;
            if (--runs.count == 0) now_++;
        }
    }

private:
    struct Runs {
        const float* start;
        Index distance, lines, count;
    };
    static constexpr int most = 12;

    Runs runs_[most];
    Index per_block_, line_ = 0;
    int now_ = 0, stop_ = 0;
};

}  // namespace dlgsanet
