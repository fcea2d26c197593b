"""Triton kernels for what the layers do between matrix products, on [B, C, H, W].

Terms: a plane is one channel of one image, a tile `ROWS` x `COLUMNS` of its pixels. Sums are formed in `ACC`. `EPS` is
a constant, since Triton passes numbers in float32. Every kernel has a grid of one axis. No atomic operation is used, so
that results are the same every time. Sizes that help no load are not specialised: each would be compiled several times.
Nor is the width of filtered images: for multiples of 16 a thread would get four pixels in a row. Shifted loads, which
are not aligned, would then take four cycles of the cache for what takes one.
"""

import triton
import triton.language as tl


@triton.jit
def _normalised(at, inside, channels, EPS: tl.constexpr, ACC: tl.constexpr):
    """The pixels at pointers [channels, pixels], each less its mean, over its standard deviation; and 1 / that.

    Values that are not inside are zero.
    """
    values = tl.load(at, inside, other=0).to(ACC)
    mean = tl.sum(values, 0)[None, :] / channels
    values = tl.where(inside, values - mean, 0)
    scale = 1 / tl.sqrt(tl.sum(values * values, 0)[None, :] / channels + EPS)
    return values * scale, scale


@triton.jit(do_not_specialize=["channels", "pixels"])
def normalise(
    x, out, batch_stride, channel_stride, channels, pixels,
    EPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [B, channels, pixels]: the normalised pixels."""
    tiles = tl.cdiv(pixels, PIXELS)
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    channel, pixel = tl.arange(0, CHANNELS)[:, None], tile * PIXELS + tl.arange(0, PIXELS)[None, :]
    inside = (channel < channels) & (pixel < pixels)
    at = x + image.to(tl.int64) * batch_stride + channel.to(tl.int64) * channel_stride + pixel
    values, _ = _normalised(at, inside, channels, EPS, ACC)
    first = image.to(tl.int64) * channels * pixels
    tl.store(out + first + channel.to(tl.int64) * pixels + pixel, values.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["channels", "outputs", "pixels", "height", "width", "wide"])
def normalise_project(
    x, weight, bias, out, batch_stride, channel_stride, channels, outputs, pixels, height, width, wide,
    EPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, OUTPUTS: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, FACTOR: tl.constexpr, HAS_BIAS: tl.constexpr, BORDER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [B, outputs, pixels] = weight [outputs, channels] @ the normalised pixels, plus a bias [outputs] or not.

    The results are computed in PARTS parts of OUTPUTS channels. The factors are rounded to the dtype of out, and
    multiplied as FACTOR. With a BORDER, rows of out have `wide` pixels, and there are zeros outside of the image: in
    BORDER rows and columns before it, and in what remains after it.
    """
    tiles = tl.cdiv(pixels, PIXELS)
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    pixel = tile * PIXELS + tl.arange(0, PIXELS)[None, :]
    place, present = pixel, pixel < pixels
    if BORDER:
        row, column = pixel // wide - BORDER, pixel % wide - BORDER
        place, present = row * width + column, (row.to(tl.uint32) < height) & (column.to(tl.uint32) < width)
    channel = tl.arange(0, CHANNELS)[:, None]
    at = x + image.to(tl.int64) * batch_stride + channel.to(tl.int64) * channel_stride + place
    values, _ = _normalised(at, (channel < channels) & present, channels, EPS, ACC)
    values = values.to(out.dtype.element_ty).to(FACTOR)
    channel = tl.arange(0, CHANNELS)[None, :]
    out += image.to(tl.int64) * outputs * pixels
    for part in range(PARTS):
        output = part * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
        weights = tl.load(weight + output * channels + channel, (output < outputs) & (channel < channels), other=0)
        total = tl.dot(weights.to(out.dtype.element_ty).to(FACTOR), values, input_precision=PRECISION)
        if HAS_BIAS:
            total += tl.load(bias + output, output < outputs, other=0).to(ACC)
        if BORDER:
            total = tl.where(present, total, 0)
        inside = (output < outputs) & (pixel < pixels)
        tl.store(out + output.to(tl.int64) * pixels + pixel, total.to(out.dtype.element_ty), inside)


@triton.jit
def _pixels_of(tile, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    across = tl.cdiv(width, COLUMNS)
    row = (tile // across) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, column


@triton.jit
def _shifted(plane, row, column, i: tl.constexpr, j: tl.constexpr, height, width, outside, ACC: tl.constexpr):
    """The pixels i rows below and j columns to the right; those that are not in the image have the value `outside`."""
    row += i
    # As unsigned numbers, which -1 exceeds, one comparison does for both ends.
    inside = (row.to(tl.uint32) < height) & ((column + j).to(tl.uint32) < width)
    return tl.load(plane + (row * width + column) + j, inside, other=outside).to(ACC)  # j: added in the instruction


@triton.jit
def _by_channel(values, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """Values [rows, channels, columns] as [channels, pixels].

    Triton divides the axis before the last one among warps first. So a warp filters rows of few channels.
    """
    return tl.reshape(tl.permute(values, (1, 0, 2)), (CHANNELS, PIXELS))


@triton.jit
def _filtered(plane, bias, weight, row, column, height, width, ACC: tl.constexpr):
    """The 3x3 filter of a plane plus its bias; outside of the image there are zeros."""
    out, weights = 0.0, 0.0
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            w = tl.load(weight + 3 * i + j).to(ACC)
            out += _shifted(plane, row, column, i - 1, j - 1, height, width, -bias, ACC) * w
            weights += w
    return out + bias * weights


@triton.jit(do_not_specialize=["channels", "height", "width", "tiles"])
def depthwise(
    x, bias, weight, out, channels, height, width, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out = depthwise_3x3(x + bias), weight [channels, 9]."""
    plane, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row, column = _pixels_of(tile, width, ROWS, COLUMNS)
    channel, first = plane % channels, plane.to(tl.int64) * height * width
    b = tl.load(bias + channel).to(ACC)
    filtered = _filtered(x + first, b, weight + 9 * channel, row, column, height, width, ACC)
    inside = (row < height) & (column < width)
    tl.store(out + first + row * width + column, filtered.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["channels", "height", "top", "pixels", "tiles"])
def depthwise_in_windows(
    x, bias, weight, places, out, channels, height, width, top, pixels, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [windows, channels, pixels]: `depthwise` of x [1, channels, height, width], at the pixels of windows.

    places [windows, pixels] are indices into the rows of x from row `top` on.
    """
    plane, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    window, channel = plane // channels, plane % channels
    pixel = (tile * ROWS + tl.arange(0, ROWS)[:, None]) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    place = tl.load(places + window * pixels + pixel, pixel < pixels, other=0)
    row, column = place // width + top, place % width
    first, b = channel.to(tl.int64) * height * width, tl.load(bias + channel).to(ACC)
    filtered = _filtered(x + first, b, weight + 9 * channel, row, column, height, width, ACC)
    tl.store(out + plane.to(tl.int64) * pixels + pixel, filtered.to(out.dtype.element_ty), pixel < pixels)


@triton.jit
def _halves(x, bias, weight, image, channel, row, column, channels, height, width, ACC: tl.constexpr):
    """The filtered plane of the first half of 2 * channels, and that of the second half."""
    other = channel + channels
    first = (image.to(tl.int64) * 2 * channels + channel) * height * width
    second = (image.to(tl.int64) * 2 * channels + other) * height * width
    b = tl.load(bias + channel).to(ACC)
    a = _filtered(x + first, b, weight + 9 * channel, row, column, height, width, ACC)
    b = tl.load(bias + other).to(ACC)
    b = _filtered(x + second, b, weight + 9 * other, row, column, height, width, ACC)
    return a, b


@triton.jit
def _normal_distribution(x):
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=["channels", "height", "width", "tiles"])
def gate(
    x, bias, weight, out, channels, height, width, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out = gelu(a) * b for the halves a, b of depthwise_3x3(x + bias); channels: of a half."""
    plane, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row, column = _pixels_of(tile, width, ROWS, COLUMNS)
    image, channel = plane // channels, plane % channels
    a, b = _halves(x, bias, weight, image, channel, row, column, channels, height, width, ACC)
    gated = a * _normal_distribution(a) * b
    at = out + plane.to(tl.int64) * height * width + row * width + column
    tl.store(at, gated.to(out.dtype.element_ty), (row < height) & (column < width))


@triton.jit(do_not_specialize=["half", "channels", "height", "width", "tiles"])
def gate_project(
    x, bias, weight, projection, shortcut, out, batch_stride, channel_stride, half, channels, height, width, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, TERMS: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [B, channels, height, width] = shortcut + projection [channels, half] @ what `gate` computes from x.

    The gate is computed in PARTS parts of TERMS channels, for all pixels of a tile. Its channels and the projection are
    rounded to the dtype of x, and multiplied as FACTOR.
    """
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row, column = _pixels_of(tile, width, ROWS, COLUMNS)
    output = tl.arange(0, CHANNELS)[:, None]
    total = tl.zeros((CHANNELS, ROWS * COLUMNS), ACC)
    for part in tl.range(0, PARTS, num_stages=1):  # more stages would need more shared memory than there is
        term = part * TERMS + tl.arange(0, TERMS)
        channel = tl.minimum(term, half - 1)[None, :, None]
        a, b = _halves(x, bias, weight, image, channel, row[:, None], column[:, None], half, height, width, ACC)
        gated = tl.where(term[None, :, None] < half, a * _normal_distribution(a) * b, 0).to(x.dtype.element_ty)
        gated = _by_channel(gated, TERMS, ROWS * COLUMNS)
        there = (output < channels) & (term < half)[None, :]
        weights = tl.load(projection + output * half + term[None, :], there, other=0).to(x.dtype.element_ty)
        total += tl.dot(weights.to(FACTOR), gated.to(FACTOR), input_precision=PRECISION)
    inside, pixel = (row < height) & (column < width), row * width + column
    inside, pixel = tl.reshape(inside, (1, ROWS * COLUMNS)), tl.reshape(pixel, (1, ROWS * COLUMNS))
    inside = inside & (output < channels)
    at = image.to(tl.int64) * batch_stride + output.to(tl.int64) * channel_stride + pixel
    total += tl.load(shortcut + at, inside, other=0).to(ACC)
    at = (image.to(tl.int64) * channels + output) * height * width + pixel
    tl.store(out + at, total.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["channels", "outputs", "height", "width", "tiles"])
def convolve(
    x, weight, bias, mean, to, out, image_stride, channel_stride, to_image_stride, to_channel_stride,
    channels, outputs, height, width, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr, WAYS: tl.constexpr, TERMS: tl.constexpr,
    PARTS: tl.constexpr, WHOLE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MEAN: tl.constexpr, TO: tl.constexpr,
    SHUFFLE: tl.constexpr, PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [B, O, SHUFFLE * height, SHUFFLE * width] = to + pixel_shuffle(conv3x3(x - mean) + bias).

    Before the shuffle there are `outputs` = O * SHUFFLE ** 2 channels, in WAYS parts of OUTPUTS: a program computes one
    part of them for a tile. The channels of x are added up in PARTS parts of TERMS (WHOLE: these are exactly its
    channels), tap by tap: the taps after the first find its pixels in the cache.

    Args:
        weight: [9, PARTS, WAYS * OUTPUTS, TERMS], filled up with zeros. Factors are rounded to its dtype, and
            multiplied as FACTOR.
        to: an image like out (TO is 2; there is no shuffle), which out may be; a number for each channel (1); or
            nothing (0).
    """
    way, tile = tl.program_id(0) % WAYS, tl.program_id(0) // WAYS % tiles
    image = (tl.program_id(0) // WAYS // tiles).to(tl.int64)
    across = tl.cdiv(width, COLUMNS)
    pixel = tl.arange(0, ROWS * COLUMNS)[None, :]
    row, column = tile // across * ROWS + pixel // COLUMNS, tile % across * COLUMNS + pixel % COLUMNS
    output, term = way * OUTPUTS + tl.arange(0, OUTPUTS)[:, None], tl.arange(0, TERMS)
    total = tl.zeros((OUTPUTS, ROWS * COLUMNS), ACC)
    if HAS_BIAS:
        total += tl.load(bias + output, output < outputs, other=0).to(ACC)
    x += image * image_stride
    for part in tl.range(0, PARTS, num_stages=1):
        channel = (part * TERMS + term)[:, None]
        plane = x + channel.to(tl.int64) * channel_stride + (row * width + column)
        weights = weight + (part * WAYS * OUTPUTS + output) * TERMS + term[None, :]
        for i in tl.range(0, 3, num_stages=1):  # not unrolled, which would spill registers
            for j in tl.static_range(3):
                inside = ((row + (i - 1)).to(tl.uint32) < height) & ((column + (j - 1)).to(tl.uint32) < width)
                if not WHOLE:
                    inside = inside & (channel < channels)
                values = tl.load(plane + (i - 1) * width + (j - 1), inside, other=0)
                if HAS_MEAN:
                    of_channel = tl.load(mean + channel, channel < channels, other=0)
                    values = tl.where(inside, values.to(ACC) - of_channel.to(ACC), 0)
                w = tl.load(weights + (3 * i + j) * PARTS * WAYS * OUTPUTS * TERMS)
                values = values.to(weight.dtype.element_ty).to(FACTOR)
                total = tl.dot(w.to(FACTOR), values, total, input_precision=PRECISION)
    inside = (row < height) & (column < width) & (output < outputs)
    channel = output // (SHUFFLE * SHUFFLE)
    place = row * width + column
    if TO:
        of_channel = to + image * to_image_stride + channel.to(tl.int64) * to_channel_stride
        total += tl.load(of_channel + place if TO == 2 else of_channel, inside, other=0).to(ACC)
    plane = out + (image * outputs + channel * (SHUFFLE * SHUFFLE)) * height * width
    if SHUFFLE > 1:
        row, column = row * SHUFFLE + output // SHUFFLE % SHUFFLE, column * SHUFFLE + output % SHUFFLE
        place = row.to(tl.int64) * (SHUFFLE * width) + column
    tl.store(plane + place, total.to(out.dtype.element_ty), inside)


@triton.jit
def _similarities(gram, channels, HEADS: tl.constexpr, EPS: tl.constexpr, SIDE: tl.constexpr, ACC: tl.constexpr):
    """Normalised products of queries and keys of one head of one image, the queries, and which products there are.

    gram: [2 * C, 2 * C], the products of the channels of q and k with each other; channels: of a head.
    """
    i = tl.arange(0, SIDE)
    query = (tl.program_id(0) % HEADS) * channels + i
    key = HEADS * channels + query
    row = 2 * HEADS * channels
    inside = i < channels
    q = 1 / tl.sqrt(tl.load(gram + query * row + query, inside, other=1).to(ACC) + EPS)
    k = 1 / tl.sqrt(tl.load(gram + key * row + key, inside, other=1).to(ACC) + EPS)
    both = inside[:, None] & inside[None, :]
    products = tl.load(gram + query[:, None] * row + key[None, :], both, other=0).to(ACC)
    return (products + EPS) * q[:, None] * k[None, :], query, both


@triton.jit
def attention(
    gram, temperature, out, channels,
    HEADS: tl.constexpr, EPS: tl.constexpr, SIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """relu(similarities * temperature) of every head, in the blocks on the diagonal of out [n, C, C]; else zeros."""
    count = HEADS * channels
    image, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    gram += image.to(tl.int64) * 4 * count * count
    similarities, query, both = _similarities(gram, channels, HEADS, EPS, SIDE, ACC)
    weights = similarities * tl.load(temperature + head).to(ACC)
    weights = tl.where(weights < 0, 0, weights)  # keeps NaN
    at = out + image.to(tl.int64) * count * count + query[:, None] * count + tl.arange(0, SIDE)[None, :]
    for other in range(HEADS):
        block = tl.where(other == head, weights, 0)
        tl.store(at + other * channels, block.to(out.dtype.element_ty), both)


@triton.jit
def _spatial(
    squeezed, weight, bias, wide, K: tl.constexpr, FEATURES: tl.constexpr, TERMS: tl.constexpr, PIXELS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The K x K filters [FEATURES, K * K] plus a bias, at pixels of two rows: each [TERMS, PIXELS].

    squeezed [TERMS, PIXELS]: pointers to the first pixels of the windows of the upper row.
    """
    feature = tl.arange(0, TERMS)[:, None]
    present = feature < FEATURES
    upper = tl.zeros((TERMS, PIXELS), ACC) + tl.load(bias + feature, present, other=0).to(ACC)
    lower = upper
    for j in range(K):
        w = tl.zeros((TERMS, 1), ACC)
        for i in tl.static_range(K + 1):
            values = tl.load(squeezed + i * wide + j, present, other=0).to(ACC)
            lower += w * values
            if i < K:
                w = tl.load(weight + (feature * K + i) * K + j, present, other=0).to(ACC)
                upper += w * values
    return upper, lower


@triton.jit
def _filters(
    weight, z, first,
    K: tl.constexpr, FEATURES: tl.constexpr, TERMS: tl.constexpr, GROUPS: tl.constexpr, TAPS: tl.constexpr,
    PIXELS: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Filters [TAPS, GROUPS * PIXELS] from z [TERMS, PIXELS]; weight: of the first group, read from row `first` on."""
    line = tl.arange(0, TAPS * GROUPS)[:, None]
    at = weight + (line % GROUPS * (TAPS + K) + line // GROUPS + first) * TERMS
    filters = tl.dot(tl.load(at + tl.arange(0, TERMS)[None, :]).to(ACC), z, input_precision=PRECISION)
    return tl.reshape(filters + tl.load(at + FEATURES).to(ACC), (TAPS, GROUPS * PIXELS))


@triton.jit(do_not_specialize=["channels", "groups", "height", "width", "tiles"])
def attend_locally(
    y, spatial_weight, spatial_bias, filter_weight, projection, shortcut, filtered, out, batch_stride, channel_stride,
    channels, groups, height, width, tiles,
    K: tl.constexpr, FEATURES: tl.constexpr, SHARE: tl.constexpr, TERMS: tl.constexpr, GROUPS: tl.constexpr,
    PASSES: tl.constexpr, TAPS: tl.constexpr, PIXELS: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
    FORMED: tl.constexpr, PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [B, channels, height, width] = shortcut + projection [channels, channels] @ the filtered y.

    A program computes two rows of PIXELS pixels, so that a pixel that it loads serves the windows of both. There are
    PASSES times GROUPS groups of SHARE channels, each with a filter of K * K taps. It is formed from z, the spatially
    filtered last FEATURES channels of y. The TAPS are those of K + 1 rows: the lower row's filters begin K taps later.

    Args:
        y: [B, channels + FEATURES, rows, columns], with a border of zeros of K // 2 pixels, and as many after the image
            as the last tile needs.
        filter_weight: [groups, K + TAPS, TERMS]: K rows of zeros, then for each tap the weights of FEATURES, a bias
            and zeros. The groups are filled up to a multiple of GROUPS.
        filtered: [programs, channels, 2 * PIXELS], filled with the filtered y in the dtype to which factors of the
            projection are rounded. They are multiplied as FACTOR, and those of the filters in float32 as FORMED says.
    """
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    across = tl.cdiv(width, PIXELS)
    row, column = tile // across * 2, tile % across * PIXELS + tl.arange(0, PIXELS)[None, :]
    wide = across * PIXELS + K - 1
    plane = (tl.cdiv(height, 2) * 2 + K - 1) * wide
    y += image.to(tl.int64) * (channels + FEATURES) * plane + row * wide
    squeezed = y + (channels + tl.arange(0, TERMS)[:, None]).to(tl.int64) * plane + column
    upper, lower = _spatial(squeezed, spatial_weight, spatial_bias, wide, K, FEATURES, TERMS, PIXELS, ACC)
    filtered += tl.program_id(0).to(tl.int64) * channels * 2 * PIXELS
    tap = tl.arange(0, TAPS)[:, None]
    member, pixel = tl.arange(0, GROUPS * PIXELS) // PIXELS, tl.arange(0, GROUPS * PIXELS) % PIXELS
    y += tile % across * PIXELS
    for number in range(PASSES):
        start = number * GROUPS
        of_groups = filter_weight + start * (TAPS + K) * TERMS
        f = _filters(of_groups, upper, K, K, FEATURES, TERMS, GROUPS, TAPS, PIXELS, FORMED, ACC)
        g = _filters(of_groups, lower, 0, K, FEATURES, TERMS, GROUPS, TAPS, PIXELS, FORMED, ACC)
        group = start + member
        for c in range(SHARE):
            channel = tl.minimum(group, groups - 1) * SHARE + c
            windows = (y + channel.to(tl.int64) * plane + pixel)[None, :] + (tap // K * wide + tap % K)
            values = tl.load(windows, tap < K * K + K, other=0).to(ACC)
            # -0 adds nothing to a sum, so the compiler leaves out these products.
            of_upper = tl.sum(tl.where(tap < K * K, f * values, -0.0), 0)
            of_lower = tl.sum(tl.where((tap >= K) & (tap < K * K + K), g * values, -0.0), 0)
            at = filtered + channel * 2 * PIXELS + pixel
            tl.store(at, of_upper.to(filtered.dtype.element_ty), group < groups)
            tl.store(at + PIXELS, of_lower.to(filtered.dtype.element_ty), group < groups)
    tl.debug_barrier()
    _project_filtered(
        filtered, projection, shortcut + image.to(tl.int64) * batch_stride,
        out + image.to(tl.int64) * channels * height * width, channel_stride, channels, row, tile % across * PIXELS,
        height, width, PIXELS, PART, PARTS, PRECISION, FACTOR, ACC,
    )  # fmt: skip


@triton.jit
def _project_filtered(
    filtered, projection, shortcut, out, channel_stride, channels, top, left, height, width,
    PIXELS: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, FACTOR: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The last step of `attend_locally`, for one image, with channels in PARTS parts of PART."""
    pixel = tl.arange(0, 2 * PIXELS)[None, :]
    row, column = top + pixel // PIXELS, left + pixel % PIXELS
    place, present = row * width + column, (row < height) & (column < width)
    for i in tl.range(0, PARTS, num_stages=1):
        output = i * PART + tl.arange(0, PART)[:, None]
        total = tl.zeros((PART, 2 * PIXELS), ACC)
        for j in tl.range(0, PARTS, num_stages=1):
            term = j * PART + tl.arange(0, PART)
            values = tl.load(filtered + term[:, None] * 2 * PIXELS + pixel, term[:, None] < channels, other=0)
            there = (output < channels) & (term < channels)[None, :]
            weights = tl.load(projection + output * channels + term[None, :], there, other=0)
            weights = weights.to(filtered.dtype.element_ty)
            total += tl.dot(weights.to(FACTOR), values.to(FACTOR), input_precision=PRECISION)
        inside = present & (output < channels)
        total += tl.load(shortcut + output.to(tl.int64) * channel_stride + place, inside, other=0).to(ACC)
        tl.store(out + output.to(tl.int64) * height * width + place, total.to(out.dtype.element_ty), inside)


# Attention in windows; tiles, members, offsets: see `dlgsanet.ops.backends.triton.tiles`.


@triton.jit(do_not_specialize=["image_stride", "channels", "height", "width", "top", "first", "count", "total"])
def channel_sums(
    x, bias, weight, tiles, sums, image_stride, channels, height, width, top, first, count, total,
    HEADS: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """sums [B, total, heads, 2 * SIDE, 2 * SIDE]: of products of a head's channels of q and k, over each tile's pixels.

    They are computed from x [B, 2 * HEADS * channels, height, width], rows of an image from `top` on. The features are
    depthwise_3x3(x + bias): q, then k, with `channels` channels of each head. There are `count` tiles from the first
    one. The features are rounded to the dtype of x, and multiplied as FACTOR.
    """
    head, tile = tl.program_id(0) % HEADS, first + tl.program_id(0) // HEADS % count
    image = (tl.program_id(0) // HEADS // count).to(tl.int64)
    term = tl.arange(0, 2 * SIDE)[None, :, None]
    channel = (term // SIDE * HEADS + head) * channels + tl.minimum(term % SIDE, channels - 1)
    plane, b = x + image * image_stride + channel.to(tl.int64) * height * width, tl.load(bias + channel).to(ACC)
    gram = tl.zeros((2 * SIDE, 2 * SIDE), ACC)
    tiles += 8 * tile
    start, stop, left, right = tl.load(tiles), tl.load(tiles + 1), tl.load(tiles + 2), tl.load(tiles + 3)
    while start < stop:
        row, column = start + tl.arange(0, ROWS)[:, None, None], left + tl.arange(0, COLUMNS)[None, None, :]
        filtered = _filtered(plane, b, weight + 9 * channel, row - top, column, height, width, ACC)
        filtered = tl.where((row < stop) & (column < right), filtered, 0).to(x.dtype.element_ty).to(FACTOR)
        filtered = _by_channel(filtered, 2 * SIDE, ROWS * COLUMNS)
        gram += tl.dot(filtered, tl.trans(filtered), input_precision=PRECISION)
        start += ROWS
    i = tl.arange(0, 2 * SIDE)
    sums += ((image * total + tile) * HEADS + head) * (4 * SIDE * SIDE)
    tl.store(sums + i[:, None] * (2 * SIDE) + i[None, :], gram)


@triton.jit(do_not_specialize=["total", "windows"])
def fold_attention(
    sums, members, offsets, temperature, projection, out, channels, total, windows,
    HEADS: tl.constexpr, EPS: tl.constexpr, SIDE: tl.constexpr, TERMS: tl.constexpr,
    OUTPUTS: tl.constexpr, PARTS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [B, windows, C, C] = projection [C, C] @ the matrices of attention with ReLU, from what `channel_sums` sums.

    A program computes the columns of a head, in PARTS parts of OUTPUTS rows. Its products have TERMS terms.
    """
    head, window = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS % windows
    image = (tl.program_id(0) // HEADS // windows).to(tl.int64)
    i = tl.arange(0, TERMS)
    inside = i < channels
    both = inside[:, None] & inside[None, :]
    products = tl.zeros((TERMS, TERMS), ACC)
    q, k = tl.zeros((TERMS,), ACC), tl.zeros((TERMS,), ACC)
    place, stop = tl.load(offsets + window), tl.load(offsets + window + 1)
    while place < stop:
        for n in tl.static_range(4):  # loads in flight at once
            there = place + n < stop
            tile = tl.load(members + place + n, there, other=0)
            gram = sums + ((image * total + tile) * HEADS + head) * (4 * SIDE * SIDE)
            at = i[:, None] * (2 * SIDE) + SIDE + i[None, :]
            products += tl.load(gram + at, both & there, other=0)
            q += tl.load(gram + i * (2 * SIDE + 1), inside & there, other=0)
            k += tl.load(gram + (SIDE + i) * (2 * SIDE + 1), inside & there, other=0)
        place += 4
    q, k = 1 / tl.sqrt(q + EPS), 1 / tl.sqrt(k + EPS)
    weights = (products + EPS) * q[:, None] * k[None, :] * tl.load(temperature + head).to(ACC)
    weights = tl.where(both & ((weights >= 0) | (weights != weights)), weights, 0)  # keeps NaN
    count = HEADS * channels
    column = head * channels + i[None, :]
    out += (image * windows + window) * count * count
    for part in tl.range(0, PARTS, num_stages=1):
        output = part * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
        there = (output < count) & inside[None, :]
        factors = tl.load(projection + output * count + column, there, other=0).to(ACC)
        tl.store(out + output * count + column, tl.dot(factors, weights, input_precision="ieee"), there)


@triton.jit(
    # x begins within a tensor, aligned or not, which helps no load that is shifted.
    do_not_specialize=["x", "image_stride", "channels", "rows", "height", "width", "top", "first", "count", "windows"]
)
def attend(
    x, bias, weight, tiles, folded, shortcut, out, batch_stride, channel_stride,
    image_stride, channels, rows, height, width, top, first, count, windows,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, TERMS: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [B, channels, height, width] = shortcut + the mean of the folded matrices of a pixel's windows @ its values.

    The values are features of x [B, channels, rows, width], formed as in `channel_sums`, in PARTS parts of TERMS
    channels. A tile has at most ROWS x COLUMNS pixels.
    """
    tile = first + tl.program_id(0) % count
    image = (tl.program_id(0) // count).to(tl.int64)
    tiles += 8 * tile
    row = tl.load(tiles) + tl.arange(0, ROWS)[:, None]
    column = tl.load(tiles + 2) + tl.arange(0, COLUMNS)[None, :]
    output = tl.arange(0, CHANNELS)[:, None]
    result = tl.zeros((CHANNELS, ROWS * COLUMNS), ACC)
    for part in tl.range(0, PARTS, num_stages=1):  # more stages would need more shared memory than there is
        term = part * TERMS + tl.arange(0, TERMS)
        channel = tl.minimum(term, channels - 1)[None, :, None]
        plane, b = x + image * image_stride + channel.to(tl.int64) * rows * width, tl.load(bias + channel).to(ACC)
        values = _filtered(plane, b, weight + 9 * channel, row[:, None] - top, column[:, None], rows, width, ACC)
        values = tl.where(term[None, :, None] < channels, values, 0).to(x.dtype.element_ty)
        there = (output < channels) & (term < channels)[None, :]
        matrix = tl.zeros((CHANNELS, TERMS), ACC)
        for n in tl.static_range(4):
            at = (image * windows + tl.load(tiles + 4 + n)) * channels * channels
            matrix += tl.load(folded + at + (output * channels + term[None, :]), there, other=0)
        matrix = (0.25 * matrix).to(x.dtype.element_ty).to(FACTOR)
        values = _by_channel(values, TERMS, ROWS * COLUMNS).to(FACTOR)
        result += tl.dot(matrix, values, input_precision=PRECISION)
    inside, pixel = (row < tl.load(tiles + 1)) & (column < tl.load(tiles + 3)), row * width + column
    inside, pixel = tl.reshape(inside, (1, ROWS * COLUMNS)), tl.reshape(pixel, (1, ROWS * COLUMNS))
    inside = inside & (output < channels)
    at = image * batch_stride + output.to(tl.int64) * channel_stride + pixel
    result += tl.load(shortcut + at, inside, other=0).to(ACC)
    at = (image * channels + output) * height * width + pixel
    tl.store(out + at, result.to(out.dtype.element_ty), inside)
