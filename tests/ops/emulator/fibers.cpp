// Runs a launch: one block after the other.
//
// Every CUDA thread is a fiber. Threads run until they wait for others, in ascending, descending or shuffled order.
// Shared memory is poisoned first, so a missing barrier changes the results. A barrier that not all threads reach is an
// error, and so is a write past the end of shared memory.
#undef _FORTIFY_SOURCE  // with it longjmp refuses to go to another stack
#include "fibers.h"

#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

namespace emulator {
unsigned thread, block, block_size;
char* shared;

namespace {
enum State : char { kReady, kWaitsForWarp, kWaitsForBlock, kDone };
enum Order { kAscending, kDescending, kShuffled };

constexpr size_t kStack = 256 << 10;

struct Fiber {
  std::unique_ptr<char[]> stack;
  bool begun;
  jmp_buf place;
};

Fiber fibers[kMostThreads];
State state[kMostThreads];
jmp_buf scheduler;
void (*kernel)(void**);
void** arguments;
std::string removed_barrier;  // "file:line" of a barrier that is left out, to show that tests detect it

// setjmp and longjmp, unlike swapcontext, do not call the system.
void wait(State what) {
  state[thread] = what;
  if (!_setjmp(fibers[thread].place)) _longjmp(scheduler, 1);
}

void every_block() {
  for (;;) {
    kernel(arguments);
    wait(kDone);
  }
}

// Run the thread until it waits.
void go_on() {
  Fiber& fiber = fibers[thread];
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  if (!fiber.stack) fiber.stack.reset(new char[kStack]);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, every_block, 0);
  setcontext(&context);
}

struct Threads {
  unsigned first, end;
};

// Release a warp in which all threads wait, the first one or the last; if shuffled, all such warps. So a warp goes ahead
// of the others as far as barriers let it. If there is none, but the block waits, release a warp of it. Returns those
// among whom some can go on; none if nobody can.
Threads release(int order) {
  const unsigned warps = (block_size + 31) / 32;
  Threads released{0, 0};
  for (unsigned n = 0; n < warps; n++) {
    const unsigned low = 32 * (order == kDescending ? warps - 1 - n : n), high = std::min(block_size, low + 32);
    if (!std::all_of(state + low, state + high, [](State s) { return s == kWaitsForWarp; })) continue;
    std::fill(state + low, state + high, kReady);
    released = {released.end ? released.first : low, high};
    if (order != kShuffled) return released;
  }
  if (!released.end && std::all_of(state, state + block_size, [](State s) { return s == kWaitsForBlock; })) {
    std::fill(state, state + block_size, kWaitsForWarp);
    return release(order);
  }
  return released;
}

bool run_block(int order, unsigned& random) {
  std::fill(state, state + block_size, kReady);
  std::vector<unsigned> turn;
  for (Threads ready{0, block_size}; ready.end; ready = release(order)) {
    turn.clear();
    for (unsigned i = ready.first; i < ready.end; i++) turn.push_back(i);
    if (order == kDescending) std::reverse(turn.begin(), turn.end());
    if (order == kShuffled)
      for (unsigned i = turn.size() - 1; i > 0; i--) {
        random = random * 1664525u + 1013904223u;
        std::swap(turn[i], turn[(random >> 8) % (i + 1)]);
      }
    for (unsigned i : turn) {
      if (state[i] != kReady) continue;
      thread = i;
      go_on();
    }
  }
  return std::all_of(state, state + block_size, [](State s) { return s == kDone; });
}
}  // namespace

void wait_for_warp() { wait(kWaitsForWarp); }

void barrier(const char* path, int line) {
  if (!removed_barrier.empty()) {
    const char* slash = strrchr(path, '/');
    if (removed_barrier == (slash ? slash + 1 : path) + (":" + std::to_string(line))) return;
  }
  wait(kWaitsForBlock);
}

const char* launch(long long first, long long count, unsigned threads, size_t shared_bytes, int order,
                   void (*kernel)(void**), void** arguments) {
  constexpr size_t kGuard = 4096;
  constexpr char kPoison = 0x7f;  // 0x7f7f7f7f is a huge float, 0x7f7f7f7f7f7f7f7f a huge double
  std::vector<char> memory(shared_bytes + kGuard + 128);
  shared = (char*)(((uintptr_t)memory.data() + 127) & ~(uintptr_t)127);
  emulator::kernel = kernel;
  emulator::arguments = arguments;
  block_size = threads;
  unsigned random = 12345;
  for (long long b = first; b < first + count; b++) {
    block = (unsigned)b;
    std::fill(memory.begin(), memory.end(), kPoison);
    if (!run_block(order, random)) {
      for (Fiber& fiber : fibers) fiber.begun = false;
      return "threads wait at a barrier that not all of them reach";
    }
    const char* guard = shared + shared_bytes;
    if (!std::all_of(guard, guard + kGuard, [](char c) { return c == kPoison; })) return "a write past shared memory";
  }
  return nullptr;
}
}  // namespace emulator

extern "C" void remove_barrier(const char* place) { emulator::removed_barrier = place; }
