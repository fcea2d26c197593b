// An instantiation of the kernels for the emulator: SOURCE is the kernels' file, the rest as for the GPU's compiler.
#include "cuda_host.h"

#include SOURCE

#if defined(FEATURES)
EMULATE(fused_forward)
EMULATE(fused_grad_x)
EMULATE(fused_grad_z_expansion)
EMULATE(sum_grad_z)
EMULATE(sum_grad_expansion)
#endif
