// Images [B, C, H, W] in memory. They are processed in tiles. The rows of a tile are copied to padded buffers and back.
// Only these copies access the memory of a tensor, so kernels can work on whole registers.
#pragma once

#include <unistd.h>

#include <cstdint>

#include "ahead.h"
#include "vector.h"

namespace dlgsanet {

struct Strip;
struct Tile;

struct Shape {
    Index batch, channels, height, width;

    Index pixels() const { return height * width; }

    // Row y of a tile with `margin` additional columns on both sides, as far as they are in the image.
    inline Strip strip(Index y, const Tile& tile, Index margin) const;
};

struct Tile {
    Index image, top, bottom, left, right;

    Index columns() const { return right - left; }

    // The first row to compute for windows of 2 * r + 1 rows. After the tile above it (`follows`) its rows remain.
    Index first_row(Index r, bool follows) const { return follows && top > 0 ? top + r : top - r; }
};

// Floats of scratch memory that fit in a core's second-level cache, with room for weights and the rows of images.
inline Index cache_floats() {
#ifdef _SC_LEVEL2_CACHE_SIZE
    static const Index bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    const Index floats = bytes / Index(sizeof(float)) * 3 / 4;
    return std::min<Index>(std::max<Index>(floats, DLGSANET_CACHE_FLOATS), 2 * DLGSANET_CACHE_FLOATS);
#else
    return DLGSANET_CACHE_FLOATS;
#endif
}

// The tiles of images, from top to bottom, then from left to right. They are as wide as the second-level cache allows
// with `floats_per_column` floats per column. With `margin` more columns on both sides a tile has whole registers. The
// tiling must not change the value of any pixel.
class Tiling {
public:
    Tiling(const Shape& shape, Index floats_per_column, Index margin) : shape_(shape) {
        const Index fitting = std::max<Index>(64, cache_floats() / floats_per_column);
        const Index across = (shape.width + fitting - 1) / fitting, share = (shape.width + across - 1) / across;
        tile_width_ = across == 1 ? share : std::max(margin, round_up(share + 2 * margin, 16) - 2 * margin);
        columns_ = (shape.width + tile_width_ - 1) / tile_width_;
        rows_ = (shape.height + tile_height - 1) / tile_height;
    }

    Index count() const { return shape_.batch * rows_ * columns_; }
    Index width() const { return std::min(tile_width_, shape_.width); }

    Tile operator[](Index n) const {
        const Index top = n % rows_ * tile_height, left = n / rows_ % columns_ * tile_width_;
        return {n / (columns_ * rows_), top, std::min(top + tile_height, shape_.height), left,
                std::min(left + tile_width_, shape_.width)};
    }

private:
    static constexpr Index tile_height = 8;
    static_assert(tile_height % DLGSANET_CONVOLVED_ROWS == 0);

    Shape shape_;
    Index tile_width_, columns_, rows_;
};

// Short rows in registers: a call of memcpy takes longer than the copy.
inline void copy(float* to, const float* from, Index count) {
    Index x = 0;
    if (count <= 8 * lanes)
        for (; x + lanes <= count; x += lanes) store(to + x, in_register(load(from + x)));
    if (x < count) std::memcpy(to + x, from + x, sizeof(float) * (count - x));
}

// Whether layers write their results past the caches: in whole lines. With registers of half a line it was slower.
constexpr bool streams = lanes == floats_of_line;

// A part of a row of one image: columns [left, right) of row y in every channel.
struct Strip {
    const Shape& shape;
    Index image, y, left, right;

    Index at(Index channel) const {
        return (image * shape.channels + channel) * shape.pixels() + y * shape.width + left;
    }

    void read(const float* tensor, Rows to) const {
        for (Index c = 0; c < shape.channels; c++) copy(to.row(c), tensor + at(c), right - left);
    }

    // Have `ahead` request this part of a tensor, if it is in the image.
    void expect(const float* tensor, Ahead& ahead) const {
        if (y >= 0 && y < shape.height) ahead.add(tensor + at(0), right - left, shape.channels, shape.pixels());
    }

    void write(Rows from, float* tensor) const {
        for (Index c = 0; c < shape.channels; c++) copy(tensor + at(c), from.row(c), right - left);
    }

    // Write residual + from, the last step of a residual layer.
    void write_sum(Rows from, const float* residual, float* tensor) const {
        for (Index c = 0; c < shape.channels; c++) {
            const float *before = residual + at(c), *more = from.row(c);
            float* out = tensor + at(c);
            Index x = 0;
            for (; x + lanes <= right - left; x += lanes) store(out + x, load(before + x) + load(more + x));
            for (; x < right - left; x++) out[x] = before[x] + more[x];
        }
    }

    // Write from, or residual + from if residual is not null, to a tensor that is not in the caches: see `stream`.
    void write_past(Rows from, const float* residual, float* tensor) const {
        if (!streams) return residual ? write_sum(from, residual, tensor) : write(from, tensor);
        for (Index c = 0; c < shape.channels; c++) {
            const float *values = from.row(c), *before = residual ? residual + at(c) : nullptr;
            float* out = tensor + at(c);
            const Index place = reinterpret_cast<std::uintptr_t>(out) / sizeof(float) % lanes;  // in a register
            const Index first = std::min<Index>((lanes - place) % lanes, right - left);
            Index x = 0;
            for (; x < first; x++) out[x] = before ? before[x] + values[x] : values[x];
            for (; x + lanes <= right - left; x += lanes)
                stream(out + x, before ? load(before + x) + load(values + x) : load(values + x));
            for (; x < right - left; x++) out[x] = before ? before[x] + values[x] : values[x];
        }
    }

    // Have `ahead` request what `write_past` writes; nothing where that does not read it.
    void expect_past(const float* tensor, Ahead& ahead) const {
        if (!streams) expect(tensor, ahead);
    }
};

inline Strip Shape::strip(Index y, const Tile& tile, Index margin) const {
    return {*this, tile.image, y, std::max<Index>(0, tile.left - margin), std::min(width, tile.right + margin)};
}

// A feature that is kept for the backward pass: [B, H, channels, W rounded up], so a row is one block of memory.
struct KeptRows {
    float* start;
    Index channels, height, width, pitch;

    KeptRows(float* start, Index channels, const Shape& shape)
        : start(start), channels(channels), height(shape.height), width(shape.width),
          pitch(round_up(width, column_step)) {}

    float* row(Index image, Index y) const { return start + (image * height + y) * channels * pitch; }

    // Write a tile's columns of row y.
    void write(Rows from, Index y, const Tile& tile) const {
        float* to = row(tile.image, y) + tile.left;
        const bool whole = tile.columns() == width && reinterpret_cast<std::uintptr_t>(start) % sizeof(vec) == 0;
        for (Index c = 0; c < channels; c++, to += pitch)
            if (whole)
                for (Index x = 0; x < width; x += lanes) stream(to + x, load(from.row(c) + x));
            else
                copy(to, from.row(c), tile.columns());
    }

    // Read row y of `count` channels from `first` on.
    void read(Index image, Index y, Index first, Index count, Rows to) const {
        const float* from = row(image, y) + first * pitch;
        for (Index c = 0; c < count; c++, from += pitch) copy(to.row(c), from, width);
    }

    // Have `ahead` request what `read` reads, if it is in the image.
    void expect(Index image, Index y, Index first, Index count, Ahead& ahead) const {
        if (y >= 0 && y < height) ahead.add(row(image, y) + first * pitch, count * pitch, 1, 0);
    }
};

// The last `count` rows of a feature that is computed row by row, for the convolution after it. There are `margin`
// additional columns on both sides of the columns of a tile.
class RowRing {
public:
    template <class Arena>
    RowRing(Arena& arena, Index channels, Index width, Index count, Index margin)
        // Whole registers from the left margin on may end beyond the right one, in the unused part of the next margin.
        : channels(channels), count_(count), width_(width), needed_(margin), margin_(round_up(2 * margin, 16)),
          all_(arena.rows(channels * count, std::max<Index>(2 * margin_, 16) + round_up(width, 16))) {}

    const Index channels;

    // Row y from column 0 of the tile; y is at least -count.
    Rows operator[](Index y) const { return all_.below((y + count_) % count_ * channels).at(margin_); }

    // The row after another one of this ring; faster than finding it by its number.
    Rows after(Rows row) const {
        const Index step = channels * all_.pitch;
        return {row.start + (row.start + step < all_.start + count_ * step ? step : step - count_ * step), row.pitch};
    }

    void clear(Index y) const { clear_around(y, 0, 0); }

    // Set the columns from `width` on to zero after whole registers were written from column 0 on, in scratch whose
    // margins were never written.
    void clear_end(Index y) const {
        const Rows rows = (*this)[y];
        if (width_ % lanes)
            for (Index c = 0; c < channels; c++) store(rows.row(c) + width_, vec{});
    }

    // Set all columns that a convolution may read to zero, except [from, to); from is at most 0.
    void clear_around(Index y, Index from, Index to) const {
        const Rows rows = (*this)[y];
        const Index end = round_up(width_, lanes) + needed_;
        for (Index c = 0; c < channels; c++) {
            for (Index x = from; x > -needed_; x -= lanes) store(rows.row(c) + x - lanes, vec{});
            for (Index x = to; x < end; x += lanes) store(rows.row(c) + x, vec{});
        }
    }

private:
    Index count_, width_, needed_, margin_;
    Rows all_;
};

}  // namespace dlgsanet
