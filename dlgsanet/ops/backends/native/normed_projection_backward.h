// Gradients of proj(norm(x)), row by row; norm(x) is computed again from x.
#pragma once

#include "normed_projection.h"
#include "parallel.h"
#include "partial_sums.h"

namespace dlgsanet {

class NormedProjectionBackward {
public:
    // The sums of a task: the gradients of proj [hidden, C] with `pitch` floats from row to row, of norm_weight [C] and
    // of norm_bias [C].
    struct Sums {
        float *projection, *norm;
        Index pitch;
    };

    NormedProjectionBackward(Arena& arena, const NormedProjection& layer, const float* weights_transposed)
        : grad_hidden(arena.rows(layer.weights.rows, layer.shape.width)),
          layer_(layer),
          weights_transposed_(weights_transposed),
          normed_(arena.rows(channels(), width())),
          grad_normed_(arena.rows(channels(), width())),
          normed_by_pixel_(arena.rows(width(), channels())),
          inverse_deviation_(arena.take(round_up(width(), lanes))),
          grad_norm_(arena.take(2 * channels() * lanes)) {}

    // The caller stores the gradient of a full row of proj(norm(x)) here before it calls `row`.
    const Rows grad_hidden;

    void begin() const { std::memset(grad_norm_, 0, sizeof(float) * 2 * channels() * lanes); }

    // The gradient with respect to row y of x.
    Rows row(Index image, Index y, const Sums& sums) const {
        const Index hidden = layer_.weights.rows;
        for (Index c = 0; c < hidden; c++)
            std::fill(grad_hidden.row(c) + width(), grad_hidden.row(c) + round_up(width(), lanes), 0.f);
        gemm<Start::zero>({weights_transposed_, channels(), hidden}, grad_hidden, grad_normed_, width());
        Strip{layer_.shape, image, y, 0, width()}.read(layer_.x, normed_);
        normalise(normed_, channels(), width(), inverse_deviation_);
        differentiate_norm();
        transpose(normed_, channels(), width(), normed_by_pixel_);
        gemm<Start::accumulate>({grad_hidden, hidden, width()}, normed_by_pixel_, {sums.projection, sums.pitch},
                                channels());
        return grad_normed_;
    }

    void hand_in(const Sums& sums) const {
        for (Index c = 0; c < channels(); c++) {
            sums.norm[c] = sum_lanes(grad_norm_ + 2 * c * lanes);
            sums.norm[channels() + c] = sum_lanes(grad_norm_ + (2 * c + 1) * lanes);
        }
    }

private:
    Index channels() const { return layer_.shape.channels; }
    Index width() const { return layer_.shape.width; }

    // Turn grad_normed_ into the gradient with respect to x, and apply weight and bias to normed_.
    void differentiate_norm() const {
        const float share = 1.f / channels(), *weight = layer_.norm_weight, *bias = layer_.norm_bias;
        for (Index x = 0; x < width(); x += lanes) {
            vec mean{}, slope{};
            for (Index c = 0; c < channels(); c++) {
                const vec grad = load(grad_normed_.row(c) + x), normed = load(normed_.row(c) + x);
                float* sums = grad_norm_ + 2 * c * lanes;
                store(sums, load(sums) + grad * normed);
                store(sums + lanes, load(sums + lanes) + grad);
                mean += grad * weight[c];
                slope += grad * weight[c] * normed;
            }
            mean *= share;
            slope *= share;
            const vec scale = load(inverse_deviation_ + x);
            for (Index c = 0; c < channels(); c++) {
                const vec grad = load(grad_normed_.row(c) + x), normed = load(normed_.row(c) + x);
                store(grad_normed_.row(c) + x, (grad * weight[c] - mean - normed * slope) * scale);
                store(normed_.row(c) + x, normed * weight[c] + bias[c]);
            }
        }
    }

    const NormedProjection& layer_;
    const float* weights_transposed_;  // [C, hidden]
    Rows normed_, grad_normed_, normed_by_pixel_;
    float *inverse_deviation_, *grad_norm_;
};

}  // namespace dlgsanet
