// An instantiation of the kernels for the emulator: SOURCE is the file of the kernels, other macros as for a GPU.
#include <cuda_host.h>  // not "...", which would find the source before the precompiled header

#include SOURCE

#if defined(KERNELS_OF_plain)
EMULATE(plain_forward)
EMULATE(plain_grad_x)
EMULATE(plain_grad_filters)
#elif defined(KERNELS_OF_fused_forward)
EMULATE(fused_forward)
#elif defined(KERNELS_OF_fused_forward_mma)
EMULATE(fused_forward_mma)
#elif defined(KERNELS_OF_fused_grad_x)
EMULATE(fused_grad_x)
#elif defined(KERNELS_OF_fused_grad_z)
EMULATE(fused_grad_z)
EMULATE(sum_grad_z)
#elif defined(KERNELS_OF_fused_grad_expansion)
EMULATE(fused_grad_expansion)
EMULATE(sum_grad_expansion)
#elif defined(KERNELS_OF_fused_grad_z_mma)
EMULATE(fused_grad_z_mma)
#elif defined(KERNELS_OF_fused_grad_expansion_mma)
EMULATE(fused_grad_expansion_mma)
#elif defined(KERNELS_OF_gated_feed_forward) || defined(KERNELS_OF_gated_feed_forward_16bit)
EMULATE(gated_feed_forward)
#elif defined(KERNELS_OF_benchmark_gpu)
EMULATE(published_forward)
EMULATE(published_grad_x)
EMULATE(published_grad_filters)
#endif
