// Gradients of depthwise_3x3(proj(norm(x))), the first part of the feed-forward network and of channel attention.
// Everything is computed again from x, row by row, unless proj(norm(x)) was kept.
#pragma once

#include "depthwise.h"
#include "normed_projection_backward.h"

namespace dlgsanet {

struct ProjectedDepthwise {
    const NormedProjection& enter;
    const KeptRows* projected;  // proj(norm(x)); null: it is computed again
    const float* grad;       // of the layer's result, x + ...
    float *grad_x, *grad_norm_weight, *grad_norm_bias, *grad_proj, *grad_depthwise;
    const float* depthwise;  // [hidden, 3, 3]

    Index channels() const { return enter.shape.channels; }
    Index hidden() const { return enter.weights.rows; }

    // The sums of a task: gradients of proj [hidden, C], depthwise [hidden, 9], norm_weight [C], norm_bias [C]. The
    // first has `projection_pitch` floats from row to row.
    Index projection_pitch() const { return round_up(channels(), column_step); }
    Index depthwise_at() const { return hidden() * projection_pitch(); }
    Index norm_at() const { return depthwise_at() + 9 * hidden(); }
    Index floats() const { return norm_at() + 2 * channels(); }

    void hand_out_sums(float* sums) const {
        hand_out({sums, projection_pitch()}, hidden(), channels(), grad_proj);
        std::copy(sums + depthwise_at(), sums + norm_at(), grad_depthwise);
        std::copy(sums + norm_at(), sums + norm_at() + channels(), grad_norm_weight);
        std::copy(sums + norm_at() + channels(), sums + floats(), grad_norm_bias);
    }
};

class ProjectedDepthwiseBackward {
public:
    static constexpr int together = 2;  // rows

    ProjectedDepthwiseBackward(Arena& arena, const ProjectedDepthwise& layer)
        : hidden(arena, layer.hidden(), layer.enter.shape.width, together + 2, 1),
          grad_convolved(arena, layer.hidden(), layer.enter.shape.width, together + 2, 1),
          layer_(layer),
          enter_(arena, layer.enter),
          normed_(arena.rows(layer.channels(), width() + 2)),
          grad_depthwise_(arena.take(9 * layer.hidden() * lanes)) {
        for (Rows& row : grad_hidden_) row = arena.rows(layer.hidden(), width());
    }

    // Rows y - 1 to y + together of proj(norm(x)) while `gradient` computes rows from y on.
    const RowRing hidden;
    // `gradient` writes to it.
    const RowRing grad_convolved;

    // Write the gradient with respect to x for the full rows [tile.top, tile.bottom). gradient(y, ahead) must store the
    // gradients of rows y to y + together - 1 of the convolution's result. Those of rows outside the image do not
    // matter. It may have `ahead` request more of its memory. `parts` receives the sums.
    template <class Gradient>
    void run(const Tile& tile, float* parts, const Gradient& gradient) const {
        const Shape& shape = layer_.enter.shape;
        const NormedProjectionBackward::Sums sums{parts, parts + layer_.norm_at(), layer_.projection_pitch()};
        const Index height = layer_.enter.shape.height, last = std::min(tile.bottom, height - 1);
        std::memset(grad_depthwise_, 0, sizeof(float) * 9 * layer_.hidden() * lanes);
        enter_.begin();
        project(tile.top - 2, tile, nullptr);
        project(tile.top - 1, tile, nullptr);
        for (Index y = tile.top - 1; y <= tile.bottom; y += together) {
            // Three or six times `channels`; a product with `hidden` rows is a third of the products.
            Ahead ahead(lines_per_block((layer_.projected ? 2 : 1) * layer_.channels(), layer_.hidden()));
            for (Index row = y + 1; row <= y + together; row++) {
                if (layer_.projected) layer_.projected->expect(tile.image, row + together, 0, layer_.hidden(), ahead);
                shape.strip(row + (layer_.projected ? 0 : together), tile, 0).expect(layer_.enter.x, ahead);
                shape.strip(row + together - 1, tile, 0).expect(layer_.grad, ahead);
                shape.strip(row - together, tile, 0).expect(layer_.grad_x, ahead);
            }
            for (Index row = y + 1; row <= y + together; row++)
                if (row <= last + 1)
                    project(row, tile, &ahead);
                else
                    hidden.clear(row);
            gradient(y, ahead);
            for (Index row = y; row < y + together; row++)
                if (row < 0 || row > last)
                    grad_convolved.clear(row);
                else
                    grad_convolved.clear_end(row);
            add_depthwise(std::max(y, tile.top), std::min(y + together, tile.bottom));
            if (y < tile.top) continue;
            differentiate_depthwise(y - 1);
            for (Index n = 0; n < together && y - 1 + n < tile.bottom; n++)
                shape.strip(y - 1 + n, tile, 0)
                    .write_sum(enter_.row(tile.image, y - 1 + n, grad_hidden_[n], sums, ahead), layer_.grad,
                               layer_.grad_x);
        }
        for (Index n = 0; n < 9 * layer_.hidden(); n++)
            parts[layer_.depthwise_at() + n] = sum_lanes(grad_depthwise_ + n * lanes);
        enter_.hand_in(sums);
    }

private:
    Index width() const { return layer_.enter.shape.width; }

    // Row y of proj(norm(x)).
    void project(Index y, const Tile& tile, Ahead* ahead) const {
        if (!layer_.projected)
            layer_.enter.make_row(y, tile, 1, normed_, hidden, ahead);
        else if (y < 0 || y >= layer_.enter.shape.height)
            hidden.clear(y);
        else
            layer_.projected->read(tile.image, y, 0, layer_.hidden(), hidden[y]);
    }

    // Add rows [first, stop), one or two, to the gradient of the depth-wise filters.
    void add_depthwise(Index first, Index stop) const {
        if (stop - first == 2) add_depthwise<2>(first);
        if (stop - first == 1) add_depthwise<1>(first);
    }

    // One register per tap. Each value of the source is loaded once for all rows.
    template <int Down>
    void add_depthwise(Index y) const {
        const Neighbours<Down> source(hidden, y);
        Rows grads[Down];
        for (int n = 0; n < Down; n++) grads[n] = grad_convolved[y + n];
        const Index columns = width();
        for (Index c = 0; c < layer_.hidden(); c++) {
            const Addresses<Down> grads_of(grads, c);
            const Addresses<Down + 2> rows(source.rows, c);
            float* sums = grad_depthwise_ + 9 * c * lanes;
            vec sum[9];
            for (int t = 0; t < 9; t++) sum[t] = load(sums + t * lanes);
            for (Index x = 0; x < columns; x += lanes) {
                vec grad[Down];
                for (int n = 0; n < Down; n++) grad[n] = in_register(load(grads_of.row[n] + x));
#pragma GCC unroll 4
                for (int n = 0; n < Down + 2; n++)
#pragma GCC unroll 3
                    for (int j = 0; j < 3; j++) {
                        const vec value = in_register(load(rows.row[n] + x + j - 1));
#pragma GCC unroll 2
                        for (int i = 0; i < Down; i++)
                            if (n >= i && n - i < 3) sum[3 * (n - i) + j] += grad[i] * value;
                    }
            }
            for (int t = 0; t < 9; t++) store(sums + t * lanes, sum[t]);
        }
    }

    // Rows y and y + 1 of the gradient of proj(norm(x)), from rows y - 1 to y + 2 of the gradient of the convolution.
    void differentiate_depthwise(Index y) const {
        const Neighbours<together> rows(grad_convolved, y);
        for (Index c = 0; c < layer_.hidden(); c++) {
            const Addresses<together> out(grad_hidden_, c);
            depthwise_3x3<together, true>(rows, c, 0, width(), layer_.depthwise + 9 * c,
                                          [=](Index x, const vec* grad) { out.store_all(x, grad); });
        }
    }

    const ProjectedDepthwise& layer_;
    NormedProjectionBackward enter_;
    Rows normed_, grad_hidden_[together];
    float* grad_depthwise_;
};

}  // namespace dlgsanet
