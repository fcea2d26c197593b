// Divides tasks among threads. Each thread has its own scratch memory.
//
// On Linux the threads are those of the OpenMP runtime that torch has loaded; its functions are found by name when this
// library is loaded. A second pool of threads would compete with torch's, because idle threads of torch keep spinning.
// On other systems, and where torch has loaded no such runtime, the threads are those of `Pool`.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "vector.h"

#if defined(__linux__) && !defined(DLGSANET_NO_OPENMP)
#define DLGSANET_OPENMP
extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*region)(void*), void* data, unsigned threads, unsigned flags);
__attribute__((weak)) int omp_get_thread_num(void);
}
#endif

namespace dlgsanet {

// Threads that sleep between calls. They are started when they are first needed, and never end. A system that starts no
// more threads makes calls slower, and nothing else: without exceptions, std::thread would end the process then.
class Pool {
public:
    using Region = void (*)(void* data, int thread);

    // Call region(data, thread) here for thread 0, and on up to `threads` - 1 other threads for 1, 2, ...: those that
    // are idle before the call here has returned. Returns when all calls have. May be called by several threads.
    void run(Region region, void* data, int threads) {
        Call call{region, data, threads, 1, 0, nullptr};
        pthread_mutex_lock(&mutex_);
        call.after = calls_;
        calls_ = &call;
        while (started_ < threads - 1 && start()) ++started_;
        pthread_cond_broadcast(&called_);
        pthread_mutex_unlock(&mutex_);
        region(data, 0);
        pthread_mutex_lock(&mutex_);
        remove(&call);
        while (call.running > 0) pthread_cond_wait(&ended_, &mutex_);
        pthread_mutex_unlock(&mutex_);
    }

private:
    struct Call {
        Region region;
        void* data;
        int threads;
        int next;     // number of the next thread that joins
        int running;  // on threads of the pool
        Call* after;  // in the list of calls that threads may join
    };

    bool start() {
        pthread_t thread;
        auto serve = [](void* pool) -> void* { return static_cast<Pool*>(pool)->serve(); };
        return pthread_create(&thread, nullptr, serve, this) == 0 && pthread_detach(thread) == 0;
    }

    void* serve() {
        pthread_mutex_lock(&mutex_);
        for (;;) {
            while (!calls_) pthread_cond_wait(&called_, &mutex_);
            Call* call = calls_;
            const int thread = call->next++;
            if (call->next == call->threads) remove(call);
            ++call->running;
            pthread_mutex_unlock(&mutex_);
            call->region(call->data, thread);
            pthread_mutex_lock(&mutex_);
            if (--call->running == 0) pthread_cond_broadcast(&ended_);
        }
    }

    void remove(Call* call) {
        for (Call** at = &calls_; *at; at = &(*at)->after) {
            if (*at == call) {
                *at = call->after;
                return;
            }
        }
    }

    pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t called_ = PTHREAD_COND_INITIALIZER, ended_ = PTHREAD_COND_INITIALIZER;
    Call* calls_ = nullptr;
    int started_ = 0;
};

inline Pool pool;  // has no destructor: its threads wait in it until the process ends

// A block of floats that begins on a cache line.
class Memory {
public:
    explicit Memory(Index floats) : block_(std::malloc(sizeof(float) * (floats + floats_of_line))) {}
    Memory(const Memory&) = delete;
    ~Memory() { std::free(block_); }

    explicit operator bool() const { return block_; }  // false: there is not enough

    float* start() const {
        constexpr std::uintptr_t line = sizeof(float) * floats_of_line;  // not every system has std::aligned_alloc
        return reinterpret_cast<float*>((reinterpret_cast<std::uintptr_t>(block_) + line - 1) / line * line);
    }

private:
    void* block_;
};

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

// The tasks that a thread has before it: [next, stop), which other threads may take from the end of.
class Share {
public:
    void set(Index next, Index stop) { tasks_.store(packed(next, stop), std::memory_order_relaxed); }
    Index left() const { return stop(now()) - next(now()); }

    // The first task; -1 if none is left.
    Index take() {
        std::uint64_t tasks = now();
        while (next(tasks) < stop(tasks))
            if (replace(tasks, next(tasks) + 1, stop(tasks))) return next(tasks);
        return -1;
    }

    // Take the second half of another thread's tasks. False if it has none.
    bool take_from(Share& other) {
        std::uint64_t tasks = other.now();
        while (next(tasks) < stop(tasks)) {
            const Index middle = next(tasks) + (stop(tasks) - next(tasks)) / 2;
            if (!other.replace(tasks, next(tasks), middle)) continue;
            set(middle, stop(tasks));
            return true;
        }
        return false;
    }

private:
    static std::uint64_t packed(Index next, Index stop) { return std::uint64_t(next) << 32 | std::uint64_t(stop); }
    static Index next(std::uint64_t tasks) { return Index(tasks >> 32); }
    static Index stop(std::uint64_t tasks) { return Index(tasks & 0xffffffff); }
    std::uint64_t now() const { return tasks_.load(std::memory_order_relaxed); }

    // If the tasks are still `tasks`; else `tasks` becomes what they are.
    bool replace(std::uint64_t& tasks, Index next, Index stop) {
        return tasks_.compare_exchange_weak(tasks, packed(next, stop), std::memory_order_relaxed);
    }

    std::atomic<std::uint64_t> tasks_;
};

// Call work(task, follows, scratch) for every task in [0, tasks). `follows`: the thread has just done the task before
// it, with the same scratch. A thread begins with a share of consecutive tasks; then it takes half of those that the
// slowest thread has left. make(arena) creates the scratch of a thread, which is zero before its first task. Returns
// false if there is not enough memory; then no task has run.
template <class Make, class Work>
bool parallel(int threads, Index tasks, const Make& make, const Work& work) {
    Arena measure(nullptr);
    make(measure);
    if (tasks <= 0) return true;
    threads = static_cast<int>(std::max<Index>(1, std::min<Index>(threads, tasks)));

    const Index floats = measure.taken() + floats_of_line;  // the first line of a thread's memory has its share
    const Memory memory(threads * floats);
    if (!memory) return false;

    auto share = [&](int thread) { return reinterpret_cast<Share*>(memory.start() + thread * floats); };
    for (int n = 0; n < threads; n++) (new (share(n)) Share)->set(tasks * n / threads, tasks * (n + 1) / threads);
    auto fill_share = [=](int thread) {
        for (;;) {
            int slowest = 0;
            for (int n = 1; n < threads; n++)
                if (share(n)->left() > share(slowest)->left()) slowest = n;
            if (share(slowest)->left() == 0) return false;
            if (share(thread)->take_from(*share(slowest))) return true;
        }
    };
    auto run = [&](int thread) {
        float* mine = memory.start() + thread * floats + floats_of_line;
        std::memset(mine, 0, sizeof(float) * measure.taken());
        Arena arena(mine);
        auto scratch = make(arena);
        Index before = tasks;
        do
            for (Index task; (task = share(thread)->take()) >= 0; before = task)
                work(task, task == before + 1, scratch);
        while (fill_share(thread));
        end_streams();
    };
    if (threads == 1) {
        run(0);
#ifdef DLGSANET_OPENMP
    } else if (GOMP_parallel && omp_get_thread_num) {
        auto region = [](void* data) { (*static_cast<decltype(run)*>(data))(omp_get_thread_num()); };
        GOMP_parallel(region, &run, threads, 0);
#endif
    } else {
        auto region = [](void* data, int thread) { (*static_cast<decltype(run)*>(data))(thread); };
        pool.run(region, &run, threads);
    }
    return true;
}

}  // namespace dlgsanet
