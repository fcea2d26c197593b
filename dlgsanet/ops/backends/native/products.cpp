// Products of the channels of two features, summed over the pixels of each image. The sums are formed in strips of a
// fixed size, which are added in order. So they do not depend on the number of threads, unlike those of a BLAS.

#include "parallel.h"
#include "partial_sums.h"
#include "products.h"

using namespace dlgsanet;

namespace {

// Channels [first, first + count) of a feature [B, channels, pixels].
struct Channels {
    const float* tensor;
    Index channels, first, count, pixels;

    void read(Index image, Index start, Index columns, Rows to) const {
        for (Index c = 0; c < count; c++)
            std::memcpy(to.row(c), tensor + (image * channels + first + c) * pixels + start, sizeof(float) * columns);
    }
};

constexpr Index most_columns = 512;  // most pixels that are read at once

}  // namespace

// parts [strips, blocks, rows, columns]: the products of `rows` channels of a and `columns` channels of b, for each
// block. The part of the first strip of an image receives the sums over all strips of the image.
DLGSANET_API bool dlgsanet_products(const float* a, const float* b, float* parts, Index batch, Index a_channels,
                                    Index a_first, Index b_channels, Index b_first, Index blocks, Index rows,
                                    Index columns, Index height, Index width, int threads) {
    struct Scratch {
        Rows both;  // channels of a, then those of b
        float* sums;
    };
    const Index pixels = height * width, products = rows * columns, floats = blocks * products;
    const Channels left{a, a_channels, a_first, blocks * rows, pixels};
    const Channels right{b, b_channels, b_first, blocks * columns, pixels};
    const Strips strips{batch, height};
    auto make = [&](Arena& arena) {
        return Scratch{arena.rows(left.count + right.count, std::min(pixels, most_columns)),
                       arena.take(floats * lanes)};
    };

    const bool done = parallel(threads, strips.count(), make, [&](Index task, const Scratch& s) {
        const Index image = strips.image(task), stop = strips.bottom(task) * width;
        std::memset(s.sums, 0, sizeof(float) * floats * lanes);
        for (Index start = strips.top(task) * width; start < stop; start += most_columns) {
            const Index size = std::min(most_columns, stop - start);
            left.read(image, start, size, s.both);
            right.read(image, start, size, s.both.below(left.count));
            for (Index n = 0; n < blocks; n++)
                multiply_rows(&s.both, 1, n * rows, (n + 1) * rows, left.count + n * columns,
                              left.count + (n + 1) * columns, {0, size}, s.sums + n * products * lanes);
        }
        for (Index n = 0; n < floats; n++) parts[task * floats + n] = sum_lanes(s.sums + n * lanes);
    });
    if (done)
        for (Index image = 0; image < batch; image++)
            sum_up(parts + image * strips.per_image() * floats, strips.per_image(), floats);
    return done;
}
