// Gradients of depthwise_3x3(proj(norm(x))), the first part of the feed-forward network and of channel attention.
// Everything is computed again from x, row by row, so only x is kept from the forward pass.
#pragma once

#include "depthwise.h"
#include "normed_projection_backward.h"

namespace dlgsanet {

struct ProjectedDepthwise {
    const NormedProjection& enter;
    const float *depthwise, *depthwise_flipped;  // [hidden, 3, 3], the second with taps in reverse order
    const float* weights_transposed;             // [C, hidden]

    Index channels() const { return enter.shape.channels; }
    Index hidden() const { return enter.weights.rows; }

    // The sums of a task: gradients of proj [hidden, C], depthwise [hidden, 9], norm_weight [C], norm_bias [C]. The
    // first has `projection_pitch` floats from row to row.
    Index projection_pitch() const { return round_up(channels(), column_step); }
    Index depthwise_at() const { return hidden() * projection_pitch(); }
    Index norm_at() const { return depthwise_at() + 9 * hidden(); }
    Index floats() const { return norm_at() + 2 * channels(); }
};

class ProjectedDepthwiseBackward {
public:
    ProjectedDepthwiseBackward(Arena& arena, const ProjectedDepthwise& layer)
        : hidden(arena, layer.hidden(), layer.enter.shape.width, 3, 1),
          layer_(layer),
          enter_(arena, layer.enter, layer.weights_transposed),
          grad_convolved_(arena, layer.hidden(), width(), 3, 1),
          normed_(arena.rows(layer.channels(), width() + 2)),
          grad_depthwise_(arena.take(9 * layer.hidden() * lanes)) {}

    // Rows y - 1, y and y + 1 of proj(norm(x)) while `gradient` computes row y.
    const RowRing hidden;

    // Compute the gradient with respect to x for the full rows [tile.top, tile.bottom) and pass it row by row to
    // write(y, rows). gradient(y, rows) must store the gradient of row y of the result. `parts` receives the sums.
    template <class Gradient, class Write>
    void run(const Tile& tile, float* parts, const Gradient& gradient, const Write& write) const {
        const NormedProjectionBackward::Sums sums{parts, parts + layer_.norm_at(), layer_.projection_pitch()};
        std::memset(grad_depthwise_, 0, sizeof(float) * 9 * layer_.hidden() * lanes);
        enter_.begin();
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
            differentiate_depthwise(y - 1);
            write(y - 1, enter_.row(tile.image, y - 1, sums));
        }
        for (Index n = 0; n < 9 * layer_.hidden(); n++)
            parts[layer_.depthwise_at() + n] = sum_lanes(grad_depthwise_ + n * lanes);
        enter_.hand_in(sums);
    }

private:
    Index width() const { return layer_.enter.shape.width; }

    // Add to the gradient of the depth-wise filters; one register per tap.
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

    // Row y of the gradient of proj(norm(x)), from rows y - 1 to y + 1 of the gradient of the convolution.
    void differentiate_depthwise(Index y) const {
        const Rows above = grad_convolved_[y - 1], here = grad_convolved_[y], below = grad_convolved_[y + 1];
        for (Index c = 0; c < layer_.hidden(); c++) {
            const float* weight = layer_.depthwise_flipped + 9 * c;
            for (Index x = 0; x < width(); x += lanes)
                store(enter_.grad_hidden.row(c) + x,
                      depthwise_3x3(above.row(c) + x, here.row(c) + x, below.row(c) + x, weight));
        }
    }

    const ProjectedDepthwise& layer_;
    NormedProjectionBackward enter_;
    RowRing grad_convolved_;
    Rows normed_;
    float* grad_depthwise_;
};

}  // namespace dlgsanet
