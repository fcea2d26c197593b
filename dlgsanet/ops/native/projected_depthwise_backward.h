// Gradients of depthwise_3x3(proj(norm(x))), which both feed-forward network and channel attention begin with. All is
// made again row by row from x, so that nothing but x is kept from the forward pass.
#pragma once

#include "depthwise.h"
#include "normed_projection.h"
#include "parallel.h"
#include "partial_sums.h"

namespace dlgsanet {

struct ProjectedDepthwise {
    const NormedProjection& enter;
    const float *depthwise, *depthwise_flipped;  // [2h, 3, 3], the second one's taps in reverse
    const float* weights_transposed;             // [C, hidden]

    Index channels() const { return enter.shape.channels; }
    Index hidden() const { return enter.weights.rows; }

    // What a task hands in: gradients of proj [hidden, C], depthwise [hidden, 9], norm_weight [C], norm_bias [C]; the
    // rows of the first are `projection_pitch` apart.
    Index projection_pitch() const { return round_up(channels(), 16); }
    Index depthwise_at() const { return hidden() * projection_pitch(); }
    Index norm_at() const { return depthwise_at() + 9 * hidden(); }
    Index floats() const { return norm_at() + 2 * channels(); }
};

class ProjectedDepthwiseBackward {
public:
    ProjectedDepthwiseBackward(Arena& arena, const ProjectedDepthwise& layer)
        : hidden(arena, layer.hidden(), layer.enter.shape.width, 3, 1),
          layer_(layer),
          grad_convolved_(arena, layer.hidden(), layer.enter.shape.width, 3, 1),
          normed_(arena.rows(layer.channels(), width() + 2)),
          grad_normed_(arena.rows(layer.channels(), width())),
          normed_by_pixel_(arena.rows(width(), layer.channels())),
          grad_hidden_(arena.rows(layer.hidden(), width())),
          inverse_deviation_(arena.take(round_up(width(), lanes))),
          grad_depthwise_(arena.take(9 * layer.hidden() * lanes)),
          grad_norm_(arena.take(2 * layer.channels() * lanes)) {}

    // Rows y - 1, y and y + 1 of proj(norm(x)), while row y of the gradient is asked for.
    const RowRing hidden;

    // The gradient with respect to x, of rows [tile.top, tile.bottom) of full width, handed row by row to
    // write(y, rows); gradient(y, rows) gives that with respect to row y of the result; `parts` takes the sums.
    template <class Gradient, class Write>
    void run(const Tile& tile, float* parts, const Gradient& gradient, const Write& write) const {
        std::memset(grad_depthwise_, 0, sizeof(float) * 9 * layer_.hidden() * lanes);
        std::memset(grad_norm_, 0, sizeof(float) * 2 * layer_.channels() * lanes);
        layer_.enter.make_row(tile.top - 2, tile, 1, normed_, hidden);
        layer_.enter.make_row(tile.top - 1, tile, 1, normed_, hidden);
        for (Index y = tile.top - 1; y <= tile.bottom; y++) {
            layer_.enter.make_row(y + 1, tile, 1, normed_, hidden);
            if (y < 0 || y >= layer_.enter.shape.height) {
                grad_convolved_.clear(y);
            } else {
                gradient(y, grad_convolved_[y]);
                grad_convolved_.clear_around(y, 0, width());
                if (y >= tile.top && y < tile.bottom) add_depthwise(y);
            }
            if (y <= tile.top) continue;
            finish_row(y - 1, tile, parts);
            write(y - 1, grad_normed_);
        }
        hand_in(parts);
    }

private:
    Index width() const { return layer_.enter.shape.width; }

    // The gradient of the depth-wise filters, a register for each tap.
    void add_depthwise(Index y) const {
        const Rows grad = grad_convolved_[y], rows[3] = {hidden[y - 1], hidden[y], hidden[y + 1]};
        for (Index c = 0; c < layer_.hidden(); c++) {
            float* sums = grad_depthwise_ + 9 * c * lanes;
            vec sum[9];
            for (int t = 0; t < 9; t++) sum[t] = load(sums + t * lanes);
            for (Index x = 0; x < width(); x += lanes) {
                const vec here = load(grad.row(c) + x);
                for (int t = 0; t < 9; t++) sum[t] += here * load(rows[t / 3].row(c) + x + t % 3 - 1);
            }
            for (int t = 0; t < 9; t++) store(sums + t * lanes, sum[t]);
        }
    }

    // From row y of the convolution's gradient, and its neighbours, back to x; the result is left in grad_normed_.
    void finish_row(Index y, const Tile& tile, float* parts) const {
        const Rows above = grad_convolved_[y - 1], here = grad_convolved_[y], below = grad_convolved_[y + 1];
        for (Index c = 0; c < layer_.hidden(); c++) {
            const float* weight = layer_.depthwise_flipped + 9 * c;
            for (Index x = 0; x < width(); x += lanes)
                store(grad_hidden_.row(c) + x,
                      depthwise_3x3(above.row(c) + x, here.row(c) + x, below.row(c) + x, weight));
            std::fill(grad_hidden_.row(c) + width(), grad_hidden_.row(c) + round_up(width(), lanes), 0.f);
        }
        gemm<Start::zero>({layer_.weights_transposed, layer_.channels(), layer_.hidden()}, grad_hidden_, grad_normed_,
                          width());
        Strip{layer_.enter.shape, tile.image, y, 0, width()}.read(layer_.enter.x, normed_);
        normalise(normed_, layer_.channels(), width(), inverse_deviation_);
        differentiate_norm();
        transpose(normed_, layer_.channels(), width(), normed_by_pixel_);
        gemm<Start::accumulate>({grad_hidden_, layer_.hidden(), width()}, normed_by_pixel_,
                                {parts, layer_.projection_pitch()}, layer_.channels());
    }

    // grad_normed_ becomes the gradient with respect to x, and normed_, which came without weight and bias, gets them.
    void differentiate_norm() const {
        const Index channels = layer_.channels();
        const float share = 1.f / channels, *weight = layer_.enter.norm_weight, *bias = layer_.enter.norm_bias;
        for (Index x = 0; x < width(); x += lanes) {
            vec mean{}, slope{};
            for (Index c = 0; c < channels; c++) {
                const vec grad = load(grad_normed_.row(c) + x), normed = load(normed_.row(c) + x);
                float *sums = grad_norm_ + 2 * c * lanes;
                store(sums, load(sums) + grad * normed);
                store(sums + lanes, load(sums + lanes) + grad);
                mean += grad * weight[c];
                slope += grad * weight[c] * normed;
            }
            mean *= share;
            slope *= share;
            const vec scale = load(inverse_deviation_ + x);
            for (Index c = 0; c < channels; c++) {
                const vec grad = load(grad_normed_.row(c) + x), normed = load(normed_.row(c) + x);
                store(grad_normed_.row(c) + x, (grad * weight[c] - mean - normed * slope) * scale);
                store(normed_.row(c) + x, normed * weight[c] + bias[c]);
            }
        }
    }

    void hand_in(float* parts) const {
        for (Index n = 0; n < 9 * layer_.hidden(); n++)
            parts[layer_.depthwise_at() + n] = sum_lanes(grad_depthwise_ + n * lanes);
        float* norm = parts + layer_.norm_at();
        for (Index c = 0; c < layer_.channels(); c++) {
            norm[c] = sum_lanes(grad_norm_ + 2 * c * lanes);
            norm[layer_.channels() + c] = sum_lanes(grad_norm_ + (2 * c + 1) * lanes);
        }
    }

    const ProjectedDepthwise& layer_;
    RowRing grad_convolved_;
    Rows normed_, grad_normed_, normed_by_pixel_, grad_hidden_;
    float *inverse_deviation_, *grad_depthwise_, *grad_norm_;
};

}  // namespace dlgsanet
