// Gradients of channel attention (DLGSANet, section 3.3) over whole images. q, k and v are computed again from
// proj(norm(x)), by the depth-wise convolution. The caller turns the gradient of the weights into that of the cosines.

#include "cosines.h"
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

// What the attention of an image keeps, and the gradient of its cosines: cosines, grad_cosines and weights [heads, c,
// c], norms [2, heads, c] and proj_out [C, C].
struct Attention {
    const float *cosines, *norms, *grad_cosines, *weights, *proj_out;
    Index channels, heads;

    Index share() const { return channels / heads; }
};

// Matrices from which the gradients of an image are computed, made anew for each image.
struct Mixing {
    Rows of_products, of_products_transposed;  // for each head [c, c]: from k to the gradient of q, and back
    float* of_norms;                           // [2, C], the factors of q and k
    Rows transposed;                           // [C, C], maps the gradient of the result to the gradient of v

    Mixing(Arena& arena, Index channels, Index heads)
        : of_products(arena.rows(channels, channels / heads)),
          of_products_transposed(arena.rows(channels, channels / heads)),
          of_norms(arena.take(2 * channels)),
          transposed(arena.rows(channels, channels)) {}

    void make(const Attention& a) const {
        const Index all = a.channels, c = a.share();
        std::fill(of_norms, of_norms + 2 * all, 0.f);
        for (Index q = 0; q < all; q++) {
            const Index head = q / c * c;
            for (Index j = 0; j < c; j++) {
                const Index k = head + j;
                const float grad = a.grad_cosines[q * c + j], of_norm = grad * a.cosines[q * c + j];
                of_products.row(q)[j] = of_products_transposed.row(k)[q - head] =
                    grad / (divisor(a.norms[q]) * divisor(a.norms[all + k]));
                of_norms[q] -= of_norm;
                of_norms[all + k] -= of_norm;
            }
        }
        // The gradient of a norm is its channel divided by the norm, and 0 where the norm is too small to be a divisor.
        for (Index n = 0; n < 2 * all; n++)
            of_norms[n] = a.norms[n] < least_divisor ? 0.f : of_norms[n] / a.norms[n] / a.norms[n];
        for (Index k = 0; k < all; k++)
            for (Index o = 0; o < all; o++) {
                const float* row = a.proj_out + o * all + k / c * c;
                float sum = 0.f;
                for (Index i = 0; i < c; i++) sum += row[i] * a.weights[(k / c * c + i) * c + k % c];
                transposed.row(k)[o] = sum;
            }
    }
};

// The gradient of a row of q, k and v [3 * C, columns].
void differentiate_mixing(const Mixing& mixing, Index channels, Index heads, Rows qk, Rows grad, Rows out,
                          Index columns, Ahead& ahead) {
    const Index c = channels / heads;
    for (Index n = 0; n < 2 * channels; n++)
        for (Index x = 0; x < columns; x += lanes) store(out.row(n) + x, load(qk.row(n) + x) * mixing.of_norms[n]);
    for (Index q = 0; q < channels; q += c) {
        const Index k = channels + q;
        gemm<Start::accumulate>({mixing.of_products.below(q), c, c}, qk.below(k), out.below(q), columns, &ahead);
        gemm<Start::accumulate>({mixing.of_products_transposed.below(q), c, c}, qk.below(q), out.below(k), columns,
                                &ahead);
    }
    gemm<Start::zero>({mixing.transposed, channels, channels}, grad, out.below(2 * channels), columns, &ahead);
}

// Gradients of weights [heads, c, c] of an image and, added, of proj_out [C, C] from that of the matrix that maps v to
// the layer's result: for each head, its columns of proj_out times its weights.
void differentiate_folding(Rows grad_mixing, Index channels, Index heads, const float* weights, const float* proj_out,
                           float* grad_weights, float* grad_proj_out) {
    const Index c = channels / heads;
    std::fill(grad_weights, grad_weights + channels * c, 0.f);
    for (Index o = 0; o < channels; o++)
        for (Index n = 0; n < channels; n++) {
            const float *grad = grad_mixing.row(o) + n / c * c, *weight = weights + n * c;
            const float factor = proj_out[o * channels + n];
            float sum = 0.f;
            for (Index k = 0; k < c; k++) {
                grad_weights[n * c + k] += factor * grad[k];
                sum += grad[k] * weight[k];
            }
            grad_proj_out[o * channels + n] += sum;
        }
}

}  // namespace

// The gradients of weights [B, heads, c, c] and proj_out.
DLGSANET_API bool dlgsanet_channel_attention_mixing_backward(const float* grad, float* projected,
                                                             const float* depthwise, const float* weights,
                                                             const float* proj_out, float* grad_weights,
                                                             float* grad_proj_out, Index batch, Index channels,
                                                             Index heads, Index height, Index width, int threads) {
    struct Scratch {
        RowRing values;  // v before the depth-wise convolution
        Rows v[together], grad, v_by_pixel;
    };
    const Shape shape{batch, channels, height, width};
    const KeptRows kept(projected, 3 * channels, shape);
    const Strips strips{batch, height};
    const Index pitch = round_up(channels, column_step);
    const PartialSums sums(strips.count(), channels * pitch);
    auto make = [&](Arena& arena) {
        return Scratch{RowRing(arena, channels, width, together + 2, 1),
                       {arena.rows(channels, width), arena.rows(channels, width)},
                       arena.rows(channels, width),
                       arena.rows(width, channels)};
    };

    const bool done = sums && parallel(threads, strips.count(), make, [&](Index task, bool, const Scratch& s) {
        const Tile tile{strips.image(task), strips.top(task), strips.bottom(task), 0, width};
        const Rows grad_mixing{sums.begin(task), pitch};
        auto read = [&](Index y) {
            if (y < 0 || y >= height) return s.values.clear(y);
            kept.read(tile.image, y, 2 * channels, channels, s.values[y]);
        };
        read(tile.top - 1);
        read(tile.top);
        for (Index y = tile.top; y < tile.bottom; y += together) {
            Ahead ahead(lines_per_block(2 * channels, channels));
            for (Index n = 0; n < together; n++) {
                read(y + n + 1);
                kept.expect(tile.image, y + n + 1 + together, 2 * channels, channels, ahead);
                shape.strip(y + n + together, tile, 0).expect(grad, ahead);
            }
            convolve(s.values, y, channels, depthwise + 18 * channels, s.v, width);
            for (Index n = 0; n < together && y + n < tile.bottom; n++) {
                shape.strip(y + n, tile, 0).read(grad, s.grad);
                transpose(s.v[n], channels, width, s.v_by_pixel);
                gemm<Start::accumulate>({s.grad, channels, width}, s.v_by_pixel, grad_mixing, channels, &ahead);
            }
        }
    });
    if (!done) return false;
    const Index of_image = channels * (channels / heads);
    std::fill(grad_proj_out, grad_proj_out + channels * channels, 0.f);
    for (Index image = 0; image < batch; image++)
        differentiate_folding({sums.total(image * strips.per_image(), strips.per_image()), pitch}, channels, heads,
                              weights + image * of_image, proj_out, grad_weights + image * of_image, grad_proj_out);
    return true;
}

// All other gradients, with that of the cosines. `projected`, cosines, norms and weights are what the layer has kept.
DLGSANET_API bool dlgsanet_channel_attention_backward(
    const float* grad, const float* x, const float* norm_weight, const float* norm_bias, const float* qkv_weight,
    const float* depthwise, const float* proj_out, float* projected, const float* cosines, const float* norms,
    const float* weights, const float* grad_cosines, float* grad_x, float* grad_norm_weight, float* grad_norm_bias,
    float* grad_qkv_weight, float* grad_depthwise, Index batch, Index channels, Index heads, Index height, Index width,
    int threads) {
    struct Scratch {
        ProjectedDepthwiseBackward back;
        Rows grad, qk[together];
        Mixing mixing;
    };
    const Shape shape{batch, channels, height, width};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {qkv_weight, 3 * channels, channels}};
    const KeptRows kept(projected, 3 * channels, shape);
    const ProjectedDepthwise layer{enter, &kept, grad, grad_x, grad_norm_weight, grad_norm_bias,
                                   grad_qkv_weight, grad_depthwise, depthwise};
    const Strips strips{batch, height};
    const PartialSums sums(strips.count(), layer.floats());
    const Index of_image = channels * (channels / heads);
    auto make = [&](Arena& arena) {
        return Scratch{ProjectedDepthwiseBackward(arena, layer), arena.rows(channels, width),
                       {arena.rows(2 * channels, width), arena.rows(2 * channels, width)},
                       Mixing(arena, channels, heads)};
    };

    const bool done = sums && parallel(threads, strips.count(), make, [&](Index task, bool, const Scratch& s) {
        const Tile tile{strips.image(task), strips.top(task), strips.bottom(task), 0, width};
        const Index at = tile.image * of_image;
        s.mixing.make({cosines + at, norms + tile.image * 2 * channels, grad_cosines + at, weights + at, proj_out,
                       channels, heads});
        auto gradient = [&](Index first, Ahead& ahead) {
            convolve(s.back.hidden, first, 2 * channels, depthwise, s.qk, width);
            for (Index y = std::max<Index>(first, 0); y < std::min(first + together, height); y++) {
                shape.strip(y, tile, 0).read(grad, s.grad);
                differentiate_mixing(s.mixing, channels, heads, s.qk[y - first], s.grad, s.back.grad_convolved[y],
                                     width, ahead);
            }
        };
        s.back.run(tile, sums.begin(task), gradient);
    });
    if (done) layer.hand_out_sums(sums.total());
    return done;
}
