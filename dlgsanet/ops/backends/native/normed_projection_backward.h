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

    NormedProjectionBackward(Arena& arena, const NormedProjection& layer)
        : layer_(layer),
          weights_transposed_(transposed(arena, layer.weights)),
          normed_(arena.rows(channels(), width())),
          grad_normed_(arena.rows(channels(), width())),
          normed_by_pixel_(arena.rows(width(), channels())),
          inverse_deviation_(arena.take(round_up(width(), lanes))),
          grad_norm_(arena.take(2 * channels() * lanes)) {}

    void begin() const { std::memset(grad_norm_, 0, sizeof(float) * 2 * channels() * lanes); }

    // The gradient with respect to row y of x, from that of a full row of proj(norm(x)).
    Rows row(Index image, Index y, Rows grad_hidden, const Sums& sums, Ahead& ahead) const {
        const Index hidden = layer_.weights.rows;
        gemm<Start::zero>(weights_transposed_, grad_hidden, grad_normed_, width(), &ahead);
        Strip{layer_.shape, image, y, 0, width()}.read(layer_.x, normed_);
        normalise(normed_, channels(), width(), inverse_deviation_);
        differentiate_norm();
        transpose(normed_, channels(), width(), normed_by_pixel_);
        gemm<Start::accumulate>({grad_hidden, hidden, width()}, normed_by_pixel_, {sums.projection, sums.pitch},
                                channels(), &ahead);
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
        for (Index c = 0; c < channels(); c++)
            for (Index x = width(); x < round_up(width(), lanes); x++) grad_normed_.row(c)[x] = 0.f;
        Index x = 0;
        for (; x + lanes < width(); x += 2 * lanes) differentiate_norm<2>(x);
        if (x < width()) differentiate_norm<1>(x);
    }

    // `Across` registers of pixels from column x.
    template <int Across>
    void differentiate_norm(Index x) const {
        const float share = 1.f / channels(), *weight = layer_.norm_weight, *bias = layer_.norm_bias;
        vec mean[Across]{}, slope[Across]{};
        for (Index c = 0; c < channels(); c++) {
            float* sums = grad_norm_ + 2 * c * lanes;
            vec of_weight = load(sums), of_bias = load(sums + lanes);
            for (int n = 0; n < Across; n++) {
                const vec grad = load(grad_normed_.row(c) + x + n * lanes);
                const vec normed = load(normed_.row(c) + x + n * lanes), weighted = grad * weight[c];
                of_weight += grad * normed;
                of_bias += grad;
                mean[n] += weighted;
                slope[n] += weighted * normed;
            }
            store(sums, of_weight);
            store(sums + lanes, of_bias);
        }
        vec scale[Across];
        for (int n = 0; n < Across; n++) {
            mean[n] *= share;
            slope[n] *= share;
            scale[n] = load(inverse_deviation_ + x + n * lanes);
        }
        for (Index c = 0; c < channels(); c++)
            for (int n = 0; n < Across; n++) {
                float *grad = grad_normed_.row(c) + x + n * lanes, *normed = normed_.row(c) + x + n * lanes;
                store(grad, (load(grad) * weight[c] - mean[n] - load(normed) * slope[n]) * scale[n]);
                store(normed, load(normed) * weight[c] + bias[c]);
            }
    }

    const NormedProjection& layer_;
    Weights weights_transposed_;
    Rows normed_, grad_normed_, normed_by_pixel_;
    float *inverse_deviation_, *grad_norm_;
};

}  // namespace dlgsanet
