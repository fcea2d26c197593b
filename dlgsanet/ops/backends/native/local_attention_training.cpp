// Gradients of multi-head dynamic local self-attention (DLGSANet, section 3.2): of the dynamic convolution and the
// projection after it, and then of the features y and z of local_features.h.

#include "dynamic_conv_backward.h"
#include "local_features.h"
#include "products.h"
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

// The sums of a task: gradients of proj_in [C, C] and of squeeze's weight [D, C], with rows padded to column_step; for
// each of D channels those of the spatial weight [K, K] and bias and of squeeze's bias; of norm_weight and norm_bias
// [C].
struct Layout {
    Index channels, squeezed, taps;

    Index pitch() const { return round_up(channels, column_step); }
    Index squeeze_at() const { return channels * pitch(); }
    Index spatial_at() const { return squeeze_at() + squeezed * pitch(); }
    Index of_channel() const { return taps + 2; }
    Index norm_at() const { return spatial_at() + squeezed * of_channel(); }
    Index floats() const { return norm_at() + 2 * channels; }
};

struct Backward {
    const LocalFeatures& layer;
    const Layout& layout;
    const float *y, *grad, *grad_y, *grad_z;
    float* grad_x;

    struct Scratch {
        NormedProjectionBackward enter;
        RowRing squeezed, grad_z;
        RunningDepthwise grad_squeezed;
        Rows grad_hidden, y, y_by_pixel;  // y_by_pixel [columns, C]
        Weights squeeze_transposed;
        float* spatial_flipped;  // [D, K, K], the taps in reverse order
        float* grad_spatial;  // for each squeezed channel a register for each tap and two for the biases, see Layout

        Scratch(Arena& arena, const LocalFeatures& layer, const Layout& layout)
            : enter(arena, layer.enter),
              squeezed(arena, layer.squeeze.rows, layer.enter.shape.width, layer.window_size, layer.r()),
              grad_z(arena, layer.squeeze.rows, layer.enter.shape.width, 1, layer.r()),
              grad_squeezed(arena, layer.squeeze.rows, layer.enter.shape.width, layer.window_size),
              grad_hidden(arena.rows(layer.squeeze.inner, layer.enter.shape.width)),
              y(arena.rows(layer.squeeze.inner, layer.enter.shape.width)),
              y_by_pixel(arena.rows(layer.enter.shape.width, layer.squeeze.inner)),
              squeeze_transposed(transposed(arena, layer.squeeze)),
              spatial_flipped(arena.take(layer.squeeze.rows * layout.taps)),
              grad_spatial(arena.take(layer.squeeze.rows * layout.of_channel() * lanes)) {
            for (Index n = 0; spatial_flipped && n < layer.squeeze.rows * layout.taps; n++)
                spatial_flipped[n] = layer.spatial_weight[n + layout.taps - 1 - 2 * (n % layout.taps)];
        }
    };

    Index r() const { return layer.r(); }
    Index width() const { return layer.enter.shape.width; }

    void run(const Tile& tile, float* parts, const Scratch& s) const {
        const NormedProjectionBackward::Sums sums{parts, parts + layout.norm_at(), layout.pitch()};
        std::memset(s.grad_spatial, 0, sizeof(float) * layout.squeezed * layout.of_channel() * lanes);
        s.enter.begin();
        for (Index row = tile.top - r(); row < tile.top + r(); row++) squeeze(tile.image, row, s);
        for (Index row = tile.top - r(); row < tile.bottom + r(); row++) {
            const bool inside = row >= tile.top && row < tile.bottom;
            Ahead ahead(lines_per_block(5 * layout.channels, 3 * layout.channels));
            const Shape& shape = layer.enter.shape;
            shape.strip(row + r() + 1, tile, 0).expect(y, ahead);
            if (row + 1 >= tile.top + r()) {
                for (const float* image : {grad_y, layer.enter.x, grad})
                    shape.strip(row + 1 - r(), tile, 0).expect(image, ahead);
                shape.strip(row - r(), tile, 0).expect(grad_x, ahead);
            }
            if (inside) squeeze(tile.image, row + r(), s, &ahead);
            spread(tile.image, row, inside, s);
            if (row < tile.top + r()) continue;
            const Index done = row - r();
            differentiate_squeeze(tile.image, done, {parts + layout.squeeze_at(), layout.pitch()}, s, ahead);
            Strip{layer.enter.shape, tile.image, done, 0, width()}.write_sum(
                s.enter.row(tile.image, done, s.grad_hidden, sums, ahead), grad, grad_x);
        }
        for (Index n = 0; n < layout.squeezed * layout.of_channel(); n++)
            parts[layout.spatial_at() + n] = sum_lanes(s.grad_spatial + n * lanes);
        s.enter.hand_in(sums);
    }

    void squeeze(Index image, Index row, const Scratch& s, Ahead* ahead = nullptr) const {
        if (row < 0 || row >= layer.enter.shape.height) return s.squeezed.clear(row);
        Strip{layer.enter.shape, image, row, 0, width()}.read(y, s.y);
        gemm<Start::bias>(layer.squeeze, s.y, s.squeezed[row], width(), ahead);
        s.squeezed.clear_around(row, 0, width());
    }

    // Add the contribution of a row of the gradient of z to the gradients of squeeze(y) and of the spatial filters.
    void spread(Index image, Index row, bool inside, const Scratch& s) const {
        const Index height = layer.enter.shape.height, k = layer.window_size;
        if (row < 0 || row >= height) return s.grad_squeezed.begin(row + r(), nullptr, width());
        const Shape shape{layer.enter.shape.batch, layout.squeezed, height, width()};
        Strip{shape, image, row, 0, width()}.read(grad_z, s.grad_z[0]);
        s.grad_z.clear_around(0, 0, width());
        s.grad_squeezed.add(row, s.grad_z[0], s.spatial_flipped, nullptr, width());
        if (!inside) return;
        for (Index d = 0; d < layout.squeezed; d++) {
            const float* here = s.grad_z[0].row(d);
            float* sums = s.grad_spatial + d * layout.of_channel() * lanes;
            for (Index i = 0; i < k; i++)
                correlate<7>(here, s.squeezed[row + i - r()].row(d) - r(), sums + i * k * lanes, k, width());
            add_columns(here, sums + layout.taps * lanes);
        }
    }

    // Add a row to a register of partial sums.
    void add_columns(const float* row, float* sums) const {
        vec sum = load(sums);
        Columns{0, width()}.each_register([&](Index x, const auto& here) { sum += here(load(row + x)); });
        store(sums, sum);
    }

    // The gradient of y, including the contribution of squeeze(y), and the gradients of squeeze's weight and bias.
    void differentiate_squeeze(Index image, Index row, Rows grad_squeeze, const Scratch& s, Ahead& ahead) const {
        const Index channels = layout.channels;
        const Strip strip{layer.enter.shape, image, row, 0, width()};
        strip.read(grad_y, s.grad_hidden);
        gemm<Start::accumulate>(s.squeeze_transposed, s.grad_squeezed[row], s.grad_hidden, width(), &ahead);
        strip.read(y, s.y);
        transpose(s.y, channels, width(), s.y_by_pixel);
        gemm<Start::accumulate>({s.grad_squeezed[row], layout.squeezed, width()}, s.y_by_pixel, grad_squeeze,
                                channels, &ahead);
        for (Index d = 0; d < layout.squeezed; d++)
            add_columns(s.grad_squeezed[row].row(d), s.grad_spatial + ((d + 1) * layout.of_channel() - 1) * lanes);
    }
};

struct ConvolutionScratch {
    DynamicConvScratch convolution;
    Weights proj_out_transposed;
    Rows grad, filtered, filtered_by_pixel;
};

}  // namespace

// y, z and `filtered`, the result of the dynamic convolution, are what the layer has kept. grad_y and grad_z are
// working memory of their shapes.
DLGSANET_API bool dlgsanet_dynamic_local_attention_backward(
    const float* grad, const float* x, const float* norm_weight, const float* norm_bias, const float* proj_in,
    const float* squeeze_weight, const float* squeeze_bias, const float* spatial_weight, const float* spatial_bias,
    const float* filter_weight, const float* filter_bias, const float* proj_out, const float* y, const float* z,
    const float* filtered, float* grad_y, float* grad_z, float* grad_x, float* grad_norm_weight, float* grad_norm_bias,
    float* grad_proj_in, float* grad_squeeze_weight, float* grad_squeeze_bias, float* grad_spatial_weight,
    float* grad_spatial_bias, float* grad_filter_weight, float* grad_filter_bias, float* grad_proj_out, Index batch,
    Index channels, Index squeezed, Index groups, Index window_size, Index height, Index width, int threads) {
    const Shape shape{batch, channels, height, width}, z_shape{batch, squeezed, height, width};
    const Strips strips{batch, height};

    // The gradients of y and z from that of the layer's result, and of the weights between them: of proj_out [C, C],
    // and of the filters, see DynamicConvBackward.
    const FilterMaker maker{filter_weight, filter_bias, groups, window_size, squeezed};
    const Index pitch = round_up(channels, column_step), filter_pitch = round_up(squeezed + 1, column_step);
    const Index filters_at = channels * pitch;
    const PartialSums sums(strips.count(), filters_at + groups * maker.taps() * filter_pitch);
    auto make = [&](Arena& arena) {
        return ConvolutionScratch{DynamicConvScratch(arena, maker, channels, width),
                                  transposed(arena, {proj_out, channels, channels}), arena.rows(channels, width),
                                  arena.rows(channels, width), arena.rows(width, channels)};
    };
    bool done = sums && parallel(threads, strips.count(), make, [&](Index task, bool, const ConvolutionScratch& s) {
        float* part = sums.begin(task);
        const DynamicConvBackward backward{shape, z_shape, maker, y, z, grad_y, grad_z,
                                           {part + filters_at, filter_pitch},
                                           strips.image(task), strips.top(task), strips.bottom(task)};
        auto gradient = [&](Index row, bool inside, Rows to, Ahead& ahead) {
            const Strip strip = backward.strip(shape, row);
            strip.read(grad, s.grad);
            gemm<Start::zero>(s.proj_out_transposed, s.grad, to, width, &ahead);
            if (!inside) return;
            strip.read(filtered, s.filtered);
            transpose(s.filtered, channels, width, s.filtered_by_pixel);
            gemm<Start::accumulate>({s.grad, channels, width}, s.filtered_by_pixel, {part, pitch}, channels, &ahead);
        };
        auto expect = [&](Index row, Ahead& ahead) {
            backward.strip(shape, row).expect(grad, ahead);
            backward.strip(shape, row).expect(filtered, ahead);
        };
        backward.run(s.convolution, gradient, expect);
    });
    if (!done) return false;
    float* total = sums.total();
    hand_out({total, pitch}, channels, channels, grad_proj_out);
    hand_out_filters(maker, {total + filters_at, filter_pitch}, grad_filter_weight, grad_filter_bias);

    // The gradients up to y and z.
    const NormedProjection enter{shape, x, norm_weight, norm_bias, {proj_in, channels, channels}};
    const LocalFeatures layer{
        enter, {squeeze_weight, squeezed, channels, squeeze_bias}, spatial_weight, spatial_bias, window_size};
    const Layout layout{channels, squeezed, maker.taps()};
    const Backward backward{layer, layout, y, grad, grad_y, grad_z, grad_x};
    const PartialSums feature_sums(strips.count(), layout.floats());
    auto make_features = [&](Arena& arena) { return Backward::Scratch(arena, layer, layout); };
    done = feature_sums &&
           parallel(threads, strips.count(), make_features, [&](Index task, bool, const Backward::Scratch& s) {
               const Tile tile{strips.image(task), strips.top(task), strips.bottom(task), 0, width};
               backward.run(tile, feature_sums.begin(task), s);
           });
    if (!done) return false;
    total = feature_sums.total();
    hand_out({total, pitch}, channels, channels, grad_proj_in);
    hand_out({total + layout.squeeze_at(), pitch}, squeezed, channels, grad_squeeze_weight);
    const Rows spatial{total + layout.spatial_at(), layout.of_channel()};
    hand_out(spatial, squeezed, layout.taps, grad_spatial_weight);
    hand_out(spatial.at(layout.taps), squeezed, 1, grad_spatial_bias);
    hand_out(spatial.at(layout.taps + 1), squeezed, 1, grad_squeeze_bias);
    hand_out({total + layout.norm_at(), channels}, 1, channels, grad_norm_weight);
    hand_out({total + layout.norm_at() + channels, channels}, 1, channels, grad_norm_bias);
    return true;
}
