// One SIMD register of floats, by the vector extension of GCC and Clang: one source works for all instruction sets.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#ifdef __AVX__
#include <immintrin.h>
#endif

#define DLGSANET_API extern "C" __attribute__((visibility("default")))

namespace dlgsanet {

using Index = std::ptrdiff_t;

constexpr int lanes = DLGSANET_LANES;
constexpr Index column_step = DLGSANET_COLUMN_STEP;  // matrices that collect sums have a multiple of it
// AVX-512 has 32 registers, AVX2 and SSE have 16. It limits the size of a block of a matrix product.
constexpr bool many_registers = lanes == 16;

typedef float vec __attribute__((vector_size(4 * lanes)));
typedef float vec_in_memory __attribute__((vector_size(4 * lanes), aligned(4), may_alias));

inline vec load(const float* p) { return *reinterpret_cast<const vec_in_memory*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<vec_in_memory*>(p) = v; }

// Store to a whole register's address in memory that is not read soon, past the caches. Before another thread reads it,
// `end_streams` must be called. Other processors store as usual.
inline void stream(float* p, vec v) {
#if defined(__AVX512F__) && DLGSANET_LANES == 16
    _mm512_stream_ps(p, v);
#elif defined(__AVX__) && DLGSANET_LANES == 8
    _mm256_stream_ps(p, v);
#else
    store(p, v);
#endif
}
inline void end_streams() {
#ifdef __AVX__
    _mm_sfence();
#endif
}

inline vec fill(float value) { return value - vec{}; }  // exact for -0 too, so that no subtraction is left

// Loads v once: compilers repeat a load for each use if it is an operand of the instruction.
inline vec in_register(vec v) {
#if defined(__x86_64__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
}

typedef int ivec __attribute__((vector_size(4 * lanes)));

inline vec magnitude(vec v) { return reinterpret_cast<vec>(reinterpret_cast<ivec>(v) & 0x7fffffff); }
inline vec at_least(vec v, float bound) { return fill(bound) > v ? fill(bound) : v; }  // keeps NaN
inline vec at_most(vec v, float bound) { return fill(bound) < v ? fill(bound) : v; }   // keeps NaN

// v in the first `count` lanes, 0 in the others.
inline vec first_lanes(vec v, Index count) {
    ivec lane;
    for (int i = 0; i < lanes; i++) lane[i] = i;
    return reinterpret_cast<vec>(reinterpret_cast<ivec>(v) & (lane < static_cast<int>(count)));
}

// The elements of a and b, concatenated, at `places`. The places must be constants.
#ifdef __clang__
#define DLGSANET_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define DLGSANET_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, ivec{__VA_ARGS__})
#endif

inline Index round_up(Index n, Index step) { return (n + step - 1) / step * step; }

constexpr Index floats_of_line = 16;  // of a cache line

// Floats from one row of a buffer to the next: an odd number of cache lines, so that the rows of a column are
// distributed over all sets of the cache.
inline Index pitch_of(Index width) {
    const Index lines = round_up(width, floats_of_line) / floats_of_line;
    return floats_of_line * (lines | 1);
}

// A matrix in scratch memory, usually channels by columns of pixels.
struct Rows {
    float* start;
    Index pitch;

    float* row(Index n) const { return start + n * pitch; }
    Rows at(Index column) const { return {start + column, pitch}; }
    Rows below(Index n) const { return {row(n), pitch}; }
};

}  // namespace dlgsanet
