// Gradients of channel attention (DLGSANet, section 3.3) over whole images. q, k and v are computed again from
// proj(norm(x)), by the depth-wise convolution. The caller computes the matrices between channels and their gradients.

#include "projected_depthwise_backward.h"

using namespace dlgsanet;

namespace {

constexpr int together = ProjectedDepthwiseBackward::together;

// Rows y and y + 1 of the depth-wise convolution of the first `channels` channels.
void convolve(const RowRing& source, Index y, Index channels, const float* depthwise, const Rows* out, Index columns) {
    const Neighbours<together> rows(source, y);
    for (Index c = 0; c < channels; c++) {
        const Addresses<together> out_rows(out, c);
        depthwise_3x3(rows, c, 0, columns, depthwise + 9 * c,
                      [=](Index x, const vec* sums) { out_rows.store_all(x, sums); });
    }
}

// The matrices of an image from which its gradients are computed.
struct Mixing {
    const float* of_similarities;  // [heads, 2, 2, c, c]: q from q, q from k, k from q, k from k
    const float* transposed;       // [C, C], maps the gradient of the result to the gradient of v
};

// The gradient of a row of q, k and v [3 * C, columns].
void differentiate_mixing(const Mixing& mixing, Index channels, Index heads, Rows qk, Rows grad, Rows out,
                          Index columns, Ahead& ahead) {
    const Index c = channels / heads;
    const float* matrix = mixing.of_similarities;
    for (Index head = 0; head < heads; head++)
        for (Index to = 0; to < 2; to++, matrix += 2 * c * c) {
            const Rows rows = out.below(to * channels + head * c);
            gemm<Start::zero>({matrix, c, c}, qk.below(head * c), rows, columns, &ahead);
            gemm<Start::accumulate>({matrix + c * c, c, c}, qk.below(channels + head * c), rows, columns, &ahead);
        }
    gemm<Start::zero>({mixing.transposed, channels, channels}, grad, out.below(2 * channels), columns, &ahead);
}

}  // namespace

// `parts` must be zero on entry. For each strip it receives the gradient [C, C] of the matrix that maps v to the
// layer's result, with rows padded to column_step. The part of the first strip of an image receives the sums over its
// strips.
DLGSANET_API bool dlgsanet_channel_attention_mixing_backward(const float* grad, const float* projected,
                                                             const float* depthwise, float* parts, Index batch,
                                                             Index channels, Index height, Index width, int threads) {
    struct Scratch {
        RowRing values;  // v before the depth-wise convolution
        Rows v[together], grad, v_by_pixel;
    };
    const Shape shape{batch, channels, height, width}, projected_shape{batch, 3 * channels, height, width};
    const float* values = projected + 2 * channels * shape.pixels();
    const Strips strips{batch, height};
    const Index pitch = round_up(channels, column_step), floats = channels * pitch;
    auto make = [&](Arena& arena) {
        return Scratch{RowRing(arena, channels, width, together + 2, 1),
                       {arena.rows(channels, width), arena.rows(channels, width)},
                       arena.rows(channels, width),
                       arena.rows(width, channels)};
    };

    const bool done = parallel(threads, strips.count(), make, [&](Index task, bool, const Scratch& s) {
        const Tile tile{strips.image(task), strips.top(task), strips.bottom(task), 0, width};
        auto read = [&](Index y) {
            if (y < 0 || y >= height) return s.values.clear(y);
            projected_shape.strip(y, tile, 0).read(values, s.values[y], channels);
        };
        read(tile.top - 1);
        read(tile.top);
        for (Index y = tile.top; y < tile.bottom; y += together) {
            Ahead ahead(lines_per_block(2 * channels, channels));
            for (Index n = 0; n < together; n++) {
                read(y + n + 1);
                projected_shape.strip(y + n + 1 + together, tile, 0).expect(values, ahead, channels);
                shape.strip(y + n + together, tile, 0).expect(grad, ahead);
            }
            convolve(s.values, y, channels, depthwise + 18 * channels, s.v, width);
            for (Index n = 0; n < together && y + n < tile.bottom; n++) {
                shape.strip(y + n, tile, 0).read(grad, s.grad);
                transpose(s.v[n], channels, width, s.v_by_pixel);
                gemm<Start::accumulate>({s.grad, channels, width}, s.v_by_pixel, {parts + task * floats, pitch},
                                        channels, &ahead);
            }
        }
    });
    if (done)
        for (Index image = 0; image < batch; image++)
            sum_up(parts + image * strips.per_image() * floats, strips.per_image(), floats);
    return done;
}

// Writes grad_x and `parts`, which must be zero on entry: for each strip the sums of ProjectedDepthwise. The part of
// the first strip receives the sums over all strips.
DLGSANET_API bool dlgsanet_channel_attention_backward(
    const float* grad, const float* x, const float* norm_weight, const float* norm_bias, const float* proj,
    const float* depthwise, const float* proj_transposed, const float* depthwise_flipped, const float* projected,
    const float* of_similarities, const float* mixing_transposed, float* grad_x, float* parts, Index batch,
    Index channels, Index heads, Index height, Index width, int threads) {
    struct Scratch {
        ProjectedDepthwiseBackward back;
        Rows grad, qk[together];
    };
    const Shape shape{batch, channels, height, width};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj, 3 * channels, channels}};
    const ProjectedDepthwise layer{enter, projected, grad, grad_x, depthwise, depthwise_flipped, proj_transposed};
    const Strips strips{batch, height};
    auto make = [&](Arena& arena) {
        return Scratch{ProjectedDepthwiseBackward(arena, layer), arena.rows(channels, width),
                       {arena.rows(2 * channels, width), arena.rows(2 * channels, width)}};
    };

    const bool done = parallel(threads, strips.count(), make, [&](Index task, bool, const Scratch& s) {
        const Tile tile{strips.image(task), strips.top(task), strips.bottom(task), 0, width};
        const Mixing mixing{of_similarities + tile.image * 4 * channels * (channels / heads),
                            mixing_transposed + tile.image * channels * channels};
        auto gradient = [&](Index first, Ahead& ahead) {
            convolve(s.back.hidden, first, 2 * channels, depthwise, s.qk, width);
            for (Index y = std::max<Index>(first, 0); y < std::min(first + together, height); y++) {
                shape.strip(y, tile, 0).read(grad, s.grad);
                differentiate_mixing(mixing, channels, heads, s.qk[y - first], s.grad, s.back.grad_convolved[y], width,
                                     ahead);
            }
        };
        s.back.run(tile, parts + task * layer.floats(), gradient);
    });
    sum_up(parts, strips.count(), layer.floats());
    return done;
}
