"""Convolution over maps of known height with fewer products: each column goes through a discrete Fourier transform.

A filter of 5 rows takes 120 products for 24 outputs one by one. As a cyclic correlation of 28 rows it takes 41: the
transform of a real column has 15 values, 13 of them complex, and the product of two complex numbers takes 3 products of
sums of their parts. So the rows of a tile become 41 sums (one matrix product), each of them is convolved along the
columns alone, and 41 results become 24 rows (another). The sums of the kernel are made likewise. All sums are those of
a Fourier transform, so rounding is about that of the direct convolution, unlike Winograd's algorithm of this size.

Only rows are treated so: columns are frames, whose number is not known.
"""

import functools

import keras
import numpy as np
from keras import ops

from models.layers.conv import convolve, portable

FEWEST_TAPS = 5  # for which it pays
LONGEST_TILE = 48  # rows, with what it sees of others
# Columns that neighbour in a dilated convolution: as many or more are a row of pixels, fewer a picture of their own.
WIDE = 8


@functools.cache
def correlation(length, taps, inputs, outputs):
    """Matrices of a cyclic correlation of `length` rows with `taps`.

    y[o] = sum_k kernel[k] x[o + k] is outputs_of @ ((kernel_sums @ kernel) * (input_sums @ x)).

    Args:
        inputs: range of rows that are not 0.
        outputs: how many are wanted, the first ones.

    Returns:
        (input_sums [products, inputs], kernel_sums [products, taps], outputs_of [outputs, products]), float32.
    """
    rows, kernels, columns = [], [], []
    x, k, y = (np.arange(n)[None] for n in (length, taps, outputs))
    for bin_ in range(length // 2 + 1):
        angle = 2 * np.pi * bin_ / length
        parts = [(np.cos(angle * n), np.sin(angle * n)) for n in (x, k, y)]
        (real, imaginary), (kernel_real, kernel_imaginary), (back_real, back_imaginary) = parts
        imaginary, back_imaginary = -imaginary, -back_imaginary
        if bin_ in (0, length / 2):
            rows.append(real)
            kernels.append(kernel_real)
            columns.append(back_real / length)
        else:
            # (a + ib)(c + id) = m1 - m3 + i (m1 + m2), m1 = c (a + b), m2 = a (d - c), m3 = b (c + d).
            rows += [real + imaginary, real, imaginary]
            kernels += [kernel_real, kernel_imaginary - kernel_real, kernel_real + kernel_imaginary]
            twice = 2 / length
            columns += [twice * (back_real + back_imaginary), twice * back_imaginary, -twice * back_real]
    input_sums, kernel_sums, outputs_of = (np.concatenate(m).astype(np.float32) for m in (rows, kernels, columns))
    return (
        np.ascontiguousarray(input_sums[:, inputs.start : inputs.stop]),
        kernel_sums,
        np.ascontiguousarray(outputs_of.T),
    )


@functools.cache
def tile_rows(rows, taps):
    """Rows that come out of a tile: such that there are few products in all."""
    best = None
    for wanted in range(min(taps, rows), min(rows, LONGEST_TILE) + 1):
        tiles = -(-rows // wanted)
        length = wanted + (taps // 2 if tiles == 1 else taps - 1)
        if length > LONGEST_TILE:
            break
        bins = length // 2 + 1
        products = 3 * bins - (4 if length % 2 == 0 else 2)
        # Every row of a tile costs time too, in memory, and so do small tiles for the longer matrix products.
        score = tiles * (products + 0.25 * length)
        if best is None or score < best[0]:
            best = score, wanted
    return best[1]


def pays(x):
    """Whether the detour pays for maps [batch, rows, columns, channels]: on CPU, and if they are large."""
    return (
        x.shape[1] is not None and x.shape[1] >= 64 and x.shape[-1] >= 16 and x.dtype == "float32" and not portable()
        and not keras.distribution.list_devices("gpu")
    )  # fmt: skip


def tiled_conv(x, kernel, dilation, bias=None):
    """Convolution with zeros around x that keep its size; stride 1.

    Args:
        x: [batch, rows, columns, channels], its number of rows known.
        kernel: [rows, columns, channels, filters], of odd sizes.
        dilation: along rows and columns.
        bias: [filters] or None.
    """
    (row_step, step), (taps, column_taps) = dilation, kernel.shape[:2]
    batch, rows, columns, channels = ops.shape(x)
    filters, reach = kernel.shape[-1], taps // 2
    counted = -(-rows // row_step)  # rows that are `row_step` apart
    wanted = tile_rows(counted, taps)
    tiles = -(-counted // wanted)
    wide = (columns + step - 1) // step
    picture = 1 < step < WIDE
    alone = isinstance(batch, int) and batch == 1

    # Rows of a tile against all else.
    spare = wide * step - columns
    if tiles == 1:
        length, taken = counted + reach, range(reach, reach + counted)
        x = ops.pad(x, ((0, 0), (0, counted * row_step - rows), (0, spare), (0, 0)))
    else:
        length, taken = wanted + taps - 1, range(wanted + taps - 1)
        after = (tiles + 1) * wanted * row_step - rows - reach * row_step
        x = ops.pad(x, ((0, 0), (reach * row_step, after), (0, spare), (0, 0)))
    input_sums, kernel_sums, outputs_of = map(ops.convert_to_tensor, correlation(length, taps, taken, wanted))
    products = input_sums.shape[0]
    stored = 1 if tiles == 1 else tiles + 1
    size = row_step * wide * step * channels
    if picture:
        x = ops.reshape(x, (batch, stored, wanted, row_step, wide, step, channels))
        x = ops.transpose(x, (0, 2, 1, 3, 5, 4, 6))
    elif tiles > 1:
        x = ops.transpose(ops.reshape(x, (batch, stored, wanted, size)), (0, 2, 1, 3))
    x = ops.reshape(x, (batch, wanted, stored, size))
    if tiles > 1:
        own = ops.slice(x, (0, 0, 0, 0), (batch, wanted, tiles, size))
        behind = ops.slice(x, (0, 0, 1, 0), (batch, taps - 1, tiles, size))
        x = ops.concatenate([own, behind], axis=1)
    x = ops.matmul(input_sums, ops.reshape(x, (batch, len(taken), tiles * size)))
    x = ops.reshape(x, (products, tiles * size)) if alone else ops.transpose(x, (1, 0, 2))

    # Each sum along the columns.
    kernels = ops.reshape(
        ops.matmul(kernel_sums, ops.reshape(kernel, (taps, -1))), (products, column_taps, channels, filters)
    )
    neighbours = step == 1 or picture
    shape = (batch, -1, wide, channels) if neighbours else (-1, wide, step, channels)
    done = [
        convolve(ops.reshape(plane, shape), ops.expand_dims(taps_of, 0 if neighbours else 1), True)
        for plane, taps_of in zip(ops.unstack(x, products), ops.unstack(kernels, products))
    ]
    if bias is not None:
        # What is added to the first value of a transform is added to all rows.
        done[0] = done[0] + length * bias
    size = row_step * wide * step * filters
    x = ops.reshape(ops.stack(done), (products, batch, tiles * size))
    x = ops.reshape(x, (1, products, tiles * size)) if alone else ops.transpose(x, (1, 0, 2))

    # Back.
    x = ops.matmul(outputs_of, x)
    if picture:
        x = ops.reshape(x, (batch, wanted, tiles, row_step, step, wide, filters))
        x = ops.transpose(x, (0, 2, 1, 3, 5, 4, 6))
    elif tiles > 1:
        x = ops.transpose(ops.reshape(x, (batch, wanted, tiles, size)), (0, 2, 1, 3))
    x = ops.reshape(x, (batch, tiles * wanted * row_step, wide * step, filters))
    return ops.slice(x, (0, 0, 0, 0), (batch, rows, columns, filters))
