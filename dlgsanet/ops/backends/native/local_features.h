// The first part of multi-head dynamic local self-attention (DLGSANet, section 3.2), row by row: y = proj_in(norm(x)),
// and the feature z = depthwise_KxK(squeeze(y)) from which filters are formed.
#pragma once

#include "depthwise.h"
#include "normed_projection.h"
#include "parallel.h"

namespace dlgsanet {

struct LocalFeatures {
    const NormedProjection& enter;
    const Weights squeeze;
    const float *spatial_weight, *spatial_bias;  // [D, K, K] and [D]
    const Index window_size;

    Index r() const { return window_size / 2; }
};

class LocalFeatureRows {
public:
    // The last `kept` rows of z remain, with the rows of y in their windows.
    LocalFeatureRows(Arena& arena, const LocalFeatures& layer, Index width, Index kept = 1)
        : projected(arena, layer.squeeze.inner, width, layer.window_size + kept - 1, layer.r()),
          z(arena, layer.squeeze.rows, width, layer.window_size, kept),
          layer_(layer),
          normed_(arena.rows(layer.squeeze.inner, width + 2 * layer.window_size)),
          squeezed_(arena, layer.squeeze.rows, width, 1, layer.r()) {}

    // y with the margins that the window needs, and z.
    const RowRing projected;
    const RunningDepthwise z;

    // Compute the next row of a tile; the first is tile.top - r. After that, row `row` - r of z is complete.
    void make(Index row, const Tile& tile, Ahead* ahead = nullptr) const {
        const Index r = layer_.r(), height = layer_.enter.shape.height, width = layer_.enter.shape.width;
        layer_.enter.make_row(row, tile, r, normed_, projected, ahead);
        if (row < 0 || row >= height) return z.begin(row + r, layer_.spatial_bias, tile.columns());
        const Index from = std::max(-r, -tile.left), to = std::min(width - tile.left, tile.columns() + r);
        gemm<Start::bias>(layer_.squeeze, projected[row].at(from), squeezed_[0].at(from), to - from);
        squeezed_.clear_around(0, from, to);
        z.add(row, squeezed_[0], layer_.spatial_weight, layer_.spatial_bias, tile.columns());
    }

private:
    const LocalFeatures& layer_;
    Rows normed_;
    RowRing squeezed_;
};

}  // namespace dlgsanet
