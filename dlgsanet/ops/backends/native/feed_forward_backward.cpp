// Gradients of the gated depth-wise feed-forward network; see feed_forward.cpp.

#include "gelu.h"
#include "projected_depthwise_backward.h"

using namespace dlgsanet;

namespace {

constexpr int together = ProjectedDepthwiseBackward::together;

struct Scratch {
    ProjectedDepthwiseBackward back;
    Weights proj_out_transposed;
    Rows grad[together], grad_gated[together], gated[together], grad_by_pixel;

    Scratch(Arena& arena, const ProjectedDepthwise& layer, const Weights& proj_out)
        : back(arena, layer),
          proj_out_transposed(transposed(arena, proj_out)),
          grad_by_pixel(arena.rows(layer.enter.shape.width, layer.channels())) {
        for (int n = 0; n < together; n++) {
            grad[n] = arena.rows(layer.channels(), layer.enter.shape.width);
            grad_gated[n] = arena.rows(layer.hidden() / 2, layer.enter.shape.width);
            gated[n] = arena.rows(layer.hidden() / 2, layer.enter.shape.width);
        }
    }
};

// The gradients of a and b in rows y and y + 1 from those of gelu(a) * b. Also gelu(a) * b, for the gradient of the
// projection.
void differentiate_gate(const Scratch& s, Index y, const float* depthwise, Index columns) {
    const Index half = s.back.hidden.channels / 2;
    const Neighbours<together> rows(s.back.hidden, y);
    Rows out[together];
    for (int n = 0; n < together; n++) out[n] = s.back.grad_convolved[y + n];
    for (Index c = 0; c < half; c++) {
        const Index d = c + half;
        const Addresses<together> gated(s.gated, c), grads(s.grad_gated, c), grad_a(out, c), grad_b(out, d);
        depthwise_3x3(rows, d, 0, columns, depthwise + 9 * d, [=](Index x, const vec* b) { gated.store_all(x, b); });
        depthwise_3x3(rows, c, 0, columns, depthwise + 9 * c, [=](Index x, const vec* a) { grad_a.store_all(x, a); });
        for (int n = 0; n < together; n++)
            for (Index x = 0; x < columns; x += lanes) {
                const vec grad = load(grads.row[n] + x), b = load(gated.row[n] + x);
                const GeluAndDerivative gate = gelu_and_derivative(load(grad_a.row[n] + x));
                store(gated.row[n] + x, gate.value * b);
                store(grad_a.row[n] + x, grad * b * gate.derivative);
                store(grad_b.row[n] + x, grad * gate.value);
            }
    }
}

}  // namespace

// `projected` is what the forward pass kept.
DLGSANET_API bool dlgsanet_gated_feed_forward_backward(
    const float* grad, const float* x, const float* norm_weight, const float* norm_bias, const float* proj_in,
    const float* depthwise, const float* proj_out, float* projected, float* grad_x, float* grad_norm_weight,
    float* grad_norm_bias, float* grad_proj_in, float* grad_depthwise, float* grad_proj_out, Index batch,
    Index channels, Index half, Index height, Index width, Index kept, int threads) {
    const Shape shape{batch, channels, height, width};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj_in, 2 * half, channels}};
    const KeptRows kept_rows(projected, 2 * half, shape);
    const ProjectedDepthwise layer{enter, kept ? &kept_rows : nullptr, grad, grad_x, grad_norm_weight, grad_norm_bias,
                                   grad_proj_in, grad_depthwise, depthwise};
    const Strips strips{batch, height};
    // The gradient of proj_out transposed [half, C], then the sums of `layer`.
    const Index pitch = layer.projection_pitch(), layer_at = half * pitch;
    const PartialSums sums(strips.count(), layer_at + layer.floats());
    auto make = [&](Arena& arena) { return Scratch(arena, layer, {proj_out, channels, half}); };

    const bool done = sums && parallel(threads, strips.count(), make, [&](Index task, bool, const Scratch& s) {
        const Tile tile{strips.image(task), strips.top(task), strips.bottom(task), 0, width};
        float* part = sums.begin(task);
        auto gradient = [&](Index y, Ahead& ahead) {
            for (int n = 0; n < together; n++) {
                if (y + n < 0 || y + n >= height) continue;
                Strip{shape, tile.image, y + n, 0, width}.read(grad, s.grad[n]);
                gemm<Start::zero>(s.proj_out_transposed, s.grad[n], s.grad_gated[n], width, &ahead);
            }
            differentiate_gate(s, y, depthwise, width);
            for (int n = 0; n < together; n++) {
                if (y + n < tile.top || y + n >= tile.bottom) continue;
                transpose(s.grad[n], channels, width, s.grad_by_pixel);
                gemm<Start::accumulate>({s.gated[n], half, width}, s.grad_by_pixel, {part, pitch}, channels, &ahead);
            }
        };
        s.back.run(tile, part + layer_at, gradient);
    });
    if (!done) return false;
    float* total = sums.total();
    for (Index c = 0; c < channels; c++)
        for (Index k = 0; k < half; k++) grad_proj_out[c * half + k] = total[k * pitch + c];
    layer.hand_out_sums(total + layer_at);
    return true;
}
