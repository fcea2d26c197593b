// What kernels of layers do with hidden channels: `hidden_16bit.h` and `hidden_32bit.h` define, for x of 16 bits and of
// float32, how they are projected to shared memory and filtered (Hidden), and how filtered channels are stored: as
// values, which are factors b of products, or as features, whose pixels are the terms of products.
#pragma once
#if TERMS == 16
#include "hidden_16bit.h"
#else
#include "hidden_32bit.h"
#endif

// Where a lane stores values that it filtered, and loads those of its warp's row of the tile.
struct Places {
  int to, from;

  __device__ __forceinline__ Places() {
    to = place_of_values();
    from = place_in_row();
    keep(to);
    keep(from);
  }

  // Of 16 channels.
  __device__ __forceinline__ void store(unsigned* values, const float (&of)[2][4]) const {
    store_values(values + to, of);
  }

  // Factors b of kTerms channels.
  __device__ __forceinline__ void load(unsigned (&b)[kAdded][2], const unsigned* values) const {
    load_values(b, values + from);
  }
};
