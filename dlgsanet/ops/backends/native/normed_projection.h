// proj(norm(x)), row by row. Every layer begins with it.
#pragma once

#include "gemm.h"
#include "image.h"
#include "layer_norm.h"

namespace dlgsanet {

struct NormedProjection {
    const Shape& shape;
    const float *x, *norm_weight, *norm_bias;
    Weights weights;

    // Write row y of a tile to out[y], with `margin` additional columns on both sides; zero outside the image.
    void make_row(Index y, const Tile& tile, Index margin, Rows normed, const RowRing& out) const {
        if (y < 0 || y >= shape.height) return out.clear(y);
        const Index left = std::max<Index>(0, tile.left - margin), right = std::min(shape.width, tile.right + margin);
        Strip{shape, tile.image, y, left, right}.read(x, normed);
        layer_norm(normed, shape.channels, right - left, norm_weight, norm_bias);
        gemm<Start::zero>(weights, normed, out[y].at(left - tile.left), right - left);
        out.clear_around(y, left - tile.left, right - tile.left);
    }
};

}  // namespace dlgsanet
