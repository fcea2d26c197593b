// 3x3 convolutions with zero padding for two rows at a time, by Winograd's minimal filtering F(2, 3) along the columns:
// four products in place of six (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016). From
// the rows a, b, c, d of an image around two rows of the result, and the rows e, f, g of a filter:
//
//     first = (a - c) e + u + v      u = (b + c) (e + f + g) / 2
//     second = u - v - (b - d) g     v = (c - b) (e - f + g) / 2
//
// Every product is a convolution along the rows, summed over the channels.
#pragma once

#include "image.h"

namespace dlgsanet {

// The four rows of an image from which two rows of the result are computed, and the first factors of the products.
struct FilteredRows {
    static constexpr int products = 4, taps = 3;

    RowRing image;
    Rows sources[products];  // [C, columns], from the column before the first one on

    template <class Arena>
    FilteredRows(Arena& arena, Index channels, Index width) : image(arena, channels, width, 4, 1) {
        for (Rows& rows : sources) rows = arena.rows(channels, width + 2);
    }

    void read(const Shape& shape, const float* x, const Tile& tile, Index y) const {
        if (y < 0 || y >= shape.height) return image.clear(y);
        const Strip strip = shape.strip(y, tile, 1);
        strip.read(x, image[y].at(strip.left - tile.left));
        image.clear_around(y, strip.left - tile.left, strip.right - tile.left);
    }

    // The sources of the products of rows y and y + 1 of the result.
    void transform(Index y, Index columns) const {
        const Rows a = image[y - 1], b = image[y], c = image[y + 1], d = image[y + 2];
        for (Index channel = 0; channel < image.channels; channel++)
            for (Index x = -1; x < columns + 1; x += lanes) {
                auto at = [=](Rows rows) { return load(rows.row(channel) + x); };
                auto put = [=](Rows rows, vec value) { store(rows.row(channel) + x + 1, value); };
                put(sources[0], at(a) - at(c));
                put(sources[1], at(b) + at(c));
                put(sources[2], at(c) - at(b));
                put(sources[3], at(b) - at(d));
            }
    }
};

}  // namespace dlgsanet
