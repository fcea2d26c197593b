// (Sparse) global self-attention between channels over windows (DLGSANet, section 3.3; TLC, ECCV 2022), in two passes.
//
// Windows overlap. Their borders divide the image into pieces; all pixels of a piece lie in the same windows. The first
// pass computes q, k and v row by row. It keeps v and the products of q and k, summed over each piece. The sum over a
// window is the sum over its pieces. Between the passes the caller turns similarities into weights. Attention is linear
// in its weights, so the second pass averages the weights of all windows that contain a piece, multiplies the output
// projection by the average, and multiplies the result by every pixel of v once.

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
    Rows normed, v[2], qk[batch_rows];  // q and k; each piece begins at a whole register and is padded with zeros
    RowRing qkv;
    float* sums;  // one register for each sum of each piece of a tile

    Scratch(Arena& arena, const Heads& heads, Index width, Index pieces)
        : normed(arena.rows(heads.all_channels(), width + 2)),
          v{arena.rows(heads.all_channels(), width), arena.rows(heads.all_channels(), width)},
          qkv(arena, 3 * heads.all_channels(), width, 4, 1),
          sums(arena.take(pieces * heads.sums() * lanes)) {
        for (Rows& row : qk) row = arena.rows(2 * heads.all_channels(), width + pieces * lanes);
    }
};

// Add the rows of q and k in scratch to the sums of one piece.
void add_products(const Scratch& s, const Heads& heads, Index rows, Columns columns, float* sums) {
    const Index c = heads.channels, all = heads.all_channels();
    for (Index h = 0; h < heads.count; h++)
        multiply_rows(s.qk, rows, h * c, (h + 1) * c, all + h * c, all + (h + 1) * c, columns,
                         sums + h * c * c * lanes);
    for (Index channel = 0; channel < 2 * all; channel++) {
        float* at = sums + (heads.products() + channel) * lanes;
        vec sum = load(at);
        for (Index y = 0; y < rows; y++)
            for (Index x = columns.start; x < columns.start + columns.size; x += lanes) {
                const vec value = load(s.qk[y].row(channel) + x);
                sum += value * value;
            }
        store(at, sum);
    }
}

// The first pass over some bands (pieces of rows) and one tile of columns, which is divided into pieces.
struct FirstPass {
    const Shape& shape;
    const Heads& heads;
    const NormedProjection& enter;
    const float* depthwise;
    float *v, *piece_sums;  // piece_sums [B, bands, pieces of columns, sums]
    Pieces bands, columns;
    Index image, first_band, stop_band, first_column, stop_column;

    Tile tile() const {
        return {image, bands[first_band].start, bands[stop_band - 1].stop, columns[first_column].start,
                columns[stop_column - 1].stop};
    }

    void run(const Scratch& s) const {
        const Tile tile = this->tile();
        enter.make_row(tile.top - 1, tile, 1, s.normed, s.qkv);
        enter.make_row(tile.top, tile, 1, s.normed, s.qkv);
        std::memset(s.sums, 0, sizeof(float) * lanes * heads.sums() * (stop_column - first_column));
        for (Index band = first_band; band < stop_band; band++) {
            for (Index y = bands[band].start; y < bands[band].stop; y += batch_rows) {
                const Index rows = std::min(batch_rows, bands[band].stop - y);
                for (Index i = 0; i < rows; i += 2) {
                    enter.make_row(y + i + 1, tile, 1, s.normed, s.qkv);
                    if (i + 1 < rows) enter.make_row(y + i + 2, tile, 1, s.normed, s.qkv);
                    if (i + 1 < rows)
                        convolve<2>(y + i, tile, s, s.qk + i);
                    else
                        convolve<1>(y + i, tile, s, s.qk + i);
                }
                each_piece([&](Index n, Columns place) {
                    add_products(s, heads, rows, place, s.sums + (n - first_column) * heads.sums() * lanes);
                });
            }
            hand_in(band, s);
        }
    }

    template <class Work>
    void each_piece(const Work& work) const {
        Index start = 0;
        for (Index n = first_column; n < stop_column; n++) {
            work(n, Columns{start, columns[n].size()});
            start += round_up(columns[n].size(), lanes);
        }
    }

    // The depth-wise convolution of rows from y on. It writes q and k to scratch, and v to its tensor.
    template <int Down>
    void convolve(Index y, const Tile& tile, const Scratch& s, const Rows* qk) const {
        const Neighbours<Down> rows(s.qkv, y);
        const Index all = shape.channels;
        each_piece([&](Index n, Columns place) {
            const Index first = columns[n].start - tile.left, whole = place.size / lanes * lanes;
            for (Index c = 0; c < 2 * all; c++) {
                const Addresses<Down> out(qk, c);
                depthwise_3x3(rows, c, first, place.size, depthwise + 9 * c,
                              [=](Index x, const vec* sums) { out.store_all(place.start + x, sums); });
                if (whole == place.size) continue;
                for (int i = 0; i < Down; i++) {
                    float* end = qk[i].row(c) + place.start + whole;
                    std::fill(end + place.size - whole, end + lanes, 0.f);
                }
            }
        });
        for (Index c = 0; c < all; c++) {
            const Addresses<Down> out(s.v, c);
            depthwise_3x3(rows, 2 * all + c, 0, tile.columns(), depthwise + 9 * (2 * all + c),
                          [=](Index x, const vec* sums) { out.store_all(x, sums); });
        }
        for (int i = 0; i < Down; i++) Strip{shape, image, y + i, tile.left, tile.right}.write(s.v[i], v);
    }

    // Reduce a band's sums to single floats and reset them.
    void hand_in(Index band, const Scratch& s) const {
        const Index count = heads.sums() * (stop_column - first_column);
        float* out = piece_sums + ((image * bands.count + band) * columns.count + first_column) * heads.sums();
        for (Index n = 0; n < count; n++) {
            out[n] = 0.f;
            for (int i = 0; i < lanes; i++) out[n] += s.sums[n * lanes + i];
        }
        std::memset(s.sums, 0, sizeof(float) * lanes * count);
    }
};

// Add up the pieces of each window in order; window_sums [B, windows down, windows across, sums].
void sum_windows(Index batch, Pieces bands, Pieces columns, Index sums, const float* piece_sums, float* window_sums) {
    for (Index image = 0; image < batch; image++)
        for (Index down = 0; down < bands.windows(); down++)
            for (Index across = 0; across < columns.windows(); across++, window_sums += sums) {
                std::fill(window_sums, window_sums + sums, 0.f);
                for (Index band = 0; band < bands.count; band++)
                    for (Index column = 0; column < columns.count; column++) {
                        if (!bands[band].in_window(down) || !columns[column].in_window(across)) continue;
                        const Index place = (image * bands.count + band) * columns.count + column;
                        const float* piece = piece_sums + place * sums;
                        for (Index n = 0; n < sums; n++) window_sums[n] += piece[n];
                    }
            }
}

struct SecondScratch {
    Rows weights, folded, v, output;

    SecondScratch(Arena& arena, const Heads& heads, Index width)
        : weights(arena.rows(heads.all_channels(), heads.channels)),
          folded(arena.rows(heads.all_channels(), heads.all_channels() + lanes)),
          v(arena.rows(heads.all_channels(), width)),
          output(arena.rows(heads.all_channels(), width)) {}
};

// folded = proj_out @ the heads' weights, averaged over the windows that contain a piece.
// weights is [windows down, windows across, heads, c, c].
void fold(const Heads& heads, const Piece& band, const Piece& column, Index across, const float* weights,
          const float* proj_out, const SecondScratch& s) {
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
    for (Index h = 0; h < heads.count; h++)  // writes whole registers: the next head overwrites the columns past the end
        gemm<Start::zero>(Weights(Rows{const_cast<float*>(proj_out) + h * c, all}, all, c), s.weights.below(h * c),
                          s.folded.at(h * c), c);
}

}  // namespace

// The arrays of pieces have four integers per piece. No piece of columns crosses a multiple of tile_width. The results
// are v [B, C, H, W] and window_sums; piece_sums [B, bands, columns, sums] is working memory.
DLGSANET_API bool dlgsanet_channel_attention_sums(const float* x, const float* norm_weight, const float* norm_bias,
                                                  const float* qkv_weight, const float* depthwise,
                                                  const Piece* band_pieces, const Piece* column_pieces, float* v,
                                                  float* piece_sums, float* window_sums, Index batch, Index channels,
                                                  Index head_count, Index height, Index width, Index band_count,
                                                  Index column_count, Index tile_width, int threads) {
    const Shape shape{batch, channels, height, width};
    const Heads heads{head_count, channels / head_count};
    const Pieces bands{band_pieces, band_count}, columns{column_pieces, column_count};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {qkv_weight, 3 * channels, channels}};

    const Index tiles = (width + tile_width - 1) / tile_width;
    const Index together = std::max<Index>(1, std::min<Index>(4, batch * band_count * tiles / (4 * threads)));
    const Index groups = (band_count + together - 1) / together;
    auto first_column = [&](Index tile) {
        Index n = 0;
        while (n < column_count && columns[n].start < tile * tile_width) n++;
        return n;
    };
    Index most = 0;
    for (Index tile = 0; tile < tiles; tile++) most = std::max(most, first_column(tile + 1) - first_column(tile));
    auto make = [&](Arena& arena) { return Scratch(arena, heads, std::min(tile_width, width), most); };

    const bool done = parallel(threads, batch * groups * tiles, make, [&](Index task, const Scratch& s) {
        const Index tile = task % tiles, band = task / tiles % groups * together;
        FirstPass{shape, heads, enter, depthwise, v, piece_sums, bands, columns,
                  task / (tiles * groups), band, std::min(band + together, band_count), first_column(tile),
                  first_column(tile + 1)}
            .run(s);
    });
    sum_windows(batch, bands, columns, heads.sums(), piece_sums, window_sums);
    return done;
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
    auto make = [&](Arena& arena) { return SecondScratch(arena, heads, columns.longest()); };

    return parallel(threads, batch * band_count, make, [&](Index task, const SecondScratch& s) {
        const Index image = task / band_count;
        const Piece& band = bands[task % band_count];
        for (Index n = 0; n < column_count; n++) {
            fold(heads, band, columns[n], across, weights + image * windows * heads.products(), proj_out, s);
            const Weights folded(s.folded, channels, channels);
            for (Index y = band.start; y < band.stop; y++) {
                const Strip row{shape, image, y, columns[n].start, columns[n].stop};
                row.read(v, s.v);
                gemm<Start::zero>(folded, s.v, s.output, columns[n].size());
                row.write_sum(s.output, x, out);
            }
        }
    });
}
