"""Triton kernels of the layers in training: the first projection, and the gradients.

Terms are those of `kernels`. The pixels of an image are shared out among `per_image` programs, each with ROUNDS tiles;
those that do not exist lie below the image. A program adds up the gradients of weights over its tiles. It writes these
sums to a row of `sums` [programs, stride], and `add_up` adds the rows in order. Where each share of pixels has several
programs, which compute a part of the channels each, they share a row. A pointer to sums is one to the first row.

Planes that are filtered have a row of zeros above them and a column of zeros to their left, [height + 1, width + 1].
What follows a plane, the next one or the end of the tensor, has these too: so no load of a neighbour needs a mask.

Where a thread has many channels, offsets into an image have 32 bits: with 64 their registers would be spilled.
"""

import triton
import triton.language as tl

from dlgsanet.ops.backends.triton.kernels import _by_channel, _normal_distribution, _normalised, _pixels_of


@triton.jit(do_not_specialize=["programs", "fewer", "split", "stride"])
def add_up(sums, out, programs, fewer, split, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """out [stride]: the sum of the rows of sums [programs, stride]; from column `split` on there are `fewer` rows."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.arange(0, ROWS)[:, None]
    left = tl.where(column < split, programs, tl.where(column < stride, fewer, 0))
    total = tl.zeros((ROWS, COLUMNS), sums.dtype.element_ty)
    while programs > 0:
        total += tl.load(sums + row * stride + column, row < left, other=0)
        sums += ROWS * stride
        left -= ROWS
        programs -= ROWS
    total = tl.sum(total, 0)[None, :]
    tl.store(out + column, total.to(out.dtype.element_ty), column < stride)


@triton.jit
def _scaled(
    x, scale, shift, image, pixel, present, channels, pixels,
    EPS: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """scale * y + shift for the normalised pixels y of x [B, channels, pixels]; y, 1 / standard deviations, scale."""
    channel = tl.arange(0, CHANNELS)[:, None]
    at = x + image.to(tl.int64) * channels * pixels + (channel * pixels + pixel)
    y, deviation = _normalised(at, (channel < channels) & present, channels, EPS, ACC)
    scales = tl.load(scale + channel, channel < channels, other=0).to(ACC)
    return y * scales + tl.load(shift + channel, channel < channels, other=0).to(ACC), y, deviation, scales


@triton.jit
def _clear_border(plane, there, height, width, PLACES: tl.constexpr):
    """Zeros around planes [channels, 1, 1]: pointers to their first pixels; there: which of them there are."""
    start = 0
    while start < tl.maximum(width + 2, height):
        place = start + tl.arange(0, PLACES)[None, :, None]
        tl.store(plane - (width + 2) + place, 0.0, there & (place < width + 2))
        tl.store(plane + height * (width + 1) - 1 + place, 0.0, there & (place < width + 2))
        tl.store(plane + place * (width + 1) - 1, 0.0, there & (place < height))
        start += PLACES


@triton.jit(do_not_specialize=["channels", "outputs", "features", "height", "width"])
def project(
    x, scale, shift, weight, out, squeeze, squeeze_bias, squeezed, channels, outputs, features, height, width,
    EPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, OUTPUTS: tl.constexpr, PARTS: tl.constexpr,
    FEATURES: tl.constexpr, BORDER: tl.constexpr, PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [B, outputs, pixels] = weight [outputs, channels] @ (scale * the normalised pixels + shift).

    It is computed in PARTS parts of OUTPUTS channels. The factors are rounded to the dtype of out, and multiplied as
    FACTOR. With FEATURES, which has room for so many, also squeezed [B, features, pixels] = squeeze @ out + a bias.
    With a BORDER, the planes of out have zeros around them.
    """
    pixels = height * width
    tiles = tl.cdiv(pixels, PIXELS)
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    pixel = tile * PIXELS + tl.arange(0, PIXELS)[None, :]
    place, present, plane = pixel, pixel < pixels, pixels
    if BORDER:
        place, plane = pixel + pixel // width + (width + 2), (height + 1) * (width + 1)
    values, _, _, _ = _scaled(x, scale, shift, image, pixel, present, channels, pixels, EPS, CHANNELS, ACC)
    values = values.to(out.dtype.element_ty).to(FACTOR)
    channel = tl.arange(0, CHANNELS)[None, :]
    out += image.to(tl.int64) * outputs * plane
    if FEATURES:
        feature = tl.arange(0, FEATURES)[:, None]
        z = tl.zeros((FEATURES, PIXELS), ACC)
    for part in range(PARTS):
        term = part * OUTPUTS + tl.arange(0, OUTPUTS)
        output = term[:, None]
        weights = tl.load(weight + output * channels + channel, (output < outputs) & (channel < channels), other=0)
        total = tl.dot(weights.to(out.dtype.element_ty).to(FACTOR), values, input_precision=PRECISION)
        total = total.to(out.dtype.element_ty)
        tl.store(out + output * plane + place, total, (output < outputs) & present)
        if FEATURES:
            there = (feature < features) & (term < outputs)[None, :]
            weights = tl.load(squeeze + feature * outputs + term[None, :], there, other=0).to(out.dtype.element_ty)
            z += tl.dot(weights.to(FACTOR), total.to(FACTOR), input_precision=PRECISION)
    if FEATURES:
        z += tl.load(squeeze_bias + feature, feature < features, other=0).to(ACC)
        squeezed += image.to(tl.int64) * features * pixels
        tl.store(squeezed + feature * pixels + pixel, z.to(out.dtype.element_ty), (feature < features) & present)
    if (tile == 0) & BORDER:
        for part in range(PARTS):
            output = part * OUTPUTS + tl.arange(0, OUTPUTS)[:, None, None]
            first = out + output * plane + (width + 2)
            _clear_border(first, output < outputs, height, width, PIXELS)


@triton.jit
def _add_to_sums(sums, product, there, round):
    """Add a product to sums in memory, from round 0 on; another round must not begin before a barrier."""
    before = tl.load(sums, there & (round > 0), other=0)
    tl.store(sums, before + product, there)


@triton.jit
def _store_gradient(
    grad_x, of_y, y, deviation, shortcut, image, pixel, present, channels, pixels, CHANNELS: tl.constexpr
):
    """grad_x: the gradient of x, from that of its normalised pixels y and 1 / their standard deviations, + shortcut."""
    share = 1.0 / channels
    of_x = deviation * (of_y - tl.sum(of_y, 0)[None, :] * share - y * (tl.sum(of_y * y, 0)[None, :] * share))
    channel = tl.arange(0, CHANNELS)[:, None]
    inside = present & (channel < channels)
    first, at = image.to(tl.int64) * channels * pixels, channel * pixels + pixel
    of_x += tl.load(shortcut + first + at, inside, other=0).to(of_x.dtype)
    tl.store(grad_x + first + at, of_x.to(grad_x.dtype.element_ty), inside)


@triton.jit
def _origin(plane, height, width):
    """Where the first pixel of a plane with a border is; plane: its number."""
    return plane.to(tl.int64) * ((height + 1) * (width + 1)) + (width + 2)


@triton.jit
def _neighbours(plane, row, column, height, width, ACC: tl.constexpr):
    """The nine pixels that a 3x3 filter reads, row by row; plane: pointers to first pixels of planes with borders.

    Below and to the right of the image they are those of its last rows and columns.
    """
    middle = tl.minimum(row, height - 1) * (width + 1) + tl.minimum(column, width - 1)
    above, below = plane + (middle - (width + 1)), plane + (middle + (width + 1))
    middle = plane + middle
    return (
        tl.load(above - 1).to(ACC), tl.load(above).to(ACC), tl.load(above + 1).to(ACC),
        tl.load(middle - 1).to(ACC), tl.load(middle).to(ACC), tl.load(middle + 1).to(ACC),
        tl.load(below - 1).to(ACC), tl.load(below).to(ACC), tl.load(below + 1).to(ACC),
    )  # fmt: skip


@triton.jit
def _weighted(nine, weight, ACC: tl.constexpr):
    """The sum of nine arrays times the nine numbers that begin at a pointer."""
    total = nine[0] * tl.load(weight).to(ACC)
    for i in tl.static_range(1, 9):
        total += nine[i] * tl.load(weight + i).to(ACC)
    return total


@triton.jit
def _add_products(sums, nine, factor):
    return (
        sums[0] + nine[0] * factor,
        sums[1] + nine[1] * factor,
        sums[2] + nine[2] * factor,
        sums[3] + nine[3] * factor,
        sums[4] + nine[4] * factor,
        sums[5] + nine[5] * factor,
        sums[6] + nine[6] * factor,
        sums[7] + nine[7] * factor,
        sums[8] + nine[8] * factor,
    )


@triton.jit
def _store_sums(sums, nine, present):
    """The sums of nine arrays [channels, rows, columns] over their pixels; sums [channels]: pointers to the first."""
    for i in tl.static_range(9):
        tl.store(sums + i, tl.sum(tl.sum(nine[i], 2), 1), present)


@triton.jit
def _as_factor(values, memory, planes, place, shown, PIXELS: tl.constexpr, FACTOR: tl.constexpr):
    """Values [channels, rows, columns] as a factor [channels, PIXELS] of a product.

    They go through memory that is overwritten later: else compilers compute them again in the layout of a factor, in
    several threads.
    """
    tl.store(memory + planes + place, values.to(memory.dtype.element_ty), shown)
    tl.debug_barrier()
    at = tl.reshape(planes, (values.shape[0], 1)) + tl.reshape(place, (1, PIXELS))
    factor = tl.load(memory + at, tl.reshape(shown, (values.shape[0], PIXELS)), other=0).to(FACTOR)
    tl.debug_barrier()
    return factor


@triton.jit(do_not_specialize=["half", "channels", "height", "width", "tiles"])
def gate_project(
    x, weight, projection, shortcut, out, half, channels, height, width, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, TERMS: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [B, channels, height, width] = shortcut + projection [channels, half] @ (gelu(a) * b), as in `kernels`.

    The halves a, b of depthwise_3x3(x) are computed in PARTS parts of TERMS channels; x: 2 * half planes of each image,
    with borders. Factors of products are rounded to its dtype.
    """
    image, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    row, column = _pixels_of(tile, width, ROWS, COLUMNS)
    output = tl.arange(0, CHANNELS)[:, None]
    total = tl.zeros((CHANNELS, ROWS * COLUMNS), ACC)
    for part in tl.range(0, PARTS, num_stages=1):
        term = part * TERMS + tl.arange(0, TERMS)
        channel = tl.minimum(term, half - 1)[None, :, None]
        near = _neighbours(
            x + _origin(image * 2 * half + channel, height, width), row[:, None], column[:, None], height, width, ACC
        )
        a = _weighted(near, weight + 9 * channel, ACC)
        channel += half
        near = _neighbours(
            x + _origin(image * 2 * half + channel, height, width), row[:, None], column[:, None], height, width, ACC
        )
        gated = a * _normal_distribution(a) * _weighted(near, weight + 9 * channel, ACC)
        gated = tl.where(term[None, :, None] < half, gated, 0).to(x.dtype.element_ty).to(FACTOR)
        there = (output < channels) & (term < half)[None, :]
        weights = tl.load(projection + output * half + term[None, :], there, other=0).to(x.dtype.element_ty)
        gated = _by_channel(gated, TERMS, ROWS * COLUMNS)
        total += tl.dot(weights.to(FACTOR), gated, input_precision=PRECISION)
    _add_and_store(total, shortcut, out, image, row, column, output, channels, height, width)


@triton.jit
def _add_and_store(total, shortcut, out, image, row, column, output, channels, height, width):
    """out = shortcut + total [channels, pixels of a tile]."""
    pixel = tl.reshape(row * width + column, (1, total.shape[1]))
    inside = tl.reshape((row < height) & (column < width), (1, total.shape[1])) & (output < channels)
    first, at = image * channels * height * width, output * (height * width) + pixel
    total += tl.load(shortcut + first + at, inside, other=0).to(total.dtype)
    tl.store(out + first + at, total.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["stride", "half", "channels", "height", "width", "per_image"])
def gate_project_backward(
    grad, x, weight, projection, grad_halves, weight_sums, projection_sums,
    stride, half, channels, height, width, per_image,
    ROUNDS: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    TERMS: tl.constexpr, PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradients of a and b, the halves of depthwise_3x3(x), from that of projection @ (gelu(a) * b).

    A program computes one of PARTS parts of TERMS channels of each half. Sums: of the gradients of weight
    [2 * half, 9] and projection [channels, half]. Factors of products are rounded to the dtype of x.
    """
    part, program = tl.program_id(0) % PARTS, tl.program_id(0) // PARTS
    image, start = (program // per_image).to(tl.int64), program % per_image
    term, output = part * TERMS + tl.arange(0, TERMS), tl.arange(0, CHANNELS)[:, None]
    there = term < half
    channel = tl.minimum(term, half - 1)[:, None, None]
    planes = _origin(image * 2 * half + channel, height, width)
    other = _origin(image * 2 * half + half + channel, height, width)
    matrix = output * half + term[None, :]
    weights = tl.load(projection + matrix, (output < channels) & there[None, :], other=0)
    weights = tl.trans(weights.to(x.dtype.element_ty).to(FACTOR))
    zero = tl.zeros((TERMS, ROWS, COLUMNS), ACC)
    a_sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    b_sums = a_sums
    total = tl.zeros((CHANNELS, TERMS), ACC)
    grad += image * channels * height * width
    for i in tl.range(0, ROUNDS, num_stages=1):
        row, column = _pixels_of(start + i * per_image, width, ROWS, COLUMNS)
        row, column = row[None], column[None]
        inside, pixel = (row < height) & (column < width), row * width + column
        at = output * (height * width) + tl.reshape(pixel, (1, ROWS * COLUMNS))
        g = tl.load(grad + at, (output < channels) & tl.reshape(inside, (1, ROWS * COLUMNS)), other=0)
        g = g.to(x.dtype.element_ty).to(FACTOR)
        of_gate = tl.dot(weights, g, input_precision=PRECISION)
        of_gate = tl.reshape(of_gate, (TERMS, ROWS, COLUMNS))
        near_a = _neighbours(x + planes, row, column, height, width, ACC)
        near_b = _neighbours(x + other, row, column, height, width, ACC)
        a, b = _weighted(near_a, weight + 9 * channel, ACC), _weighted(near_b, weight + 9 * (channel + half), ACC)
        share = _normal_distribution(a)
        slope = share + a * tl.exp(-0.5 * a * a) * 0.3989422804014327
        of_a, of_b = of_gate * b * slope, of_gate * a * share
        shown = inside & there[:, None, None]
        place = row * (width + 1) + column
        gate = _as_factor(a * share * b, grad_halves, planes, place, shown, ROWS * COLUMNS, FACTOR)
        total += tl.dot(g, tl.trans(gate), input_precision=PRECISION)
        tl.store(grad_halves + planes + place, of_a.to(x.dtype.element_ty), shown)
        tl.store(grad_halves + other + place, of_b.to(x.dtype.element_ty), shown)
        a_sums = _add_products(a_sums, near_a, of_a)
        b_sums = _add_products(b_sums, near_b, of_b)
    if start == 0:
        _clear_border(grad_halves + planes, there[:, None, None], height, width, ROWS * COLUMNS)
        _clear_border(grad_halves + other, there[:, None, None], height, width, ROWS * COLUMNS)
    projection_sums += program.to(tl.int64) * stride
    tl.store(projection_sums + matrix, total, (output < channels) & there[None, :])
    weight_sums += program.to(tl.int64) * stride
    _store_sums(weight_sums + 9 * term, a_sums, there)
    _store_sums(weight_sums + 9 * (half + term), b_sums, there)


@triton.jit(do_not_specialize=["stride", "channels", "outputs", "height", "width", "per_image"])
def filter_project_backward(
    grad, depthwise, x, scale, shift, weight, shortcut, grad_x, scale_sums, shift_sums, weight_sums,
    stride, channels, outputs, height, width, per_image,
    EPS: tl.constexpr, ROUNDS: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of x [B, channels, height, width] from that of depthwise_3x3(what `project` computes from x).

    grad: planes with borders. The result is added to `shortcut`. The filtered channels are read in PARTS parts of
    TERMS. Sums: of the gradients of scale [channels], shift [channels] and weight [outputs, channels]. Factors of
    products are rounded to the dtype of grad.
    """
    program = tl.program_id(0)
    image, start = program // per_image, program % per_image
    pixels = height * width
    scale_sums += program.to(tl.int64) * stride
    shift_sums += program.to(tl.int64) * stride
    weight_sums += program.to(tl.int64) * stride
    channel = tl.arange(0, CHANNELS)
    of_scale, of_shift = tl.zeros((CHANNELS,), ACC), tl.zeros((CHANNELS,), ACC)
    for i in tl.range(0, ROUNDS, num_stages=1):
        row, column = _pixels_of(start + i * per_image, width, ROWS, COLUMNS)
        present = tl.reshape((row < height) & (column < width), (1, ROWS * COLUMNS))
        pixel = tl.reshape(row * width + column, (1, ROWS * COLUMNS))
        values, y, deviation, scales = _scaled(
            x, scale, shift, image, pixel, present, channels, pixels, EPS, CHANNELS, ACC
        )
        values = tl.trans(values.to(grad.dtype.element_ty).to(FACTOR))
        of_values = tl.zeros((CHANNELS, ROWS * COLUMNS), ACC)
        for part in tl.range(0, PARTS, num_stages=1):
            term = part * TERMS + tl.arange(0, TERMS)
            output = tl.minimum(term, outputs - 1)[None, :, None]
            # The pixel that is to the right of another one is to the left of it for the gradient.
            planes = grad + _origin(image * outputs + output, height, width)
            near = _neighbours(planes, row[:, None], column[:, None], height, width, ACC)
            near = (near[8], near[7], near[6], near[5], near[4], near[3], near[2], near[1], near[0])
            g = _weighted(near, depthwise + 9 * output, ACC)
            g = tl.where(present & (term < outputs)[:, None], _by_channel(g, TERMS, ROWS * COLUMNS), 0)
            g = g.to(grad.dtype.element_ty).to(FACTOR)
            matrix = term[:, None] * channels + channel[None, :]
            there = (term < outputs)[:, None] & (channel < channels)
            weights = tl.load(weight + matrix, there, other=0).to(grad.dtype.element_ty).to(FACTOR)
            of_values += tl.dot(tl.trans(weights), g, input_precision=PRECISION)
            _add_to_sums(weight_sums + matrix, tl.dot(g, values, input_precision=PRECISION), there, i)
        tl.debug_barrier()
        of_scale += tl.sum(of_values * y, 1)
        of_shift += tl.sum(of_values, 1)
        of_y = of_values * scales
        _store_gradient(grad_x, of_y, y, deviation, shortcut, image, pixel, present, channels, pixels, CHANNELS)
    tl.store(scale_sums + channel, of_scale, channel < channels)
    tl.store(shift_sums + channel, of_shift, channel < channels)


# SparseGSA: the features are depthwise_3x3(x). An image has 3 * C planes of x, with borders: of q, of k, of the values.


@triton.jit
def _of_head(head, channels, HEADS: tl.constexpr, SIDE: tl.constexpr):
    """A head's channels of q and k [2 * SIDE], SIDE each, and which of them there are."""
    i = tl.arange(0, 2 * SIDE)
    there = i % SIDE < channels
    return (i // SIDE * HEADS + head) * channels + tl.minimum(i % SIDE, channels - 1), there


@triton.jit(do_not_specialize=["channels", "height", "width", "per_image"])
def products(
    x, weight, sums, channels, height, width, per_image,
    ROUNDS: tl.constexpr, HEADS: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """sums [programs, heads, 2 * SIDE, 2 * SIDE]: of products of a head's channels of q and k, rounded to x's dtype."""
    head, program = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    image, start = (program // per_image).to(tl.int64), program % per_image
    channel, there = _of_head(head, channels, HEADS, SIDE)
    there, channel = there[:, None, None], channel[:, None, None]
    plane = x + _origin(image * 3 * HEADS * channels + channel, height, width)
    gram = tl.zeros((2 * SIDE, 2 * SIDE), ACC)
    for i in tl.range(0, ROUNDS, num_stages=1):
        row, column = _pixels_of(start + i * per_image, width, ROWS, COLUMNS)
        row, column = row[None], column[None]
        features = _weighted(_neighbours(plane, row, column, height, width, ACC), weight + 9 * channel, ACC)
        features = tl.where(there & (row < height) & (column < width), features, 0).to(x.dtype.element_ty).to(FACTOR)
        features = tl.reshape(features, (2 * SIDE, ROWS * COLUMNS))
        gram += tl.dot(features, tl.trans(features), input_precision=PRECISION)
    i = tl.arange(0, 2 * SIDE)
    sums += (program.to(tl.int64) * HEADS + head) * (4 * SIDE * SIDE)
    tl.store(sums + i[:, None] * (2 * SIDE) + i[None, :], gram)


@triton.jit
def _similarities(
    sums, image, rows, head, channels,
    HEADS: tl.constexpr, EPS: tl.constexpr, SIDE: tl.constexpr, TERMS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A head's normalised products of q and k [TERMS, TERMS], and 1 / their norms, from `rows` sums of `products`."""
    i = tl.arange(0, TERMS)
    inside = i < channels
    both = inside[:, None] & inside[None, :]
    gram = sums + (image * rows * HEADS + head) * (4 * SIDE * SIDE)
    total, q, k = tl.zeros((TERMS, TERMS), ACC), tl.zeros((TERMS,), ACC), tl.zeros((TERMS,), ACC)
    while rows > 0:
        total += tl.load(gram + i[:, None] * (2 * SIDE) + SIDE + i[None, :], both, other=0)
        q += tl.load(gram + i * (2 * SIDE + 1), inside, other=0)
        k += tl.load(gram + (SIDE + i) * (2 * SIDE + 1), inside, other=0)
        gram += HEADS * 4 * SIDE * SIDE
        rows -= 1
    q, k = 1 / tl.sqrt(q + EPS), 1 / tl.sqrt(k + EPS)
    return tl.where(both, (total + EPS) * q[:, None] * k[None, :], 0), q, k


@triton.jit(do_not_specialize=["rows", "channels"])
def fold(
    sums, temperature, projection, out, rows, channels,
    HEADS: tl.constexpr, EPS: tl.constexpr, SIDE: tl.constexpr, TERMS: tl.constexpr, OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [B, C, C] = projection [C, C] @ the matrices of attention with ReLU, from `rows` sums of an image.

    A program computes the columns of a head, in PARTS parts of OUTPUTS rows.
    """
    head, image = tl.program_id(0) % HEADS, (tl.program_id(0) // HEADS).to(tl.int64)
    weights, _, _ = _similarities(sums, image, rows, head, channels, HEADS, EPS, SIDE, TERMS, ACC)
    weights *= tl.load(temperature + head).to(ACC)
    weights = tl.where(weights < 0, 0, weights)  # keeps NaN
    count, i = HEADS * channels, tl.arange(0, TERMS)[None, :]
    for part in tl.range(0, PARTS, num_stages=1):
        output = part * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
        matrix, there = output * count + head * channels + i, (output < count) & (i < channels)
        factors = tl.load(projection + matrix, there, other=0).to(ACC)
        tl.store(out + image * count * count + matrix, tl.dot(factors, weights, input_precision="ieee"), there)


@triton.jit(do_not_specialize=["channels", "height", "width", "tiles"])
def attend(
    x, weight, folded, shortcut, out, channels, height, width, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, TERMS: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out [B, channels, height, width] = shortcut + folded [B, channels, channels] @ values, in PARTS parts of TERMS.

    x: the planes of the values in the first image. The values and the matrices are rounded to its dtype.
    """
    image, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    row, column = _pixels_of(tile, width, ROWS, COLUMNS)
    output = tl.arange(0, CHANNELS)[:, None]
    total = tl.zeros((CHANNELS, ROWS * COLUMNS), ACC)
    folded += image * channels * channels
    for part in tl.range(0, PARTS, num_stages=1):
        term = part * TERMS + tl.arange(0, TERMS)
        channel = tl.minimum(term, channels - 1)[None, :, None]
        plane = x + _origin(image * 3 * channels + channel, height, width)
        near = _neighbours(plane, row[:, None], column[:, None], height, width, ACC)
        values = tl.where(term[None, :, None] < channels, _weighted(near, weight + 9 * channel, ACC), 0)
        values = _by_channel(values, TERMS, ROWS * COLUMNS).to(x.dtype.element_ty).to(FACTOR)
        there = (output < channels) & (term < channels)[None, :]
        weights = tl.load(folded + output * channels + term[None, :], there, other=0).to(x.dtype.element_ty)
        total += tl.dot(weights.to(FACTOR), values, input_precision=PRECISION)
    _add_and_store(total, shortcut, out, image, row, column, output, channels, height, width)


@triton.jit(do_not_specialize=["stride", "channels", "height", "width", "per_image"])
def attend_backward(
    grad, x, weight, folded, grad_values, weight_sums, folded_sums,
    stride, channels, height, width, per_image,
    ROUNDS: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    TERMS: tl.constexpr, PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of the values, which lie like the planes x, from that of folded @ values.

    A program computes one of PARTS parts of TERMS channels. Sums: of the gradients of weight [channels, 9], and apart
    from the others, of the folded matrices: folded_sums [programs, channels, channels].
    """
    part, program = tl.program_id(0) % PARTS, tl.program_id(0) // PARTS
    image, start = (program // per_image).to(tl.int64), program % per_image
    term, output = part * TERMS + tl.arange(0, TERMS), tl.arange(0, CHANNELS)[:, None]
    there = term < channels
    channel = tl.minimum(term, channels - 1)[:, None, None]
    planes = _origin(image * 3 * channels + channel, height, width)
    matrix, present = output * channels + term[None, :], (output < channels) & there[None, :]
    weights = tl.load(folded + image * channels * channels + matrix, present, other=0)
    weights = tl.trans(weights.to(x.dtype.element_ty).to(FACTOR))
    zero = tl.zeros((TERMS, ROWS, COLUMNS), ACC)
    sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    total = tl.zeros((CHANNELS, TERMS), ACC)
    grad += image * channels * height * width
    for i in tl.range(0, ROUNDS, num_stages=1):
        row, column = _pixels_of(start + i * per_image, width, ROWS, COLUMNS)
        row, column = row[None], column[None]
        inside, pixel = (row < height) & (column < width), row * width + column
        at = output * (height * width) + tl.reshape(pixel, (1, ROWS * COLUMNS))
        g = tl.load(grad + at, (output < channels) & tl.reshape(inside, (1, ROWS * COLUMNS)), other=0)
        g = g.to(x.dtype.element_ty).to(FACTOR)
        of_values = tl.reshape(tl.dot(weights, g, input_precision=PRECISION), (TERMS, ROWS, COLUMNS))
        shown, place = inside & there[:, None, None], row * (width + 1) + column
        near = _neighbours(x + planes, row, column, height, width, ACC)
        values = _weighted(near, weight + 9 * channel, ACC)
        values = _as_factor(values, grad_values, planes, place, shown, ROWS * COLUMNS, FACTOR)
        total += tl.dot(g, tl.trans(values), input_precision=PRECISION)
        tl.store(grad_values + planes + place, of_values.to(grad_values.dtype.element_ty), shown)
        sums = _add_products(sums, near, of_values)
    if start == 0:
        _clear_border(grad_values + planes, there[:, None, None], height, width, ROWS * COLUMNS)
    tl.store(folded_sums + program.to(tl.int64) * channels * channels + matrix, total, present)
    _store_sums(weight_sums + program.to(tl.int64) * stride + 9 * term, sums, there)


@triton.jit(do_not_specialize=["rows", "folded_rows", "stride", "channels"])
def fold_backward(
    sums, temperature, projection, folded_sums, grad_products, temperature_sums, projection_sums,
    rows, folded_rows, stride, channels,
    HEADS: tl.constexpr, EPS: tl.constexpr, SIDE: tl.constexpr, TERMS: tl.constexpr, OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The backward pass of a head's matrices.

    From the sums of `products` and of `attend_backward`, of which an image has `rows` and `folded_rows`.

    grad_products [B, heads, 2 * SIDE, 2 * SIDE]: the gradient of a head's products plus its transpose. A row of sums
    for each image: of the gradients of temperature [heads] and projection [C, C].
    """
    head, image = tl.program_id(0) % HEADS, (tl.program_id(0) // HEADS).to(tl.int64)
    similarities, q, k = _similarities(sums, image, rows, head, channels, HEADS, EPS, SIDE, TERMS, ACC)
    t = tl.load(temperature + head).to(ACC)
    weights = tl.trans(tl.where(similarities * t < 0, 0, similarities * t))
    count, i = HEADS * channels, tl.arange(0, TERMS)
    folded_sums += image * folded_rows * count * count
    of_weights = tl.zeros((TERMS, TERMS), ACC)
    for part in tl.range(0, PARTS, num_stages=1):
        output = part * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
        matrix, there = output * count + head * channels + i[None, :], (output < count) & (i[None, :] < channels)
        g, row = tl.zeros((OUTPUTS, TERMS), ACC), folded_sums + matrix
        left = folded_rows
        while left > 0:
            g += tl.load(row, there, other=0)
            row += count * count
            left -= 1
        of_projection = tl.dot(g, weights, input_precision="ieee")
        tl.store(projection_sums + image * stride + matrix, of_projection, there)
        factors = tl.load(projection + matrix, there, other=0).to(ACC)
        of_weights += tl.dot(tl.trans(factors), g, input_precision="ieee")
    g = tl.where(similarities * t > 0, of_weights, 0)
    tl.store(temperature_sums + image * stride + head, tl.sum(g * similarities))
    g *= t
    of_q, of_k = -tl.sum(g * similarities, 1) * q * q, -tl.sum(g * similarities, 0) * k * k
    g *= q[:, None] * k[None, :]
    query, key = i[:, None], i[None, :]
    both = (query < SIDE) & (key < SIDE)
    at = grad_products + (image * HEADS + head) * (4 * SIDE * SIDE)
    tl.store(at + query * (2 * SIDE) + SIDE + key, g, both)
    tl.store(at + (SIDE + key) * (2 * SIDE) + query, g, both)
    tl.store(at + query * (2 * SIDE) + key, tl.where(query == key, of_q[:, None], 0), both)
    tl.store(at + (SIDE + query) * (2 * SIDE) + SIDE + key, tl.where(query == key, of_k[:, None], 0), both)


@triton.jit(do_not_specialize=["stride", "channels", "height", "width", "per_image"])
def products_backward(
    grad_products, x, weight, grad_features, weight_sums, stride, channels, height, width, per_image,
    ROUNDS: tl.constexpr, HEADS: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of the features of a head's q and k; sums of the gradient of weight [3 * HEADS * channels, 9]."""
    head, program = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    image, start = (program // per_image).to(tl.int64), program % per_image
    channel, there = _of_head(head, channels, HEADS, SIDE)
    weight_sums += program.to(tl.int64) * stride + 9 * channel
    present, channel = there[:, None, None], channel[:, None, None]
    planes = _origin(image * 3 * HEADS * channels + channel, height, width)
    i, j = tl.arange(0, 2 * SIDE)[:, None], tl.arange(0, 2 * SIDE)[None, :]
    matrix = tl.load(grad_products + (image * HEADS + head) * (4 * SIDE * SIDE) + i * (2 * SIDE) + j).to(FACTOR)
    zero = tl.zeros((2 * SIDE, ROWS, COLUMNS), ACC)
    sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    for i in tl.range(0, ROUNDS, num_stages=1):
        row, column = _pixels_of(start + i * per_image, width, ROWS, COLUMNS)
        row, column = row[None], column[None]
        inside = (row < height) & (column < width)
        near = _neighbours(x + planes, row, column, height, width, ACC)
        features = tl.where(present & inside, _weighted(near, weight + 9 * channel, ACC), 0)
        features = tl.reshape(features.to(x.dtype.element_ty).to(FACTOR), (2 * SIDE, ROWS * COLUMNS))
        g = tl.reshape(tl.dot(matrix, features, input_precision=PRECISION), (2 * SIDE, ROWS, COLUMNS))
        at = grad_features + planes + (row * (width + 1) + column)
        tl.store(at, g.to(grad_features.dtype.element_ty), present & inside)
        sums = _add_products(sums, near, g)
    if start == 0:
        _clear_border(grad_features + planes, present, height, width, ROWS * COLUMNS)
    _store_sums(weight_sums, sums, there)


# MHDLSA


@triton.jit(do_not_specialize=["stride", "channels", "height", "width", "per_image"])
def project_backward(
    grad, x, weight, grad_x, weight_sums, stride, channels, height, width, per_image,
    ROUNDS: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    TERMS: tl.constexpr, PRECISION: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of x from that of weight [channels, channels] @ x, in PARTS parts of TERMS channels of x.

    Sums: of the gradient of weight. Factors of products are rounded to the dtype of x.
    """
    program = tl.program_id(0)
    image, start = (program // per_image).to(tl.int64), program % per_image
    output, pixels = tl.arange(0, CHANNELS)[:, None], height * width
    first = image * channels * pixels
    grad, x, grad_x = grad + first, x + first, grad_x + first
    weight_sums += program.to(tl.int64) * stride
    for i in tl.range(0, ROUNDS, num_stages=1):
        row, column = _pixels_of(start + i * per_image, width, ROWS, COLUMNS)
        inside = tl.reshape((row < height) & (column < width), (1, ROWS * COLUMNS))
        pixel = tl.reshape(row * width + column, (1, ROWS * COLUMNS))
        g = tl.load(grad + (output * pixels + pixel), (output < channels) & inside, other=0)
        g = g.to(x.dtype.element_ty).to(FACTOR)
        for part in tl.range(0, PARTS, num_stages=1):
            term = part * TERMS + tl.arange(0, TERMS)
            matrix, there = output * channels + term[None, :], (output < channels) & (term < channels)[None, :]
            weights = tl.load(weight + matrix, there, other=0).to(x.dtype.element_ty).to(FACTOR)
            at, present = term[:, None] * pixels + pixel, inside & (term < channels)[:, None]
            of_x = tl.dot(tl.trans(weights), g, input_precision=PRECISION)
            tl.store(grad_x + at, of_x.to(grad_x.dtype.element_ty), present)
            values = tl.load(x + at, present, other=0).to(FACTOR)
            _add_to_sums(weight_sums + matrix, tl.dot(g, tl.trans(values), input_precision=PRECISION), there, i)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["stride", "channels", "features", "height", "width", "per_image"])
def squeeze_project_backward(
    grad, grad_squeezed, projected, squeeze, x, scale, shift, weight, shortcut, grad_x,
    scale_sums, shift_sums, weight_sums, squeeze_sums, bias_sums,
    stride, channels, features, height, width, per_image,
    EPS: tl.constexpr, ROUNDS: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, FEATURES: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr, FACTOR: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """`filter_project_backward` without a filter, for both results of `project`; `projected` is the first of them.

    More sums: of the gradients of squeeze [features, channels] and its bias [features].
    """
    program = tl.program_id(0)
    image, start = (program // per_image).to(tl.int64), program % per_image
    pixels, sums_row = height * width, program.to(tl.int64) * stride
    grad, projected = grad + image * channels * pixels, projected + image * channels * pixels
    grad_squeezed += image * features * pixels
    channel, feature = tl.arange(0, CHANNELS), tl.arange(0, FEATURES)
    of_scale, of_shift, of_bias = tl.zeros((CHANNELS,), ACC), tl.zeros((CHANNELS,), ACC), tl.zeros((FEATURES,), ACC)
    for i in tl.range(0, ROUNDS, num_stages=1):
        row, column = _pixels_of(start + i * per_image, width, ROWS, COLUMNS)
        present = tl.reshape((row < height) & (column < width), (1, ROWS * COLUMNS))
        pixel = tl.reshape(row * width + column, (1, ROWS * COLUMNS))
        values, y, deviation, scales = _scaled(
            x, scale, shift, image, pixel, present, channels, pixels, EPS, CHANNELS, ACC
        )
        values = tl.trans(values.to(grad.dtype.element_ty).to(FACTOR))
        z = grad_squeezed + (feature[:, None] * pixels + pixel)
        z = tl.load(z, present & (feature < features)[:, None], other=0)
        of_bias += tl.sum(z.to(ACC), 1)
        z = z.to(FACTOR)
        of_values = tl.zeros((CHANNELS, ROWS * COLUMNS), ACC)
        for part in tl.range(0, PARTS, num_stages=1):
            term = part * TERMS + tl.arange(0, TERMS)
            at, inside = term[:, None] * pixels + pixel, present & (term < channels)[:, None]
            reduce = feature[:, None] * channels + term[None, :]
            there = (feature < features)[:, None] & (term < channels)
            weights = tl.load(squeeze + reduce, there, other=0).to(grad.dtype.element_ty).to(FACTOR)
            g = tl.dot(tl.trans(weights), z, input_precision=PRECISION)
            g += tl.load(grad + at, inside, other=0).to(ACC)
            g = g.to(grad.dtype.element_ty).to(FACTOR)
            of_squeeze = tl.trans(tl.load(projected + at, inside, other=0).to(FACTOR))
            of_squeeze = tl.dot(z, of_squeeze, input_precision=PRECISION)
            _add_to_sums(squeeze_sums + sums_row + reduce, of_squeeze, there, i)
            matrix = term[:, None] * channels + channel[None, :]
            there = (term < channels)[:, None] & (channel < channels)
            weights = tl.load(weight + matrix, there, other=0).to(grad.dtype.element_ty).to(FACTOR)
            of_values += tl.dot(tl.trans(weights), g, input_precision=PRECISION)
            of_weight = tl.dot(g, values, input_precision=PRECISION)
            _add_to_sums(weight_sums + sums_row + matrix, of_weight, there, i)
        tl.debug_barrier()
        of_scale += tl.sum(of_values * y, 1)
        of_shift += tl.sum(of_values, 1)
        of_y = of_values * scales
        _store_gradient(grad_x, of_y, y, deviation, shortcut, image, pixel, present, channels, pixels, CHANNELS)
    tl.store(scale_sums + sums_row + channel, of_scale, channel < channels)
    tl.store(shift_sums + sums_row + channel, of_shift, channel < channels)
    tl.store(bias_sums + sums_row + feature, of_bias, feature < features)
