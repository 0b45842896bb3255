"""Convolutions that the separation networks share."""

import contextlib

import keras
import numpy as np
from keras import ops

# Convolution in row tiles --------------------------------------------------------------------------
#
# A 3-tap filter over rows takes 12 products for 4 outputs one by one, but 6 on fixed sums of the 6 inputs that the
# outputs see: Winograd's F(4, 3), with points 0, 1, -1, 2, -2 and infinity. All 3x3 convolutions of a dense block
# share the sums of its maps, so half of the products are saved for a few additions. Only rows
# are treated so: they are of known number, frames are not. In float32 the rounding error is about twice that of the
# direct convolution; in float16 the sums would lose too much.

TILE = 4  # rows that come out of a tile
_portable = False
INPUT_SUMS = np.array(
    [[4, 0, -5, 0, 1, 0], [0, 0, -4, 0, 1, 0], [0, -4, 0, 1, 0, 0]]
    + [[0, 0, -1, 0, 1, 0], [0, -2, 0, 2, 0, 0], [0, 4, 0, -5, 0, 1]]
)
PAIRS = np.array(
    [[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 1, -1, 0, 0, 0]]
    + [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, -1, 0], [0, 0, 0, 0, 0, 1]]
)
KERNEL_SUMS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
OUTPUT_SUMS = np.array([[1, 1, 0, 1, 0, 0], [0, 0, 1, 0, 2, 0], [0, 1, 0, 4, 0, 0], [0, 0, 1, 0, 8, 1]])


def row_tiles(x, left=0):
    """Sums of the rows of a map, for `DenseConv2D` of size 3.

    Args:
        x: [batch, rows, columns, channels], its number of rows known.
        left: columns of zeros to put before the first.

    Returns:
        Six tensors [batch, ceil(rows / 4), left + columns, channels]. Tile i stands for the rows
        4i - 1 ... 4i + 4 of x, those outside being 0.
    """
    tiles, channels = -(-x.shape[1] // TILE), x.shape[-1]
    columns = column_count(x) + left
    x = ops.pad(x, ((0, 0), (1, TILE * (tiles + 1) - 1 - x.shape[1]), (left, 0), (0, 0)))
    x = ops.reshape(x, (-1, tiles + 1, TILE, columns * channels))
    x = ops.concatenate([x[:, :tiles], x[:, 1:, :2]], axis=2)
    # As one product: as fast as additions one by one, and a tenth of the operations.
    x = ops.matmul((PAIRS @ INPUT_SUMS).astype("float32"), x)
    return ops.unstack(ops.reshape(x, (-1, tiles, TILE + 2, columns, channels)), TILE + 2, axis=2)


def column_count(x):
    """Columns of [batch, rows, columns, channels], a number if it is known."""
    return ops.shape(x)[2] if x.shape[2] is None else x.shape[2]


def kernel_sums(kernel, later=1.0):
    """[3, 3, in, out] -> six sums of its rows, [1, 3, in, out], one for each sum of the inputs; times `later`."""
    sums = ops.matmul(KERNEL_SUMS.astype("float32") * later, ops.reshape(kernel, (3, -1)))
    return ops.unstack(ops.reshape(sums, (len(KERNEL_SUMS), 1, *kernel.shape[1:])))


def tiles_to_rows(products, first, count):
    """Products of row tiles and kernel sums -> what the convolution gives.

    Args:
        products: six tensors [batch, tiles, columns, filters] of every map, one map after the other.
        first, count: rows wanted, of those that the zeros around the maps give.

    Returns:
        [batch, count, columns, filters].
    """
    products = combine(products, np.tile(np.eye(TILE + 2), len(products) // (TILE + 2)))
    tiles, filters = products[0].shape[1], products[0].shape[-1]
    columns = column_count(products[0])
    x = ops.reshape(ops.stack(products, axis=2), (-1, tiles, TILE + 2, columns * filters))
    x = ops.reshape(ops.matmul((OUTPUT_SUMS @ PAIRS).astype("float32"), x), (-1, tiles * TILE, columns, filters))
    return x if (first, count) == (0, tiles * TILE) else x[:, first : first + count]


def combine(tensors, matrix):
    """Weighted sums of tensors of one shape, one for each row of the matrix."""
    return [weighted_sum(weights, tensors) for weights in matrix.tolist()]


def weighted_sum(weights, tensors):
    """Sum of weight * tensor, without operations for weights 0 and 1."""
    total = None
    for weight, x in zip(weights, tensors):
        if weight:
            term = x if abs(weight) == 1 else abs(weight) * x
            if total is None:
                total = term if weight > 0 else -term
            else:
                total = total + term if weight > 0 else total - term
    return total


def row_tiles_pay(rows, channels, dtype, least=(64, 32)):
    """Whether row tiles are the faster way for maps of so many rows and channels: on CPU, and on large maps.

    Libraries for GPUs choose such algorithms themselves. On small maps little is won for many operations.

    Args:
        least: rows and channels from which they are; as measured for maps that several convolutions see.
    """
    large = rows >= least[0] and channels >= least[1]
    return large and dtype == "float32" and not keras.distribution.list_devices("gpu")


@contextlib.contextmanager
def portable_graphs():
    """What is traced inside does without row tiles and operations that ONNX or LiteRT lack; see `portable`."""
    global _portable
    before, _portable = _portable, True
    try:
        yield
    finally:
        _portable = before


def portable():
    """Whether a graph for other runtimes is being traced."""
    return _portable


def convolve(x, kernel, same):
    """Stride 1; `same`: with zeros around x that keep its size."""
    return ops.conv(x, kernel, strides=1, padding="same" if same else "valid", data_format="channels_last")


def pointwise(x, kernel, bias=None):
    """[..., in] times kernel [in, out], plus bias [out] if there is one."""
    flat = x if x.ndim == 2 else ops.reshape(x, (-1, x.shape[-1]))
    flat = ops.matmul(flat, ops.cast(kernel, x.dtype))
    if bias is not None:
        flat = flat + ops.cast(bias, x.dtype)
    if x.ndim == 2:
        return flat
    sizes = x.shape if None not in x.shape[1:-1] else ops.shape(x)
    return ops.reshape(flat, (-1, *sizes[1:-1], kernel.shape[-1]))


def dilated_depthwise(x, kernel, dilation, causal=False):
    """Depthwise convolution along frames, with zeros around x that keep their number.

    Args:
        x: [batch, frames, channels].
        kernel: [taps, channels, 1], oldest tap first; an odd number of taps.
        dilation: frames between taps.
        causal: the newest tap is on the current frame, not the middle one.
    """
    # Frame t in row t // dilation, column t % dilation: the taps are neighbouring rows then, and no frame is moved,
    # which a dilated convolution does twice.
    batch, frames, channels = ops.shape(x)
    before = (kernel.shape[0] - 1) * dilation if causal else 0
    rows = (frames + dilation - 1) // dilation  # ONNX divides negative integers otherwise
    x = ops.pad(x, ((0, 0), (before, rows * dilation - frames), (0, 0)))
    y = ops.depthwise_conv(
        ops.reshape(x, (batch, -1, dilation, channels)),
        ops.expand_dims(kernel, 1),
        strides=1,
        padding="valid" if causal else "same",
        data_format="channels_last",
    )
    return ops.slice(ops.reshape(y, (batch, -1, channels)), (0, 0, 0), (batch, frames, channels))


# Gradients that keep little -------------------------------------------------------------------------


def lean(function):
    """Of a function that gives (results, their gradient): the results, with that gradient.

    The gradient says what is kept for it; TensorFlow alone would keep every map on the way. Other backends
    differentiate as they always do.

    Args:
        function: of tensors, a list, to (tuple of results, gradient). gradient: what the results' gradients are, one
            after the other, to a list of those of the tensors.
    """

    def run(*tensors):
        if keras.backend.backend() != "tensorflow":
            return function(tensors)[0]
        return ops.custom_gradient(lambda *tensors: function(tensors))(*tensors)

    return run


def ones_after(upstream):
    """Ones [..., 1, 1], but only once `upstream` is known: what is multiplied by them is computed then and not before.

    Else TensorFlow sees that the forward pass had the same map, and keeps that one.
    """
    first = ops.slice(upstream, (0,) * upstream.ndim, (1,) * upstream.ndim)
    return ops.exp(ops.minimum(ops.abs(ops.cast(first, "float32")), 0))


def activated(x, scale, shift, activation):
    """activation(x * scale + shift), in float32, given back in x's precision; see `tiled_convolution`."""
    return ops.cast(activation[0](ops.cast(x, "float32") * scale + shift), x.dtype)


def tiled_convolution(x, kernel, scale=None, shift=None, activation=None):
    """3x3 convolution, stride 1, zeros around, by row tiles; for the gradient x alone is kept.

    Half the products of the direct way, in the forward pass and for both gradients.

    Args:
        x: [batch, rows, columns, in], float32, its number of rows known.
        kernel: [3, 3, in, out].
        scale, shift: [batch or 1, 1, 1, in]; if given, the convolution is of activation(x * scale + shift).
        activation: (function, its derivative) of that.

    Returns:
        [batch, rows, columns, out].
    """

    def forward(x, kernel):
        # Not before x is there: the sums of all kernels of a network are twice its weights.
        sums = kernel_sums(kernel, ops.reshape(ones_after(x), (-1,))[0])
        return tiles_to_rows([convolve(tile, part, True) for tile, part in zip(row_tiles(x), sums)], 0, x.shape[1])

    def function(tensors):
        x, kernel = tensors[:2]
        seen = activation[0](x * tensors[2] + tensors[3]) if activation else x
        y = forward(seen, kernel)

        def gradient(upstream):
            later = ones_after(upstream)
            z = x * (tensors[2] * later) + tensors[3] if activation else x * later
            to_kernel = tiled_kernel_gradient(activation[0](z) if activation else z, upstream)
            to_seen = forward(upstream, ops.transpose(ops.flip(kernel * later, (0, 1)), (0, 1, 3, 2)))
            if not activation:
                return [to_seen, to_kernel]
            to_z = to_seen * activation[1](z)
            sums = [ops.sum(y, axis=(1, 2), keepdims=True) for y in (to_z * x, to_z)]
            sums = [y if w.shape[0] != 1 else ops.sum(y, axis=0, keepdims=True) for y, w in zip(sums, tensors[2:])]
            return [to_z * tensors[2], to_kernel, *sums]

        return y, gradient

    return lean(function)(x, kernel, *([scale, shift] if activation else []))


def tiled_kernel_gradient(x, upstream):
    """Gradient to the kernel of a 3x3 convolution of x, [3, 3, in, out], by row tiles."""
    tiles = -(-x.shape[1] // TILE)
    rows, channels, filters = x.shape[1], x.shape[-1], upstream.shape[-1]
    columns = column_count(x)
    upstream = ops.pad(upstream, ((0, 0), (0, tiles * TILE - rows), (0, 0), (0, 0)))
    upstream = ops.reshape(upstream, (-1, tiles, TILE, columns * filters))
    upstream = ops.matmul((OUTPUT_SUMS @ PAIRS).T.astype("float32"), upstream)
    products = ops.unstack(upstream, TILE + 2, axis=2)
    found = []
    for tile, product in zip(row_tiles(ops.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))), products):
        taps = ops.concatenate([tile[:, :, i : columns + i] for i in range(3)], axis=-1)
        taps = ops.reshape(taps, (-1, 3 * channels))
        found.append(ops.matmul(ops.transpose(taps), ops.reshape(product, (-1, filters))))
    found = ops.reshape(ops.stack(found), (len(KERNEL_SUMS), -1))
    return ops.reshape(ops.matmul(KERNEL_SUMS.T.astype("float32"), found), (3, 3, channels, filters))


def dilated_conv(x, kernel, dilation):
    """Convolution with zeros around x that keep its size.

    Places that are a multiple of the dilation apart go into an example of their own, where they are neighbours.
    (TensorFlow does the same for a dilation that is given to it, but its optimiser then takes lengths that are not
    known for others where the size of the batch is.)

    Args:
        x: [batch, (rows, columns) or (columns,), channels].
        kernel: [(rows, columns) or (columns,), channels, filters], of odd sizes.
        dilation: along each of these axes.
    """
    if all(d == 1 for d in dilation):
        return convolve(x, kernel, True)
    batch, *sizes, channels = ops.shape(x)
    axes = range(len(sizes))
    counts = [(size + d - 1) // d for size, d in zip(sizes, dilation)]
    x = ops.pad(x, [(0, 0), *((0, count * d - size) for count, d, size in zip(counts, dilation, sizes)), (0, 0)])
    split = [part for count, d in zip(counts, dilation) for part in (count, d)]
    x = ops.reshape(x, (batch, *split, channels))
    inner, outer = [2 + 2 * i for i in axes], [1 + 2 * i for i in axes]
    x = ops.transpose(x, (0, *inner, *outer, len(split) + 1))
    x = convolve(ops.reshape(x, (-1, *counts, channels)), kernel, True)
    filters = kernel.shape[-1]
    x = ops.reshape(x, (batch, *dilation, *counts, filters))
    back = [axis for i in axes for axis in (1 + len(sizes) + i, 1 + i)]
    x = ops.reshape(
        ops.transpose(x, (0, *back, len(split) + 1)),
        (batch, *(count * d for count, d in zip(counts, dilation)), filters),
    )
    return ops.slice(x, [0] * (len(sizes) + 2), (batch, *sizes, filters))


# Layers -------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("deep_casa.layers")
class DenseConv2D(keras.layers.Layer):
    """2-D convolution, stride 1, with bias, of several maps that stand for their concatenation.

    Called on a list of [batch, rows, columns, channels_i]; gives [batch, rows', columns', filters].
    The kernel is that of a convolution over the concatenated channels, in the list's order; it is cut
    instead of the maps being joined, which saves a copy of every earlier map in a dense block.

    Or called on a list of their `row_tiles`, with `rows`, the number of rows of the maps. The tiles then hold the
    zeros of a padding that is not the same on the left and on the right.

    Args:
        filters: output channels.
        kernel_size: odd size of the square kernel, or (rows, columns); 3 for row tiles.
        padding: ((top, bottom), (left, right)) zeros added to each map.
    """

    def __init__(self, filters, kernel_size, padding=((0, 0), (0, 0)), kernel_initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
        self.padding = tuple(tuple(side) for side in padding)
        self.kernel_initializer = kernel_initializer or truncated_normal()

    def build(self, input_shapes):
        self.widths = [shape[-1] for shape in input_shapes]
        self.kernel = self.add_weight(
            shape=(*self.kernel_size, sum(self.widths), self.filters),
            initializer=self.kernel_initializer,
            name="kernel",
        )
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    def call(self, maps, rows=None):
        (top, bottom), columns = self.padding
        around_rows, around_columns = ((size // 2,) * 2 for size in self.kernel_size)
        same = columns == around_columns
        first, kernels = 0, []
        for width in self.widths:
            size = (*self.kernel_size, width, self.filters)
            kernels.append(ops.slice(self.kernel, (0, 0, first, 0), size))
            first += width
        if rows is not None:
            products = [
                convolve(tile, kernel_sum, same)
                for tiles, kernel in zip(maps, kernels)
                for tile, kernel_sum in zip(tiles, kernel_sums(kernel))
            ]
            return tiles_to_rows(products, 1 - top, rows - 2 + top + bottom) + self.bias
        same = same and (top, bottom) == around_rows
        if not same and any(map(any, self.padding)):
            # All rows, so that the convolutions of a dense block share one padded copy of a map.
            maps = [ops.pad(x, ((0, 0), around_rows, columns, (0, 0))) for x in maps]
        x = sum(convolve(x, kernel, same) for x, kernel in zip(maps, kernels)) + self.bias
        if any(columns) and (top, bottom) != around_rows:
            batch, rows, frames, filters = ops.shape(x)
            first, last = around_rows[0] - top, around_rows[1] - bottom
            x = ops.slice(x, (0, first, 0, 0), (batch, rows - first - last, frames, filters))
        return x

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "padding": self.padding,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable("deep_casa.layers")
class Conv3x3(keras.layers.Layer):
    """3x3 convolution with bias, stride 1, zeros around: [batch, rows, columns, in] -> [batch, rows, columns, filters].

    Kernel layout (row, column, in, filters). `bias` [batch, filters] is added to that of each item. With `scale`,
    `shift` and `activation` the convolution is of activation(x * scale + shift), see `tiled_convolution`.
    """

    def __init__(self, filters, kernel_initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_initializer = kernel_initializer or truncated_normal()

    def build(self, input_shape):
        shape = (3, 3, input_shape[-1], self.filters)
        self.kernel = self.add_weight(shape=shape, initializer=self.kernel_initializer, name="kernel")
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    def call(self, x, bias=None, scale=None, shift=None, activation=None):
        bias = self.bias if bias is None else ops.reshape(bias + self.bias, (-1, 1, 1, self.filters))
        channels = min(x.shape[-1], self.filters)
        if row_tiles_pay(x.shape[1], channels, self.compute_dtype, (32, 64)) and not portable():
            return tiled_convolution(x, 1.0 * self.kernel, scale, shift, activation) + bias
        if activation is not None:
            x = activated(x, scale, shift, activation)
        return convolve(x, self.kernel, same=True) + bias

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable("deep_casa.layers")
class UpConv2D(keras.layers.Layer):
    """Transposed convolution whose stride equals its kernel: each value becomes a patch of its own.

    [batch, rows, columns, in] -> [batch, rows * size[0], columns * size[1], filters]. Kernel layout
    (size[0], size[1], filters, in), as Conv2DTranspose. One matmul, which trains faster on CPU.
    """

    def __init__(self, filters, size, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.size = tuple(size)

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(*self.size, self.filters, input_shape[-1]), initializer=truncated_normal(), name="kernel"
        )
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    def call(self, x):
        batch, rows, columns, _ = ops.shape(x)
        high, wide = self.size
        kernel = ops.reshape(self.kernel, (high * wide * self.filters, x.shape[-1]))
        patches = ops.matmul(x, ops.transpose(kernel))  # [B, rows, columns, high * wide * filters]
        # Patch rows become rows of the output once they change places with the columns.
        patches = ops.reshape(patches, (batch, rows, columns, high, wide * self.filters))
        patches = ops.transpose(patches, (0, 1, 3, 2, 4))
        return ops.reshape(patches, (batch, rows * high, columns * wide, self.filters)) + self.bias

    def get_config(self):
        return super().get_config() | {"filters": self.filters, "size": self.size}


@keras.saving.register_keras_serializable("deep_casa.layers")
class FrequencyMapping(keras.layers.Layer):
    """One rows x rows matrix, with bias, shared by all channels and frames: every row sees every other.

    Input and output: [batch, rows, columns, channels]. Kernel layout (row in, row out). One matmul,
    where the original transposed, convolved 1x1 and transposed back.
    """

    def build(self, input_shape):
        rows = input_shape[1]
        self.kernel = self.add_weight(shape=(rows, rows), initializer=truncated_normal(), name="kernel")
        self.bias = self.add_weight(shape=(rows,), initializer="zeros", name="bias")

    def call(self, x):
        batch, rows, columns, channels = ops.shape(x)
        flat = ops.reshape(x, (batch, rows, columns * channels))
        mapped = ops.matmul(ops.transpose(self.kernel), flat) + self.bias[:, None]
        return ops.reshape(mapped, (batch, rows, columns, channels))


@keras.saving.register_keras_serializable("deep_casa.layers")
class PointwiseConv(keras.layers.Layer):
    """1x1 convolution: [..., in] -> [..., filters]. Kernel layout (in, filters).

    keras.layers.Dense is the same in a score of small operations, which TensorFlow pays for one by one.
    """

    def __init__(self, filters, kernel_initializer=None, bias_initializer="zeros", use_bias=True, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_initializer = kernel_initializer or truncated_normal()
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.use_bias = use_bias

    def build(self, input_shape):
        shape = (input_shape[-1], self.filters)
        self.kernel = self.add_weight(shape=shape, initializer=self.kernel_initializer, name="kernel")
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.filters,), initializer=self.bias_initializer, name="bias")

    def call(self, x):
        return pointwise(x, self.kernel, self.bias)

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "use_bias": self.use_bias,
        }


@keras.saving.register_keras_serializable("deep_casa.layers")
class DilatedDepthwiseConv1D(keras.layers.Layer):
    """3-tap depthwise convolution, no bias, keeping the number of frames, whose outer taps may be dropped.

    Input and output: [batch, frames, channels]. Kernel layout (3, channels, 1), oldest tap first.
    In training each droppable tap is dropped with probability 1 - tap_keep, for all channels and the
    whole batch at once, and the rest is not rescaled. Never dropped: the tap on the current frame.

    Args:
        dilation: frames between taps.
        causal: taps at t-2d, t-d, t instead of t-d, t, t+d.
        tap_keep: probability of keeping a droppable tap.
        seed: a keras.random.SeedGenerator, or None when nothing is dropped.
    """

    def __init__(self, dilation, causal=False, tap_keep=1.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.dilation = dilation
        self.causal = causal
        self.tap_keep = tap_keep
        self.seed = seed

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(3, input_shape[-1], 1), initializer=truncated_normal(), name="kernel")

    def call(self, x, training=False):
        kernel = self.kernel
        if training and self.tap_keep < 1.0:
            drawn = keras.random.uniform((3, 1, 1), 0.0, 0.9999, dtype="float32", seed=self.seed)
            current = ops.reshape(ops.one_hot(2 if self.causal else 1, 3), (3, 1, 1))
            kept = ops.maximum(ops.cast(drawn < self.tap_keep, "float32"), current)
            kernel = kernel * ops.cast(kept, kernel.dtype)
        return dilated_depthwise(x, kernel, self.dilation, self.causal)

    def get_config(self):
        return super().get_config() | {
            "dilation": self.dilation,
            "causal": self.causal,
            "tap_keep": self.tap_keep,
        }


def truncated_normal():
    """Initialiser of Deep CASA's kernels: truncated normal, standard deviation 0.02."""
    return keras.initializers.TruncatedNormal(stddev=0.02)
