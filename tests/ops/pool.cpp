// Checks `parallel` of the compiled layers. Prints what is wrong, and ends with 1.
//
// usage: pool THREADS CALLERS CALLS
#include <cstdio>
#include <thread>
#include <vector>

#include "parallel.h"

using dlgsanet::Arena;
using dlgsanet::Index;

static std::atomic<int> faults{0};

static void expect(bool right, const char* what) {
    if (!right && faults++ < 10) std::printf("%s\n", what);
}

struct Scratch {
    float *values, *after;  // after: the task after the last one
};

static Scratch make(Arena& arena) { return {arena.take(37), arena.take(1)}; }

// Every task is done once, in scratch that is aligned, zero at first, and of one thread at a time. A task knows whether
// its scratch is as the task before it left it.
static void check_tasks(int threads, Index tasks) {
    std::vector<std::atomic<int>> done(tasks);
    std::atomic<int> begun{0}, following{0};
    const bool enough = dlgsanet::parallel(threads, tasks, make, [&](Index task, bool follows, Scratch& scratch) {
        expect(reinterpret_cast<std::uintptr_t>(scratch.values) % 64 == 0, "scratch is not aligned");
        float* value = scratch.values;
        if (value[1] == 0) begun++;
        for (int i = 0; i < 37; i++) expect(value[i] == value[0], "scratch is not of this thread alone, or not zero");
        for (int i = 0; i < 37; i++) value[i]++;
        done[task]++;
        expect(follows == (task > 0 && *scratch.after == task), "a task does not know what was in its scratch");
        *scratch.after = task + 1;
        following += follows;
    });
    expect(enough, "not enough memory");
    for (auto& count : done) expect(count == 1, "a task was not done once");
    expect(begun <= threads, "more threads than allowed");
    if (threads == 1) expect(following == std::max<Index>(0, tasks - 1), "tasks are not in order");
}

// The first task ends after all others: whoever has it must not keep tasks for later.
static void check_dynamic(int threads, Index tasks) {
    std::atomic<Index> left{tasks - 1};
    dlgsanet::parallel(threads, tasks, make, [&](Index task, bool, Scratch&) {
        if (task > 0) left--;
        while (task == 0 && left > 0) std::this_thread::yield();
    });
}

int main(int, char** arguments) {
    const int threads = std::atoi(arguments[1]), callers = std::atoi(arguments[2]), calls = std::atoi(arguments[3]);
    auto call = [&] {
        for (int i = 0; i < calls; i++) check_tasks(threads, i % 50);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < callers; i++) others.emplace_back(call);
    call();
    for (auto& thread : others) thread.join();
    if (threads > 1) check_dynamic(threads, 50);
    return faults > 0;
}
