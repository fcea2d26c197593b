// The fused dynamic depth-wise convolution outside a layer: its gradients.

#include "dynamic_conv_backward.h"

using namespace dlgsanet;

DLGSANET_API bool dlgsanet_fused_dynamic_depthwise_conv_backward(
    const float* grad, const float* x, const float* z, const float* weight, const float* bias, float* grad_x,
    float* grad_z, float* grad_weight, float* grad_bias, Index batch, Index channels, Index inputs, Index groups,
    Index window_size, Index height, Index width, int threads) {
    const Shape shape{batch, channels, height, width}, z_shape{batch, inputs, height, width};
    const FilterMaker maker{weight, bias, groups, window_size, inputs};
    const Strips strips{batch, height};
    const Index pitch = round_up(inputs + 1, column_step);
    const PartialSums sums(strips.count(), groups * maker.taps() * pitch);
    auto make = [&](Arena& arena) { return DynamicConvScratch(arena, maker, channels, width); };

    const bool done = sums && parallel(threads, strips.count(), make, [&](Index task, bool,
                                                                          const DynamicConvScratch& s) {
        const DynamicConvBackward backward{shape, z_shape, maker, x, z, grad_x, grad_z, Rows{sums.begin(task), pitch},
                                           strips.image(task), strips.top(task), strips.bottom(task)};
        backward.run(
            s, [&](Index y, bool, Rows to, Ahead&) { backward.strip(shape, y).read(grad, to); },
            [&](Index y, Ahead& ahead) { backward.strip(shape, y).expect(grad, ahead); });
    });
    if (done) hand_out_filters(maker, {sums.total(), pitch}, grad_weight, grad_bias);
    return done;
}
