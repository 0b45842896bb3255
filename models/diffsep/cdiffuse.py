"""CDiffuse: a score network on waveforms, dilated convolutions that see the mixture and the time.

Sources: Lu et al., "Conditional Diffusion Probabilistic Model for Speech Enhancement", ICASSP 2022, after DiffWave;
reference repository fakufaku/diffusion-separation, which holds the network alone. What it is called on is our own:
the score is what the network gives for state, time and mixture.
"""

import keras
import numpy as np
from keras import ops

from models.layers.conv import PointwiseConv, pointwise
from models.layers.conv_tasnet import Initialization

TIME_CHANNELS = 128
TIME_UNITS = 512
STEPS = 50  # of the embedding's table, in the time from 0 to 1
TAPS = 3


linear = Initialization("uniform").pointwise


def start_of(inputs):
    """Initialisers of kernel and bias of a convolution: Kaiming, and uniform as PyTorch has it."""
    kernel = keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal")
    return dict(kernel_initializer=kernel, bias_initializer=Initialization("uniform").bias(inputs))


def conv(inputs, filters, name):
    """1x1 convolution."""
    return PointwiseConv(filters, **start_of(inputs), name=name)


def time_table(steps):
    """[steps, TIME_CHANNELS] float32: sines, then cosines, of every step times 10 ** (0 ... 4).

    Arguments are rounded to float32, as in the reference: at 500 000 radians that is a part of the embedding.
    """
    half = TIME_CHANNELS // 2
    factors = (10.0 ** (np.arange(half) * (4 / (half - 1)))).astype(np.float32)
    angles = np.arange(steps, dtype=np.float32)[:, None] * factors
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


@keras.saving.register_keras_serializable("deep_casa.cdiffuse")
class DilatedConv1D(keras.layers.Layer):
    """3 taps, zeros around, bias: [batch, samples, in] -> [batch, samples, filters]. Kernel (tap, in, filters)."""

    def __init__(self, filters, dilation, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.dilation = dilation

    def build(self, input_shape):
        shape = (TAPS, input_shape[-1], self.filters)
        start = start_of(TAPS * input_shape[-1])
        self.kernel = self.add_weight(shape=shape, initializer=start["kernel_initializer"], name="kernel")
        self.bias = self.add_weight(shape=(self.filters,), initializer=start["bias_initializer"], name="bias")

    def call(self, x):
        return dilated(x, self.kernel, self.dilation) + self.bias

    def get_config(self):
        return super().get_config() | {"filters": self.filters, "dilation": self.dilation}


def dilated(x, kernel, dilation):
    """Convolution of [batch, samples, in] with [taps, in, filters], zeros around.

    Sample t is in row t // dilation, column t % dilation: neighbouring taps are neighbouring rows then, and nothing is
    moved.
    """
    batch, samples, channels = ops.shape(x)
    rows = (samples + dilation - 1) // dilation
    x = ops.pad(x, ((0, 0), (0, rows * dilation - samples), (0, 0)))
    y = ops.conv(
        ops.reshape(x, (batch, rows, dilation, channels)),
        ops.expand_dims(ops.cast(kernel, x.dtype), 1),
        strides=1,
        padding="same",
        data_format="channels_last",
    )
    return ops.slice(ops.reshape(y, (batch, rows * dilation, -1)), (0, 0, 0), (batch, samples, kernel.shape[-1]))


@keras.saving.register_keras_serializable("deep_casa.cdiffuse")
class GatedBlock(keras.layers.Layer):
    """Call: x, condition [batch, samples, channels], time_bias [batch, channels] -> the next x, what goes ahead."""

    def __init__(self, channels, dilation, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.dilation = dilation
        self.dilated_conv = DilatedConv1D(2 * channels, dilation, name="dilated_conv")
        self.dilated_cond_conv = DilatedConv1D(2 * channels, dilation, name="dilated_cond_conv")
        self.diffusion_projection = linear(TIME_UNITS, channels, "diffusion_projection")
        self.output_projection = conv(channels, channels, "output_projection")
        self.output_residual = conv(channels, channels, "output_residual")

    def build(self, input_shape=None):
        self.diffusion_projection.build((None, TIME_UNITS))
        for layer in (self.dilated_conv, self.dilated_cond_conv, self.output_projection, self.output_residual):
            layer.build((None, None, self.channels))

    def time_bias(self, embedding):
        return self.diffusion_projection(embedding)

    def call(self, x, condition, time_bias):
        # One convolution of both, side by side.
        both = ops.concatenate([x + ops.expand_dims(time_bias, 1), condition], axis=-1)
        kernel = ops.concatenate([self.dilated_conv.kernel, self.dilated_cond_conv.kernel], axis=1)
        bias = ops.cast(self.dilated_conv.bias + self.dilated_cond_conv.bias, x.dtype)
        gate, filtered = ops.split(dilated(both, kernel, self.dilation) + bias, 2, axis=-1)
        gated = ops.sigmoid(gate) * ops.tanh(filtered)
        return (x + self.output_residual(gated)) * 0.5**0.5, self.output_projection(gated)

    def get_config(self):
        return super().get_config() | {"channels": self.channels, "dilation": self.dilation}


@keras.saving.register_keras_serializable("deep_casa.cdiffuse")
class TimeEmbedding(keras.layers.Layer):
    """Time [batch] -> [batch, TIME_UNITS]. Integers are rows of the table; real times are between two of them.

    Args:
        steps: rows of the table; real times, from 0 to 1, need 51.
        parity: weigh these as the reference does: by t - floor(50 t), which is out of bounds for most times.
    """

    def __init__(self, steps=STEPS + 1, parity=False, **kwargs):
        super().__init__(**kwargs)
        self.steps = steps
        self.parity = parity
        self.table = time_table(steps)
        self.projection1 = linear(TIME_CHANNELS, TIME_UNITS, "projection1")
        self.projection2 = linear(TIME_UNITS, TIME_UNITS, "projection2")

    def build(self, input_shape=None):
        self.projection1.build((None, TIME_CHANNELS))
        self.projection2.build((None, TIME_UNITS))

    def call(self, time):
        table = ops.convert_to_tensor(self.table)
        if keras.backend.is_int_dtype(time.dtype):
            found = ops.take(table, time, axis=0)
        else:
            time = ops.expand_dims(ops.cast(time, "float32"), 1)
            step = STEPS * time
            low, high = ops.floor(step), ops.ceil(step)
            weight = (time if self.parity else step) - low
            low, high = (ops.take(table, ops.cast(ops.squeeze(x, 1), "int32"), axis=0) for x in (low, high))
            found = low + (high - low) * weight
        return ops.silu(self.projection2(ops.silu(self.projection1(ops.cast(found, self.compute_dtype)))))

    def get_config(self):
        return super().get_config() | {"steps": self.steps, "parity": self.parity}


@keras.saving.register_keras_serializable("deep_casa.cdiffuse")
class CDiffuse(keras.Model):
    """Score of a diffusion of several sources, given the mixture, on waveforms.

    Call: as of models.diffsep.ncsnpp.ScoreModel: state [batch, sources, samples], time [batch] in [0, 1] or integer
    rows of the table, mixture [batch, samples] -> score [batch, sources, samples], float32. `prepare` and `time_biases`
    as there.

    Args:
        sources: how many.
        layers: gated blocks.
        channels: of each.
        cycle: dilations 1, 2, 4, ... of so many blocks, then again from 1.
        steps, parity: see TimeEmbedding.
    """

    def __init__(
        self, sources=2, layers=30, channels=64, cycle=10, steps=STEPS + 1, parity=False, name="cdiffuse", dtype=None
    ):
        super().__init__(name=name, dtype=dtype, autocast=False)
        self.settings = dict(sources=sources, layers=layers, channels=channels, cycle=cycle, steps=steps, parity=parity)
        self.sources = sources
        self.channels = channels
        self.input_projection = conv(sources, channels, "input_projection")
        self.condition_projection = conv(1, channels, "condition_projection")
        self.diffusion_embedding = TimeEmbedding(steps, parity, name="diffusion_embedding")
        self.blocks = [GatedBlock(channels, 2 ** (i % cycle), name=f"block_{i}") for i in range(layers)]
        self.skip_projection = conv(channels, channels, "skip_projection")
        self.output_projection = conv(channels, sources, "output_projection")
        self.output_projection.kernel_initializer = keras.initializers.Zeros()
        self.build()

    def build(self, input_shape=None):
        """Makes all weights, whatever the lengths of the inputs."""
        self.input_projection.build((None, None, self.sources))
        self.condition_projection.build((None, None, 1))
        self.diffusion_embedding.build()
        for layer in (*self.blocks, self.skip_projection, self.output_projection):
            layer.build((None, None, self.channels))

    def prepare(self, mixture):
        """[batch, samples] -> what the blocks see of it, [batch, samples, channels]."""
        return self.condition_projection(ops.cast(ops.expand_dims(mixture, -1), self.compute_dtype))

    def time_biases(self, time):
        """[batch] -> what the blocks are told about the time: a list of [batch, channels]."""
        embedding = self.diffusion_embedding(time)
        return [block.time_bias(embedding) for block in self.blocks]

    def call(self, state, time=None, mixture=None, prepared=None, biases=None, training=False):
        condition = self.prepare(mixture) if prepared is None else prepared
        biases = self.time_biases(time) if biases is None else biases
        x = ops.cast(ops.transpose(state, (0, 2, 1)), self.compute_dtype)
        x = ops.relu(self.input_projection(x))
        total = None
        for block, bias in zip(self.blocks, biases):
            x, skip = block(x, condition, bias)
            total = skip if total is None else total + skip
        # The root of the number of blocks goes into the kernel.
        last = self.skip_projection
        x = ops.relu(pointwise(total, last.kernel * len(self.blocks) ** -0.5, last.bias))
        return ops.cast(ops.transpose(self.output_projection(x), (0, 2, 1)), "float32")

    def get_config(self):
        return {"name": self.name} | self.settings
