"""Normalisation layers. All of them compute in float32, whatever the precision of the network."""

import math

import keras
import numpy as np
from keras import ops

from models.layers.conv import portable


class ScaledNorm(keras.layers.Layer):
    """Base of norms that end in a scale (gamma) and an offset (beta) per channel, the last axis."""

    def __init__(self, epsilon, **kwargs):
        super().__init__(**kwargs | {"dtype": "float32"})
        self.epsilon = epsilon

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=input_shape[-1:], initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=input_shape[-1:], initializer="zeros", name="beta")

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon}


@keras.saving.register_keras_serializable("deep_casa.layers")
class GlobalNorm(ScaledNorm):
    """Mean and biased variance over every axis but the batch.

    Input and output: [batch, ..., channels]. Equal to tf.contrib.layers.layer_norm, which Deep CASA
    used, and to GroupNormalization with one group; padding counts like any other value.
    """

    def __init__(self, epsilon=1e-12, **kwargs):
        super().__init__(epsilon, **kwargs)

    def call(self, x):
        axes = list(range(1, x.ndim))
        if portable():
            # Axis by axis, because ONNX Runtime sums millions of values one after the other, in float32.
            mean = mean_by_axis(x, axes)
            variance = mean_by_axis(ops.square(x - mean), axes)
        else:
            mean, variance = ops.moments(x, axes=axes, keepdims=True)
        # Two passes over x instead of four: (x - mean) / std * gamma + beta, multiplied out.
        scale = self.gamma * ops.rsqrt(variance + self.epsilon)
        return x * scale + (self.beta - mean * scale)


def mean_by_axis(x, axes):
    """Mean over axes, which are kept with size 1, one after the other."""
    for axis in axes:
        x = ops.mean(x, axis=axis, keepdims=True)
    return x


@keras.saving.register_keras_serializable("deep_casa.layers")
class GroupNorm(ScaledNorm):
    """Mean and biased variance of neighbouring channels, over all positions.

    Input and output: [batch, rows, columns, channels]. min(channels // 4, 32) groups, as in NCSN++.
    """

    def __init__(self, epsilon=1e-6, **kwargs):
        super().__init__(epsilon, **kwargs)

    def build(self, input_shape):
        channels = input_shape[-1]
        self.groups = max(1, min(channels // 4, 32))
        if channels % self.groups:
            raise ValueError(f"{channels} channels make no {self.groups} equal groups; take a multiple of 32")
        super().build(input_shape)

    def call(self, x):
        scale, shift = self.scale_and_shift(x)
        return x * scale + shift

    def scale_and_shift(self, x):
        """What x is multiplied by, and what is added then: [batch, 1, 1, channels] twice, float32."""
        mean, rstd = group_statistics(x, self.groups, self.epsilon)
        scale = self.gamma * rstd
        return scale, self.beta - mean * scale


def group_statistics(x, groups, epsilon):
    """Mean and 1 / (standard deviation) that each channel of [batch, rows, columns, channels] is normed with.

    Two tensors [batch, 1, 1, channels], float32. By channel first, which reads x in its order in memory.
    """
    size = x.shape[-1] // groups
    means, variances = (ops.reshape(y, (-1, groups, size)) for y in ops.moments(ops.cast(x, "float32"), axes=[1, 2]))
    mean = ops.mean(means, axis=2, keepdims=True)
    variance = ops.mean(variances + ops.square(means - mean), axis=2, keepdims=True)
    spread, shape = np.ones((1, 1, size), np.float32), (-1, 1, 1, x.shape[-1])
    return ops.reshape(mean * spread, shape), ops.reshape(ops.rsqrt(variance + epsilon) * spread, shape)


@keras.saving.register_keras_serializable("deep_casa.layers")
class CumulativeNorm(ScaledNorm):
    """Layer norm whose statistics at frame t cover the frames 0..t, so that nothing of the future is used.

    Input and output: [batch, frames, ..., channels].
    Source: Causal Deep CASA (Liu and Wang, 2020), reference repository yuzhou-git/deep-casa.
    """

    def __init__(self, epsilon=1e-3, **kwargs):
        super().__init__(epsilon, **kwargs)

    def call(self, x):
        features = list(range(2, x.ndim))
        frame_mean, frame_variance = ops.moments(x, axes=features, keepdims=True)  # [B, T, 1.., 1]
        count = ops.cumsum(ops.ones_like(frame_mean), axis=1)
        # E[x^2] - m^2 cancels in float32. Deviations from the first frame's mean are as causal and stay small.
        origin = frame_mean[:, :1]
        deviation = frame_mean - origin
        mean_deviation = ops.cumsum(deviation, axis=1) / count
        second_moment = ops.cumsum(frame_variance + ops.square(deviation), axis=1) / count
        variance = ops.maximum(second_moment - ops.square(mean_deviation), 0.0)
        scale = self.gamma * ops.rsqrt(variance + self.epsilon)
        return (x - (origin + mean_deviation)) * scale + self.beta


@keras.saving.register_keras_serializable("deep_casa.layers")
class ChannelNorm(ScaledNorm):
    """Layer norm over the channels of each frame.

    Input and output: [batch, ..., channels]. The "cLN" of Conv-TasNet's PyTorch reimplementations.
    """

    def __init__(self, epsilon=1e-5, **kwargs):
        super().__init__(epsilon, **kwargs)

    def call(self, x):
        mean, variance = ops.moments(x, axes=[-1], keepdims=True)
        return (x - mean) * (ops.rsqrt(variance + self.epsilon) * self.gamma) + self.beta


@keras.saving.register_keras_serializable("deep_casa.layers")
class BatchNorm(ScaledNorm):
    """Batch norm as PyTorch computes it: the moving variance takes up the unbiased variance of a batch.

    Input and output: [batch, ..., channels].

    Args:
        momentum: share of the old value that the moving statistics keep.
    """

    def __init__(self, epsilon=1e-5, momentum=0.9, **kwargs):
        super().__init__(epsilon, **kwargs)
        self.momentum = momentum

    def build(self, input_shape):
        super().build(input_shape)
        shape = input_shape[-1:]
        self.moving_mean = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="moving_mean")
        self.moving_variance = self.add_weight(shape=shape, initializer="ones", trainable=False, name="moving_variance")

    def call(self, x, training=False, frame_mask=None):
        """With frame_mask [batch, frames, 1], of such inputs, only frames that have 1 count in the statistics."""
        mean, variance = self.moving_mean, self.moving_variance
        if training:
            mean, variance = self.take_up(x, frame_mask)
        scale = self.gamma * ops.rsqrt(variance + self.epsilon)
        return x * scale + (self.beta - mean * scale)

    def take_up(self, x, frame_mask=None):
        """Mean and variance of a batch, [channels] each, with which the moving statistics are brought up to date."""
        if frame_mask is None:
            *axes, _ = ops.shape(x)
            count = ops.cast(math.prod(axes), "float32")
            mean, variance = ops.moments(x, axes=list(range(len(axes))))
        else:
            count = ops.maximum(ops.sum(frame_mask), 1.0)
            mean = ops.sum(x * frame_mask, axis=[0, 1]) / count
            variance = ops.sum(ops.square(x - mean) * frame_mask, axis=[0, 1]) / count
        unbiased = variance * count / ops.maximum(count - 1.0, 1.0)
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, unbiased)):
            moving.assign(self.momentum * moving + (1.0 - self.momentum) * ops.stop_gradient(new))
        return mean, variance

    def rectified(self, x):
        """relu(self(x, training=True)) for large maps: of its values the gradient needs x alone."""
        x = ops.cast(x, "float32")
        mean, variance = map(ops.stop_gradient, self.take_up(ops.stop_gradient(x)))
        # Values, as TensorFlow's functions with gradients of their own take no variables.
        gamma, beta = 1.0 * self.gamma, 1.0 * self.beta
        return _rectified(x, gamma, beta, mean, ops.rsqrt(variance + self.epsilon))

    def scale_and_offset(self):
        """What values are multiplied by, and what is added then, outside training: [channels] twice, float32."""
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
        return scale, self.beta - self.moving_mean * scale

    def get_config(self):
        return super().get_config() | {"momentum": self.momentum}


@ops.custom_gradient
def _rectified(x, gamma, beta, mean, inverse_deviation):
    """relu of batch norm; the gradient takes mean and deviation to be those of x."""
    scale = gamma * inverse_deviation
    offset = beta - mean * scale

    def gradient(*arguments, upstream=None):
        upstream = arguments[0] if upstream is None else upstream
        axes = list(range(len(x.shape) - 1))
        count = ops.cast(math.prod(ops.shape(x)[:-1]), "float32")
        kept = ops.where(x * scale + offset > 0.0, upstream, 0.0)
        of_beta = ops.sum(kept, axis=axes)
        of_gamma = (ops.sum(kept * x, axis=axes) - mean * of_beta) * inverse_deviation
        slope = scale * inverse_deviation * of_gamma / count
        of_x = scale * kept - (slope * x + (scale * of_beta / count - slope * mean))
        return of_x, of_gamma, of_beta, ops.zeros_like(mean), ops.zeros_like(mean)

    return ops.relu(x * scale + offset), gradient


def frame_statistics(x, frame_mask=None):
    """Mean and biased variance of every item of [..., frames, channels], in float32: [..., 1, 1] twice.

    For maps whose mean is not large against their deviation, such as those behind a rectifier: the variance is
    the mean square less the square of the mean, which reads x without writing as much again.

    Args:
        frame_mask: [batch, frames, 1]; where it is 0, x must be 0 and is not counted.
    """
    x = ops.cast(x, "float32")
    count = value_count(x, frame_mask)
    # Axis by axis in other runtimes, as in GlobalNorm.
    axes = (-2, -1) if portable() else ((-2, -1),)
    mean, power = x, ops.square(x)
    for axis in axes:
        mean, power = (ops.sum(y, axis=axis, keepdims=True) for y in (mean, power))
    mean, power = mean / count, power / count
    return mean, ops.maximum(power - ops.square(mean), 0.0)


def value_count(x, frame_mask=None):
    """Values of an item that count in `frame_statistics`, float32."""
    *_, frames, channels = ops.shape(x)
    if frame_mask is None:
        return ops.cast(frames * channels, "float32")
    return ops.maximum(ops.sum(frame_mask, axis=(-2, -1), keepdims=True), 1.0) * channels


def batch_norm(name):
    """Batch norm of the causal Dense-UNet: over all axes but channels, moving statistics decaying by 0.999."""
    return keras.layers.BatchNormalization(momentum=0.999, epsilon=1e-3, dtype="float32", name=name)
