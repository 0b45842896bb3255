"""What the time-domain networks of the Conv-TasNet family share: slopes, blocks of dilated convolutions, frames.

Source: Luo and Mesgarani, "Conv-TasNet", TASLP 27 (2019).
"""

import keras
import numpy as np
from keras import ops

from models.conv import PointwiseConv, dilated_depthwise, pointwise
from models.norm import BatchNorm, ChannelNorm, CumulativeNorm, GlobalNorm, frame_statistics

NORMS = {"global": GlobalNorm, "channel": ChannelNorm, "batch": BatchNorm, "cumulative": CumulativeNorm}


@ops.custom_gradient
def prelu(x, slope):
    """x where it is positive, slope * x elsewhere; one slope, [1], for all of x.

    Half the work of keras.layers.PReLU, and nothing but x is kept for the gradient.
    """
    y = ops.cond(slope[0] <= 1, lambda: ops.maximum(x, slope * x), lambda: ops.minimum(x, slope * x))

    def gradient(*arguments, upstream=None):
        upstream = arguments[0] if upstream is None else upstream
        by_slope = ops.sum(ops.cast(upstream * ops.minimum(x, 0), "float32"))
        return ops.where(x > 0, upstream, slope * upstream), ops.cast(ops.reshape(by_slope, (1,)), slope.dtype)

    return y, gradient


@keras.saving.register_keras_serializable("deep_casa")
class PReLU(keras.layers.Layer):
    """PReLU with one slope for all channels and frames, at first 0.25, as PyTorch's."""

    def build(self, input_shape):
        self.slope = self.add_weight(shape=(1,), initializer=keras.initializers.Constant(0.25), name="slope")

    def call(self, x):
        return prelu(x, 1.0 * self.slope)  # a tensor, which custom gradients need


class Initialization:
    """First values of kernels and biases.

    Args:
        kind: "xavier": kernels by Glorot's uniform rule, biases 0. "uniform": both uniform within
            +-1 / sqrt(fan-in), which is what PyTorch does when it is not told otherwise.
    """

    def __init__(self, kind):
        if kind not in ("xavier", "uniform"):
            raise ValueError(f"initialization {kind!r}: should be 'xavier' or 'uniform'")
        self.kind = kind

    def kernel(self, fan_in, fan_out):
        """Initialiser of a kernel."""
        limit = np.sqrt(6 / (fan_in + fan_out)) if self.kind == "xavier" else np.sqrt(1 / fan_in)
        return keras.initializers.RandomUniform(-limit, limit)

    def bias(self, fan_in):
        """Initialiser of the bias beside a kernel."""
        return "zeros" if self.kind == "xavier" else keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)

    def pointwise(self, channels, filters, name, use_bias=True):
        """PointwiseConv, [..., channels] -> [..., filters]."""
        return PointwiseConv(filters, self.kernel(channels, filters), self.bias(channels), use_bias=use_bias, name=name)


@keras.saving.register_keras_serializable("deep_casa")
class ConvBlock(keras.layers.Layer):
    """Point-wise, dilated depthwise and point-wise convolution, each followed by PReLU and norm, around a skip.

    Call: x [batch, frames, channels], and optionally a condition [batch, size] that every frame sees behind its own
    channels. Gives [batch, frames, channels].

    With the global norm neither norm is computed as such. Both only scale and shift what convolutions then add up,
    so they act on kernels and biases instead: of the second norm the inner deviation is left out altogether, since
    PReLU passes a positive factor on and the norm removes it again.

    Args:
        channels: of x.
        units: channels inside.
        dilation: frames between the taps of the depthwise convolution.
        taps: of that convolution, an odd number.
        norm: one of NORMS.
        epsilon: of the norms.
        causal: convolve over past frames only. The global norm still sees the whole signal.
        condition: size of the condition; 0: none.
        initialization: see Initialization.
    """

    def __init__(
        self,
        channels,
        units,
        dilation,
        taps=3,
        norm="global",
        epsilon=1e-5,
        causal=False,
        condition=0,
        initialization="xavier",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if taps % 2 == 0:
            raise ValueError(f"{taps} taps: a depthwise convolution that keeps the frames needs an odd number")
        self.settings = dict(
            channels=channels,
            units=units,
            dilation=dilation,
            taps=taps,
            norm=norm,
            epsilon=epsilon,
            causal=causal,
            condition=condition,
            initialization=initialization,
        )
        self.channels = channels
        self.units = units
        self.dilation = dilation
        self.taps = taps
        self.norm = norm
        self.epsilon = epsilon
        self.causal = causal
        self.condition = condition
        self.initial = Initialization(initialization)
        self.expand = self.initial.pointwise(channels + condition, units, "expand")
        self.expand_prelu = PReLU(name="expand_prelu")
        self.expand_norm = NORMS[norm](epsilon, name="expand_norm")
        self.depthwise_prelu = PReLU(name="depthwise_prelu")
        self.depthwise_norm = NORMS[norm](epsilon, name="depthwise_norm")
        self.reduce = self.initial.pointwise(units, channels, "reduce")

    def build(self, input_shape, condition_shape=None):
        inside = (None, None, self.units)
        self.expand.build((None, None, self.channels + self.condition))
        for layer in (self.expand_prelu, self.expand_norm, self.depthwise_prelu, self.depthwise_norm, self.reduce):
            layer.build(inside)
        taps, units = self.taps, self.units
        self.kernel = self.add_weight(
            shape=(taps, units, 1), initializer=self.initial.kernel(taps, taps * units), name="kernel"
        )
        self.bias = self.add_weight(shape=(units,), initializer=self.initial.bias(taps), name="bias")

    def call(self, x, condition=None, frame_mask=None, training=False):
        """With frame_mask [batch, frames, 1], frames that have 0 there influence no others."""
        y = self.expand_prelu(self._expand(x, condition))
        if frame_mask is not None:
            frame_mask = ops.cast(frame_mask, "float32")  # to be summed up
            y = y * ops.cast(frame_mask, y.dtype)
        if self.norm == "global":
            return x + self._folded(y, frame_mask)
        norm_options = dict(training=training, frame_mask=frame_mask) if self.norm == "batch" else {}
        y = self.expand_norm(y, **norm_options)
        if frame_mask is not None:
            y = y * frame_mask
        y = ops.cast(y, self.compute_dtype)
        y = dilated_depthwise(y, self.kernel, self.dilation, self.causal) + self.bias
        y = self.depthwise_norm(self.depthwise_prelu(y), **norm_options)
        return x + self.reduce(y)

    def _expand(self, x, condition):
        """First convolution. What the condition adds is the same in all frames."""
        if condition is None:
            return self.expand(x)
        own = ops.slice(self.expand.kernel, (0, 0), (self.channels, self.units))
        others = ops.slice(self.expand.kernel, (self.channels, 0), (self.condition, self.units))
        shift = ops.matmul(ops.cast(condition, x.dtype), others) + self.expand.bias
        return pointwise(x, own) + ops.expand_dims(shift, 1)

    def _folded(self, y, frame_mask):
        """Norm, depthwise convolution, PReLU, norm and last convolution of y [batch, frames, units]."""
        dtype = y.dtype
        gamma, beta, kernel, bias, last, last_bias = (
            ops.cast(weight, "float32")
            for weight in (
                self.expand_norm.gamma,
                self.expand_norm.beta,
                self.kernel[..., 0],
                self.bias,
                self.reduce.kernel,
                self.reduce.bias,
            )
        )
        mean, variance = frame_statistics(y, frame_mask)  # [B, 1, 1]
        deviation = ops.sqrt(variance + self.epsilon)
        shift = beta * deviation - mean * gamma  # [B, 1, units]
        # By taps and the bias, [B, taps + 1, units]; taps on the zeros around the signal add no shift.
        shifts = ops.concatenate([kernel * shift, bias * deviation], axis=1)
        y = dilated_depthwise(y, ops.expand_dims(ops.cast(kernel * gamma, dtype), -1), self.dilation, self.causal)
        y = y + ops.matmul(ops.cast(self._taps_inside(y, frame_mask), dtype), ops.cast(shifts, dtype))
        y = self.depthwise_prelu(y)
        if frame_mask is not None:
            y = y * ops.cast(frame_mask, dtype)
        mean, variance_2 = frame_statistics(y, frame_mask)
        # y is `deviation` times what the norm should see, so its epsilon is too.
        scale = ops.rsqrt(variance_2 + self.epsilon * (variance + self.epsilon))
        gamma, beta = (ops.cast(w, "float32") for w in (self.depthwise_norm.gamma, self.depthwise_norm.beta))
        shift = ops.squeeze(beta - mean * scale * gamma, axis=1)  # [B, units]
        y = pointwise(y, ops.cast(ops.expand_dims(gamma, -1) * last, dtype))
        return y * ops.cast(scale, dtype) + ops.cast(ops.expand_dims(ops.matmul(shift, last) + last_bias, 1), dtype)

    def _taps_inside(self, y, frame_mask):
        """1 where a tap is on a frame of the signal, and always 1 for the bias: [1 or batch, frames, taps + 1]."""
        _, frames, _ = ops.shape(y)
        inside = ops.ones((1, frames, 1)) if frame_mask is None else frame_mask
        current = self.taps - 1 if self.causal else self.taps // 2
        offsets = [(tap - current) * self.dilation for tap in range(self.taps)]
        before, after = -offsets[0], offsets[-1]
        padded = ops.pad(inside, ((0, 0), (before, after), (0, 0)))
        rows = ops.shape(padded)[0]
        by_tap = [ops.slice(padded, (0, before + offset, 0), (rows, frames, 1)) for offset in offsets]
        return ops.concatenate([*by_tap, ops.ones_like(inside)], axis=-1)

    def get_config(self):
        return super().get_config() | self.settings


def frame_count(samples, window, hop):
    """Frames of `window` samples every `hop`, of signals of so many samples; what is left over is in none."""
    return (samples - window) // hop + 1


def cut_frames(waveforms, window, hop, frames):
    """[batch, samples] -> [batch, frames, window]: frame t starts at sample t * hop; zeros behind the end.

    Args:
        window: samples, a multiple of hop.
    """
    parts = window // hop
    needed = (frames + parts - 1) * hop
    batch, samples = ops.shape(waveforms)
    waveforms = ops.pad(waveforms, ((0, 0), (0, ops.maximum(needed - samples, 0))))
    hops = ops.reshape(ops.slice(waveforms, (0, 0), (batch, needed)), (batch, -1, hop))
    return ops.concatenate([ops.slice(hops, (0, i, 0), (batch, frames, hop)) for i in range(parts)], axis=-1)
