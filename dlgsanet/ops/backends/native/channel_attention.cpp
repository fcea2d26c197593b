// (Sparse) global self-attention between channels over windows (DLGSANet, section 3.3; TLC, ECCV 2022), in two passes.
//
// Windows overlap. Their borders divide the image into pieces; all pixels of a piece lie in the same windows. The first
// pass computes q, k and v row by row. It keeps v and the products of q and k, summed over each piece. The sum over a
// window is the sum over its pieces. Between the passes the caller turns cosines into weights. Attention is linear
// in its weights, so the second pass averages the weights of all windows that contain a piece, multiplies the output
// projection by the average, and multiplies the result by every pixel of v once.

#include "cosines.h"
#include "depthwise.h"
#include "gemm.h"
#include "normed_projection.h"
#include "parallel.h"
#include "products.h"

using namespace dlgsanet;

namespace {

// Rows or columns [start, stop) that lie in the same windows, and the first and last of these windows.
struct Piece {
    Index start, stop, first_window, last_window;

    Index size() const { return stop - start; }
    Index windows() const { return last_window + 1 - first_window; }
    bool in_window(Index window) const { return first_window <= window && window <= last_window; }
};

struct Pieces {
    const Piece* first;
    Index count;

    const Piece& operator[](Index n) const { return first[n]; }
    Index windows() const { return first[count - 1].last_window + 1; }
    Index longest() const {
        Index size = 0;
        for (Index n = 0; n < count; n++) size = std::max(size, first[n].size());
        return size;
    }
};

struct Heads {
    Index count, channels;

    Index all_channels() const { return count * channels; }
    // Sums over a piece: the c x c products of q and k for each head, then the squares of all of q, then of k.
    Index products() const { return count * channels * channels; }
    Index sums() const { return products() + 2 * all_channels(); }
};

constexpr Index batch_rows = 4;  // rows of q and k that are multiplied together

struct Scratch {
    Rows normed, v[2], qk[batch_rows];
    RowRing qkv;
    float* sums;  // one register for each sum of each piece of a tile

    Scratch(Arena& arena, const Heads& heads, Index width, Index pieces)
        : normed(arena.rows(heads.all_channels(), width + 2)),
          v{arena.rows(heads.all_channels(), width), arena.rows(heads.all_channels(), width)},
          qkv(arena, 3 * heads.all_channels(), width, 4, 1),
          sums(arena.take(pieces * heads.sums() * lanes)) {
        for (Rows& row : qk) row = arena.rows(2 * heads.all_channels(), width);
    }
};

// Add the rows of q and k in scratch to the sums of one piece.
void add_products(const Scratch& s, const Heads& heads, Index rows, Columns columns, float* sums) {
    const Index c = heads.channels, all = heads.all_channels();
    for (Index h = 0; h < heads.count; h++)
        multiply_rows(s.qk, rows, h * c, (h + 1) * c, all + h * c, all + (h + 1) * c, columns,
                      sums + h * c * c * lanes);
    add_squares<8>(s.qk, rows, 0, 2 * all, columns, sums + heads.products() * lanes);
}

// The first pass over a band (a piece of rows) and one tile of columns, which is divided into pieces.
struct FirstPass {
    const Shape& shape;
    const Heads& heads;
    const NormedProjection& enter;
    const float* depthwise;
    float *v, *piece_sums;  // piece_sums [B, bands, pieces of columns, sums]
    const KeptRows* projected;  // proj(norm(x)), for training; null: not kept
    Pieces bands, columns;
    Index image, band, first_column, stop_column;

    // `follows`: the rows of the band above this one are in scratch.
    void run(const Scratch& s, bool follows) const {
        const Tile tile{image, bands[band].start, bands[band].stop, columns[first_column].start,
                        columns[stop_column - 1].stop};
        for (Index y = tile.first_row(1, follows); y <= tile.top; y++) enter.make_row(y, tile, 1, s.normed, s.qkv);
        for (Index y = tile.top; y < tile.bottom; y += batch_rows) {
            const Index rows = std::min(batch_rows, tile.bottom - y);
            for (Index i = 0; i < rows; i += 2) convolve(y + i, std::min<Index>(2, rows - i), tile, s, s.qk + i);
            for (Index n = first_column; n < stop_column; n++)
                add_products(s, heads, rows, {columns[n].start - tile.left, columns[n].size()},
                             s.sums + (n - first_column) * heads.sums() * lanes);
        }
        hand_in(s);
    }

    // Compute one or two rows from y on, after the rows of the projection that they need.
    void convolve(Index y, Index rows, const Tile& tile, const Scratch& s, const Rows* qk) const {
        Ahead ahead(lines_per_block((streams ? 1 : 2) * shape.channels, 3 * shape.channels));
        for (Index n = 0; n < rows; n++) {
            shape.strip(y + n + 3, tile, 1).expect(enter.x, ahead);
            shape.strip(y + n, tile, 0).expect_past(v, ahead);
        }
        for (Index n = 0; n < rows; n++) enter.make_row(y + n + 1, tile, 1, s.normed, s.qkv, &ahead);
        if (rows == 2)
            convolve<2>(y, tile, s, qk);
        else
            convolve<1>(y, tile, s, qk);
    }

    // The depth-wise convolution of rows from y on. It writes q and k to scratch, and v to its tensor.
    template <int Down>
    void convolve(Index y, const Tile& tile, const Scratch& s, const Rows* qk) const {
        const Neighbours<Down> rows(s.qkv, y);
        const Index all = shape.channels;
        for (Index c = 0; c < 3 * all; c++) {
            const Addresses<Down> out(c < 2 * all ? qk : s.v, c < 2 * all ? c : c - 2 * all);
            depthwise_3x3(rows, c, 0, tile.columns(), depthwise + 9 * c,
                          [=](Index x, const vec* sums) { out.store_all(x, sums); });
        }
        for (int i = 0; i < Down; i++) {
            shape.strip(y + i, tile, 0).write_past(s.v[i], nullptr, v);
            if (projected) projected->write(s.qkv[y + i], y + i, tile);
        }
    }

    // Reduce a band's sums to single floats and reset them.
    void hand_in(const Scratch& s) const {
        const Index count = heads.sums() * (stop_column - first_column);
        float* out = piece_sums + ((image * bands.count + band) * columns.count + first_column) * heads.sums();
        for (Index n = 0; n < count; n++) {
            out[n] = 0.f;
            for (int i = 0; i < lanes; i++) out[n] += s.sums[n * lanes + i];
        }
        std::memset(s.sums, 0, sizeof(float) * lanes * count);
    }
};

// Add up the pieces of a window in order: the products of q and k [heads, c, c] and the squares [2, C].
void sum_window(const Heads& heads, Index image, Index down, Index across, Pieces bands, Pieces columns,
                const float* piece_sums, float* products, float* squares) {
    std::fill(products, products + heads.products(), 0.f);
    std::fill(squares, squares + 2 * heads.all_channels(), 0.f);
    for (Index band = 0; band < bands.count; band++)
        for (Index column = 0; column < columns.count; column++) {
            if (!bands[band].in_window(down) || !columns[column].in_window(across)) continue;
            const float* piece = piece_sums + ((image * bands.count + band) * columns.count + column) * heads.sums();
            for (Index n = 0; n < heads.products(); n++) products[n] += piece[n];
            for (Index n = 0; n < 2 * heads.all_channels(); n++) squares[n] += piece[heads.products() + n];
        }
}

// Turn products into cosines and squares into norms.
void normalise(const Heads& heads, float* products, float* squares) {
    const Index c = heads.channels, all = heads.all_channels();
    for (Index n = 0; n < 2 * all; n++) squares[n] = std::sqrt(squares[n]);
    for (Index q = 0; q < all; q++)
        for (Index k = 0; k < c; k++)
            products[q * c + k] /= divisor(squares[q]) * divisor(squares[all + q / c * c + k]);
}

// Pieces of columns that are processed together, so that the rows of an image are read in long runs.
struct Group {
    Index first, stop;

    // As many pieces from `first` on as have at most `most` columns, but at least one.
    Group(const Pieces& columns, Index first, Index most) : first(first), stop(first + 1) {
        while (stop < columns.count && columns[stop].stop - columns[first].start <= most) stop++;
    }

    Tile tile(Index image, const Piece& band, const Pieces& columns) const {
        return {image, band.start, band.stop, columns[first].start, columns[stop - 1].stop};
    }
};

struct SecondScratch {
    Rows weights, folded, v, output;  // folded: a matrix for each piece of a group

    SecondScratch(Arena& arena, const Heads& heads, const Pieces& columns, Index most)
        : weights(arena.rows(heads.all_channels(), heads.channels)) {
        Index pieces = 1;
        for (Index n = 0; n < columns.count; n++) {
            const Group group(columns, n, most);
            pieces = std::max(pieces, group.stop - group.first);
        }
        const Index width = std::max(most, columns.longest()), all = heads.all_channels();
        folded = arena.rows(pieces * all, all + lanes);
        v = arena.rows(all, width);
        output = arena.rows(all, width);
    }
};

// folded = proj_out @ the heads' weights, averaged over the windows that contain a piece.
// weights is [windows down, windows across, heads, c, c].
void fold(const Heads& heads, const Piece& band, const Piece& column, Index across, const float* weights,
          const float* proj_out, const SecondScratch& s, Rows folded) {
    const Index c = heads.channels, all = heads.all_channels();
    const float share = 1.f / (band.windows() * column.windows());
    for (Index row = 0; row < all; row++) {
        std::fill(s.weights.row(row), s.weights.row(row) + c, 0.f);
        for (Index i = band.first_window; i <= band.last_window; i++)
            for (Index j = column.first_window; j <= column.last_window; j++) {
                const float* window = weights + ((i * across + j) * all + row) * c;
                for (Index k = 0; k < c; k++) s.weights.row(row)[k] += window[k] * share;
            }
    }
    // Whole registers are written: the next head overwrites the columns past the end.
    for (Index h = 0; h < heads.count; h++)
        gemm<Start::zero>(Weights(Rows{const_cast<float*>(proj_out) + h * c, all}, all, c), s.weights.below(h * c),
                          folded.at(h * c), c);
}

}  // namespace

// The arrays of pieces have four integers per piece. No piece of columns crosses a multiple of tile_width. The results
// are v [B, C, H, W], the cosines between the channels of q and k in each window [B, windows down, windows across,
// heads, c, c], the norms of the channels [B, windows down, windows across, 2, heads, c], and proj(norm(x)) of the
// first `kept` images, all or none, as `KeptRows`; piece_sums [B, bands, columns, sums] is working memory.
DLGSANET_API bool dlgsanet_channel_attention_sums(const float* x, const float* norm_weight, const float* norm_bias,
                                                  const float* qkv_weight, const float* depthwise,
                                                  const Piece* band_pieces, const Piece* column_pieces, float* v,
                                                  float* piece_sums, float* cosines, float* norms, float* projected,
                                                  Index batch, Index channels, Index head_count, Index height,
                                                  Index width, Index band_count, Index column_count, Index tile_width,
                                                  Index kept, int threads) {
    const Shape shape{batch, channels, height, width};
    const KeptRows keep(projected, 3 * channels, shape);
    const Heads heads{head_count, channels / head_count};
    const Pieces bands{band_pieces, band_count}, columns{column_pieces, column_count};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {qkv_weight, 3 * channels, channels}};

    const Index tiles = (width + tile_width - 1) / tile_width;
    auto first_column = [&](Index tile) {
        Index n = 0;
        while (n < column_count && columns[n].start < tile * tile_width) n++;
        return n;
    };
    Index most = 0;
    for (Index tile = 0; tile < tiles; tile++) most = std::max(most, first_column(tile + 1) - first_column(tile));
    auto make = [&](Arena& arena) { return Scratch(arena, heads, std::min(tile_width, width), most); };

    const bool done = parallel(threads, batch * tiles * band_count, make, [&](Index task, bool follows,
                                                                              const Scratch& s) {
        const Index tile = task / band_count % tiles;
        FirstPass{shape, heads, enter, depthwise, v, piece_sums, kept ? &keep : nullptr, bands, columns,
                  task / (tiles * band_count), task % band_count, first_column(tile), first_column(tile + 1)}
            .run(s, follows);
    });
    if (!done) return false;
    for (Index image = 0; image < batch; image++)
        for (Index down = 0; down < bands.windows(); down++)
            for (Index across = 0; across < columns.windows(); across++) {
                sum_window(heads, image, down, across, bands, columns, piece_sums, cosines, norms);
                normalise(heads, cosines, norms);
                cosines += heads.products();
                norms += 2 * channels;
            }
    return true;
}

// out = x + proj_out @ (average of the weights over the windows of each pixel) @ v.
DLGSANET_API bool dlgsanet_channel_attention_apply(const float* x, const float* v, const float* weights,
                                                   const float* proj_out, const Piece* band_pieces,
                                                   const Piece* column_pieces, float* out, Index batch, Index channels,
                                                   Index head_count, Index height, Index width, Index band_count,
                                                   Index column_count, int threads) {
    const Shape shape{batch, channels, height, width};
    const Heads heads{head_count, channels / head_count};
    const Pieces bands{band_pieces, band_count}, columns{column_pieces, column_count};
    const Index across = columns.windows(), windows = bands.windows() * across;
    const Index most = cache_floats() / (2 * channels + channels * channels / 16);
    auto make = [&](Arena& arena) { return SecondScratch(arena, heads, columns, most); };

    return parallel(threads, batch * band_count, make, [&](Index task, bool, const SecondScratch& s) {
        const Index image = task / band_count;
        const Piece& band = bands[task % band_count];
        for (Index n = 0; n < column_count;) {
            const Group group(columns, n, most);
            const Tile tile = group.tile(image, band, columns);
            for (; n < group.stop; n++)
                fold(heads, band, columns[n], across, weights + image * windows * heads.products(), proj_out, s,
                     s.folded.below((n - group.first) * channels));
            for (Index y = band.start; y < band.stop; y++) {
                Ahead ahead(lines_per_block(2 * channels, channels));
                shape.strip(y + 1, tile, 0).expect(v, ahead);
                shape.strip(y + 1, tile, 0).expect(x, ahead);
                const Strip row = shape.strip(y, tile, 0);
                row.read(v, s.v);
                // Whole registers are written: each piece overwrites the columns past the end of the one before it.
                for (Index piece = group.first; piece < group.stop; piece++) {
                    const Index start = columns[piece].start - tile.left;
                    gemm<Start::zero>({s.folded.below((piece - group.first) * channels), channels, channels},
                                      s.v.at(start), s.output.at(start), columns[piece].size(), &ahead);
                }
                row.write_sum(s.output, x, out);
            }
        }
    });
}
