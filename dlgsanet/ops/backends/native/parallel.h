// Divides tasks among threads. Each thread has its own scratch memory.
//
// The threads are those of the OpenMP runtime that torch has loaded; its functions are found by name when this library
// is loaded. A second pool of threads would compete with torch's, because idle threads of torch keep spinning. Without
// such a runtime the tasks run one after the other.
#pragma once

#include <atomic>
#include <cstdlib>

#include "vector.h"

extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*region)(void*), void* data, unsigned threads, unsigned flags);
__attribute__((weak)) int omp_get_thread_num(void);
}

namespace dlgsanet {

// Divides one block of memory into pieces that begin on cache lines. Without a block it measures the size needed.
class Arena {
public:
    explicit Arena(float* start) : start_(start) {}

    float* take(Index floats) {
        float* piece = start_ ? start_ + taken_ : nullptr;
        // Two cache lines between pieces: kernels work on whole registers and may access columns past the last one.
        taken_ += round_up(floats, 16) + 2 * 16;
        return piece;
    }

    Rows rows(Index count, Index columns) {
        const Index pitch = pitch_of(columns);
        return {take(count * pitch), pitch};
    }

    Index taken() const { return taken_; }

private:
    float* start_;
    Index taken_ = 0;
};

// Call work(task, scratch) for every task in [0, tasks). make(arena) creates the scratch of a thread, which is zero
// before its first task. Returns false if there is not enough memory; then no task has run.
template <class Make, class Work>
bool parallel(int threads, Index tasks, const Make& make, const Work& work) {
    Arena measure(nullptr);
    make(measure);
    if (tasks <= 0) return true;
    if (!GOMP_parallel || !omp_get_thread_num) threads = 1;
    threads = static_cast<int>(std::max<Index>(1, std::min<Index>(threads, tasks)));

    const Index floats = measure.taken();
    auto* memory = static_cast<float*>(std::aligned_alloc(64, sizeof(float) * threads * floats));
    if (!memory) return false;

    std::atomic<Index> next{0};
    auto run = [&](int thread) {
        float* mine = memory + thread * floats;
        std::memset(mine, 0, sizeof(float) * floats);
        Arena arena(mine);
        auto scratch = make(arena);
        for (Index task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) work(task, scratch);
    };
    if (threads == 1) {
        run(0);
    } else {
        auto region = [](void* data) { (*static_cast<decltype(run)*>(data))(omp_get_thread_num()); };
        GOMP_parallel(region, &run, threads, 0);
    }
    std::free(memory);
    return true;
}

}  // namespace dlgsanet
