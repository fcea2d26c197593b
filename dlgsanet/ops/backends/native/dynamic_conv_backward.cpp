// The fused dynamic depth-wise convolution outside a layer: its gradients.

#include "dynamic_conv_backward.h"

using namespace dlgsanet;

// Writes grad_x, grad_z and `parts`, which must be zero on entry: for each strip [G * K * K, D + 1 rounded up to
// column_step], the gradients of weight and, as the last column, of bias. The part of the first strip receives the sums
// over all strips.
DLGSANET_API bool dlgsanet_fused_dynamic_depthwise_conv_backward(
    const float* grad, const float* x, const float* z, const float* weight, const float* bias,
    const float* weight_transposed, float* grad_x, float* grad_z, float* parts, Index batch, Index channels,
    Index inputs, Index groups, Index window_size, Index height, Index width, int threads) {
    const Shape shape{batch, channels, height, width}, z_shape{batch, inputs, height, width};
    const FilterMaker maker{weight, bias, groups, window_size, inputs};
    const Strips strips{batch, height};
    const Index pitch = round_up(inputs + 1, column_step), floats = groups * maker.taps() * pitch;
    auto make = [&](Arena& arena) { return DynamicConvScratch(arena, maker, channels, width); };

    const bool done = parallel(threads, strips.count(), make, [&](Index task, bool, const DynamicConvScratch& s) {
        const DynamicConvBackward backward{
            shape, z_shape, maker, x, z, weight_transposed, grad_x, grad_z, Rows{parts + task * floats, pitch},
            strips.image(task), strips.top(task), strips.bottom(task)};
        backward.run(
            s, [&](Index y, bool, Rows to, Ahead&) { backward.strip(shape, y).read(grad, to); },
            [&](Index y, Ahead& ahead) { backward.strip(shape, y).expect(grad, ahead); });
    });
    sum_up(parts, strips.count(), floats);
    return done;
}
