// The threads of a block, of which one runs at a time.
#pragma once
#include <stddef.h>

namespace emulator {
constexpr unsigned kMostThreads = 1024;

extern unsigned thread, block, block_size;
extern char* shared;

void wait_for_warp();
void barrier(const char* path, int line);

// Run blocks first ... first + count - 1 of a launch. Returns null, or the error.
const char* launch(long long first, long long count, unsigned threads, size_t shared_bytes, int order,
                   void (*kernel)(void** arguments), void** arguments);
}  // namespace emulator
