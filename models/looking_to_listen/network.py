"""Looking to Listen: separates the voices whose faces are seen, one complex mask a face.

Dilated convolutions over time and frequency see the compressed spectrogram of the mixture, others over time the
embeddings of each face. What both give goes, frame by frame, through a bidirectional LSTM and three dense layers to
the masks. The order of the outputs is that of the faces.

Source: Ephrat et al., "Looking to Listen at the Cocktail Party", SIGGRAPH 2018; reference repositories
vitrioil/Speech-Separation and asteroid-team/asteroid, egs/avspeech/looking-to-listen.
"""

import keras
import numpy as np
from keras import ops

from models.layers.conv import PointwiseConv, dilated_conv, pointwise
from models.layers.norm import BatchNorm
from models.layers.tiled_conv import FEWEST_TAPS, pays, tiled_conv
from models.looking_to_listen.spectra import BINS, HOP, KINDS, LEVELS, SAMPLE_RATE, Frontend

NORMS = ("unit", "time")
MASKS = ("signed", "sigmoid")
RESHAPES = ("", "legacy", "legacy_mask")
CLIP_FRAMES, CLIP_IMAGES = 298, 75  # of 3 s, as the reference has them
IMAGE_RATE = 25  # images a second
FRAMES_PER_IMAGE = SAMPLE_RATE // HOP // IMAGE_RATE
MASK_LIMIT = 2.0  # of the parts of signed masks
EPSILON = 1e-5  # of batch norms

# (kernel, dilation) along frequency and time.
AUDIO_LAYERS = (
    ((7, 1), (1, 1)),
    ((1, 7), (1, 1)),
    ((5, 5), (1, 1)),
    *(((5, 5), (1, 2**i)) for i in range(1, 6)),
    ((5, 5), (1, 1)),
    *(((5, 5), (2**i, 2**i)) for i in range(1, 6)),
    ((1, 1), (1, 1)),
)
VIDEO_LAYERS = ((7, 1), *((5, 2**i) for i in range(5)))  # (kernel, dilation) along time

# What the reference does differently from the defaults.
PARITY = dict(norm="time", mask="sigmoid", spectrogram="seed", levels="separate", fixed=True)


# Complex ratio masks --------------------------------------------------------------------------------


def ratio_mask(mixture, clean, epsilon=1e-8):
    """The complex ratio of clean to mixture spectra, [..., 2] each."""
    y, s = (_parts(x) for x in (mixture, clean))
    energy = ops.square(y[0]) + ops.square(y[1]) + epsilon
    return ops.stack([(y[0] * s[0] + y[1] * s[1]) / energy, (y[0] * s[1] - y[1] * s[0]) / energy], axis=-1)


def compress_mask(mask, limit=10.0, steepness=0.1):
    """Mask -> limit * tanh(steepness * mask / 2), within +-limit."""
    return limit * ops.tanh(0.5 * steepness * mask)


def expand_mask(mask, limit=10.0, steepness=0.1):
    """Undoes `compress_mask`; infinite at +-limit."""
    return (ops.log(limit + mask) - ops.log(limit - mask)) / steepness


def apply_mask(mask, mixture):
    """Complex product of [..., 2]."""
    m, y = (_parts(x) for x in (mask, mixture))
    return ops.stack([m[0] * y[0] - m[1] * y[1], m[0] * y[1] + m[1] * y[0]], axis=-1)


def _parts(x):
    return [ops.squeeze(part, axis=-1) for part in ops.split(x, 2, axis=-1)]


# Layouts of the recipe ------------------------------------------------------------------------------


def from_asteroid(spectra):
    """[..., 2 bins, frames], real parts above imaginary ones, -> [..., frames, bins, 2]."""
    *lead, double, frames = ops.shape(spectra)
    parts = ops.reshape(spectra, (*lead, 2, double // 2, frames))
    axes = list(range(len(lead)))
    return ops.transpose(parts, (*axes, len(lead) + 2, len(lead) + 1, len(lead)))


def to_asteroid(spectra):
    """Undoes `from_asteroid`."""
    *lead, frames, bins, _ = ops.shape(spectra)
    axes = list(range(len(lead)))
    parts = ops.transpose(spectra, (*axes, len(lead) + 2, len(lead) + 1, len(lead)))
    return ops.reshape(parts, (*lead, 2 * bins, frames))


# Layers ---------------------------------------------------------------------------------------------


def fan_in(inputs):
    """PyTorch's initialiser of convolutions, uniform."""
    return keras.initializers.RandomUniform(-(inputs**-0.5), inputs**-0.5)


def _tiled_conv(dilation):
    """`tiled_conv` of a dilation as a function of tensors alone."""
    return lambda x, kernel, bias: tiled_conv(x, kernel, dilation, bias)


@keras.saving.register_keras_serializable("deep_casa.looking_to_listen")
class ConvNormRelu(keras.layers.Layer):
    """Convolution that keeps the size, batch norm, rectifier.

    Input and output: [batch, (bins, frames) or (frames,), channels]. Where moving statistics are used, the norm is
    part of the kernel.

    Args:
        filters: output channels.
        kernel_size, dilation: along every axis but batch and channels.
    """

    def __init__(self, filters, kernel_size, dilation, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = tuple(kernel_size)
        self.dilation = tuple(dilation)
        self.norm = BatchNorm(EPSILON, name="norm")

    def build(self, input_shape):
        initializer = fan_in(int(np.prod(self.kernel_size)) * input_shape[-1])
        self.kernel = self.add_weight(
            shape=(*self.kernel_size, input_shape[-1], self.filters), initializer=initializer, name="kernel"
        )
        self.bias = self.add_weight(shape=(self.filters,), initializer=initializer, name="bias")
        self.norm.build((*input_shape[:-1], self.filters))

    def convolve(self, x, kernel, bias, training=False):
        """The convolution of a kernel with x, plus bias."""
        if min(self.kernel_size) >= FEWEST_TAPS and len(self.kernel_size) == 2 and pays(x):
            # The gradient makes its sums again, which are larger than x, from x, which is there in any case.
            convolution = keras.remat(_tiled_conv(self.dilation)) if training else _tiled_conv(self.dilation)
            return convolution(x, kernel, bias)
        return dilated_conv(x, kernel, self.dilation) + bias

    def call(self, x, training=False):
        if training:
            kernel, bias = (ops.cast(weight, x.dtype) for weight in (self.kernel, self.bias))
            return ops.cast(self.norm.rectified(self.convolve(x, kernel, bias, training=True)), x.dtype)
        scale, offset = self.norm.scale_and_offset()
        bias = self.bias * scale + offset
        return ops.relu(self.convolve(x, ops.cast(self.kernel * scale, x.dtype), ops.cast(bias, x.dtype)))

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "dilation": self.dilation,
        }


class _TwoCells(keras.layers.Layer):
    """A step of two LSTMs side by side, whose weights are elsewhere.

    Args:
        units: of each.
        recurrent: dtype -> kernels, [units, 4 units] each.
    """

    def __init__(self, units, recurrent, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.recurrent = recurrent
        self.state_size = [(2, units), (2, units)]
        self.output_size = (2, units)

    def call(self, projected, states, training=False):
        """Products with the input [batch, 2, 4 units] and (output, cell) [batch, 2, units] -> the next of these."""
        h, c = states
        kernels = self.recurrent(projected.dtype)
        both = [ops.matmul(ops.squeeze(x, axis=1), k) for x, k in zip(ops.split(h, 2, axis=1), kernels)]
        gates = ops.split(projected + ops.stack(both, axis=1), 4, axis=-1)
        i, f, o = (ops.sigmoid(gates[k]) for k in (0, 1, 3))
        c = f * c + i * ops.tanh(gates[2])
        h = o * ops.tanh(c)
        return h, [h, c]


@keras.saving.register_keras_serializable("deep_casa.looking_to_listen")
class SummedBiLstm(keras.layers.Layer):
    """LSTM forward and backward in time, their outputs added: [batch, frames, channels] -> [batch, frames, units].

    Weights of each direction: kernel [channels, 4 units], recurrent_kernel [units, 4 units], bias [4 units]; gates in
    the order input, forget, cell, output. Products with the input are made for all frames at once, and both
    directions go through one loop.
    """

    DIRECTIONS = ("forward", "backward")

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.loop = keras.layers.RNN(_TwoCells(units, self._recurrent), return_sequences=True)

    def _recurrent(self, dtype):
        """Recurrent kernels of both directions, [units, 4 units] each."""
        return [ops.cast(d["recurrent_kernel"], dtype) for d in self.directions]

    def build(self, input_shape):
        initializer = fan_in(self.units)
        shapes = dict(
            kernel=(input_shape[-1], 4 * self.units),
            recurrent_kernel=(self.units, 4 * self.units),
            bias=(4 * self.units,),
        )
        self.directions = [
            {
                name: self.add_weight(shape=shape, initializer=initializer, name=f"{direction}_{name}")
                for name, shape in shapes.items()
            }
            for direction in self.DIRECTIONS
        ]

    def call(self, x):
        forward, backward = (pointwise(x, d["kernel"], d["bias"]) for d in self.directions)
        projected = ops.stack([forward, ops.flip(backward, axis=1)], axis=2)  # [B, T, 2, 4 units]
        # Made of the products, so that what is known of its size is what the loop finds.
        start = [
            ops.zeros_like(ops.slice(projected, (0, 0, 0, 0), (ops.shape(projected)[0], 1, 2, self.units)))[:, 0]
        ] * 2
        outputs = self.loop(projected, initial_state=start)  # [B, T, 2, units]
        forward, backward = (ops.squeeze(part, axis=2) for part in ops.split(outputs, 2, axis=2))
        return forward + ops.flip(backward, axis=1)

    def get_config(self):
        return super().get_config() | {"units": self.units}


# Network --------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("deep_casa.looking_to_listen")
class LookingToListen(keras.Model):
    """Separates the voices of the faces that are seen.

    Call: compressed spectrogram of the mixture [batch, frames, bins, 2] and embeddings [batch, faces, images,
    embedding_dim], zeros where a face is not seen. Gives the compressed spectrograms of the voices, [batch, faces,
    frames, bins, 2], float32. `analyse` and `synthesise` lead from waves to these and back.

    Args:
        faces: seen at the same time.
        embedding_dim: of the embeddings.
        channels: of the convolutions over the spectrogram; the cost is nearly all theirs and goes with the square.
        last_channels: of the last of them.
        video_channels: of those over the embeddings.
        lstm_units, units: of the LSTM and the dense layers.
        bins: of the spectrograms.
        norm: of the dense layers: "unit", each over batch and frames, or "time", each frame over batch and units,
            which fits clips of one length alone.
        frames: in a clip; for norm "time".
        mask: "signed", parts between +-2, or "sigmoid", parts between 0 and 2.007.
        spectrogram: kind of models.looking_to_listen.spectra.
        levels: see models.looking_to_listen.spectra.Frontend.
        fixed: clips of 3 s as the references have them: see Frontend; images are spread over the frames, whatever
            their rates. Otherwise images are 25 a second, the first in the middle of the first frame.
        reshape: "legacy" and "legacy_mask": what the references did before 13 February 2021, which mixes time and
            frequency; their old checkpoints need it, and cannot be told from new ones.
        dropout: share of the units behind each dense layer that training drops.
        strict: of Frontend.

    Raises:
        ValueError: an argument is none of the above.
    """

    def __init__(
        self,
        faces=2,
        embedding_dim=512,
        channels=96,
        last_channels=8,
        video_channels=256,
        lstm_units=400,
        units=600,
        bins=BINS,
        norm="unit",
        frames=CLIP_FRAMES,
        mask="signed",
        spectrogram="magnitude",
        levels="common",
        fixed=False,
        reshape="",
        dropout=0.2,
        strict=False,
        **kwargs,
    ):
        super().__init__(**{"name": "looking_to_listen"} | kwargs)
        self.settings = dict(
            faces=faces,
            embedding_dim=embedding_dim,
            channels=channels,
            last_channels=last_channels,
            video_channels=video_channels,
            lstm_units=lstm_units,
            units=units,
            bins=bins,
            norm=norm,
            frames=frames,
            mask=mask,
            spectrogram=spectrogram,
            levels=levels,
            fixed=fixed,
            reshape=reshape,
            dropout=dropout,
            strict=strict,
        )
        for name, value, known in (
            ("norm", norm, NORMS),
            ("mask", mask, MASKS),
            ("spectrogram", spectrogram, KINDS),
            ("levels", levels, LEVELS),
            ("reshape", reshape, RESHAPES),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r}: should be one of {', '.join(filter(None, known))}")
        if faces < 1:
            raise ValueError(f"faces {faces}: should be 1 at least")
        self.faces = faces
        self.embedding_dim = embedding_dim
        self.bins = bins
        self.norm = norm
        self.mask = mask
        self.fixed = fixed
        self.reshape = reshape
        self.clip_frames = frames if norm == "time" else None
        self.frontend = Frontend(spectrogram, levels, fixed, strict)
        widths = [channels] * (len(AUDIO_LAYERS) - 1) + [last_channels]
        self.audio_layers = [
            ConvNormRelu(width, kernel, dilation, name=f"audio_{i + 1}")
            for i, (width, (kernel, dilation)) in enumerate(zip(widths, AUDIO_LAYERS))
        ]
        self.video_layers = [
            ConvNormRelu(video_channels, (kernel,), (dilation,), name=f"video_{i + 1}")
            for i, (kernel, dilation) in enumerate(VIDEO_LAYERS)
        ]
        self.lstm = SummedBiLstm(lstm_units, name="lstm")
        inputs = [lstm_units, units, units]
        self.dense_layers = [self._dense(units, inputs[i], f"dense_{i + 1}") for i in range(3)]
        self.norms = [BatchNorm(EPSILON, name=f"norm_{i + 1}") for i in range(3)]
        self.dropouts = [keras.layers.Dropout(dropout, name=f"dropout_{i + 1}") for i in range(3)]
        self.mask_layer = self._dense(2 * bins * faces, units, "mask")
        self.build()

    @staticmethod
    def _dense(units, inputs, name):
        return PointwiseConv(units, "glorot_uniform", fan_in(inputs), name=name)

    def build(self, input_shape=None):
        """Makes all weights, whatever the lengths of the inputs."""
        settings = self.settings
        width = 2
        for layer in self.audio_layers:
            layer.build((None, self.bins, None, width))
            width = layer.filters
        width = self.embedding_dim
        for layer in self.video_layers:
            layer.build((None, None, width))
            width = layer.filters
        self.lstm.build((None, None, settings["last_channels"] * self.bins + self.faces * width))
        width = settings["lstm_units"]
        for dense, norm in zip(self.dense_layers, self.norms):
            dense.build((None, None, width))
            width = dense.filters
            norm.build((None, None, self.clip_frames or width))
        self.mask_layer.build((None, None, width))

    def start_as_mixture(self):
        """Gives the mask layer values with which every voice starts as its share of the mixture.

        From masks about 0, with phases that mean nothing, training takes hundreds of steps to get there. Signed masks
        alone; sigmoid ones start at 1 by themselves.
        """
        share = float(np.arctanh(1 / self.faces / MASK_LIMIT))
        real, imaginary = (np.full(self.bins * self.faces, value, np.float32) for value in (share, 0.0))
        self.mask_layer.kernel.assign(0.1 * self.mask_layer.kernel)
        self.mask_layer.bias.assign(np.concatenate([real, imaginary]))

    def analyse(self, mixture, sources=None):
        """Waves -> spectrograms, see models.looking_to_listen.spectra.Frontend.analyse."""
        return self.frontend.analyse(mixture, sources)

    def synthesise(self, spectra, samples=None):
        """Spectrograms -> waves, see models.looking_to_listen.spectra.Frontend.synthesise."""
        return self.frontend.synthesise(spectra, samples)

    # Parts ------------------------------------------------------------------------------------------

    def listen(self, mixture, training=False):
        """[batch, frames, bins, 2] -> [batch, frames, last_channels * bins], channel by channel."""
        batch, frames, *_ = ops.shape(mixture)
        # Frequency first: its size is known, which `tiled_conv` needs.
        x = ops.reshape(ops.transpose(mixture, (0, 2, 1, 3)), (batch, self.bins, frames, 2))
        for layer in self.audio_layers:
            x = layer(x, training=training)
        width = self.bins * x.shape[-1]
        if self.reshape == "legacy":
            x = ops.reshape(ops.transpose(x, (0, 3, 2, 1)), (batch, width, frames))
            return ops.transpose(x, (0, 2, 1))
        return ops.reshape(ops.transpose(x, (0, 2, 3, 1)), (batch, frames, width))

    def look(self, embeddings, frames, training=False):
        """Embeddings of one face [batch, images, embedding_dim] -> [batch, frames, video_channels]."""
        x = embeddings
        for layer in self.video_layers:
            x = layer(x, training=training)
        images = ops.shape(x)[1]
        place = ops.arange(frames)
        place = images * place // frames if self.fixed else ops.minimum(place // FRAMES_PER_IMAGE, images - 1)
        return ops.take(x, place, axis=1)

    def decide(self, seen_and_heard, training=False):
        """[batch, frames, channels of all streams] -> units of the masks, [batch, frames, 2 * bins * faces]."""
        x = self.lstm(seen_and_heard)
        for dense, norm, dropout in zip(self.dense_layers, self.norms, self.dropouts):
            x = ops.relu(dense(x))
            if self.norm == "time":
                x = ops.transpose(norm(ops.transpose(x, (0, 2, 1)), training=training), (0, 2, 1))
            else:
                x = norm(x, training=training)
            x = dropout(ops.cast(x, self.compute_dtype), training=training)
        return ops.cast(self.mask_layer(x), "float32")

    def masks(self, units):
        """Units of the masks -> [batch, faces, frames, bins, 2]."""
        batch, frames, _ = ops.shape(units)
        if self.reshape:
            x = ops.reshape(units, (batch, 2, frames, self.bins, self.faces))
            x = ops.transpose(x, (0, 4, 2, 3, 1))
        else:
            x = ops.reshape(units, (batch, frames, 2, self.bins, self.faces))
            x = ops.transpose(x, (0, 4, 1, 3, 2))
        return expand_mask(ops.sigmoid(x)) if self.mask == "sigmoid" else MASK_LIMIT * ops.tanh(x)

    def call(self, inputs, training=False):
        """`inputs`: {"mixture", "embeddings"}, or a pair of these; see the class."""
        mixture, embeddings = (inputs["mixture"], inputs["embeddings"]) if isinstance(inputs, dict) else inputs
        if embeddings.shape[1] not in (None, self.faces):
            raise ValueError(f"{embeddings.shape[1]} faces, the network has {self.faces}")
        if mixture.shape[1] is not None and self.clip_frames not in (None, mixture.shape[1]):
            raise ValueError(f"{mixture.shape[1]} frames, a network with norm time takes {self.clip_frames}")
        streams = [self.listen(ops.cast(mixture, self.compute_dtype), training)]
        frames = ops.shape(streams[0])[1]
        for face in ops.split(ops.cast(embeddings, self.compute_dtype), self.faces, axis=1):
            streams.append(self.look(ops.squeeze(face, axis=1), frames, training))
        masks = self.masks(self.decide(ops.concatenate(streams, axis=-1), training))
        return apply_mask(masks, ops.expand_dims(ops.cast(mixture, "float32"), 1))

    def count_macs(self, frames, images):
        """Multiply-accumulates of `call` on one clip."""
        per_bin = sum(int(np.prod(layer.kernel.shape)) for layer in self.audio_layers)
        per_image = sum(int(np.prod(layer.kernel.shape)) for layer in self.video_layers)
        matrices = [w for d in self.lstm.directions for w in (d["kernel"], d["recurrent_kernel"])]
        matrices += [layer.kernel for layer in (*self.dense_layers, self.mask_layer)]
        per_frame = sum(int(np.prod(w.shape)) for w in matrices)
        return frames * (self.bins * per_bin + per_frame) + self.faces * images * per_image

    def get_config(self):
        return {"name": self.name} | self.settings
