// CUDA C++ on a CPU, for tests: the part of the language that the source of the kernels needs to compile with g++.
//
// Every CUDA thread is a fiber (ucontext); one block runs at a time. Threads run until they wait for others, in
// ascending, descending or shuffled order. Shared memory is poisoned first, so a missing barrier changes the results.
// A barrier that not all threads reach is an error, and so is a write past the end of shared memory.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#define DLGSANET_EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1;
};

using std::min;

namespace emulator {
enum Wait { kNothing, kBlock, kWarp };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(256 << 10);
  Wait wait;
  bool done;
  unsigned thread;
};

inline std::vector<Fiber> fibers;
inline Fiber* current;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline unsigned block, block_size;
inline char* shared;
inline const char* error;
inline char exchanged[2][64][32][8];  // [parity][warp][lane]: what a shuffle sends
inline int parity[2048];
inline std::string removed_barrier;  // "file:line" of a barrier that is left out, to show that tests detect it

inline void enter() {
  body();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

inline void wait_for(Wait what) {
  current->wait = what;
  swapcontext(&current->context, &scheduler);
}

inline void barrier(const char* path, int line) {
  const char* slash = strrchr(path, '/');
  const std::string place = std::string(slash ? slash + 1 : path) + ":" + std::to_string(line);
  if (place != removed_barrier) wait_for(kBlock);
}

enum Order { kAscending, kDescending, kShuffled };

// Release a warp in which all threads wait, the first one or the last; if shuffled, all such warps. So a warp goes ahead
// of the others as far as barriers let it. If there is none, release the block. Returns false if nothing can continue.
inline bool release(int order) {
  const size_t warps = (block_size + 31) / 32;
  size_t at_block = 0;
  for (size_t i = 0; i < block_size; i++) at_block += !fibers[i].done && fibers[i].wait == kBlock;
  bool any = false;
  for (size_t n = 0; n < warps && !(any && order != kShuffled); n++) {
    const size_t low = 32 * (order == kDescending ? warps - 1 - n : n), high = std::min<size_t>(block_size, low + 32);
    const auto waits = [](const Fiber& f) { return !f.done && f.wait == kWarp; };
    if (!std::all_of(fibers.begin() + low, fibers.begin() + high, waits)) continue;
    for (size_t i = low; i < high; i++) fibers[i].wait = kNothing;
    any = true;
  }
  if (!any && at_block == block_size) {
    for (size_t i = 0; i < block_size; i++) fibers[i].wait = kNothing;
    any = true;
  }
  return any;
}

inline bool run_block(int order, unsigned& random) {
  for (unsigned i = 0; i < block_size; i++) {
    Fiber& fiber = fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    fiber.wait = kNothing;
    fiber.done = false;
    fiber.thread = i;
  }
  std::vector<unsigned> turn(block_size);
  for (;;) {
    for (unsigned i = 0; i < block_size; i++) turn[i] = order == kDescending ? block_size - 1 - i : i;
    if (order == kShuffled)
      for (unsigned i = block_size - 1; i > 0; i--) {
        random = random * 1664525u + 1013904223u;
        std::swap(turn[i], turn[(random >> 8) % (i + 1)]);
      }
    for (unsigned i : turn) {
      if (fibers[i].done || fibers[i].wait != kNothing) continue;
      current = &fibers[i];
      swapcontext(&scheduler, &current->context);
    }
    if (std::all_of(fibers.begin(), fibers.begin() + block_size, [](const Fiber& f) { return f.done; })) return true;
    if (!release(order)) return false;
  }
}

// Run blocks first ... first + count - 1 of a launch. Returns null, or the error.
inline const char* launch(long long first, long long count, unsigned threads, size_t shared_bytes, int order,
                          std::function<void()> kernel) {
  constexpr size_t kGuard = 4096;
  constexpr char kPoison = 0x7f;  // 0x7f7f7f7f is a huge float, 0x7f7f7f7f7f7f7f7f a huge double
  if (fibers.size() < threads) fibers.resize(threads);
  std::vector<char> memory(shared_bytes + kGuard + 128);
  shared = (char*)(((uintptr_t)memory.data() + 127) & ~(uintptr_t)127);
  body = std::move(kernel);
  block_size = threads;
  unsigned random = 12345;
  for (long long b = first; b < first + count; b++) {
    block = (unsigned)b;
    std::fill(memory.begin(), memory.end(), kPoison);
    if (!run_block(order, random)) return "threads wait at a barrier that not all of them reach";
    const char* guard = shared + shared_bytes;
    if (!std::all_of(guard, guard + kGuard, [](char c) { return c == kPoison; })) return "a write past shared memory";
  }
  return nullptr;
}

// As in cuLaunchKernel: an array of pointers to the values of the arguments.
template <typename... A, size_t... I>
inline std::function<void()> with_arguments(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  return [=] { kernel(*(std::decay_t<A>*)arguments[I]...); };
}
template <typename... A>
inline std::function<void()> with_arguments(void (*kernel)(A...), void** arguments) {
  return with_arguments(kernel, arguments, std::index_sequence_for<A...>());
}
}  // namespace emulator

#define threadIdx (dim3{emulator::current->thread})
#define blockIdx (dim3{emulator::block})
#define blockDim (dim3{emulator::block_size})
#define __syncthreads() emulator::barrier(__FILE__, __LINE__)
#define __syncwarp() emulator::wait_for(emulator::kWarp)
#define SHARED_MEMORY(name) Accumulator* name = (Accumulator*)emulator::shared

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
  using namespace emulator;
  const unsigned thread = current->thread, warp = thread / 32, lane = thread % 32;
  auto& slots = exchanged[parity[thread] ^= 1][warp];  // used alternately, so that one wait per exchange is enough
  memcpy(slots[lane], &value, sizeof value);
  wait_for(kWarp);
  T other;
  memcpy(&other, slots[lane ^ mask], sizeof other);
  return other;
}

// As described in mma.h: each lane publishes its factors, then computes its own four sums. `value(bits, term)` is the
// factor that a register with these bits holds for a term; a register has `kNeighbours` terms.
template <int kNeighbours, typename Value>
inline void multiply_add_of(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], Value value) {
  using namespace emulator;
  static unsigned factors[2][64][32][6];
  const unsigned thread = current->thread, lane = thread % 32, g = lane / 4, t = lane % 4;
  auto& warp = factors[parity[thread] ^= 1][thread / 32];
  memcpy(warp[lane], a, sizeof a);
  memcpy(warp[lane] + 4, b, sizeof b);
  wait_for(kWarp);
  for (unsigned i = 0; i < 4; i++)
    for (unsigned k = 0; k < 8 * kNeighbours; k++) {
      const unsigned column = 2 * t + i % 2, of_lane = k / kNeighbours % 4, upper = k / kNeighbours / 4;
      sum[i] += value(warp[g * 4 + of_lane][i / 2 + upper * 2], k) * value(warp[column * 4 + of_lane][4 + upper], k);
    }
}

inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  multiply_add_of<1>(sum, a, b, [](unsigned bits, unsigned) {  // its bits below TF32 are ignored
    float f;
    bits &= 0xffffe000u;
    memcpy(&f, &bits, 4);
    return f;
  });
}

template <typename T>
inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  multiply_add_of<2>(sum, a, b, [](unsigned bits, unsigned term) {
    return widen(T{(unsigned short)(bits >> (term % 2 * 16))});
  });
}

template <>
inline void multiply_add<float>(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  multiply_add(sum, a, b);
}

template <typename T>
inline unsigned pack(float first, float second) {
  T pair[2];
  narrow(first, pair[0]);
  narrow(second, pair[1]);
  unsigned bits;
  memcpy(&bits, pair, 4);
  return bits;
}

template <size_t kCount>
inline void load_matrices(unsigned (&to)[kCount], const unsigned* row) {
  using namespace emulator;
  static const unsigned* rows[2][64][32];
  const unsigned thread = current->thread, lane = thread % 32;
  auto& warp = rows[parity[thread] ^= 1][thread / 32];
  warp[lane] = row;
  wait_for(kWarp);
  for (unsigned i = 0; i < kCount; i++) {
    const unsigned* of_lane = warp[i * 8 + lane / 4];
    if ((uintptr_t)of_lane % 16) __builtin_trap();
    to[i] = of_lane[lane % 4];
  }
}

inline unsigned to_tf32(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return (bits + 0x1000u) & 0xffffe000u;
}

template <typename T>
inline void keep(T&) {}

inline float rsqrtf(float value) { return 1 / sqrtf(value); }
inline float approximate_reciprocal(float value) { return 1 / value; }
inline float approximate_exp2(float value) { return exp2f(value); }
inline float approximate_tanh(float value) { return tanhf(value); }

inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float half_to_float(unsigned short bits) {
  _Float16 value;
  memcpy(&value, &bits, 2);
  return (float)value;
}
inline unsigned short float_to_half(float value) {
  const _Float16 rounded = (_Float16)value;
  unsigned short bits;
  memcpy(&bits, &rounded, 2);
  return bits;
}

extern "C" void remove_barrier(const char* place) { emulator::removed_barrier = place; }

#define EMULATE(kernel)                                                                                               \
  extern "C" const char* emulate_##kernel(long long first, long long count, unsigned threads, size_t shared_bytes,    \
                                          int order, void** arguments) {                                              \
    return emulator::launch(first, count, threads, shared_bytes, order, emulator::with_arguments(kernel, arguments)); \
  }
