"""Convolutions that the separation networks share."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("deep_casa")
class DenseConv2D(keras.layers.Layer):
    """2-D convolution, stride 1, with bias, of several maps that stand for their concatenation.

    Called on a list of [batch, rows, columns, channels_i]; gives [batch, rows', columns', filters].
    The kernel is that of a convolution over the concatenated channels, in the list's order; it is cut
    instead of the maps being joined, which saves a copy of every earlier map in a dense block.

    Args:
        filters: output channels.
        kernel_size: odd size of the square kernel.
        padding: ((top, bottom), (left, right)) zeros added to each map.
    """

    def __init__(self, filters, kernel_size, padding=((0, 0), (0, 0)), kernel_initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.padding = tuple(tuple(side) for side in padding)
        self.kernel_initializer = kernel_initializer or truncated_normal()

    def build(self, input_shapes):
        self.widths = [shape[-1] for shape in input_shapes]
        self.kernel = self.add_weight(
            shape=(self.kernel_size, self.kernel_size, sum(self.widths), self.filters),
            initializer=self.kernel_initializer,
            name="kernel",
        )
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    def call(self, maps):
        symmetric = self.padding == ((self.kernel_size // 2,) * 2,) * 2
        padding = "same" if symmetric else "valid"
        total, first = None, 0
        for x, width in zip(maps, self.widths):
            if not symmetric and any(map(any, self.padding)):
                x = ops.pad(x, ((0, 0), *self.padding, (0, 0)))
            kernel = self.kernel[:, :, first : first + width]
            part = ops.conv(x, kernel, strides=1, padding=padding, data_format="channels_last")
            total = part if total is None else total + part
            first += width
        return total + self.bias

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "padding": self.padding,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable("deep_casa")
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


@keras.saving.register_keras_serializable("deep_casa")
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


@keras.saving.register_keras_serializable("deep_casa")
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
        self.kernel = self.add_weight(
            shape=(3, input_shape[-1], 1), initializer=truncated_normal(), name="kernel"
        )

    def call(self, x, training=False):
        kernel = self.kernel
        if training and self.tap_keep < 1.0:
            drawn = keras.random.uniform((3, 1, 1), 0.0, 0.9999, dtype="float32", seed=self.seed)
            current = ops.reshape(ops.one_hot(2 if self.causal else 1, 3), (3, 1, 1))
            kept = ops.maximum(ops.cast(drawn < self.tap_keep, "float32"), current)
            kernel = kernel * ops.cast(kept, kernel.dtype)
        if self.causal:
            x = ops.pad(x, ((0, 0), (2 * self.dilation, 0), (0, 0)))
        return ops.depthwise_conv(
            x,
            kernel,
            strides=1,
            padding="valid" if self.causal else "same",
            dilation_rate=self.dilation,
            data_format="channels_last",
        )

    def get_config(self):
        return super().get_config() | {
            "dilation": self.dilation,
            "causal": self.causal,
            "tap_keep": self.tap_keep,
        }


def truncated_normal():
    """Initialiser of Deep CASA's kernels: truncated normal, standard deviation 0.02."""
    return keras.initializers.TruncatedNormal(stddev=0.02)
