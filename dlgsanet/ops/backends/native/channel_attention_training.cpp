// Channel attention (DLGSANet, section 3.3) over whole images, for training: q, k and v = depthwise_3x3(proj(norm(x))),
// and the gradients of the layer. The caller computes the matrices between channels and their gradients.

#include "projected_depthwise_backward.h"

using namespace dlgsanet;

namespace {

// The matrices of an image from which its gradients are computed.
struct Mixing {
    const float* of_similarities;  // [heads, 2, 2, c, c]: q from q, q from k, k from q, k from k
    const float* transposed;       // [C, C], maps the gradient of the result to the gradient of v
};

// The gradient of a row of q, k and v [3 * C, columns].
void differentiate_mixing(const Mixing& mixing, Index channels, Index heads, Rows qkv, Rows grad, Rows out,
                          Index columns) {
    const Index c = channels / heads;
    const float* matrix = mixing.of_similarities;
    for (Index head = 0; head < heads; head++)
        for (Index to = 0; to < 2; to++, matrix += 2 * c * c) {
            const Rows rows = out.below(to * channels + head * c);
            gemm<Start::zero>({matrix, c, c}, qkv.below(head * c), rows, columns);
            gemm<Start::accumulate>({matrix + c * c, c, c}, qkv.below(channels + head * c), rows, columns);
        }
    gemm<Start::zero>({mixing.transposed, channels, channels}, grad, out.below(2 * channels), columns);
}

}  // namespace

DLGSANET_API bool dlgsanet_projected_depthwise(const float* x, const float* norm_weight, const float* norm_bias,
                                               const float* proj, const float* depthwise, float* out, Index batch,
                                               Index channels, Index hidden, Index height, Index width, int threads) {
    struct Scratch {
        Rows normed, convolved[2];
        RowRing projected;
    };
    const Shape shape{batch, channels, height, width}, out_shape{batch, hidden, height, width};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj, hidden, channels}};
    const Tiling tiles(shape, 6 * hidden + channels, 1, threads);
    auto make = [&](Arena& arena) {
        return Scratch{arena.rows(channels, tiles.width() + 2),
                       {arena.rows(hidden, tiles.width()), arena.rows(hidden, tiles.width())},
                       RowRing(arena, hidden, tiles.width(), 4, 1)};
    };

    return parallel(threads, tiles.count(), make, [&](Index task, const Scratch& s) {
        const Tile tile = tiles[task];
        enter.make_row(tile.top - 1, tile, 1, s.normed, s.projected);
        enter.make_row(tile.top, tile, 1, s.normed, s.projected);
        for (Index y = tile.top; y < tile.bottom; y += 2) {
            enter.make_row(y + 1, tile, 1, s.normed, s.projected);
            if (y + 1 < tile.bottom) enter.make_row(y + 2, tile, 1, s.normed, s.projected);
            const Neighbours<2> rows(s.projected, y);
            for (Index c = 0; c < hidden; c++) {
                const Addresses<2> out_rows(s.convolved, c);
                depthwise_3x3(rows, c, 0, tile.columns(), depthwise + 9 * c,
                              [=](Index x, const vec* sums) { out_rows.store_all(x, sums); });
            }
            for (int n = 0; n < 2 && y + n < tile.bottom; n++)
                out_shape.strip(y + n, tile, 0).write(s.convolved[n], out);
        }
    });
}

// Writes grad_x and `parts`, which must be zero on entry: for each strip the sums of ProjectedDepthwise. The part of the
// first strip receives the sums over all strips.
DLGSANET_API bool dlgsanet_channel_attention_backward(
    const float* grad, const float* x, const float* norm_weight, const float* norm_bias, const float* proj,
    const float* depthwise, const float* proj_transposed, const float* depthwise_flipped, const float* qkv,
    const float* of_similarities, const float* mixing_transposed, float* grad_x, float* parts, Index batch,
    Index channels, Index heads, Index height, Index width, int threads) {
    struct Scratch {
        ProjectedDepthwiseBackward back;
        Rows grad, qkv;
    };
    const Shape shape{batch, channels, height, width}, qkv_shape{batch, 3 * channels, height, width};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj, 3 * channels, channels}};
    const ProjectedDepthwise layer{enter, depthwise, depthwise_flipped, proj_transposed};
    const Strips strips{batch, height};
    auto make = [&](Arena& arena) {
        return Scratch{ProjectedDepthwiseBackward(arena, layer), arena.rows(channels, width),
                       arena.rows(2 * channels, width)};
    };

    const bool done = parallel(threads, strips.count(), make, [&](Index task, const Scratch& s) {
        const Tile tile{strips.image(task), strips.top(task), strips.bottom(task), 0, width};
        const Mixing mixing{of_similarities + tile.image * 4 * channels * (channels / heads),
                            mixing_transposed + tile.image * channels * channels};
        auto gradient = [&](Index first) {
            for (Index y = std::max<Index>(first, 0); y < std::min(first + s.back.together, height); y++) {
                Strip{shape, tile.image, y, 0, width}.read(grad, s.grad);
                Strip{qkv_shape, tile.image, y, 0, width}.read(qkv, s.qkv, 2 * channels);
                differentiate_mixing(mixing, channels, heads, s.qkv, s.grad, s.back.grad_convolved[y], width);
            }
        };
        auto write = [&](Index y, Rows row) { Strip{shape, tile.image, y, 0, width}.write_sum(row, grad, grad_x); };
        s.back.run(tile, parts + task * layer.floats(), gradient, write);
    });
    sum_up(parts, strips.count(), layer.floats());
    return done;
}
