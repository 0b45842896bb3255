"""Binaural TasNet: two ears in, every talker as two ears out, with the differences between the ears kept.

Each ear has a Conv-TasNet of its own: encoder, separator that makes masks, decoder. They work apart ("independent"),
or also see the level difference between the ears ("cross"), or both encoders see both ears and each separator masks
all of its two encodings, whose sum is decoded ("parallel", or multiple input, multiple output).

Source: Han, Luo and Mesgarani, "Real-time binaural speech separation with preserved spatial cues", ICASSP 2020;
reference repository speechbrain/speechbrain, recipes/BinauralWSJ0Mix.
"""

import keras
import numpy as np
from keras import ops

from models.layers.conv import pointwise
from models.layers.conv_tasnet import (
    NORMS,
    ConvBlock,
    Initialization,
    cut_frames,
    fit,
    frame_count,
    frames_below,
    normed_pointwise,
    run_blocks,
    start_as_fourier,
    zero_behind,
)
from models.layers.norm import ChannelNorm
from models.layers.spectral import fourier_matrix, frame, overlap_add

WIRINGS = ("independent", "cross", "parallel")
MASKS = ("relu", "sigmoid", "softmax")
PROJECTIONS = ("trained", "fixed", "random")
FEATURES = ("ild", "ipd")
EARS = ("left", "right")

# STFT behind the features of "cross", samples at any rate.
FFT_SIZE = 256
FEATURE_HOP = 128
BINS = FFT_SIZE // 2 + 1


@keras.saving.register_keras_serializable("deep_casa.binaural_tasnet")
class Separator(keras.layers.Layer):
    """Encodings of one ear -> masks: Conv-TasNet's stack of dilated blocks.

    Call: [batch, frames, width] -> [batch, frames, talkers * width], one talker after the other.

    Args:
        width: channels of the encodings.
        talkers, bottleneck, units, taps, dilations, repeats, norm, causal: see MimoTasnet.
        late: see ConvBlock.
        epsilon: of the norms.
    """

    def __init__(
        self, width, talkers, bottleneck, units, taps, dilations, repeats, norm, causal, late, epsilon, **kwargs
    ):
        super().__init__(**kwargs)
        self.settings = dict(
            width=width,
            talkers=talkers,
            bottleneck=bottleneck,
            units=units,
            taps=taps,
            dilations=dilations,
            repeats=repeats,
            norm=norm,
            causal=causal,
            late=late,
            epsilon=epsilon,
        )
        self.width = width
        self.talkers = talkers
        self.bottleneck = bottleneck
        initial = Initialization("uniform")
        self.norm = ChannelNorm(epsilon, name="norm")
        self.input_conv = initial.pointwise(width, bottleneck, "input", use_bias=False)
        self.blocks = [
            ConvBlock(
                bottleneck,
                units,
                2**j,
                taps,
                norm,
                epsilon,
                causal,
                initialization="uniform",
                bias=False,
                padding="reflect",
                late=late,
                name=f"block_{i}_{j}",
            )
            for i in range(repeats)
            for j in range(dilations)
        ]
        self.mask_conv = initial.pointwise(bottleneck, talkers * width, "mask", use_bias=False)

    def build(self, input_shape=None):
        self.norm.build((None, None, self.width))
        self.input_conv.build((None, None, self.width))
        for layer in (*self.blocks, self.mask_conv):
            layer.build((None, None, self.bottleneck))

    def enter(self, encodings):
        """What the first block sees, [batch, frames, bottleneck]."""
        return normed_pointwise(encodings, self.norm, self.input_conv)

    def leave(self, x, used):
        """What the last block gives -> the first `used` masks of each talker, [batch, frames, talkers * used]."""
        if used == self.width:
            return self.mask_conv(x)
        kernel = ops.reshape(self.mask_conv.kernel, (self.bottleneck, self.talkers, self.width))
        kernel = ops.slice(kernel, (0, 0, 0), (self.bottleneck, self.talkers, used))
        return pointwise(x, ops.reshape(kernel, (self.bottleneck, self.talkers * used)))

    def call(self, encodings, training=False):
        x = self.enter(encodings)
        x = ops.squeeze(run_blocks([self.blocks], ops.expand_dims(x, 0), training=training, sparing=True), axis=0)
        return self.leave(x, self.width)

    def count_macs(self, used):
        """Multiply-accumulates a frame."""
        return (
            (self.width + self.talkers * used) * self.bottleneck
            + sum((2 * block.channels + block.taps) * block.units for block in self.blocks)
        )  # fmt: skip

    def get_config(self):
        return super().get_config() | self.settings


@keras.saving.register_keras_serializable("deep_casa.binaural_tasnet")
class MimoTasnet(keras.Model):
    """Separates the talkers of a binaural mixture.

    Call: mixture [batch, samples, 2], left ear first, and optionally the true lengths `samples` [batch]. Gives
    [batch, talkers, samples, 2], float32. What lies behind the last whole frame, less than a hop, is 0.

    Args:
        wiring: "independent", "cross" or "parallel", see above.
        talkers: how many.
        filters: of each encoder.
        window: of encoders and decoders, samples, an even number; the hop is half of it.
        bottleneck: channels between the dilated blocks.
        units: channels inside them.
        taps: of the dilated convolutions.
        dilations: blocks in a series, with dilation 1, 2, 4, ...
        repeats: series.
        norm: of the blocks: "global", "channel", "cumulative" or "batch".
        causal: the dilated convolutions use past frames only. With norm "channel" or "cumulative" the output then
            depends on no later sample than the last of its window.
        mask: "relu", "sigmoid", or "softmax" over the talkers; in parity that is over the filters.
        features: of "cross", any of "ild" and "ipd": level difference, and sine and cosine of the phase difference.
        projection: of the features to filters: "trained", "fixed" (drawn once, saved with the model) or "random"
            (drawn in every call, which is what the reference does: no two calls agree).
        parity: as the reference where it is odd: causal convolutions late by half their reach, softmax over filters,
            features of a causal "cross" that know the future.
        epsilon: of the norms.
        seed: of a random projection.

    Raises:
        ValueError: the mixture is known to be too short, see `shortest`, or not to have two channels.
    """

    def __init__(
        self,
        wiring="parallel",
        talkers=2,
        filters=64,
        window=16,
        bottleneck=64,
        units=128,
        taps=3,
        dilations=8,
        repeats=4,
        norm="global",
        causal=False,
        mask="relu",
        features=("ild",),
        projection="trained",
        parity=False,
        epsilon=1e-8,
        seed=0,
        **kwargs,
    ):
        super().__init__(**{"name": "mimo_tasnet"} | kwargs)
        self.settings = dict(
            wiring=wiring,
            talkers=talkers,
            filters=filters,
            window=window,
            bottleneck=bottleneck,
            units=units,
            taps=taps,
            dilations=dilations,
            repeats=repeats,
            norm=norm,
            causal=causal,
            mask=mask,
            features=list(features),
            projection=projection,
            parity=parity,
            epsilon=epsilon,
            seed=seed,
        )
        for name, value, known in (
            ("wiring", wiring, WIRINGS),
            ("norm", norm, NORMS),
            ("mask", mask, MASKS),
            ("projection", projection, PROJECTIONS),
            *(("features", feature, FEATURES) for feature in features),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r}: should be one of {', '.join(known)}")
        if window < 2 or window % 2 or talkers < 1:
            raise ValueError(f"window {window}, talkers {talkers}: should be an even number, and 1 at least")
        self.wiring = wiring
        self.talkers = talkers
        self.filters = filters
        self.window = window
        self.hop = window // 2
        self.causal = causal
        self.mask = mask
        self.features = tuple(features)
        self.projection = projection
        self.parity = parity
        self.reach = 0 if causal else 2 ** (dilations - 1) * (taps // 2)
        initial = Initialization("uniform")
        self.width = filters if wiring == "independent" else 2 * filters
        self.encoders, self.decoders = (
            [
                self.add_weight(
                    shape=(window, 1, filters), initializer=initial.kernel(window, window), name=f"{kind}_{ear}_kernel"
                )
                for ear in EARS
            ]
            for kind in ("encoder", "decoder")
        )
        late = causal and parity
        sizes = (self.width, talkers, bottleneck, units, taps, dilations, repeats, norm, causal, late, epsilon)
        self.separators = [Separator(*sizes, name=f"separator_{ear}") for ear in EARS]
        self.projected = None
        if wiring == "cross":
            self.inputs_projected = BINS * (("ild" in features) + 2 * ("ipd" in features))
            self.seeds = keras.random.SeedGenerator(seed)
            if projection != "random":
                layer = initial.pointwise(self.inputs_projected, filters, "projection")
                # Always the same first values, for checkpoints that come without any.
                bound = self.inputs_projected**-0.5
                layer.kernel_initializer = keras.initializers.RandomUniform(-bound, bound, seed=seed)
                layer.bias_initializer = keras.initializers.RandomUniform(-bound, bound, seed=seed + 1)
                layer.trainable = projection == "trained"
                self.projected = layer
        self.build()

    def build(self, input_shape=None):
        """Makes all weights, whatever the lengths of the inputs."""
        for separator in self.separators:
            separator.build()
        if self.projected is not None:
            self.projected.build((None, None, self.inputs_projected))

    @property
    def shortest(self):
        """Samples that a mixture must have at least: the mirror image at its ends needs so many frames."""
        return self.window + self.reach * self.hop

    @property
    def used_masks(self):
        """Masks of a talker and an ear that count: the second half of those of "cross" is never looked at."""
        return self.filters if self.wiring == "cross" and not self._filter_softmax else self.width

    @property
    def _filter_softmax(self):
        return self.mask == "softmax" and self.parity

    def count_macs(self, samples):
        """Multiply-accumulates of `call` on one mixture of so many samples; the STFT of "cross" is left out."""
        ways = 2 if self.wiring == "parallel" else 1
        ends = 2 * ways * self.window * self.filters * (1 + self.talkers)  # encoders and decoders
        frames = frame_count(samples, self.window, self.hop)
        total = frames * (ends + sum(separator.count_macs(self.used_masks) for separator in self.separators))
        if self.wiring == "cross":
            total += (1 + samples // FEATURE_HOP) * self.inputs_projected * self.filters
        return int(total)

    def start_as_fourier(self):
        """Gives the filters of both ears the values of a short-time Fourier transform; training goes on from there.

        See models.layers.conv_tasnet.start_as_fourier.
        """
        for encoder, decoder in zip(self.encoders, self.decoders):
            start_as_fourier(encoder, decoder, self.hop)

    # Parts --------------------------------------------------------------------------------------------

    def encode(self, ears):
        """Encodings that each separator masks.

        Args:
            ears: ([batch, samples], [batch, samples]).

        Returns:
            For either ear [batch, frames, filters], with wiring "parallel" [batch, frames, 2 filters].
        """
        frames = frame_count(ops.shape(ears[0])[1], self.window, self.hop)
        cut = [cut_frames(ops.cast(ear, self.compute_dtype), self.window, self.hop, frames) for ear in ears]
        left, right = (ops.squeeze(kernel, axis=1) for kernel in self.encoders)
        if self.wiring != "parallel":
            return [ops.relu(pointwise(x, kernel)) for x, kernel in zip(cut, (left, right))]
        # The left ear through the one encoder beside the right ear through the other, by one product.
        both = ops.concatenate(cut, axis=-1)
        nothing = ops.zeros_like(left)

        def apart(first, second):
            return ops.concatenate(
                [ops.concatenate([first, nothing], axis=1), ops.concatenate([nothing, second], axis=1)], axis=0
            )

        return [ops.relu(pointwise(both, apart(*kernels))) for kernels in ((left, right), (right, left))]

    def project(self, ears, frames):
        """Features of "cross" as channels for either ear: [batch, frames, filters] twice."""
        if self.projection == "random":
            bound = self.inputs_projected**-0.5
            kernel, bias = (
                keras.random.uniform(shape, -bound, bound, dtype="float32", seed=self.seeds)
                for shape in ((self.inputs_projected, self.filters), (self.filters,))
            )
        else:
            kernel, bias = self.projected.kernel, self.projected.bias
        ahead = self.window if self.causal and not self.parity else None
        projected = project(interaural_features(*ears, self.features, ahead), kernel, bias)
        if ahead is None:
            places = nearest_frames(ops.shape(projected[0])[1], frames)
        else:
            places = ops.arange(frames) * self.hop // FEATURE_HOP
        return [ops.cast(ops.take(x, places, axis=1), self.compute_dtype) for x in projected]

    def separate(self, encodings, frame_mask=None, training=False):
        """Both separators at once, before masks are made of it: [batch, frames, talkers, used_masks] twice.

        Args:
            encodings: [batch, frames, width] twice.
            frame_mask: [batch, frames, 1]; frames that have 0 there influence no others.
        """
        batch, frames, _ = ops.shape(encodings[0])
        x = ops.stack([separator.enter(y) for separator, y in zip(self.separators, encodings)])
        x = run_blocks([separator.blocks for separator in self.separators], x, None, frame_mask, training, sparing=True)
        ears = ops.unstack(x, len(EARS), axis=0)
        logits = [separator.leave(y, self.used_masks) for separator, y in zip(self.separators, ears)]
        return [ops.reshape(y, (batch, frames, self.talkers, self.used_masks)) for y in logits]

    def masks(self, logits):
        """[batch, frames, talkers, channels] -> masks."""
        if self.mask == "softmax":
            return ops.softmax(logits, axis=-1 if self._filter_softmax else 2)
        return getattr(ops, self.mask)(logits)

    def call(self, mixture, samples=None, training=False):
        if mixture.shape[-1] != 2:
            raise ValueError(f"a mixture of {mixture.shape[-1]} channels; two are needed, the left and the right ear")
        if mixture.shape[1] is not None and mixture.shape[1] < self.shortest:
            raise ValueError(f"mixtures of {mixture.shape[1]} samples, {self.shortest} are needed; lengthen them")
        ears = [ops.squeeze(ear, axis=-1) for ear in ops.split(mixture, 2, axis=-1)]
        frame_mask = None
        if samples is not None:
            ears = [zero_behind(ear, samples) for ear in ears]
        encodings = self.encode(ears)
        batch, frames, channels = ops.shape(encodings[0])
        if samples is not None:
            inside = frame_count(samples, self.window, self.hop)
            frame_mask = frames_below(inside, frames)
        used = self.used_masks
        seen = encodings
        if self.wiring == "cross":
            seen = [ops.concatenate(pair, axis=-1) for pair in zip(encodings, self.project(ears, frames))]
        separated = self.separate(seen, frame_mask, training)
        signals = []
        for encoding, logits, decoder in zip(encodings, separated, self.decoders):
            masks = self.masks(logits)
            if used != channels:  # in parity: softmax over filters of which half are not wanted
                masks = ops.slice(masks, (0, 0, 0, 0), (batch, frames, self.talkers, channels))
            chosen = masks * ops.expand_dims(encoding, 2)
            kernel = ops.transpose(ops.squeeze(decoder, axis=1))  # [filters, window]
            if self.wiring == "parallel":
                kernel = ops.concatenate([kernel, kernel], axis=0)
            pieces = ops.cast(pointwise(chosen, kernel), "float32")  # [B, frames, talkers, window]
            if frame_mask is not None:
                pieces = pieces * ops.expand_dims(frame_mask, -1)
            pieces = ops.reshape(ops.transpose(pieces, (0, 2, 1, 3)), (batch * self.talkers, frames, self.window))
            signals.append(fit(overlap_add(pieces, self.hop), ops.shape(mixture)[1]))
        return ops.reshape(ops.stack(signals, axis=-1), (batch, self.talkers, -1, 2))

    def get_config(self):
        return {"name": self.name} | self.settings


def project(features, kernel, bias):
    """Features {name: [..., BINS]} -> what the left and the right ear see of them, [..., filters] twice."""
    mirrored = [-feature if name != "cos" else feature for name, feature in features.items()]
    kernel, bias = ops.cast(kernel, "float32"), ops.cast(bias, "float32")
    return [
        pointwise(ops.concatenate(list(own), axis=-1), kernel, sign * bias)
        for own, sign in ((features.values(), 1.0), (mirrored, -1.0))
    ]


def interaural_spectra(ears, ahead=None):
    """STFT of signals [batch, samples]: real and imaginary parts, [batch, frames, BINS] twice, of each.

    Frames of FFT_SIZE samples every FEATURE_HOP, a periodic Hamming window, zeros around the signal: half a frame on
    either side. With `ahead`, frame t ends with sample FEATURE_HOP * t + ahead - 1 instead, and is silent behind it.
    """
    before = FFT_SIZE // 2 if ahead is None else FFT_SIZE - ahead
    behind = FFT_SIZE // 2 if ahead is None else ahead
    padded = [ops.pad(ops.cast(ear, "float32"), ((0, 0), (before, behind))) for ear in ears]
    return spectra_of_frames([frame(ear, FFT_SIZE, FEATURE_HOP) for ear in padded])


def spectra_of_frames(ears):
    """Frames [batch, frames, FFT_SIZE] of signals: what `interaural_spectra` gives."""
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(FFT_SIZE) / FFT_SIZE)
    kernel = fourier_matrix(FFT_SIZE) * window[:, None]
    # Real parts of all bins first, then the imaginary ones.
    kernel = ops.convert_to_tensor(np.concatenate([kernel[:, ::2], kernel[:, 1::2]], axis=1), "float32")
    return [ops.split(pointwise(frames, kernel), 2, axis=-1) for frames in ears]


def interaural_features(left, right, names=FEATURES, ahead=None):
    """What two ears [batch, samples] differ in, by bins: {name: [batch, frames, BINS]}.

    "ild": "ild", 10 log10 of the ratio of their magnitudes, half of what is called level difference.
    "ipd": "sin" and "cos" of the phase of the left less that of the right; 0 and 1 where either is silent.
    """
    return features_of_spectra(*interaural_spectra((left, right), ahead), names)


def features_of_spectra(left, right, names=FEATURES):
    """`interaural_features` of spectra, each a pair of real and imaginary parts."""
    (left_re, left_im), (right_re, right_im) = left, right
    found = {}
    if "ild" in names:
        magnitudes = [ops.sqrt(re * re + im * im + 1e-14) for re, im in ((left_re, left_im), (right_re, right_im))]
        ratio = magnitudes[0] / (magnitudes[1] + 1e-8)
        found["ild"] = float(10 / np.log(10)) * ops.log(ratio + 1e-8)
    if "ipd" in names:
        cos = left_re * right_re + left_im * right_im
        sin = left_im * right_re - left_re * right_im
        size = ops.sqrt(cos * cos + sin * sin)
        silent = size <= 0
        size = ops.where(silent, 1.0, size)
        found |= {"sin": ops.where(silent, 0.0, sin / size), "cos": ops.where(silent, 1.0, cos / size)}
    return found


def nearest_frames(given, wanted):
    """Which of `given` frames stands for each of `wanted`, as nearest-neighbour interpolation has it: [wanted] int."""
    ratio = ops.cast(given, "float32") / ops.cast(wanted, "float32")
    places = ops.cast(ops.floor(ops.cast(ops.arange(wanted), "float32") * ratio), "int32")
    return ops.minimum(places, given - 1)
