// Gradients of the gated depth-wise feed-forward network; see feed_forward.cpp.

#include "gelu.h"
#include "projected_depthwise_backward.h"

using namespace dlgsanet;

namespace {

struct Scratch {
    ProjectedDepthwiseBackward back;
    Rows grad, grad_gated, gated, grad_by_pixel;

    Scratch(Arena& arena, const ProjectedDepthwise& layer)
        : back(arena, layer),
          grad(arena.rows(layer.channels(), layer.enter.shape.width)),
          grad_gated(arena.rows(layer.hidden() / 2, layer.enter.shape.width)),
          gated(arena.rows(layer.hidden() / 2, layer.enter.shape.width)),
          grad_by_pixel(arena.rows(layer.enter.shape.width, layer.channels())) {}
};

// The gradients of a and b in row y from that of gelu(a) * b. Also gelu(a) * b, for the gradient of the projection.
void differentiate_gate(const Scratch& s, Index y, const float* depthwise, Index columns, Rows out) {
    const RowRing& hidden = s.back.hidden;
    const Index half = hidden.channels / 2;
    const Rows above = hidden[y - 1], here = hidden[y], below = hidden[y + 1];
    for (Index c = 0; c < half; c++) {
        const Index d = c + half;
        for (Index x = 0; x < columns; x += lanes) {
            const vec a = depthwise_3x3(above.row(c) + x, here.row(c) + x, below.row(c) + x, depthwise + 9 * c);
            const vec b = depthwise_3x3(above.row(d) + x, here.row(d) + x, below.row(d) + x, depthwise + 9 * d);
            const vec grad = load(s.grad_gated.row(c) + x), gate = gelu(a);
            store(s.gated.row(c) + x, gate * b);
            store(out.row(c) + x, grad * b * gelu_derivative(a));
            store(out.row(d) + x, grad * gate);
        }
    }
}

}  // namespace

// Writes grad_x and `parts`, which must be zero on entry: for each strip the gradient of proj_out transposed [half, C],
// with rows padded as those of proj_in, then the sums of ProjectedDepthwise. The part of the first strip receives the
// sums over all strips.
DLGSANET_API bool dlgsanet_gated_feed_forward_backward(
    const float* grad, const float* x, const float* norm_weight, const float* norm_bias, const float* proj,
    const float* depthwise, const float* proj_transposed, const float* depthwise_flipped,
    const float* proj_out_transposed, float* grad_x, float* parts, Index batch, Index channels, Index half,
    Index height, Index width, int threads) {
    const Shape shape{batch, channels, height, width};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj, 2 * half, channels}};
    const ProjectedDepthwise layer{enter, depthwise, depthwise_flipped, proj_transposed};
    const Strips strips{batch, height};
    const Index pitch = layer.projection_pitch(), floats = half * pitch + layer.floats();
    auto make = [&](Arena& arena) { return Scratch(arena, layer); };

    const bool done = parallel(threads, strips.count(), make, [&](Index task, const Scratch& s) {
        const Tile tile{strips.image(task), strips.top(task), strips.bottom(task), 0, width};
        const Rows grad_proj_out{parts + task * floats, pitch};
        auto gradient = [&](Index y, Rows out) {
            Strip{shape, tile.image, y, 0, width}.read(grad, s.grad);
            gemm<Start::zero>({proj_out_transposed, half, channels}, s.grad, s.grad_gated, width);
            differentiate_gate(s, y, depthwise, width, out);
            if (y < tile.top || y >= tile.bottom) return;
            transpose(s.grad, channels, width, s.grad_by_pixel);
            gemm<Start::accumulate>({s.gated, half, width}, s.grad_by_pixel, grad_proj_out, channels);
        };
        auto write = [&](Index y, Rows row) { Strip{shape, tile.image, y, 0, width}.write_sum(row, grad, grad_x); };
        s.back.run(tile, grad_proj_out.row(half), gradient, write);
    });
    sum_up(parts, strips.count(), floats);
    return done;
}
