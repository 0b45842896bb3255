"""InceptionResnetV1, which turns a face into 512 numbers of whose it is.

Szegedy et al., "Inception-v4, Inception-ResNet and the impact of residual connections on learning", AAAI 2017, in the
size and naming of timesler/facenet-pytorch 2.6.0.
"""

import keras
from keras import layers, ops

EPSILON = 1e-3  # of all batch normalisations
SCALES = {"block35": 0.17, "block17": 0.10, "block8": 0.20}  # of a block's residual; that of the last is 1
_BLOCK35 = {
    "branch0": [(32, 1, 1, 0)],
    "branch1": [(32, 1, 1, 0), (32, 3, 1, 1)],
    "branch2": [(32, 1, 1, 0), (32, 3, 1, 1), (32, 3, 1, 1)],
}
_BLOCK17 = {
    "branch0": [(128, 1, 1, 0)],
    "branch1": [(128, 1, 1, 0), (128, (1, 7), 1, (0, 3)), (128, (7, 1), 1, (3, 0))],
}
_BLOCK8 = {"branch0": [(192, 1, 1, 0)], "branch1": [(192, 1, 1, 0), (192, (1, 3), 1, (0, 1)), (192, (3, 1), 1, (1, 0))]}
# Series of blocks: how many, of what, between how many channels.
_SERIES = {
    "repeat_1": (5, "block35", _BLOCK35, 256),
    "repeat_2": (10, "block17", _BLOCK17, 896),
    "repeat_3": (5, "block8", _BLOCK8, 1792),
}
_MIXED_6A = {"branch0": [(384, 3, 2, 0)], "branch1": [(192, 1, 1, 0), (192, 3, 1, 1), (256, 3, 2, 0)]}
_MIXED_7A = {
    "branch0": [(256, 1, 1, 0), (384, 3, 2, 0)],
    "branch1": [(256, 1, 1, 0), (256, 3, 2, 0)],
    "branch2": [(256, 1, 1, 0), (256, 3, 1, 1), (256, 3, 2, 0)],
}


@keras.saving.register_keras_serializable("deep_casa.looking_to_listen")
class FaceConv(layers.Layer):
    """Convolution without bias, batch normalisation, ReLU: `[batch, height, width, channels]`.

    Args:
        filters: channels that come out.
        kernel: size, a number or (height, width).
        stride: of both axes.
        padding: zeros on every side, a number or (height, width); with stride 1, such as keep the size.
        epsilon: of the normalisation.
    """

    def __init__(self, filters, kernel, stride=1, padding=0, epsilon=EPSILON, **kwargs):
        super().__init__(**kwargs)
        self.settings = dict(filters=filters, kernel=kernel, stride=stride, padding=padding, epsilon=epsilon)
        self.padding = (padding, padding) if isinstance(padding, int) else tuple(padding)
        same = stride == 1 and self.padding != (0, 0)
        self.conv = layers.Conv2D(
            filters, kernel, stride, padding="same" if same else "valid", use_bias=False, name="conv"
        )
        self.bn = layers.BatchNormalization(epsilon=epsilon, name="bn")

    def build(self, shape):
        self.conv.build(shape)
        self.bn.build(self.conv.compute_output_shape(shape))

    def call(self, inputs, training=False):
        return ops.relu(self.bn(self.conv(inputs), training=training))

    def get_config(self):
        return super().get_config() | self.settings


class _Branches:
    """Branches of convolutions side by side; `name` is what stands before their names."""

    def __init__(self, model, name, branches):
        self.paths = []
        for branch, steps in branches.items():
            dotted = len(steps) > 1 or name in ("mixed_7a",)
            names = [f"{name}.{branch}.{i}" if dotted else f"{name}.{branch}" for i in range(len(steps))]
            self.paths.append([model.keep_conv(title, step) for title, step in zip(names, steps)])

    def __call__(self, x, training):
        outputs = []
        for path in self.paths:
            y = x
            for layer in path:
                y = layer(y, training=training)
            outputs.append(y)
        return outputs


@keras.saving.register_keras_serializable("deep_casa.looking_to_listen")
class InceptionResnetV1(keras.Model):
    """Crops of faces to unit vectors.

    Input `[batch, 160, 160, 3]`, RGB, standardised as (pixel - 127.5) / 128; output `[batch, 512]`. Other sizes from
    75 pixels up work too. `parts` is {name in facenet-pytorch: layer}.

    Args:
        dim: numbers that come out.
        scales: of the residuals of the three kinds of blocks; see SCALES.
        epsilon: of all batch normalisations.
    """

    def __init__(self, dim=512, scales=None, epsilon=EPSILON, **kwargs):
        super().__init__(**kwargs)
        self.dim, self.scales, self.epsilon = dim, SCALES | dict(scales or {}), epsilon
        self.parts = {}
        stem = dict(
            conv2d_1a=(32, 3, 2, 0), conv2d_2a=(32, 3, 1, 0), conv2d_2b=(64, 3, 1, 1), conv2d_3b=(80, 1, 1, 0),
            conv2d_4a=(192, 3, 1, 0), conv2d_4b=(256, 3, 2, 0),
        )  # fmt: skip
        self.stem = [self.keep_conv(name, sizes) for name, sizes in stem.items()]
        self.series = [
            [self._block(f"{name}.{i}", branches, width, self.scales[kind]) for i in range(count)]
            for name, (count, kind, branches, width) in _SERIES.items()
        ]
        self.last_block = self._block("block8", _BLOCK8, 1792, 1.0)
        self.mixed = [_Branches(self, "mixed_6a", _MIXED_6A), _Branches(self, "mixed_7a", _MIXED_7A)]
        self.pool = layers.MaxPooling2D(3, 2, name="pool")
        self.last_linear = self.keep("last_linear", layers.Dense(dim, use_bias=False, name="last_linear"))
        self.last_bn = self.keep("last_bn", layers.BatchNormalization(epsilon=epsilon, name="last_bn"))

    def keep(self, name, layer):
        """Keeps a layer under its name in facenet-pytorch, and gives it."""
        self.parts[name] = layer
        return layer

    def keep_conv(self, name, sizes):
        """`keep` for a FaceConv of (filters, kernel, stride, padding)."""
        return self.keep(name, FaceConv(*sizes, epsilon=self.epsilon, name=name.replace(".", "_")))

    def _block(self, name, branches, width, scale):
        """Branches, the convolution that brings them back to `width` channels, and the scale of their sum."""
        branch = _Branches(self, name, branches)
        up = layers.Conv2D(width, 1, name=name.replace(".", "_") + "_conv2d")
        return branch, self.keep(f"{name}.conv2d", up), scale

    def call(self, inputs, training=False):
        x = inputs
        for i, layer in enumerate(self.stem):
            x = layer(x, training=training)
            x = self.pool(x) if i == 2 else x
        for i, series in enumerate(self.series):
            for block in series:
                x = ops.relu(_residual(block, x, training))
            if i < len(self.mixed):
                x = ops.concatenate([*self.mixed[i](x, training), self.pool(x)], axis=-1)
        x = _residual(self.last_block, x, training)
        x = self.last_bn(self.last_linear(ops.mean(x, axis=(1, 2))), training=training)
        return x / ops.maximum(ops.norm(x, axis=-1, keepdims=True), 1e-12)

    def get_config(self):
        return super().get_config() | dict(dim=self.dim, scales=dict(self.scales), epsilon=self.epsilon)


def _residual(block, x, training):
    branch, up, scale = block
    return x + scale * up(ops.concatenate(branch(x, training), axis=-1))
