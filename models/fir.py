"""Resampling of maps by short FIR filters, as the networks of score-based diffusion have it.

Source: reference repository fakufaku/diffusion-separation; the operator is that of StyleGAN2 ("upfirdn").
"""

import numpy as np
from keras import ops


def up_fir_down(x, kernel, up=1, down=1, padding=(0, 0)):
    """Puts up - 1 zeros behind every value, pads, convolves with the kernel, keeps every `down`-th value; both axes.

    No zeros are put in: the outputs of a phase, of which there are `up` an axis, see the same values of the kernel.

    Args:
        x: [batch, rows, columns, channels].
        kernel: [rows, columns], numpy. A true convolution: it is flipped.
        padding: (before, after) of either axis, of the widened map; negative numbers cut.

    Returns:
        [batch, (rows * up + before + after - kernel rows) // down + 1, ..., channels].
    """
    kernel = np.asarray(kernel, np.float64)[::-1, ::-1]
    counts = [(size * up + sum(padding) - taps) // down + 1 for size, taps in zip(ops.shape(x)[1:3], kernel.shape)]
    rows, columns = (phases(taps, up, down, padding[0]) for taps in kernel.shape)
    # One map with all the zeros that any phase needs, from which each takes its piece.
    before = [max(0, *(-first for _, first in axis)) for axis in (rows, columns)]
    each = [-(-count // up) for count in counts]  # outputs of a phase
    taps = [[len(range(start, size, up)) for start, _ in axis] for axis, size in zip((rows, columns), kernel.shape)]
    spans = [(n - 1) * down for n in each]
    after = [
        ops.maximum(span + max(first + n for (_, first), n in zip(axis, ns)) - size, 0)
        for span, axis, ns, size in zip(spans, (rows, columns), taps, ops.shape(x)[1:3])
    ]
    padded = ops.pad(x, ((0, 0), (before[0], after[0]), (before[1], after[1]), (0, 0)))
    batch, channels = ops.shape(x)[0], x.shape[-1]

    def phase(row, column):
        (start, first), (start_column, first_column) = rows[row], columns[column]
        part = np.tile(kernel[start::up, start_column::up, None, None], (1, 1, channels, 1))
        if part.size == 0:
            return ops.zeros((batch, each[0], each[1], channels), x.dtype)
        begin = (0, first + before[0], first_column + before[1], 0)
        size = (batch, spans[0] + part.shape[0], spans[1] + part.shape[1], channels)
        piece = ops.slice(padded, begin, size)
        return ops.depthwise_conv(
            piece, ops.convert_to_tensor(part, x.dtype), strides=down, padding="valid", data_format="channels_last"
        )

    y = [[phase(row, column) for column in range(up)] for row in range(up)]
    if up == 1:
        return y[0][0]
    y = ops.stack([ops.stack(line, axis=3) for line in y], axis=2)  # [B, rows, up, columns, up, C]
    y = ops.reshape(y, (batch, each[0] * up, each[1] * up, channels))
    return ops.slice(y, (0, 0, 0, 0), (batch, *counts, channels))


def phases(taps, up, down, before):
    """For each of `up` phases of the output: the first of its taps, and the input that this sees in the first output."""
    found = []
    for phase in range(up):
        start = (before - phase * down) % up
        found.append((start, (phase * down + start - before) // up))
    return found


def square(kernel):
    """[taps] -> [taps, taps], of sum 1."""
    kernel = np.outer(kernel, kernel).astype(np.float64)
    return kernel / kernel.sum()


def upsample(x, kernel=None, factor=2):
    """[batch, rows, columns, channels] to `factor` times the rows and columns; without a kernel, values are repeated."""
    kernel = np.ones(factor) if kernel is None else kernel
    surplus = len(kernel) - factor
    return up_fir_down(x, factor**2 * square(kernel), up=factor, padding=((surplus + 1) // 2 + factor - 1, surplus // 2))


def downsample(x, kernel=None, factor=2):
    """[batch, rows, columns, channels] to 1 / `factor` of the rows and columns; without a kernel, means of squares."""
    kernel = np.ones(factor) if kernel is None else kernel
    surplus = len(kernel) - factor
    return up_fir_down(x, square(kernel), down=factor, padding=((surplus + 1) // 2, surplus // 2))


def filtered_for_stride(x, kernel, factor=2, taps=3):
    """What a convolution of `taps` x `taps`, stride `factor` and no padding sees of a map that it makes smaller."""
    surplus = len(kernel) - factor + taps - 1
    return up_fir_down(x, square(kernel), padding=((surplus + 1) // 2, surplus // 2))
