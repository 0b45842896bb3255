"""What the time-domain networks of the Conv-TasNet family share: slopes, blocks of dilated convolutions, frames.

Source: Luo and Mesgarani, "Conv-TasNet", TASLP 27 (2019).
"""

import keras
import numpy as np
from keras import ops

from models.layers.conv import PointwiseConv, lean, ones_after, pointwise, portable
from models.layers.norm import BatchNorm, ChannelNorm, CumulativeNorm, GlobalNorm, frame_statistics, value_count
from models.layers.spectral import fourier_filters

PADDINGS = ("zeros", "reflect")
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


@keras.saving.register_keras_serializable("deep_casa.layers")
class PReLU(keras.layers.Layer):
    """PReLU with one slope for all channels and frames, at first 0.25, as PyTorch's."""

    def build(self, input_shape):
        self.slope = self.add_weight(shape=(1,), initializer=keras.initializers.Constant(0.25), name="slope")

    def call(self, x):
        return prelu(x, 1.0 * self.slope)  # a tensor, which custom gradients need


def rectified(x, slope):
    """PReLU of sign * x, times sign, which is 1 for slopes up to 1 and -1 beyond. One product, one choice."""
    return ops.maximum(x, ops.cast(slope, x.dtype) * x)


def rectified_gradient(upstream, x, slope, sign):
    """Gradients of `rectified` to x [n, batch, frames, units], and to the slopes [n, 1, 1, 1], in float32."""
    passed = ops.cast(sign, x.dtype) * x > 0
    stopped = ops.where(passed, ops.cast(0, x.dtype), upstream)
    to_slope = ops.sum(ops.cast(stopped * x, "float32"), axis=(1, 2, 3), keepdims=True)
    return upstream + ops.cast(slope - 1, x.dtype) * stopped, to_slope


def expanded(x, kernel, shift, slope, sign, frame_mask=None, kept=False):
    """A 1x1 convolution and PReLU, times sign, and the statistics of it without sign.

    For the gradient x alone is kept, unless `kept`.

    Args:
        x: [n, batch, frames, channels].
        kernel: [n, 1, channels, units].
        shift: [n, 1 or batch, 1, units], added before PReLU, or None.
        slope, sign: [n, 1, 1, 1], see `rectified`.
        frame_mask: [batch, frames, 1]; y is 0 where it is 0, which is not counted.
        kept: the maps on the way are kept for the gradient and not computed again.

    Returns:
        y [n, batch, frames, units]; mean and biased variance of every item, [n, batch, 1, 1] float32.
    """

    def before(x, kernel, shift):
        u = ops.matmul(x, ops.cast(kernel * sign, x.dtype))
        return u if shift is None else u + ops.cast(shift * sign, x.dtype)

    def masked(y):
        return y if frame_mask is None else y * ops.cast(frame_mask, y.dtype)

    def function(tensors):
        x, kernel, slope, *shifts = tensors
        shift = shifts[0] if shifts else None

        def maps(x):
            u = before(x, kernel, shift)
            return u, masked(rectified(u, slope))

        found = maps(x)
        mean, variance = frame_statistics(found[1], frame_mask)

        def gradient(to_y, to_mean, to_variance):
            u, y = found if kept else maps(x * ops.cast(ones_after(to_mean), x.dtype))
            to_square = 2 * to_variance / value_count(y, frame_mask)
            constant = to_mean * sign / value_count(y, frame_mask) - to_square * mean
            to_y = masked(to_y + ops.cast(constant, y.dtype) + ops.cast(to_square, y.dtype) * y)
            to_u, to_slope = rectified_gradient(to_y, u, slope, sign)
            to_x = ops.matmul(to_u, ops.cast(_transposed(kernel * sign), x.dtype))
            gradients = [to_x, _outer(x, to_u) * sign, to_slope]
            if shift is not None:
                axes = (1, 2) if shift.shape[1] == 1 else 2
                gradients.append(ops.sum(ops.cast(to_u, "float32"), axis=axes, keepdims=True) * sign)
            return gradients

        return (found[1], sign * mean, variance), gradient

    return lean(function)(x, kernel, slope, *([] if shift is None else [shift]))


def reduced(residual, z, shift, slope, sign, floor, gamma, beta, kernel, bias=None, frame_mask=None, kept=False):
    """Shift, PReLU, global norm, 1x1 convolution and sum. For the gradient z alone is kept, unless `kept`.

    Args:
        residual: [n, batch, frames, channels], added to the convolution. Here, as the gradient of a sum anywhere else
            asks for the shape of what is added, and has it computed again to know it.
        z: [n, batch, frames, units], times sign.
        shift: [n, batch, 1, units], times sign, added to z.
        slope, sign: [n, 1, 1, 1], see `rectified`.
        floor: [n, batch, 1, 1], added to the variance.
        gamma, beta: [n, 1, 1, units], of the norm.
        kernel: [n, 1, units, channels].
        bias: [n, 1, 1, channels], or None.
        frame_mask, kept: as of `expanded`.

    Returns:
        [n, batch, frames, channels].
    """

    def masked(w):
        return w if frame_mask is None else w * ops.cast(frame_mask, w.dtype)

    def function(tensors):
        residual, z, shift, slope, floor, gamma, beta, kernel, *biases = tensors
        dtype = z.dtype

        def maps(z):
            x = z + ops.cast(shift, dtype)
            return x, masked(rectified(x, slope))

        found = maps(z)
        w = found[1]
        mean, variance = frame_statistics(w, frame_mask)  # mean: times sign
        scale = ops.rsqrt(variance + floor)
        pushed = sign * mean * scale
        scaled = sign * _transposed(gamma) * kernel
        offset = beta - pushed * gamma  # [n, batch, 1, units]
        constant = ops.matmul(offset, kernel)
        constant = constant + biases[0] if biases else constant
        y = ops.matmul(w, ops.cast(scaled, dtype)) * ops.cast(scale, dtype)
        y = residual + (y + ops.cast(constant, dtype))

        def gradient(upstream):
            x, w = found if kept else maps(z * ops.cast(ones_after(upstream), dtype))
            to_residual = upstream
            total = ops.sum(ops.cast(upstream, "float32"), axis=2, keepdims=True)
            upstream = upstream * ops.cast(scale, dtype)
            to_scaled = _outer(w, upstream) * sign
            to_w = ops.matmul(upstream, ops.cast(_transposed(scaled), dtype))
            to_offset = ops.matmul(total, _transposed(kernel))
            by_gamma = ops.sum(to_offset * gamma, axis=-1, keepdims=True)
            to_scale = ops.sum(ops.cast(to_w * w, "float32"), axis=(2, 3), keepdims=True) / scale
            to_scale = to_scale - sign * mean * by_gamma
            to_variance = -0.5 * to_scale * scale**3
            to_square = 2 * to_variance / value_count(w, frame_mask)
            constant = -sign * scale * by_gamma / value_count(w, frame_mask) - to_square * mean
            to_w = masked(to_w + ops.cast(constant, dtype) + ops.cast(to_square, dtype) * w)
            to_x, to_slope = rectified_gradient(to_w, x, slope, sign)
            by_units = _transposed(ops.sum(to_scaled * kernel, axis=3, keepdims=True))
            gradients = [
                to_residual,
                to_x,
                ops.sum(ops.cast(to_x, "float32"), axis=2, keepdims=True),
                to_slope,
                to_variance,
                by_units - ops.sum(pushed * to_offset, axis=1, keepdims=True),
                ops.sum(to_offset, axis=1, keepdims=True),
                _transposed(gamma) * to_scaled + _outer(offset, total),
            ]
            return [*gradients, ops.sum(total, axis=1, keepdims=True)] if biases else gradients

        return (y,), gradient

    y = lean(function)(residual, z, shift, slope, floor, gamma, beta, kernel, *([] if bias is None else [bias]))
    return y[0] if isinstance(y, (tuple, list)) else y


def _transposed(x):
    """The last two axes of four, exchanged."""
    return ops.transpose(x, (0, 1, 3, 2))


def _outer(x, y):
    """[n, batch, frames, i], [n, batch, frames, j] -> sums of their products, [n, 1, i, j] float32."""
    return ops.sum(ops.cast(ops.matmul(_transposed(x), y), "float32"), axis=1, keepdims=True)


def run_blocks(series, x, condition=None, frame_mask=None, training=False, sparing=False):
    """Series of ConvBlocks of the same settings but for dilations and conditions, each on a map of its own.

    With the global norm all maps are computed at once, in half as many operations as two by themselves; and
    TensorFlow goes through the blocks in a loop, whose graph is that of one block: traced in a tenth of the time.

    Args:
        series: n lists of blocks.
        x: [n, batch, frames, channels].
        condition: [batch, size], for those blocks that take one.
        frame_mask: [batch, frames, 1]; frames that have 0 there influence no others.
        sparing: the loop keeps of every block its input alone for the gradient, half of the memory; the step of
            training takes about a tenth longer.

    Returns:
        As x.
    """
    rows = list(zip(*series))
    first = rows[0][0]
    if first.norm != "global":
        maps = ops.unstack(x, len(series), axis=0)
        for blocks in rows:
            given = condition if blocks[0].condition else None
            maps = [block(y, given, frame_mask, training=training) for block, y in zip(blocks, maps)]
        return ops.stack(maps)
    frame_mask = None if frame_mask is None else ops.cast(frame_mask, "float32")  # to be summed up
    # Only TensorFlow has shapes that depend on a tensor, here the dilation.
    if len(rows) == 1 or keras.backend.backend() != "tensorflow" or portable():
        for blocks in rows:
            weights = {name: ops.squeeze(w, axis=0) for name, w in _joined([blocks], condition).items()}
            x = _folded(first, blocks[0].dilation, weights, x, frame_mask)
        return x
    weights = _joined(rows, condition)
    dilations = ops.convert_to_tensor([row[0].dilation for row in rows], "int32")

    def step(x, row):
        dilation, *values = row

        def folded(x, *values):
            return _folded(first, dilation, dict(zip(weights, values)), x, frame_mask, kept=sparing)

        return (keras.remat(folded) if sparing else folded)(x, *values), None

    return ops.scan(step, x, (dilations, *weights.values()))[0]


def _joined(rows, condition):
    """{name: weights of ConvBlocks with the global norm, [rows, n, ...] float32}; see `_folded`."""
    first = rows[0][0]
    units, channels, taps = first.units, first.channels, first.taps

    def joined(weight, *shape):
        values = [ops.cast(weight(block), "float32") for blocks in rows for block in blocks]
        return ops.reshape(ops.stack(values), (len(rows), len(rows[0]), *shape))

    def kernel_in(block):
        return ops.slice(block.expand.kernel, (0, 0), (channels, units)) if block.condition else block.expand.kernel

    def shift_in(block):
        """[units], or [batch, units] with a condition, which is the same in all frames."""
        shift = ops.cast(block.expand.bias, "float32") if block.use_bias else ops.zeros(units)
        if condition is None:
            return shift
        if not block.condition:
            return shift + ops.zeros((ops.shape(condition)[0], 1))
        others = ops.slice(block.expand.kernel, (channels, 0), (block.condition, units))
        return shift + ops.matmul(ops.cast(condition, "float32"), ops.cast(others, "float32"))

    weights = {
        "kernel_in": joined(kernel_in, 1, channels, units),
        "slope": joined(lambda block: block.expand_prelu.slope, 1, 1, 1),
        "gamma": joined(lambda block: block.expand_norm.gamma, 1, 1, units),
        "beta": joined(lambda block: block.expand_norm.beta, 1, 1, units),
        "kernel": joined(lambda block: block.kernel, 1, taps, units),
        "slope_2": joined(lambda block: block.depthwise_prelu.slope, 1, 1, 1),
        "gamma_2": joined(lambda block: block.depthwise_norm.gamma, 1, 1, units),
        "beta_2": joined(lambda block: block.depthwise_norm.beta, 1, 1, units),
        "kernel_out": joined(lambda block: block.reduce.kernel, 1, units, channels),
    }
    if first.use_bias or condition is not None:
        weights["shift_in"] = joined(shift_in, 1 if condition is None else -1, 1, units)
    if first.use_bias:
        weights["bias"] = joined(lambda block: block.bias, 1, 1, units)
        weights["bias_out"] = joined(lambda block: block.reduce.bias, 1, 1, channels)
    return weights


def _folded(block, dilation, weights, x, frame_mask, kept=False):
    """x after blocks with the global norm; neither norm is computed as such, see ConvBlock.

    Args:
        block: one of them, for its settings.
        dilation: theirs, a number or a scalar tensor.
        weights: {name: [n, ...]}, see `_joined`.
        kept: see `expanded`.
    """
    gamma, beta, kernel, slope, slope_2 = (weights[name] for name in ("gamma", "beta", "kernel", "slope", "slope_2"))
    sign, sign_2 = (ops.stop_gradient(ops.where(x <= 1, 1.0, -1.0)) for x in (slope, slope_2))
    y, mean, variance = expanded(x, weights["kernel_in"], weights.get("shift_in"), slope, sign, frame_mask, kept)
    deviation = ops.sqrt(variance + block.epsilon)  # [n, batch, 1, 1]
    shift = beta * deviation - mean * gamma  # [n, batch, 1, units]
    bias = weights["bias"] * deviation * sign_2 if block.use_bias else None
    y = depthwise_each(y, kernel * gamma * (sign * sign_2), block, dilation, frame_mask)
    if block.reflects:  # every tap is on a frame of the signal
        shifts = shift * ops.sum(kernel * sign_2, axis=2, keepdims=True)
        shifts = shifts if bias is None else shifts + bias
    else:  # taps on the zeros around the signal add no shift
        inside = ops.cast(block.taps_inside(y, dilation, frame_mask), y.dtype)
        y = y + ops.matmul(inside, ops.cast(kernel * sign_2 * shift, y.dtype))
        shifts = ops.zeros_like(shift) if bias is None else bias + ops.zeros_like(shift)
    # y is `deviation` times what the norm should see, so its epsilon is too.
    floor = block.epsilon * (variance + block.epsilon)
    norm = (weights["gamma_2"], weights["beta_2"])
    last = (weights["kernel_out"], weights.get("bias_out"))
    return reduced(x, y, shifts, slope_2, sign_2, floor, *norm, *last, frame_mask, kept)


def depthwise_each(x, kernel, block, dilation, frame_mask=None):
    """Dilated depthwise convolutions of maps [n, batch, frames, units] with kernels [n, 1, taps, units].

    Args:
        block: ConvBlock whose padding counts.
        dilation: a number or a scalar tensor.
    """
    count, batch, frames, units = ops.shape(x)
    taps = block.taps
    around = dilation * (taps // 2)  # frames before and behind that a tap reaches
    before = around if not block.causal else (taps - 1) * dilation + (around if block.late else 0)
    behind = 0 if block.causal else around
    given = before + frames + behind
    rows = (given + dilation - 1) // dilation
    fill = rows * dilation - given
    if block.reflects:
        inside = None if frame_mask is None else ops.cast(ops.sum(frame_mask, axis=(1, 2)), "int32")
        x = reflect_frames(x, around, inside, fill)
    else:
        x = ops.pad(x, ((0, 0), (0, 0), (before, behind + fill), (0, 0)))
    # Frame t in row t // dilation, as in models.layers.conv.dilated_depthwise.
    maps = ops.unstack(ops.reshape(x, (count, batch, rows, dilation, units)), count, axis=0)
    kernels = ops.unstack(ops.cast(ops.reshape(kernel, (count, taps, 1, units, 1)), x.dtype), count, axis=0)
    maps = [
        ops.depthwise_conv(y, k, strides=1, padding="valid", data_format="channels_last") for y, k in zip(maps, kernels)
    ]
    y = ops.reshape(ops.stack(maps), (count, batch, -1, units))
    return ops.slice(y, (0, 0, 0, 0), (count, batch, frames, units))


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


@keras.saving.register_keras_serializable("deep_casa.layers")
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
        bias: the convolutions have biases.
        padding: around the frames of what is not causal: "zeros", or "reflect", their mirror image, which needs more
            frames than dilation * (taps // 2).
        late: causal, and dilation * (taps // 2) frames late, so that the depthwise convolution never sees the current
            frame: SpeechBrain's.
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
        bias=True,
        padding="zeros",
        late=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if taps % 2 == 0:
            raise ValueError(f"{taps} taps: a depthwise convolution that keeps the frames needs an odd number")
        if padding not in PADDINGS:
            raise ValueError(f"padding {padding!r}: should be one of {', '.join(PADDINGS)}")
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
            bias=bias,
            padding=padding,
            late=late,
        )
        self.channels = channels
        self.units = units
        self.dilation = dilation
        self.taps = taps
        self.norm = norm
        self.epsilon = epsilon
        self.causal = causal
        self.condition = condition
        self.use_bias = bias
        self.late = late
        self.reflects = padding == "reflect" and not causal
        self.initial = Initialization(initialization)
        self.expand = self.initial.pointwise(channels + condition, units, "expand", bias)
        self.expand_prelu = PReLU(name="expand_prelu")
        self.expand_norm = NORMS[norm](epsilon, name="expand_norm")
        self.depthwise_prelu = PReLU(name="depthwise_prelu")
        self.depthwise_norm = NORMS[norm](epsilon, name="depthwise_norm")
        self.reduce = self.initial.pointwise(units, channels, "reduce", bias)

    def build(self, input_shape, condition_shape=None):
        inside = (None, None, self.units)
        self.expand.build((None, None, self.channels + self.condition))
        for layer in (self.expand_prelu, self.expand_norm, self.depthwise_prelu, self.depthwise_norm, self.reduce):
            layer.build(inside)
        taps, units = self.taps, self.units
        self.kernel = self.add_weight(
            shape=(taps, units, 1), initializer=self.initial.kernel(taps, taps * units), name="kernel"
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(shape=(units,), initializer=self.initial.bias(taps), name="bias")

    def call(self, x, condition=None, frame_mask=None, training=False):
        """With frame_mask [batch, frames, 1], frames that have 0 there influence no others."""
        if frame_mask is not None:
            frame_mask = ops.cast(frame_mask, "float32")  # to be summed up
        if self.norm == "global":
            return ops.squeeze(run_blocks([[self]], ops.expand_dims(x, 0), condition, frame_mask), axis=0)
        y = self.expand_prelu(self._expand(x, condition))
        if frame_mask is not None:
            y = y * ops.cast(frame_mask, y.dtype)
        norm_options = dict(training=training, frame_mask=frame_mask) if self.norm == "batch" else {}
        y = self.expand_norm(y, **norm_options)
        if frame_mask is not None:
            y = y * frame_mask
        y = ops.cast(y, self.compute_dtype)
        kernel = ops.reshape(self.kernel, (1, 1, self.taps, self.units))
        y = ops.squeeze(depthwise_each(ops.expand_dims(y, 0), kernel, self, self.dilation, frame_mask), axis=0)
        if self.bias is not None:
            y = y + self.bias
        y = self.depthwise_norm(self.depthwise_prelu(y), **norm_options)
        return x + self.reduce(y)

    def _expand(self, x, condition):
        """First convolution. What the condition adds is the same in all frames."""
        if condition is None:
            return self.expand(x)
        own = ops.slice(self.expand.kernel, (0, 0), (self.channels, self.units))
        others = ops.slice(self.expand.kernel, (self.channels, 0), (self.condition, self.units))
        shift = ops.matmul(ops.cast(condition, x.dtype), ops.cast(others, x.dtype))
        if self.use_bias:
            shift = shift + ops.cast(self.expand.bias, x.dtype)
        return pointwise(x, own) + ops.expand_dims(shift, 1)

    def taps_inside(self, y, dilation, frame_mask):
        """1 where a tap is on a frame of the signal, for y [..., frames, units]: [1 or batch, frames, taps]."""
        frames = ops.shape(y)[-2]
        inside = ops.ones((1, frames, 1)) if frame_mask is None else frame_mask
        current = self.taps - 1 if self.causal else self.taps // 2
        places = [tap - current - (self.taps // 2 if self.late else 0) for tap in range(self.taps)]
        before, after = -places[0] * dilation, max(places[-1], 0) * dilation
        padded = ops.pad(inside, ((0, 0), (before, after), (0, 0)))
        rows = ops.shape(padded)[0]
        by_tap = [ops.slice(padded, (0, before + place * dilation, 0), (rows, frames, 1)) for place in places]
        return ops.concatenate(by_tap, axis=-1)

    def get_config(self):
        return super().get_config() | self.settings


def reflect_frames(x, around, frames=None, behind=0):
    """Puts the mirror image of the first and last frames around x; the frames at the ends are not repeated.

    Args:
        x: [n, batch, count, channels], more than `around` frames.
        around: frames to put on either side.
        frames: [batch] int, the frames of every item that count: it is mirrored behind these.
        behind: frames of zeros behind all.

    Returns:
        [n, batch, around + count + around + behind, channels].
    """
    maps, batch, count, channels = ops.shape(x)
    if frames is None:
        first = ops.slice(x, (0, 0, 1, 0), (maps, batch, around, channels))
        last = ops.slice(x, (0, 0, count - 1 - around, 0), (maps, batch, around, channels))
        parts = [ops.flip(first, axis=2), x, ops.flip(last, axis=2)]
        return ops.concatenate([*parts, ops.zeros((maps, batch, behind, channels), x.dtype)], axis=2)
    places = ops.abs(ops.arange(count + 2 * around + behind) - around)
    end = ops.expand_dims(frames, 1) - 1
    places = ops.clip(end - ops.abs(end - places), 0, count - 1)
    rows = ops.reshape(places + ops.expand_dims(ops.arange(batch) * count, 1), (-1,))
    flat = ops.take(ops.reshape(x, (maps, -1, channels)), rows, axis=1)
    return ops.reshape(flat, (maps, batch, -1, channels))


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


def normed_pointwise(x, norm, layer):
    """layer(norm(x)) of a ChannelNorm and a PointwiseConv, with one pass over x less or two.

    x [batch, frames, channels] should come out of a rectifier: the variance is taken as mean square less square
    of the mean.
    """
    dtype = x.dtype
    gamma, beta, kernel = (ops.cast(w, "float32") for w in (norm.gamma, norm.beta, layer.kernel))
    wide = ops.cast(x, "float32")
    mean = ops.mean(wide, axis=-1, keepdims=True)
    variance = ops.maximum(ops.mean(ops.square(wide), axis=-1, keepdims=True) - ops.square(mean), 0.0)
    scale = ops.rsqrt(variance + norm.epsilon)
    kernel_shift = ops.matmul(ops.expand_dims(beta, 0), kernel)[0]
    if layer.bias is not None:
        kernel_shift = kernel_shift + ops.cast(layer.bias, "float32")
    kernel = ops.expand_dims(gamma, -1) * kernel
    y = ops.cast(pointwise(x, ops.cast(kernel, dtype)), "float32")
    return ops.cast((y - mean * ops.sum(kernel, axis=0)) * scale + kernel_shift, dtype)


def frames_below(lengths, count):
    """1 for the first lengths[i] of `count` frames of item i, 0 for the rest: [batch, count, 1] float32."""
    return ops.expand_dims(ops.cast(ops.arange(count) < ops.expand_dims(lengths, 1), "float32"), -1)


def zero_behind(waveforms, samples):
    """[batch, samples'] with 0 behind the first samples[i] of item i."""
    inside = ops.arange(ops.shape(waveforms)[1]) < ops.expand_dims(samples, 1)
    return waveforms * ops.cast(inside, waveforms.dtype)


def fit(waveforms, samples):
    """Cuts [batch, samples'] to `samples`, or fills it with zeros at the end."""
    batch, length = ops.shape(waveforms)
    waveforms = ops.pad(waveforms, ((0, 0), (0, ops.maximum(samples - length, 0))))
    return ops.slice(waveforms, (0, 0), (batch, samples))


def start_as_fourier(encoder, decoder, hop):
    """Gives filters the values of a short-time Fourier transform.

    A filter is a sine or cosine under the root of a Hann window, or the negative of one, so that the rectified
    filters hold the whole spectrum; bins are taken from the lowest up, four filters each, as far as the filters go.
    Filters beyond the highest bin keep their values. With a hop of half the window, 2 * window filters then give the
    signal back where the mask is 1.

    Args:
        encoder, decoder: variables [window, 1, filters].
        hop: samples.
    """
    window, _, filters = encoder.shape
    fourier = fourier_filters(window)[:, :filters]
    for kernel, scale in ((encoder, 1.0), (decoder, hop / window)):
        values = ops.convert_to_numpy(kernel).copy()
        values[:, 0, : fourier.shape[1]] = scale * fourier
        kernel.assign(values)
