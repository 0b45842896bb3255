"""NCSN++ on compressed spectrograms: the score network of DiffSep.

Sources: Scheibler et al., "Diffusion-based Generative Speech Source Separation", ICASSP 2023; Song et al.,
"Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021; reference repository
fakufaku/diffusion-separation.

Maps are [batch, rows, columns, channels], rows being frequency bins and columns frames.
"""

import keras
import numpy as np
from keras import ops

from models.layers.conv import Conv3x3, PointwiseConv, activated, pointwise
from models.layers.conv_tasnet import fit
from models.layers.fir import downsample, filtered_for_stride, upsample
from models.layers.norm import GroupNorm
from models.layers.spectral import centred_istft, centred_stft

PROGRESSIVE = ("output_skip", "none")
PROGRESSIVE_INPUT = ("input_skip", "residual", "none")
COMBINE = ("sum", "cat")
BLOCKS = ("biggan", "ddpm")
TRANSFORMS = ("exponent", "log", "none")
LEAK = 0.2
FRAME_MULTIPLE = 64  # to which the reference fills up frames, whatever the depth


def swish_derivative(x):
    gate = ops.sigmoid(x)
    return gate * (1 + x * (1 - gate))


# Functions and their derivatives.
NONLINEARITIES = {
    "swish": (ops.silu, swish_derivative),
    "elu": (ops.elu, lambda x: ops.exp(ops.minimum(x, 0.0))),
    "relu": (ops.relu, lambda x: ops.cast(x > 0, x.dtype)),
    "lrelu": (
        lambda x: ops.leaky_relu(x, negative_slope=LEAK),
        lambda x: ops.where(x > 0, 1.0, LEAK),
    ),
}


def uniform(scale=1.0):
    """Initialiser of kernels: uniform, variance scale / (mean of inputs and outputs)."""
    return keras.initializers.VarianceScaling(max(scale, 1e-10), "fan_avg", "uniform")


def dense(filters, name, scale=1.0):
    return PointwiseConv(filters, kernel_initializer=uniform(scale), name=name)


# Parts ----------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("deep_casa.ncsnpp")
class FourierEmbedding(keras.layers.Layer):
    """Sines, then cosines, of log times at random frequencies, which are not trained.

    [batch] -> [batch, 2 * size], float32: the arguments are of the order of 1000 radians.
    """

    def __init__(self, size, scale=16.0, **kwargs):
        super().__init__(**kwargs | {"dtype": "float32"})
        self.size = size
        self.scale = scale

    def build(self, input_shape=None):
        normal = keras.initializers.RandomNormal(stddev=self.scale)
        self.frequencies = self.add_weight(shape=(self.size,), initializer=normal, trainable=False, name="frequencies")

    def call(self, log_time):
        angles = ops.expand_dims(log_time, 1) * self.frequencies * np.float32(2 * np.pi)
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)

    def get_config(self):
        return super().get_config() | {"size": self.size, "scale": self.scale}


@keras.saving.register_keras_serializable("deep_casa.ncsnpp")
class ResidualBlock(keras.layers.Layer):
    """Two times norm, nonlinearity and 3x3 convolution, beside a shortcut.

    Call: x [batch, rows, columns, channels] and, if there is one, the time's bias [batch, filters], see `time_bias`;
    gives [batch, rows', columns', filters].

    Args:
        filters: output channels.
        kind: "biggan", or "ddpm", which resamples nothing.
        resample: "up" or "down", by 2, or None.
        fir: kernel of the resampling, None for none.
        nonlinearity: a key of NONLINEARITIES.
        rescale: divides the sum with the shortcut by the root of 2.
        init_scale: of the last kernel at first.
        dropout: rate before the last convolution.
        wide_shortcut: of "ddpm": a 3x3 convolution is the shortcut, not a 1x1.
    """

    def __init__(
        self,
        filters,
        kind="biggan",
        resample=None,
        fir=(1, 3, 3, 1),
        nonlinearity="swish",
        rescale=True,
        init_scale=0.0,
        dropout=0.0,
        wide_shortcut=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.settings = dict(
            filters=filters,
            kind=kind,
            resample=resample,
            fir=fir,
            nonlinearity=nonlinearity,
            rescale=rescale,
            init_scale=init_scale,
            dropout=dropout,
            wide_shortcut=wide_shortcut,
        )
        self.filters = filters
        self.kind = kind
        self.fir = fir
        self.resample = {None: None, "up": upsample, "down": downsample}[resample]
        self.up = resample == "up"
        self.activation = NONLINEARITIES[nonlinearity]
        self.factor = 0.5**0.5 if rescale else 1.0
        self.wide_shortcut = wide_shortcut
        self.norm_0 = GroupNorm(name="norm_0")
        self.conv_0 = Conv3x3(filters, uniform(), name="conv_0")
        self.dense_0 = dense(filters, "dense_0")
        self.norm_1 = GroupNorm(name="norm_1")
        self.dropped = keras.layers.Dropout(dropout, name="dropout") if dropout else None
        self.conv_1 = Conv3x3(filters, uniform(init_scale), name="conv_1")
        self.shortcut = None

    def build(self, input_shape, time_size=None):
        channels = input_shape[-1]
        if channels != self.filters or self.resample:
            if self.kind == "biggan":
                self.shortcut = dense(self.filters, "conv_2")
            else:
                wide = self.wide_shortcut
                self.shortcut = (
                    Conv3x3(self.filters, uniform(), name="conv_2") if wide else dense(self.filters, "nin_0", 0.1)
                )
        inside = (None, None, None, self.filters)
        self.norm_0.build(input_shape)
        self.conv_0.build(input_shape)
        if time_size is not None:
            self.dense_0.build((None, time_size))
        self.norm_1.build(inside)
        self.conv_1.build(inside)
        if self.shortcut is not None:
            self.shortcut.build(input_shape)

    def time_bias(self, embedding):
        """[batch, size], after the nonlinearity -> what is added to the first convolution, [batch, filters]."""
        return self.dense_0(embedding)

    def call(self, x, time_bias=None, training=False):
        scale, shift = self.norm_0.scale_and_shift(x)
        if self.resample:
            h = self.resample(activated(x, scale, shift, self.activation), self.fir)
            h = self.conv_0(h, bias=time_bias)
        else:
            h = self.conv_0(x, bias=time_bias, scale=scale, shift=shift, activation=self.activation)
        scale, shift = self.norm_1.scale_and_shift(h)
        if self.dropped is not None and training:
            h = self.conv_1(self.dropped(activated(h, scale, shift, self.activation), training=True))
        else:
            h = self.conv_1(h, scale=scale, shift=shift, activation=self.activation)
        return (self.beside(x) + h) * self.factor

    def beside(self, x):
        """What the shortcut gives."""
        if not self.resample:
            return x if self.shortcut is None else self.shortcut(x)
        if not self.up:
            return self.shortcut(self.resample(x, self.fir))
        # Both are linear: the product is a quarter of the work before the map grows.
        x = self.resample(pointwise(x, self.shortcut.kernel), self.fir)
        return x + ops.cast(self.shortcut.bias, x.dtype)

    def get_config(self):
        return super().get_config() | self.settings


@keras.saving.register_keras_serializable("deep_casa.ncsnpp")
class Attention(keras.layers.Layer):
    """Attention of all positions to all, one head, beside a shortcut; [batch, rows, columns, channels] as before."""

    def __init__(self, rescale=True, init_scale=0.0, **kwargs):
        super().__init__(**kwargs)
        self.settings = dict(rescale=rescale, init_scale=init_scale)
        self.factor = 0.5**0.5 if rescale else 1.0
        self.init_scale = init_scale

    def build(self, input_shape):
        self.norm_0 = GroupNorm(name="norm_0")
        self.products = [dense(input_shape[-1], f"nin_{i}", 0.1 if i < 3 else self.init_scale) for i in range(4)]
        for layer in (self.norm_0, *self.products):
            layer.build(input_shape)

    def call(self, x):
        batch, rows, columns, channels = ops.shape(x)
        h = ops.reshape(ops.cast(self.norm_0(x), self.compute_dtype), (batch, rows * columns, channels))
        query, key, value = (product(h) for product in self.products[:3])
        scores = ops.matmul(query * channels**-0.5, ops.transpose(key, (0, 2, 1)))
        weights = ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=-1), self.compute_dtype)
        h = self.products[3](ops.matmul(weights, value))
        return (x + ops.reshape(h, (batch, rows, columns, channels))) * self.factor

    def get_config(self):
        return super().get_config() | self.settings


@keras.saving.register_keras_serializable("deep_casa.ncsnpp")
class Combine(keras.layers.Layer):
    """The input pyramid, through a 1x1 convolution to h's channels, added to h ("sum") or put before it ("cat")."""

    def __init__(self, filters, method="sum", **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.method = method

    def build(self, pyramid_shape):
        self.conv_0 = dense(self.filters, "conv_0")
        self.conv_0.build(pyramid_shape)

    def call(self, pyramid, h):
        pyramid = self.conv_0(pyramid)
        return pyramid + h if self.method == "sum" else ops.concatenate([pyramid, h], axis=-1)

    def get_config(self):
        return super().get_config() | {"filters": self.filters, "method": self.method}


@keras.saving.register_keras_serializable("deep_casa.ncsnpp")
class StridedConv(keras.layers.Layer):
    """Half the rows and columns by a 3x3 convolution of stride 2, behind a FIR filter if there is one."""

    def __init__(self, filters, fir=(1, 3, 3, 1), **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.fir = fir

    def build(self, input_shape):
        name = "conv_0" if self.fir is None else "conv2d_0"
        self.conv = Conv3x3(self.filters, uniform(), name=name)
        self.conv.build(input_shape)

    def call(self, x):
        if self.fir is None:
            x = ops.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        else:
            x = filtered_for_stride(x, self.fir)
        kernel, bias = (ops.cast(weight, x.dtype) for weight in (self.conv.kernel, self.conv.bias))
        return ops.conv(x, kernel, strides=2, padding="valid", data_format="channels_last") + bias

    def get_config(self):
        return super().get_config() | {"filters": self.filters, "fir": self.fir}


# Network --------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("deep_casa.ncsnpp")
class NCSNpp(keras.layers.Layer):
    """U-Net of residual blocks that is told a time.

    Call: x [batch, rows, columns, inputs], time [batch] -> [batch, rows, columns, outputs], float32. Rows and columns
    are multiples of 2 ** (len(multipliers) - 1). Instead of the time, `biases`, what `time_biases` gives for it.

    Args:
        inputs, outputs: channels.
        rows: of the maps; says at which level they have the height where `attention` is.
        channels: of the first level; a multiple of 4 up to 128, of 32 beyond.
        multipliers: channels of each level, over those of the first; every level has half the rows and columns.
        blocks: residual blocks of a level; one more on the way up.
        attention: numbers of rows after whose blocks there is attention; those that no level has are passed by.
        fir: kernel of the resampling; None: means, and repetition.
        block: "biggan", or "ddpm", where maps are resampled without a convolution between blocks.
        wide_shortcut: of "ddpm": 3x3 convolutions, not 1x1, where the number of channels changes.
        progressive: "output_skip": the output is the sum of those of all levels; "none": that of the last.
        progressive_input: what every level sees of the input: "input_skip", "residual" or "none".
        combine: "sum" or "cat", of "input_skip".
        rescale: sums are divided by the root of 2.
        nonlinearity: "swish", "elu", "relu" or "lrelu".
        conditional: the blocks are told the time.
        centred: the input is taken as it is, not as 2 x - 1.
        divide_by_time: the output, before its 1x1 convolution.
        fourier_scale: standard deviation of the frequencies of the time's embedding.
        dropout: rate in the blocks.
        init_scale: of the last kernel of every block at first; 0 stands for 1e-10.

    Raises:
        ValueError: for what is not among these.
    """

    def __init__(
        self,
        inputs,
        outputs,
        rows,
        channels=128,
        multipliers=(1, 1, 2, 2, 2, 2, 2),
        blocks=2,
        attention=(16,),
        fir=(1, 3, 3, 1),
        block="biggan",
        wide_shortcut=False,
        progressive="output_skip",
        progressive_input="input_skip",
        combine="sum",
        rescale=True,
        nonlinearity="swish",
        conditional=True,
        centred=False,
        divide_by_time=True,
        fourier_scale=16.0,
        dropout=0.0,
        init_scale=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value, known in (
            ("nonlinearity", nonlinearity, NONLINEARITIES),
            ("progressive", progressive, PROGRESSIVE),
            ("progressive_input", progressive_input, PROGRESSIVE_INPUT),
            ("combine", combine, COMBINE),
            ("block", block, BLOCKS),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r}: should be one of {', '.join(known)}")
        heights = [rows // 2**i for i in range(len(multipliers))]
        if rows != heights[-1] * 2 ** (len(multipliers) - 1):
            raise ValueError(f"{rows} rows cannot be halved {len(multipliers) - 1} times; take fewer levels")
        self.settings = dict(
            inputs=inputs,
            outputs=outputs,
            rows=rows,
            channels=channels,
            multipliers=list(multipliers),
            blocks=blocks,
            attention=list(attention),
            fir=None if fir is None else list(fir),
            block=block,
            wide_shortcut=wide_shortcut,
            progressive=progressive,
            progressive_input=progressive_input,
            combine=combine,
            rescale=rescale,
            nonlinearity=nonlinearity,
            conditional=conditional,
            centred=centred,
            divide_by_time=divide_by_time,
            fourier_scale=fourier_scale,
            dropout=dropout,
            init_scale=init_scale,
        )
        self.fir = fir
        self.multiple = 2 ** (len(multipliers) - 1)
        self.activation = NONLINEARITIES[nonlinearity]
        self.factor = 0.5**0.5 if rescale else 1.0
        self.conditional = conditional
        self.centred = centred
        self.divide_by_time = divide_by_time
        # In the order of the reference's all_modules; some of these have no weights, and are None here.
        self.modules = []
        self.channels_in = []
        self._plan(**{name: self.settings[name] for name in ("blocks", "attention", "block", "combine", "progressive")})

    def _plan(self, blocks, attention, block, combine, progressive):
        """Makes the layers, and says for each what channels it sees."""
        settings = self.settings
        channels, inputs = settings["channels"], settings["inputs"]
        widths = [channels * multiplier for multiplier in settings["multipliers"]]
        heights = [settings["rows"] // 2**i for i in range(len(widths))]
        last = len(widths) - 1

        def add(make, channels_in=None, **options):
            layer = make(**options, name=f"module_{len(self.modules)}")
            self.modules.append(layer)
            self.channels_in.append(channels_in)
            return layer

        def skip_number():
            self.modules.append(None)
            self.channels_in.append(None)

        shared = dict(
            kind=block,
            fir=self.fir,
            nonlinearity=settings["nonlinearity"],
            rescale=settings["rescale"],
            init_scale=settings["init_scale"],
            dropout=settings["dropout"],
            wide_shortcut=settings["wide_shortcut"],
        )

        def residual(width, filters, resample=None):
            return add(ResidualBlock, width, filters=filters, resample=resample, **shared)

        def attend(width):
            return add(Attention, width, rescale=settings["rescale"], init_scale=settings["init_scale"])

        def output(width, filters):
            scale = uniform(settings["init_scale"])
            return (add(GroupNorm, width), add(Conv3x3, width, filters=filters, kernel_initializer=scale))

        self.embedding = add(FourierEmbedding, size=channels, scale=settings["fourier_scale"])
        self.embedded = []
        if self.conditional:
            for width in (2 * channels, 4 * channels):
                self.embedded.append(add(PointwiseConv, width, filters=4 * channels, kernel_initializer=uniform()))
        self.first = add(Conv3x3, inputs, filters=channels, kernel_initializer=uniform())
        width, pyramid = channels, inputs
        kept = [width]
        self.down = []  # of each level: (block, attention or None) each, the way down, the pyramid's part
        for i, filters in enumerate(widths):
            level, way, part = [], None, None
            for _ in range(blocks):
                level.append((residual(width, filters), attend(filters) if heights[i] in attention else None))
                width = filters
                kept.append(width)
            if i < last:
                if block == "biggan":
                    way = residual(width, width, "down")
                else:
                    skip_number()
                if settings["progressive_input"] == "input_skip":
                    part = add(Combine, pyramid, filters=width, method=combine)
                    width *= 2 if combine == "cat" else 1
                elif settings["progressive_input"] == "residual":
                    part = add(StridedConv, pyramid, filters=width, fir=self.fir)
                    pyramid = width
                kept.append(width)
            self.down.append((level, way, part))
        self.middle = (residual(width, width), attend(width), residual(width, width))
        self.up = []  # of each level from the lowest: blocks, attention, what makes outputs, the way up
        for i in reversed(range(len(widths))):
            level, way, outputs = [], None, None
            for _ in range(blocks + 1):
                level.append(residual(width + kept.pop(), widths[i]))
                width = widths[i]
            attended = attend(width) if heights[i] in attention else None
            if progressive == "output_skip":
                outputs = output(width, inputs)
            if i > 0:
                if block == "biggan":
                    way = residual(width, width, "up")
                else:
                    skip_number()
            self.up.append((level, attended, outputs, way))
        self.last = output(width, inputs) if progressive == "none" else None
        bound = settings["inputs"] ** -0.5
        start = keras.initializers.RandomUniform(-bound, bound)
        self.output_layer = PointwiseConv(
            settings["outputs"], kernel_initializer=start, bias_initializer=start, dtype="float32", name="output_layer"
        )

    @property
    def residual_blocks(self):
        """All that are told the time, in order."""
        return [layer for layer in self.modules if isinstance(layer, ResidualBlock)]

    def build(self, input_shape=None):
        """Makes all weights; those of blocks that are not told the time stay unused, as in the reference."""
        for layer, width in zip(self.modules, self.channels_in):
            shape = (None, None, None, width)
            if isinstance(layer, ResidualBlock):
                layer.build(shape, time_size=4 * self.settings["channels"])
            elif layer is not None:
                layer.build(shape)
        self.output_layer.build((None, None, None, self.settings["inputs"]))

    def time_biases(self, time):
        """What the residual blocks are told: [batch, filters] for each, or None for each."""
        if not self.conditional:
            return [None] * len(self.residual_blocks)
        embedding = self.embedding(ops.log(ops.cast(time, "float32")))
        first, second = self.embedded
        function, _ = self.activation
        embedding = function(second(function(first(embedding))))
        return [block.time_bias(embedding) for block in self.residual_blocks]

    def call(self, x, time, biases=None, training=False):
        biases = iter(self.time_biases(time) if biases is None else biases)
        x = ops.cast(x, self.compute_dtype)
        pyramid = x if self.centred else 2 * x - 1
        h = self.first(pyramid)
        kept = [h]
        for i, (level, way, part) in enumerate(self.down):
            for block, attention in level:
                h = block(h, next(biases), training=training)
                h = h if attention is None else attention(h)
                kept.append(h)
            if i == len(self.down) - 1:
                break
            h = way(h, next(biases), training=training) if way is not None else downsample(h, self.fir)
            if isinstance(part, Combine):
                pyramid = downsample(pyramid, self.fir)
                h = part(pyramid, h)
            elif part is not None:
                h = pyramid = (part(pyramid) + h) * self.factor
            kept.append(h)
        first, attention, second = self.middle
        h = second(attention(first(h, next(biases), training=training)), next(biases), training=training)
        output = None
        for level, attention, outputs, way in self.up:
            for block in level:
                h = block(ops.concatenate([h, kept.pop()], axis=-1), next(biases), training=training)
            h = h if attention is None else attention(h)
            if outputs is not None:
                own = self.shown(outputs, h)
                output = own if output is None else upsample(output, self.fir) + own
            if kept:
                h = way(h, next(biases), training=training) if way is not None else upsample(h, self.fir)
        output = ops.cast(self.shown(self.last, h) if output is None else output, "float32")
        if self.divide_by_time:
            output = output / ops.reshape(ops.cast(time, "float32"), (-1, 1, 1, 1))
        return self.output_layer(output)

    def shown(self, outputs, h):
        """The output that a level adds."""
        norm, conv = outputs
        scale, shift = norm.scale_and_shift(h)
        return conv(h, scale=scale, shift=shift, activation=self.activation)

    def get_config(self):
        return super().get_config() | self.settings


# Spectra --------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("deep_casa.ncsnpp")
class ScoreModel(keras.Model):
    """Score of a diffusion of several sources, given the mixture: NCSN++ on compressed spectrograms.

    Call: state [batch, sources, samples], time [batch] in (0, 1], mixture [batch, samples] -> score
    [batch, sources, samples], float32. Of one batch, mixtures of any length; frames are filled up to a multiple of
    `frame_multiple`, and what they are filled with has an influence, as has padding in the batch. Of a mixture that is
    looked at more than once, `prepare` gives what may be given as `prepared` instead of it; of a time, `time_biases`
    gives `biases`.

    Args:
        sources: how many.
        fft_size: samples of a frame, an even number; the number of bins, half of it and 1, must be one that the
            network can halve.
        hop_size: samples between frames.
        transform: of magnitudes before the network, undone behind it: "exponent" m -> factor * m ** exponent, "log"
            m -> factor * log(1 + m), or "none".
        exponent, factor: of the transform; their signs do not count.
        learnable: whether these are trained.
        frame_multiple: None: as few frames as the network can take, where the reference has 64.
        masks: the network gives, instead of the sources' compressed spectra, complex factors of the mixture's and of
            the state's, whose sum these are. Small networks learn to separate with far fewer steps.
        network: arguments of NCSNpp but inputs, outputs and rows, by name: `channels`, `multipliers`, ...

    Raises:
        ValueError: for what is not among these, see also NCSNpp.
    """

    def __init__(
        self,
        sources=2,
        fft_size=510,
        hop_size=128,
        transform="exponent",
        exponent=0.5,
        factor=0.15,
        learnable=False,
        frame_multiple=FRAME_MULTIPLE,
        masks=False,
        name="score_model",
        dtype=None,
        **network,
    ):
        super().__init__(name=name, dtype=dtype, autocast=False)
        if transform not in TRANSFORMS:
            raise ValueError(f"transform {transform!r}: should be one of {', '.join(TRANSFORMS)}")
        if not exponent or not factor:
            raise ValueError(f"exponent {exponent}, factor {factor}: should not be 0")
        self.sources = sources
        self.fft_size = fft_size
        self.hop_size = hop_size
        self.transform = transform
        self.learnable = learnable
        self.bins = fft_size // 2 + 1
        inputs, outputs = 2 * (sources + 1), 2 * sources * (2 if masks else 1)
        self.network = NCSNpp(inputs, outputs, self.bins, **network, dtype=self.dtype_policy, name="network")
        self.masks = masks
        self.frame_multiple = frame_multiple or self.network.multiple
        if self.frame_multiple % self.network.multiple:
            raise ValueError(f"frame_multiple {frame_multiple}: should be one of {self.network.multiple}")
        self.settings = dict(
            sources=sources,
            fft_size=fft_size,
            hop_size=hop_size,
            transform=transform,
            exponent=exponent,
            factor=factor,
            learnable=learnable,
            frame_multiple=frame_multiple,
            masks=masks,
        ) | {name: value for name, value in self.network.settings.items() if name not in ("inputs", "outputs", "rows")}
        self.exponent, self.factor = exponent, factor
        if learnable:
            self.exponent, self.factor = (
                self.add_weight(shape=(), initializer=keras.initializers.Constant(value), name=name)
                for name, value in (("exponent", exponent), ("factor", factor))
            )
        self.build()

    def build(self, input_shape=None):
        """Makes all weights, whatever the lengths of the inputs."""
        self.network.build()
        if self.masks:
            # Every source starts as the mixture: where spectra are 0, their expansion has no gradient.
            start = ops.convert_to_numpy(self.network.output_layer.bias).copy()
            start[self.sources : 2 * self.sources] = 1.0
            self.network.output_layer.bias.assign(start)

    def frames(self, samples):
        """Frames of a signal before they are filled up; int or integer tensor."""
        return 1 + (samples + self.fft_size - self.hop_size) // self.hop_size

    def padded_frames(self, samples):
        """Frames that the network sees."""
        return -(-self.frames(samples) // self.frame_multiple) * self.frame_multiple

    def tile_samples(self, tiles=1):
        """The longest signal that fills so many times `frame_multiple` frames, such as 7809 samples."""
        return (self.frame_multiple * tiles + 1) * self.hop_size - self.fft_size - 1

    # Parts --------------------------------------------------------------------------------------------

    def prepare(self, mixture):
        """[batch, samples] -> its compressed spectra, [batch, 1, 2, frames, bins]."""
        return self.analyse(ops.expand_dims(mixture, 1))

    def time_biases(self, time):
        """[batch] -> what the network's blocks are told about the time: a list of [batch, filters]."""
        return self.network.time_biases(time)

    def analyse(self, signals):
        """[batch, signals, samples] -> compressed spectra, [batch, signals, 2, frames, bins], real and imaginary."""
        padded = ops.pad(signals, ((0, 0), (0, 0), (0, self.fft_size - self.hop_size)))
        real, imaginary = centred_stft(padded, self.fft_size, self.hop_size)
        weights = self.compression(ops.square(real) + ops.square(imaginary))
        return ops.stack([real * weights, imaginary * weights], axis=2)

    def synthesise(self, spectra, samples):
        """Undoes `analyse`: [batch, signals, 2, frames, bins] -> [batch, signals, samples], cut or filled up with 0."""
        real, imaginary = ops.unstack(ops.cast(spectra, "float32"), 2, axis=2)
        weights = self.expansion(ops.square(real) + ops.square(imaginary))
        batch, signals, frames, bins = ops.shape(real)
        flat = (batch * signals, frames, bins)
        real, imaginary = (ops.reshape(part * weights, flat) for part in (real, imaginary))
        waveforms = fit(centred_istft(real, imaginary, self.fft_size, self.hop_size), samples)
        return ops.reshape(waveforms, (batch, signals, -1))

    def compression(self, power):
        """What numbers of such a squared magnitude are multiplied by."""
        factor = ops.abs(self.factor)
        if self.transform == "exponent":
            return factor * to_power(power, ops.abs(self.exponent) - 1 if self.learnable else abs(self.exponent) - 1)
        if self.transform == "log":
            magnitude = ops.sqrt(ops.where(power > 0, power, 1.0))
            return factor * ops.where(power > 0, ops.log1p(magnitude) / magnitude, 1.0)
        return ops.ones_like(power)

    def expansion(self, power):
        """Undoes `compression`, of the squared magnitude behind that."""
        if self.transform == "none":
            return ops.ones_like(power)
        factor = ops.abs(self.factor)
        power = power / ops.square(factor)
        if self.transform == "exponent":
            exponent = 1 / ops.abs(self.exponent) - 1 if self.learnable else 1 / abs(self.exponent) - 1
            return to_power(power, exponent) / factor
        magnitude = ops.sqrt(ops.where(power > 0, power, 1.0))
        return ops.where(power > 0, ops.expm1(magnitude) / magnitude, 1.0) / factor

    def to_maps(self, spectra):
        """[batch, signals, 2, frames, bins] -> [batch, bins, padded frames, 2 * signals], real parts first."""
        batch, signals, _, frames, bins = ops.shape(spectra)
        maps = ops.reshape(ops.transpose(spectra, (0, 4, 3, 2, 1)), (batch, bins, frames, 2 * signals))
        missing = -frames % self.frame_multiple
        return ops.pad(maps, ((0, 0), (0, 0), (0, missing), (0, 0)))

    def to_spectra(self, maps, frames):
        """Undoes `to_maps`."""
        batch, bins, padded, channels = ops.shape(maps)
        maps = ops.slice(maps, (0, 0, 0, 0), (batch, bins, frames, channels))
        return ops.transpose(ops.reshape(maps, (batch, bins, frames, 2, channels // 2)), (0, 4, 3, 2, 1))

    def call(self, state, time, mixture=None, prepared=None, biases=None, training=False):
        prepared = self.prepare(mixture) if prepared is None else prepared
        spectra = ops.concatenate([self.analyse(state), prepared], axis=1)
        maps = self.network(self.to_maps(spectra), time, biases=biases, training=training)
        found = self.to_spectra(ops.cast(maps, "float32"), ops.shape(spectra)[3])
        return self.synthesise(self.masked(found, spectra) if self.masks else found, ops.shape(state)[2])

    def masked(self, masks, spectra):
        """Masks [batch, 2 sources, 2, frames, bins], the state's first, times [batch, sources + 1, 2, frames, bins]."""
        batch, _, _, frames, bins = ops.shape(masks)
        state = ops.slice(spectra, (0,) * 5, (batch, self.sources, 2, frames, bins))
        mixture = ops.slice(spectra, (0, self.sources, 0, 0, 0), (batch, 1, 2, frames, bins))
        of_state, of_mixture = (multiply(m, x) for m, x in zip(ops.split(masks, 2, axis=1), (state, mixture)))
        return of_state + of_mixture

    def get_config(self):
        return {"name": self.name} | self.settings


def multiply(x, y):
    """Product of complex numbers whose real and imaginary parts lie along axis 2."""
    (a, b), (c, d) = (ops.split(z, 2, axis=2) for z in (x, y))
    return ops.concatenate([a * c - b * d, a * d + b * c], axis=2)


def to_power(power, exponent):
    """|z| ** exponent of |z| ** 2, and 0 for 0."""
    if isinstance(exponent, float) and exponent == 0:
        return ops.ones_like(power)
    positive = power > 0
    power = ops.where(positive, power, 1.0)
    if isinstance(exponent, float) and exponent == 1:
        value = ops.sqrt(power)
    elif isinstance(exponent, float) and exponent == -0.5:
        value = ops.rsqrt(ops.sqrt(power))
    else:
        value = ops.exp(0.5 * exponent * ops.log(power))
    return ops.where(positive, value, 0.0)
