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
    axes = [phases(taps, up, down, padding[0]) for taps in kernel.shape]
    # The window that all phases see, of the values at and behind lows.
    lows = [min(first for _, first in axis) for axis in axes]
    highs = [
        max(first + len(range(start, taps, up)) for start, first in axis) for axis, taps in zip(axes, kernel.shape)
    ]
    sizes = [size if known is None else known for size, known in zip(ops.shape(x)[1:3], x.shape[1:3])]
    surplus = [sum(padding) - taps for taps in kernel.shape]
    if up == 1:
        after = [padding[1]] * 2
    elif down == 1:
        after = [-(-(more + 1) // up) - 1 + high for more, high in zip(surplus, highs)]
    else:
        counts = [(size * up + more) // down + 1 for size, more in zip(sizes, surplus)]
        after = [(-(-count // up) - 1) * down + high - size for count, high, size in zip(counts, highs, sizes)]
    odd = all(-low == high - 1 == more for low, high, more in zip(lows, highs, after))
    whole = down == 1 and odd  # the zeros around are those of the convolution itself
    if not whole:
        x = widened(x, [(-low, more) for low, more in zip(lows, after)])

    def phase(row, column):
        part = np.zeros([high - low for low, high in zip(lows, highs)])
        (start, first), (start_column, first_column) = axes[0][row], axes[1][column]
        own = kernel[start::up, start_column::up]
        first, first_column = first - lows[0], first_column - lows[1]
        part[first : first + own.shape[0], first_column : first_column + own.shape[1]] = own
        part = np.tile(part[:, :, None, None], (1, 1, x.shape[-1], 1))
        return ops.depthwise_conv(
            x,
            ops.convert_to_tensor(part, x.dtype),
            strides=down,
            padding="same" if whole else "valid",
            data_format="channels_last",
        )

    y = [[phase(row, column) for column in range(up)] for row in range(up)]
    if up == 1:
        return y[0][0]
    rows, columns = (known or size for known, size in zip(y[0][0].shape[1:3], ops.shape(y[0][0])[1:3]))
    y = ops.stack([ops.stack(line, axis=3) for line in y], axis=2)  # [B, rows, up, columns, up, C]
    y = ops.reshape(y, (-1, rows * up, columns * up, x.shape[-1]))
    if down == 1 and all((more + 1) % up == 0 for more in surplus):
        return y
    counts = [(size * up + more) // down + 1 for size, more in zip(sizes, surplus)]
    return y[:, : counts[0], : counts[1]]


def widened(x, sides):
    """Zeros around rows and columns, ((before, after), (before, after)); negative numbers cut."""
    rows, columns = (slice(max(-a, 0), None if not isinstance(b, int) or b >= 0 else b) for a, b in sides)
    if (rows, columns) != (slice(0, None),) * 2:
        x = x[:, rows, columns]
    sides = [(max(a, 0), max(b, 0) if isinstance(b, int) else b) for a, b in sides]
    return ops.pad(x, ((0, 0), *sides, (0, 0)))


def phases(taps, up, down, before):
    """For each of `up` phases of the output: its first tap, and the input that this sees in the first output."""
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
    """[batch, rows, columns, channels] to `factor` times rows and columns; without a kernel, values are repeated."""
    kernel = np.ones(factor) if kernel is None else kernel
    surplus = len(kernel) - factor
    padding = ((surplus + 1) // 2 + factor - 1, surplus // 2)
    return up_fir_down(x, factor**2 * square(kernel), up=factor, padding=padding)


def downsample(x, kernel=None, factor=2):
    """[batch, rows, columns, channels] to 1 / `factor` of the rows and columns; without a kernel, means of squares."""
    kernel = np.ones(factor) if kernel is None else kernel
    surplus = len(kernel) - factor
    return up_fir_down(x, square(kernel), down=factor, padding=((surplus + 1) // 2, surplus // 2))


def filtered_for_stride(x, kernel, factor=2, taps=3):
    """What a convolution of `taps` x `taps`, stride `factor` and no padding sees of a map that it makes smaller."""
    surplus = len(kernel) - factor + taps - 1
    return up_fir_down(x, square(kernel), padding=((surplus + 1) // 2, surplus // 2))
