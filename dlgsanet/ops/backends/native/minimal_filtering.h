// 3x3 convolutions with zero padding for four rows at a time, by Winograd's minimal filtering F(4, 3) along the
// columns: six products in place of twelve (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
// 2016). From the rows a, b, c, d, e, f of an image around four rows of the result, and the rows g, h, i of a filter,
// with r the root of 2:
//
//     first  = p0 + p1 + p2 + p3 + p4                   p0 = (a - 5/2 c + e) g
//     second = r (p1 - p2) + (p3 - p4) / r              p1, p2 = (e - c / 2 +- r (d - b / 2)) (g +- r h + 2 i) / 6
//     third  = 2 (p1 + p2) + (p3 + p4) / 2              p3, p4 = (2 c - e +- (2 b - d) / r) (2 g +- r h + i) / 3
//     fourth = 2 r (p1 - p2) + (p3 - p4) / (2 r) + p5   p5 = (b - 5/2 d + f) i
//
// Every product is a convolution along the rows, summed over the channels. The usual points 0, 1, -1, 2, -2 need no
// root, but rounding errors in the fourth row are twice as large then.
#pragma once

#include "image.h"

namespace dlgsanet {

// The six rows of an image from which four rows of the result are computed, and the first factors of the products.
struct FilteredRows {
    static constexpr int together = DLGSANET_CONVOLVED_ROWS, products = together + 2, taps = 3;
    static constexpr float root = 1.41421356f;  // of 2

    RowRing image;
    Rows sources[products];  // [C, columns], from the column before the first one on

    template <class Arena>
    FilteredRows(Arena& arena, Index channels, Index width) : image(arena, channels, width, together + 2, 1) {
        for (Rows& rows : sources) rows = arena.rows(channels, width + 2);
    }

    void read(const Shape& shape, const float* x, const Tile& tile, Index y) const {
        if (y < 0 || y >= shape.height) return image.clear(y);
        const Strip strip = shape.strip(y, tile, 1);
        strip.read(x, image[y].at(strip.left - tile.left));
        image.clear_around(y, strip.left - tile.left, strip.right - tile.left);
    }

    // The sources of the products of four rows of the result from y on.
    void transform(Index y, Index columns) const {
        Rows rows[products];
        for (int n = 0; n < products; n++) rows[n] = image[y - 1 + n];
        for (Index channel = 0; channel < image.channels; channel++)
            for (Index x = -1; x < columns + 1; x += lanes) {
                vec in[products];
                for (int n = 0; n < products; n++) in[n] = load(rows[n].row(channel) + x);
                const auto [a, b, c, d, e, f] = in;
                const vec even = e - 0.5f * c, odd = root * (d - 0.5f * b);
                const vec other_even = 2 * c - e, other_odd = root / 2 * (2 * b - d);
                const vec out[] = {a - 2.5f * c + e,       even + odd,             even - odd,
                                   other_even + other_odd, other_even - other_odd, b - 2.5f * d + f};
                for (int n = 0; n < products; n++) store(sources[n].row(channel) + x + 1, out[n]);
            }
    }
};

}  // namespace dlgsanet
