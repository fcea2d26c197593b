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
    void make_row(Index y, const Tile& tile, Index margin, Rows normed, const RowRing& out,
                  Ahead* ahead = nullptr) const {
        if (y < 0 || y >= shape.height) return out.clear(y);
        const Strip strip = shape.strip(y, tile, margin);
        const Index from = strip.left - tile.left, columns = strip.right - strip.left;
        strip.read(x, normed);
        layer_norm(normed, shape.channels, columns, norm_weight, norm_bias);
        gemm<Start::zero>(weights, normed, out[y].at(from), columns, ahead);
        if (tile.columns() == shape.width)
            out.clear_end(y);
        else
            out.clear_around(y, from, from + columns);
    }
};

}  // namespace dlgsanet
