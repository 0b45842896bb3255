"""Dense-UNet: simultaneous grouping, the first stage of Deep CASA.

Sources: Liu and Wang, "Divide and Conquer: A Deep CASA Approach to Talker-Independent Monaural Speaker
Separation" (TASLP 27, 2019) and "Causal Deep CASA for Monaural Talker-Independent Speaker Separation"
(TASLP 28, 2020); reference repository yuzhou-git/deep-casa.
"""

import keras
from keras import ops

from models.layers.conv import DenseConv2D, FrequencyMapping, UpConv2D, portable, row_tiles, row_tiles_pay
from models.layers.norm import GlobalNorm, batch_norm


def output_size(size, scales):
    """Smallest size >= `size` that the valid convolutions of a `scales` deep net can give: 16n - 30 at 4."""
    step = 2**scales
    lost = 2 * step - 2
    return (size + lost + step - 1) // step * step - lost  # ONNX divides negative integers otherwise


def margin(scales):
    """Rows (or columns) that the valid convolutions take off each side: 46 at 4 scales."""
    return 3 * 2**scales - 2


def skip_crops(scales):
    """Rows to cut from both sides of each skip, deepest level first: 2, 8, 20, 44 at 4 scales."""
    crops = [2]
    while len(crops) < scales:
        crops.append(2 * crops[-1] + 4)
    return crops


def frequency_padding(bins, scales):
    """((before, after) of the network input, (before, after) of its output) for `bins` frequency bins."""
    surplus = output_size(bins, scales) - bins
    before, after = surplus // 2, surplus - surplus // 2
    side = margin(scales)
    return (side + before, side + after), (before, after)


def leading_frames(frames, scales, causal):
    """Zero frames that the net puts before an utterance (or batch) of `frames` frames; int or tensor."""
    return 0 * frames if causal else output_size(frames, scales) - frames


@keras.saving.register_keras_serializable("deep_casa.dense_unet")
class DenseBlock(keras.layers.Layer):
    """Five densely connected convolutions and a frequency mapping; ELU and norm after each.

    [batch, rows, columns, any] -> [batch, rows - 2, columns - 2, channels] (causal: columns unchanged).
    Called on a list of maps that stand for their concatenation.
    """

    def __init__(self, channels, causal=False, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.causal = causal
        columns = (2, 0) if causal else (1, 1)
        around = ((1, 1), columns)
        self.convs = [
            DenseConv2D(channels, 3, around, name="conv_0"),
            DenseConv2D(channels, 3, around, name="conv_1"),
            DenseConv2D(channels, 1, name="conv_2"),
            DenseConv2D(channels, 3, around, name="conv_3"),
            DenseConv2D(channels, 3, ((0, 0), columns if causal else (0, 0)), name="conv_4"),
        ]
        self.mapping = FrequencyMapping(name="mapping")
        make = batch_norm if causal else (lambda name: GlobalNorm(name=name))
        self.norms = [make(f"norm_{i}") for i in range(5)]
        self.mapping_norm = make("mapping_norm")

    def build(self, input_shapes):
        rows, shapes = input_shapes[0][1], list(input_shapes)
        shape = (None, rows, None, self.channels)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            conv.build(shapes)
            norm.build(shape)
            if i == 2:
                self.mapping.build(shape)
                self.mapping_norm.build(shape)
            shapes.append(shape)

    def call(self, maps, training=False):
        maps, rows = list(maps), maps[0].shape[1]
        # In training the tiles would wait in memory for the backward pass, half as large again as the maps.
        in_tiles = not training and row_tiles_pay(rows, self.channels, self.compute_dtype)
        left = 2 if self.causal else 0
        tiles = [row_tiles(x, left) for x in maps] if in_tiles else []
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = conv(tiles, rows=rows) if in_tiles and conv.kernel_size == (3, 3) else conv(maps)
            x = norm(ops.elu(x), training=training)
            if i == 2:
                x = self.mapping_norm(ops.elu(self.mapping(x)), training=training)
            maps.append(x)
            if in_tiles and i < 4:
                tiles.append(row_tiles(x, left))
        return x

    def get_config(self):
        return super().get_config() | {"channels": self.channels, "causal": self.causal}


@keras.saving.register_keras_serializable("deep_casa.dense_unet")
class DenseUNet(keras.Model):
    """Estimates, for every STFT frame of a mixture, the spectrum of each talker, in no particular order.

    Call: [batch, frames, bins, 2] (real, imaginary) -> [batch, talkers, frames, bins, 2]. Any number of
    frames; the padding that the architecture needs is added and removed inside. Utterances of a batch that
    are shorter than the longest end in zero frames. The norms see all padding, as in the original.

    Args:
        talkers: number of spectra to estimate.
        channels: feature maps of every layer.
        scales: number of down-samplings.
        bins: frequency bins of the STFT, fft_size // 2 + 1.
        causal: batch norm, pooling over frequency alone, and convolutions over the past two frames.
        dropout: rate before each down-sampling, not causal only.
        seed: of the dropout.
    """

    def __init__(self, talkers=2, channels=64, scales=4, bins=129, causal=False, dropout=0.5, seed=None, **kwargs):
        # Without autocast the mixture, which the masks multiply, stays float32 in mixed precision.
        super().__init__(**{"name": "dense_unet", "autocast": False} | kwargs)
        self.settings = dict(
            talkers=talkers, channels=channels, scales=scales, bins=bins, causal=causal, dropout=dropout
        )
        self.talkers = talkers
        self.bins = bins
        self.scales = scales
        self.causal = causal
        self.dropout = dropout
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.encoder = [DenseBlock(channels, causal, name=f"encoder_{i}") for i in range(scales + 1)]
        self.decoder = [DenseBlock(channels, causal, name=f"decoder_{i}") for i in range(scales)]
        self.ups = [UpConv2D(channels, (2, 1 if causal else 2), name=f"up_{i}") for i in range(scales)]
        norm = batch_norm if causal else (lambda name: GlobalNorm(name=name))
        self.up_norms = [norm(f"up_norm_{i}") for i in range(scales)]
        if causal:
            self.downs = [keras.layers.MaxPooling2D((2, 1), name=f"down_{i}") for i in range(scales)]
        else:
            self.downs = [
                keras.layers.DepthwiseConv2D(
                    2,
                    strides=2,
                    use_bias=False,
                    depthwise_initializer=keras.initializers.RandomNormal(stddev=0.5),
                    name=f"down_{i}",
                )
                for i in range(scales)
            ]
        self.hidden = DenseConv2D(channels, 1, kernel_initializer="glorot_uniform", name="hidden")
        self.masks = DenseConv2D(2 * talkers, 1, kernel_initializer="glorot_uniform", name="masks")
        self.build((None, None, bins, 2))

    def build(self, input_shape):
        # From the sizes, where Keras would trace every block twice and the net once.
        (before, after), _ = frequency_padding(self.bins, self.scales)
        rows = self.bins + before + after

        def shape(channels=self.settings["channels"]):
            return (None, rows, None, channels)

        self.encoder[0].build([shape(2)])
        for down, block in zip(self.downs, self.encoder[1:]):
            rows -= 2
            down.build(shape())
            rows //= 2
            block.build([shape()])
        for up, norm, block in zip(self.ups, self.up_norms, self.decoder):
            up.build(shape())
            rows = 2 * (rows - 2)
            norm.build(shape())
            block.build([shape(), shape()])
        self.hidden.build([shape()])
        self.masks.build([shape()])

    def call(self, mixture, training=False):
        masks = self.estimate_masks(mixture, training)  # [B, F, T, C * 2]
        batch, frames, bins, _ = ops.shape(mixture)
        masks = ops.reshape(masks, (batch, bins, frames, self.talkers, 2))
        masks = ops.transpose(masks, (0, 3, 2, 1, 4))  # [B, C, T, F, 2]
        mask_real, mask_imaginary = masks[..., 0], masks[..., 1]
        # Not mixture[:, None, ..., 0]: TensorFlow's graph optimiser gets that wrong behind an STFT.
        real, imaginary = ops.split(ops.expand_dims(mixture, 1), 2, axis=-1)
        real, imaginary = ops.squeeze(real, -1), ops.squeeze(imaginary, -1)
        return ops.stack(
            [
                mask_real * real - mask_imaginary * imaginary,
                mask_real * imaginary + mask_imaginary * real,
            ],
            axis=-1,
        )

    def estimate_masks(self, mixture, training=False):
        """[batch, frames, bins, 2] -> the complex masks, [batch, bins, frames, talkers * 2], float32."""
        frames = ops.shape(mixture)[1]
        leading = leading_frames(frames, self.scales, self.causal)
        side = 0 if self.causal else margin(self.scales)
        rows, (extra, _) = frequency_padding(self.bins, self.scales)
        x = ops.transpose(mixture, (0, 2, 1, 3))  # [B, F, T, 2]
        x = ops.pad(x, ((0, 0), rows, (side + leading, side), (0, 0)))
        x = self.network(x, training)
        return uncompress(x[:, extra : extra + self.bins, leading:])

    def network(self, x, training=False):
        """Padded input [batch, rows, columns, 2] -> linear mask outputs, smaller by the margins."""
        skips = []
        x = self.encoder[0]([x], training=training)
        for i in range(self.scales):
            skips.append(x)
            if training and self.dropout > 0.0 and not self.causal:
                x = keras.random.dropout(x, self.dropout, seed=self.seed_generator)
            x = self.encoder[i + 1]([self.downs[i](x)], training=training)
        for i, crop in enumerate(skip_crops(self.scales)):
            x = self.up_norms[i](ops.elu(self.ups[i](x)), training=training)
            # By ops.slice: on CPU the gradient of an indexed slice takes many times longer.
            skip = ops.slice(skips.pop(), (0, crop, 0 if self.causal else crop, 0), ops.shape(x))
            x = self.decoder[i]([skip, x], training=training)
        return self.masks([ops.elu(self.hidden([x]))])

    def get_config(self):
        return super().get_config() | self.settings


def uncompress(x):
    """Network output -> unbounded mask value: -10 ln((10 - x) / (10 + x)), x clipped to +-9.999."""
    x = ops.clip(ops.cast(x, "float32"), -9.999, 9.999)
    if not portable():
        return 20.0 * ops.arctanh(x / 10.0)
    # LiteRT lacks arctanh, and the logarithm alone would round small values away: their series.
    y = x / 10.0
    square = ops.square(y)
    series = 20.0 * y * (1.0 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square / 9))))
    return ops.where(square < 0.01, series, 10.0 * ops.log((10.0 + x) / (10.0 - x)))
