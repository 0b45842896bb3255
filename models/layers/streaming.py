"""What streaming networks share: blocks of samples in, blocks out; dilated blocks and norms that carry their past.

A network is a pure function (state, frames) -> (state, outputs) of any number of frames, which it takes all at once.
Inside, maps of one recording are [frames, ..., channels]; those of several networks of the same sizes, which go side by
side, [networks, frames, channels].
"""

import functools

import numpy as np
from keras import ops


class WaveformStream:
    """Cuts what comes in into frames, and adds up what comes out of them where it overlaps. One per recording.

    A subclass gives `_run`, and `_finish` if sums of overlapping pieces are not yet the output. A sample comes out as
    soon as the frame that begins at it or last before it has come in.

    Args:
        signals: that come out, as rows.
        window: samples of a frame.
        hop: samples between the starts of frames.
        piece: samples that come out for a frame; None: as many as a frame has.
        parts: rows that overlap; signals, unless `_finish` makes these of more.
        inputs: signals that come in, as rows; None: one, [samples].
    """

    most_frames = 32  # in one call of the networks; memory grows with it

    def __init__(self, signals, window, hop, piece=None, parts=None, inputs=None):
        self.signals, self.window_size, self.hop_size = signals, window, hop
        self.piece_size = piece or window
        self.parts = parts or signals
        self.inputs = inputs

    @property
    def latency(self):
        """Samples: one comes out at the latest when so many have come in from it on."""
        return self.window_size

    def reset(self):
        """Forgets the recording."""
        self._frames = 0
        # That came in and are not yet the start of a frame.
        self._samples = np.zeros(0 if self.inputs is None else (self.inputs, 0))
        self._received = self._returned = 0
        self._tail = np.zeros((self.parts, max(self.piece_size - self.hop_size, 0)))  # overlaps what will come

    def step(self, samples):
        """Takes the next samples, any number; returns what is ready.

        Args:
            samples: [n], or [inputs, n].

        Returns:
            float32 [signals, m].
        """
        samples = np.asarray(samples)
        if samples.shape[:-1] != self._samples.shape[:-1]:
            wanted = "one channel, [samples]," if self.inputs is None else f"[{self.inputs}, samples]"
            raise ValueError(f"samples of shape {samples.shape}; {wanted} is needed")
        self._received += samples.shape[-1]
        self._samples = np.concatenate([self._samples, samples], axis=-1)
        return self._cut(self._whole_frames())

    def flush(self):
        """Ends the recording: the samples still to come, float32 [signals, m]. The next `step` begins another one.

        Samples that no frame covers are 0.
        """
        ready = self._cut([*self._last_frames(), self._finish(self._tail)])
        missing = self._received - self._returned
        self.reset()
        return np.pad(ready, ((0, 0), (0, missing)))

    def _run(self, frames):
        """[frames, window] or [inputs, frames, window] -> pieces [parts, frames, piece]."""
        raise NotImplementedError

    def _finish(self, signal):
        """Sums of overlapping pieces, [parts, samples] -> [signals, samples]."""
        return signal

    def _last_frames(self):
        """Outputs of frames that are not whole, when no more samples come."""
        return []

    def _whole_frames(self):
        ready = []
        while (count := (self._samples.shape[-1] - self.window_size) // self.hop_size + 1) > 0:
            # The first frame by itself: norms then measure the others from its mean, in which float32 loses less.
            ready.append(self._advance(min(count, self.most_frames) if self._frames else 1))
        return ready

    def _advance(self, count):
        """Runs the next frames; what no later frame covers, [signals, count * hop]."""
        hop, size = self.hop_size, self.piece_size
        frames = np.lib.stride_tricks.sliding_window_view(self._samples, self.window_size, axis=-1)
        pieces = self._run(frames[..., : count * hop : hop, :])
        self._samples = self._samples[..., count * hop :]
        self._frames += count
        covered = (count - 1) * hop + max(size, hop)
        signal = np.zeros((self.parts, covered))
        signal[:, : self._tail.shape[1]] = self._tail
        # One addition for each residue class of frames: those of a class do not overlap.
        apart = -(-size // hop)
        for first in range(min(apart, count)):
            some = pieces[:, first::apart]
            index = (hop * (first + apart * np.arange(some.shape[1]))[:, None] + np.arange(size)).ravel()
            signal[:, index] += some.reshape(self.parts, -1)
        self._tail = signal[:, count * hop :]
        return self._finish(signal[:, : count * hop])

    def _cut(self, ready):
        ready = np.concatenate([np.zeros((self.signals, 0)), *ready], axis=1)
        ready = ready[:, : self._received - self._returned].astype("float32")
        self._returned += ready.shape[1]
        return ready


class Affine:
    """x -> scale * x + offset, by channel: what a batch norm does, or the end of another norm."""

    def __init__(self, scale, offset):
        # What gives 0 must exist; so small a scale still does nothing.
        self.scale = np.where(np.abs(scale) < 1e-9, 1e-9, scale)
        self.offset = offset
        self.root = -self.offset / self.scale

    @classmethod
    def identity(cls, channels):
        return cls(np.ones(channels), np.zeros(channels))

    @classmethod
    def of(cls, norm):
        gamma, beta = to_numpy(norm.gamma), to_numpy(norm.beta)
        if not hasattr(norm, "moving_variance"):
            return cls(gamma, beta)
        scale = gamma / np.sqrt(to_numpy(norm.moving_variance) + norm.epsilon)
        return cls(scale, beta - to_numpy(norm.moving_mean) * scale)

    def fold(self, kernel, bias):
        """(kernel, bias) [in, filters], [filters] that do to x what the given ones do to scale * x + offset."""
        return self.scale[:, None] * kernel, bias + self.offset @ kernel


class StreamingConvBlock:
    """Causal point-wise, dilated depthwise and point-wise convolution, with PReLU and norm, around a skip.

    Call: (history, x [frames, channels], norm, shift) -> (history, the same). `history` are inputs of the depthwise
    convolution; `norm` standardises, its scale and offset being part of the convolutions here; `shift` [units], if it
    is given, takes the place of the bias of the first convolution, as where a condition adds to it.

    Args:
        expand, reduce: point-wise convolutions; of a kernel with more inputs than x has channels the rest is left out.
        prelus: two of keras.layers.PReLU or models.layers.conv_tasnet.PReLU.
        norms: the two layers.
        kernel: [taps, units], the newest tap last, on the current frame.
        bias: [units], of the depthwise convolution; None: none.
        dilation: frames between taps.
    """

    def __init__(self, expand, prelus, norms, kernel, bias, dilation, reduce):
        kernel_in, bias_in = weights_of(expand)
        kernel_out, bias_out = weights_of(reduce)
        self.expand = [tensor(kernel_in[: kernel_out.shape[1]])] + ([] if expand.bias is None else [tensor(bias_in)])
        self.expand_prelu, self.depthwise_prelu = map(PReLU, prelus)
        affine = Affine.of(norms[0])
        taps = to_numpy(kernel)
        self.taps = [tensor(tap * affine.scale) for tap in taps]
        self.bias = tensor(taps.sum(axis=0) * affine.offset + (0 if bias is None else to_numpy(bias)))
        self.dilation = dilation
        self.history = np.tile(affine.root, ((len(taps) - 1) * dilation, 1))  # gives 0, which lies before the signal
        self.reduce = [tensor(x) for x in Affine.of(norms[1]).fold(kernel_out, bias_out)]

    @classmethod
    def of(cls, block):
        """Of a models.layers.conv_tasnet.ConvBlock."""
        kernel = to_numpy(block.kernel)[..., 0]
        return cls(
            block.expand,
            (block.expand_prelu, block.depthwise_prelu),
            (block.expand_norm, block.depthwise_norm),
            np.pad(kernel, ((0, block.taps // 2 if block.late else 0), (0, 0))),
            block.bias,
            block.dilation,
            block.reduce,
        )

    @classmethod
    def beside(cls, blocks):
        """One of maps [n, frames, channels] that does what n of these do, which have the same sizes and dilation."""
        one = cls.__new__(cls)
        one.expand, one.reduce, one.taps = (
            [beside(tensors) for tensors in zip(*(getattr(block, name) for block in blocks))]
            for name in ("expand", "reduce", "taps")
        )
        one.bias = beside([block.bias for block in blocks])
        one.expand_prelu = PReLU.beside([block.expand_prelu for block in blocks])
        one.depthwise_prelu = PReLU.beside([block.depthwise_prelu for block in blocks])
        one.history = np.stack([block.history for block in blocks])
        one.dilation = blocks[0].dilation
        return one

    def __call__(self, history, x, norm, shift=None):
        kernel, *bias = self.expand
        y = norm(self.expand_prelu(pointwise(x, kernel, *(bias if shift is None else [shift]))))
        past = ops.concatenate([history, y], axis=-2)
        far = (len(self.taps) - 1) * self.dilation
        shifted = [past[..., i * self.dilation : i * self.dilation - far, :] for i in range(len(self.taps) - 1)] + [y]
        y = total([x * tap for x, tap in zip(shifted, self.taps)]) + self.bias
        y = norm(self.depthwise_prelu(y))
        return past[..., -far:, :] if far else history, x + pointwise(y, *self.reduce)


class StreamingConvBlocks:
    """A series of causal models.layers.conv_tasnet.ConvBlock: (state, x [frames, channels], shifts) -> (state, the
    same).

    Args:
        series: several series of blocks [n][blocks], side by side, where x is [n, frames, channels]; or the blocks of
            one. All of one norm, which is not "global".

    Raises:
        ValueError: one needs frames to come.
    """

    def __init__(self, series):
        alone = not isinstance(series[0], (list, tuple))
        series = [series] if alone else series
        for block in sum(map(list, series), []):
            if not block.causal or block.norm == "global":
                what = "the global norm" if block.causal else "a convolution"
                raise ValueError(f"{block.name}: {what} looks at frames to come; only causal networks can stream")
        made = [[StreamingConvBlock.of(block) for block in blocks] for blocks in series]
        self.blocks = made[0] if alone else [StreamingConvBlock.beside(blocks) for blocks in zip(*made)]
        self.sides = () if alone else (len(series),)
        self.norm, self.epsilon = series[0][0].norm, series[0][0].epsilon

    def initial_state(self):
        state = {"histories": [tensor(block.history) for block in self.blocks]}
        if self.norm == "cumulative":
            state |= CumulativeMoments.initial_state(2 * len(self.blocks), self.sides)
        return state

    def __call__(self, state, x, shifts=()):
        """With shifts, {number of the block: what takes the place of its first bias}."""
        norm = {"channel": lambda x: standardise_channels(x, self.epsilon), "batch": lambda x: x}.get(self.norm)
        if norm is None:
            norm = CumulativeMoments(state["count"], state["moments"], ops.shape(x)[-2], self.epsilon)
        histories, shifts = [], dict(shifts)
        for i, block in enumerate(self.blocks):
            history, x = block(state["histories"][i], x, norm, shifts.get(i))
            histories.append(history)
        after = norm.after() if self.norm == "cumulative" else {}
        return {"histories": histories} | after, x


def standardise_channels(x, epsilon):
    """ChannelNorm without scale and offset."""
    mean, variance = ops.moments(x, axes=[-1], keepdims=True)
    return (x - mean) * ops.rsqrt(variance + epsilon)


class PReLU:
    """keras.layers.PReLU or models.layers.conv_tasnet.PReLU in few operations."""

    def __init__(self, layer):
        alpha = to_numpy(layer.alpha if hasattr(layer, "alpha") else layer.slope).reshape(-1)
        self.alpha, self.simple = tensor(alpha), np.all(alpha <= 1)

    @classmethod
    def beside(cls, prelus):
        """Of maps [n, frames, channels]."""
        one = cls.__new__(cls)
        one.alpha, one.simple = beside([prelu.alpha for prelu in prelus]), all(prelu.simple for prelu in prelus)
        return one

    def __call__(self, x):
        if self.simple:
            return ops.maximum(x, self.alpha * x)
        return ops.maximum(x, 0.0) + self.alpha * ops.minimum(x, 0.0)


class CumulativeMoments:
    """CumulativeNorm without scale and offset, for all norms of a network, called on one after the other.

    Args:
        count: frames so far.
        moments: [2, norms], mean and variance of these, of every norm; of networks side by side [2, networks, norms].
        frames: number of frames to come.
        epsilon: of the norms.
    """

    def __init__(self, count, moments, frames, epsilon):
        self.means, variances = ops.unstack(moments, axis=0)
        self.axis = len(self.means.shape) - 1  # of the frames
        # Sums of the deviations from the mean of the frames before, which is 0, and of their squares.
        starts = ops.stack([ops.zeros_like(variances), variances * count], axis=-1)
        if self.axis:
            starts = ops.expand_dims(starts, 1)
        self.starts = iter(zip(ops.unstack(self.means, axis=-1), ops.unstack(starts, axis=-2)))
        self.counts = count + ops.cast(ops.arange(1, frames + 1), "float32")
        self.inverse = (1.0 / self.counts)[:, None]
        self.epsilon = epsilon
        self.shifts, self.variances = [], []

    def __call__(self, x):
        features = list(range(self.axis + 1, x.ndim))
        mean, start = next(self.starts)
        if self.axis:
            mean = ops.reshape(mean, (-1, 1, 1))
        x = x - mean  # E[x^2] - m^2 cancels less then
        moments = ops.stack([ops.mean(x, features), ops.mean(ops.square(x), features)], axis=-1)
        shift, square = ops.split((ops.cumsum(moments, axis=self.axis) + start) * self.inverse, 2, axis=-1)
        variance = ops.maximum(square - ops.square(shift), 0.0)
        scale = ops.rsqrt(variance + self.epsilon)
        self.shifts.append(shift)
        self.variances.append(variance)
        if len(features) > 1:
            shift, scale = (ops.reshape(y, (-1, *[1] * len(features))) for y in (shift, scale))
        return (x - shift) * scale

    @staticmethod
    def initial_state(norms, sides=()):
        """Entries of the state of a network with so many norms; `sides`: (networks,) of several side by side."""
        return {"count": tensor(np.zeros(())), "moments": tensor(np.zeros((2, *sides, norms)))}

    def after(self):
        """The entries with the frames that came."""
        shifts, variances = (ops.concatenate(x, axis=-1)[..., -1, :] for x in (self.shifts, self.variances))
        return {"count": self.counts[-1], "moments": ops.stack([self.means + shifts, variances])}


def pointwise(x, kernel, bias=None):
    """[any, in] or [rows, frames, in] @ [in, filters] + bias, or [n, frames, in] @ [n, in, filters] + bias"""
    if x.ndim == 2 or kernel.ndim == 3:
        y = ops.matmul(x, kernel)
        return y if bias is None else y + bias
    flat = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), kernel) + bias
    return ops.reshape(flat, (x.shape[0], -1, kernel.shape[-1]))


def beside(tensors):
    """Of n networks each [a, b] or [b] -> [n, a, b] or [n, 1, b], for maps [n, frames, channels]."""
    return tensor(np.stack([np.atleast_2d(to_numpy(x)) for x in tensors]))


def total(tensors):
    """Their sum; that of Python begins with an addition to 0."""
    return functools.reduce(ops.add, tensors)


def weights_of(layer):
    """(kernel, bias) of a PointwiseConv."""
    return to_numpy(layer.kernel), np.zeros(layer.filters) if layer.bias is None else to_numpy(layer.bias)


def to_numpy(weight):
    return np.asarray(ops.convert_to_numpy(getattr(weight, "value", weight)), "float64")


def tensor(x):
    return ops.convert_to_tensor(to_numpy(x).astype("float32"))
