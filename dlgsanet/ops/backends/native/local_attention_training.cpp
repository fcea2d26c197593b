// Multi-head dynamic local self-attention (DLGSANet, section 3.2) for training: the features y and z of
// local_features.h, and their gradients. The dynamic convolution and the projection after it are separate calls.

#include "local_features.h"
#include "normed_projection_backward.h"

using namespace dlgsanet;

namespace {

// sums[tap] += grad * source shifted by `tap` columns; one register per tap.
template <int Taps>
void correlate(const float* grad, const float* source, float* sums, Index taps, Index columns) {
    for (; taps >= Taps; taps -= Taps, source += Taps, sums += Taps * lanes) {
        vec sum[Taps];
        for (int t = 0; t < Taps; t++) sum[t] = load(sums + t * lanes);
        for (Index x = 0; x < columns; x += lanes)
            for (int t = 0; t < Taps; t++) sum[t] += load(grad + x) * load(source + x + t);
        for (int t = 0; t < Taps; t++) store(sums + t * lanes, sum[t]);
    }
    if constexpr (Taps > 1)
        if (taps) correlate<Taps - 1>(grad, source, sums, taps, columns);
}

// The sums of a task: gradients of proj_in [C, C], of squeeze's weight and, as the last column, bias [D, C + 1], of the
// spatial weight [D, K, K] and bias [D], of norm_weight and norm_bias [C]. Rows of matrices are padded to column_step.
struct Layout {
    Index channels, squeezed, taps;

    Index projection_pitch() const { return round_up(channels, column_step); }
    Index squeeze_pitch() const { return round_up(channels + 1, column_step); }
    Index squeeze_at() const { return channels * projection_pitch(); }
    Index spatial_at() const { return squeeze_at() + squeezed * squeeze_pitch(); }
    Index norm_at() const { return spatial_at() + squeezed * (taps + 1); }
    Index floats() const { return norm_at() + 2 * channels; }
};

struct Backward {
    const LocalFeatures& layer;
    const Layout& layout;
    const float *y, *grad, *grad_y, *grad_z, *spatial_flipped;
    const Weights squeeze_transposed;
    float* grad_x;

    struct Scratch {
        NormedProjectionBackward enter;
        RowRing squeezed, grad_z;
        RunningDepthwise grad_squeezed;
        Rows grad_hidden, y, y_by_pixel;  // y_by_pixel [columns, C + 1]; the last value of a pixel is 1, for the bias
        float* grad_spatial;  // one register for each tap of each channel, and one for its bias

        Scratch(Arena& arena, const LocalFeatures& layer, const float* proj_in_transposed)
            : enter(arena, layer.enter, proj_in_transposed),
              squeezed(arena, layer.squeeze.rows, layer.enter.shape.width, layer.window_size, layer.r()),
              grad_z(arena, layer.squeeze.rows, layer.enter.shape.width, 1, layer.r()),
              grad_squeezed(arena, layer.squeeze.rows, layer.enter.shape.width, layer.window_size),
              grad_hidden(arena.rows(layer.squeeze.inner, layer.enter.shape.width)),
              y(arena.rows(layer.squeeze.inner, layer.enter.shape.width)),
              y_by_pixel(arena.rows(layer.enter.shape.width, layer.squeeze.inner + 1)),
              grad_spatial(arena.take(layer.squeeze.rows * (layer.window_size * layer.window_size + 1) * lanes)) {}
    };

    Index r() const { return layer.r(); }
    Index width() const { return layer.enter.shape.width; }
    Index sums_of_channel() const { return layout.taps + 1; }

    void run(const Tile& tile, float* parts, const Scratch& s) const {
        const NormedProjectionBackward::Sums sums{parts, parts + layout.norm_at(), layout.projection_pitch()};
        std::memset(s.grad_spatial, 0, sizeof(float) * layout.squeezed * sums_of_channel() * lanes);
        s.enter.begin();
        for (Index row = tile.top - r(); row < tile.top + r(); row++) squeeze(tile.image, row, s);
        for (Index row = tile.top - r(); row < tile.bottom + r(); row++) {
            const bool inside = row >= tile.top && row < tile.bottom;
            if (inside) squeeze(tile.image, row + r(), s);
            spread(tile.image, row, inside, s);
            if (row < tile.top + r()) continue;
            const Index done = row - r();
            differentiate_squeeze(tile.image, done, {parts + layout.squeeze_at(), layout.squeeze_pitch()}, s);
            Strip{layer.enter.shape, tile.image, done, 0, width()}.write_sum(
                s.enter.row(tile.image, done, s.grad_hidden, sums), grad, grad_x);
        }
        for (Index n = 0; n < layout.squeezed * sums_of_channel(); n++)
            parts[layout.spatial_at() + n] = sum_lanes(s.grad_spatial + n * lanes);
        s.enter.hand_in(sums);
    }

    void squeeze(Index image, Index row, const Scratch& s) const {
        if (row < 0 || row >= layer.enter.shape.height) return s.squeezed.clear(row);
        Strip{layer.enter.shape, image, row, 0, width()}.read(y, s.y);
        gemm<Start::bias>(layer.squeeze, s.y, s.squeezed[row], width());
        s.squeezed.clear_around(row, 0, width());
    }

    // Add the contribution of a row of the gradient of z to the gradients of squeeze(y) and of the spatial filters.
    void spread(Index image, Index row, bool inside, const Scratch& s) const {
        const Index height = layer.enter.shape.height, k = layer.window_size;
        if (row < 0 || row >= height) return s.grad_squeezed.begin(row + r(), nullptr, width());
        const Shape shape{layer.enter.shape.batch, layout.squeezed, height, width()};
        Strip{shape, image, row, 0, width()}.read(grad_z, s.grad_z[0]);
        s.grad_z.clear_around(0, 0, width());
        s.grad_squeezed.add(row, s.grad_z[0], spatial_flipped, nullptr, width());
        if (!inside) return;
        for (Index d = 0; d < layout.squeezed; d++) {
            const float* here = s.grad_z[0].row(d);
            float* sums = s.grad_spatial + d * sums_of_channel() * lanes;
            for (Index i = 0; i < k; i++)
                correlate<7>(here, s.squeezed[row + i - r()].row(d) - r(), sums + i * k * lanes, k, width());
            float* bias = sums + layout.taps * lanes;
            for (Index x = 0; x < width(); x += lanes) store(bias, load(bias) + load(here + x));
        }
    }

    // The gradient of y, including the contribution of squeeze(y), and the gradient of squeeze's weights.
    void differentiate_squeeze(Index image, Index row, Rows grad_squeeze, const Scratch& s) const {
        const Index channels = layout.channels;
        const Strip strip{layer.enter.shape, image, row, 0, width()};
        strip.read(grad_y, s.grad_hidden);
        gemm<Start::accumulate>(squeeze_transposed, s.grad_squeezed[row], s.grad_hidden, width());
        strip.read(y, s.y);
        transpose(s.y, channels, width(), s.y_by_pixel);
        for (Index x = 0; x < width(); x++) s.y_by_pixel.row(x)[channels] = 1.f;
        gemm<Start::accumulate>({s.grad_squeezed[row], layout.squeezed, width()}, s.y_by_pixel, grad_squeeze,
                                channels + 1);
    }
};

}  // namespace

// y [B, C, H, W] and z [B, D, H, W].
DLGSANET_API bool dlgsanet_local_features(const float* x, const float* norm_weight, const float* norm_bias,
                                          const float* proj_in, const float* squeeze_weight,
                                          const float* squeeze_bias, const float* spatial_weight,
                                          const float* spatial_bias, float* y, float* z, Index batch, Index channels,
                                          Index squeezed, Index window_size, Index height, Index width, int threads) {
    const Shape shape{batch, channels, height, width}, z_shape{batch, squeezed, height, width};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj_in, channels, channels}};
    const LocalFeatures layer{
        enter, {squeeze_weight, squeezed, channels, squeeze_bias}, spatial_weight, spatial_bias, window_size};
    const Tiling tiles(shape, (window_size + 1) * (channels + squeezed), window_size / 2, threads);
    auto make = [&](Arena& arena) { return LocalFeatureRows(arena, layer, tiles.width()); };

    return parallel(threads, tiles.count(), make, [&](Index task, const LocalFeatureRows& s) {
        const Tile tile = tiles[task];
        for (Index row = tile.top - layer.r(); row < tile.bottom + layer.r(); row++) {
            s.make(row, tile);
            const Index done = row - layer.r();
            if (done < tile.top) continue;
            shape.strip(done, tile, 0).write(s.projected[done], y);
            z_shape.strip(done, tile, 0).write(s.z[done], z);
        }
    });
}

// Writes grad_x and `parts` from the gradients of the layer's result, y and z. `parts` must be zero on entry; it has a
// `Layout` for each strip. The part of the first strip receives the sums over all strips.
DLGSANET_API bool dlgsanet_local_features_backward(
    const float* grad, const float* grad_y, const float* grad_z, const float* x, const float* norm_weight,
    const float* norm_bias, const float* proj_in, const float* squeeze_weight, const float* squeeze_bias,
    const float* proj_in_transposed, const float* squeeze_transposed, const float* spatial_flipped, const float* y,
    float* grad_x, float* parts, Index batch, Index channels, Index squeezed, Index window_size, Index height,
    Index width, int threads) {
    const Shape shape{batch, channels, height, width};
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj_in, channels, channels}};
    const LocalFeatures layer{
        enter, {squeeze_weight, squeezed, channels, squeeze_bias}, nullptr, nullptr, window_size};
    const Layout layout{channels, squeezed, window_size * window_size};
    const Backward backward{layer, layout, y, grad, grad_y, grad_z, spatial_flipped,
                            {squeeze_transposed, channels, squeezed}, grad_x};
    const Strips strips{batch, height};
    auto make = [&](Arena& arena) { return Backward::Scratch(arena, layer, proj_in_transposed); };

    const bool done = parallel(threads, strips.count(), make, [&](Index task, const Backward::Scratch& s) {
        const Tile tile{strips.image(task), strips.top(task), strips.bottom(task), 0, width};
        backward.run(tile, parts + task * layout.floats(), s);
    });
    sum_up(parts, strips.count(), layout.floats());
    return done;
}
