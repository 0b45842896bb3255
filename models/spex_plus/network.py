"""SpEx+: extracts from a mixture the talker whose voice a second recording, the enrolment, shows.

One bank of three encoders with windows of 2.5, 10 and 20 ms sees both recordings. A small residual network turns
the enrolment's frames into an embedding of its speaker; four series of dilated convolutions that are given it turn
the mixture's frames into a mask for each encoder, and three decoders turn masked frames into waveforms. The second
and third waveforms and the speaker classifier serve training only.

Source: Ge et al., "SpEx+: A Complete Time Domain Speaker Extraction Network", Interspeech 2020; reference
repositories ir4kgl/ss_dla (16 kHz, called "seed" here) and gemengtju/SpEx_Plus (8 kHz, "authors").
"""

import keras
import numpy as np
from keras import ops

from models.layers.conv import pointwise
from models.layers.conv_tasnet import (
    NORMS,
    ConvBlock,
    Initialization,
    PReLU,
    cut_frames,
    fit,
    frame_count,
    frames_below,
    normed_pointwise,
    run_blocks,
    start_as_fourier,
    zero_behind,
)
from models.layers.norm import BatchNorm, ChannelNorm
from models.layers.spectral import overlap_add

BRANCHES = ("short", "middle", "long")
MASKS = ("relu", "sigmoid", "softmax", "batch_softmax")
CHANNEL_NORM_EPSILON = 1e-5

# Constructor arguments of the two published systems.
VARIANTS = {
    "seed": dict(
        classes=500,
        windows=(40, 160, 320),
        norm_epsilon=1e-7,
        average_pool=True,
        initialization="xavier",
    ),
    "authors": dict(
        classes=101,
        windows=(20, 80, 160),
        norm_epsilon=1e-5,
        average_pool=False,
        initialization="uniform",
    ),
}
SAMPLE_RATES = {"seed": 16000, "authors": 8000}


@keras.saving.register_keras_serializable("deep_casa.spex_plus")
class ResidualBlock(keras.layers.Layer):
    """Two 1x1 convolutions with batch norm around a skip, then the largest of every three frames.

    [batch, frames, channels] -> [batch, frames // 3, filters].
    """

    def __init__(self, channels, filters, initialization="xavier", **kwargs):
        super().__init__(**kwargs)
        self.settings = dict(channels=channels, filters=filters, initialization=initialization)
        self.channels = channels
        self.filters = filters
        initial = Initialization(initialization)
        self.conv_1 = initial.pointwise(channels, filters, "conv_1", use_bias=False)
        self.norm_1 = BatchNorm(name="norm_1")
        self.prelu_1 = PReLU(name="prelu_1")
        self.conv_2 = initial.pointwise(filters, filters, "conv_2", use_bias=False)
        self.norm_2 = BatchNorm(name="norm_2")
        self.prelu_2 = PReLU(name="prelu_2")
        self.skip = None
        if channels != filters:
            self.skip = initial.pointwise(channels, filters, "skip", use_bias=False)

    def build(self, input_shape):
        inside = (None, None, self.filters)
        for layer in filter(None, (self.conv_1, self.skip)):
            layer.build((None, None, self.channels))
        for layer in (self.norm_1, self.prelu_1, self.conv_2, self.norm_2, self.prelu_2):
            layer.build(inside)

    def call(self, x, frame_mask=None, training=False):
        y = self.prelu_1(self.norm_1(self.conv_1(x), training=training, frame_mask=frame_mask))
        y = self.norm_2(self.conv_2(y), training=training, frame_mask=frame_mask)
        y = ops.cast(y, self.compute_dtype)
        return largest_of_three(self.prelu_2(y + (x if self.skip is None else self.skip(x))))

    def get_config(self):
        return super().get_config() | self.settings


def largest_of_three(x):
    """[batch, frames, channels] -> [batch, frames // 3, channels]; a remainder is dropped."""
    return ops.max_pool(x, 3, strides=3, padding="valid", data_format="channels_last")


@keras.saving.register_keras_serializable("deep_casa.spex_plus")
class SpexPlus(keras.Model):
    """Extracts one talker.

    Call: a dictionary of
        mixture: [batch, samples], waveforms.
        enrolment: [batch, samples'], waveforms of the wanted talkers.
        samples, enrolment_samples: [batch] int, how many samples of each are not padding; optional.
    Other keys are passed over, so that a batch of the training data may be given whole. Gives a dictionary of
        short, middle, long: [batch, samples], estimates of the wanted talker by the three windows. "short" is
            the answer. Behind the last whole frame of a window its estimate is 0.
        logits: [batch, classes], of the speakers of the training set.
        embedding: [batch, embedding_dim], of the speaker.

    What is behind the lengths counts nowhere: a padded batch gives what its items give alone. In training, batch
    norm counts frames of the enrolment that are no padding.

    Args:
        classes: speakers of the training set.
        windows: samples of the three encoders, ascending; the hop is half of the first.
        filters: of each encoder.
        bottleneck: channels between the blocks of dilated convolutions.
        units: channels inside them.
        embedding_dim: size of a speaker's embedding.
        speaker_units: channels inside the speaker encoder.
        taps: of the dilated convolutions.
        dilations: blocks in a series, with dilation 1, 2, 4, ...
        repeats: series; the first block of each is given the embedding.
        norm: of the blocks: "global", "channel", "batch" or "cumulative".
        norm_epsilon: 1e-7 in the seed, 1e-5 in the authors' code.
        causal: the dilated convolutions use past frames only. The frames themselves reach 20 ms ahead, and with the
            global norm the level of the whole mixture counts; nothing else of the future is used with "channel" or
            "cumulative" norms.
        mask: "relu", "sigmoid", "softmax" over the filters, or "batch_softmax" over the batch, which is what the
            authors' code computes when it is asked for softmax.
        average_pool: take the embedding from means of three frames, as the seed does, so that the last one or two
            are dropped.
        parity: treat padding as the reference code does: lengths are passed over but for the authors' mean of the
            embedding, which sums padding and all, and divides by the true length.
        initialization: "xavier" (seed) or "uniform" (authors), see models.layers.conv_tasnet.Initialization.
    """

    def __init__(
        self,
        classes=251,
        windows=(40, 160, 320),
        filters=256,
        bottleneck=256,
        units=512,
        embedding_dim=256,
        speaker_units=512,
        taps=3,
        dilations=8,
        repeats=4,
        norm="global",
        norm_epsilon=1e-7,
        causal=False,
        mask="relu",
        average_pool=True,
        parity=False,
        initialization="xavier",
        **kwargs,
    ):
        super().__init__(**{"name": "spex_plus"} | kwargs)
        self.settings = dict(
            classes=classes,
            windows=list(windows),
            filters=filters,
            bottleneck=bottleneck,
            units=units,
            embedding_dim=embedding_dim,
            speaker_units=speaker_units,
            taps=taps,
            dilations=dilations,
            repeats=repeats,
            norm=norm,
            norm_epsilon=norm_epsilon,
            causal=causal,
            mask=mask,
            average_pool=average_pool,
            parity=parity,
            initialization=initialization,
        )
        if norm not in NORMS:
            raise ValueError(f"norm {norm!r}: should be one of {', '.join(NORMS)}")
        if mask not in MASKS:
            raise ValueError(f"mask {mask!r}: should be one of {', '.join(MASKS)}")
        if len(windows) != 3 or list(windows) != sorted(windows) or windows[0] < 2:
            raise ValueError(f"windows {windows}: should be three ascending numbers of samples, 2 at least")
        self.windows = tuple(windows)
        self.hop = windows[0] // 2
        self.filters = filters
        self.mask = mask
        self.average_pool = average_pool
        self.parity = parity
        # The longest window in whole hops; kernels are continued by zeros up to there.
        self.span = -(-windows[2] // self.hop) * self.hop
        initial = Initialization(initialization)

        def bank(name, outputs):
            """Kernels [window, 1, filters] of the three windows, with their biases."""
            weights = []
            for branch, window in zip(BRANCHES, self.windows):
                kernel = self.add_weight(
                    shape=(window, 1, filters),
                    initializer=initial.kernel(window, window * filters),
                    name=f"{name}_{branch}_kernel",
                )
                bias = self.add_weight(shape=(outputs,), initializer=initial.bias(window), name=f"{name}_{branch}_bias")
                weights.append((kernel, bias))
            return weights

        self.encoders = bank("encoder", filters)
        self.decoders = bank("decoder", 1)
        self.speaker_norm = ChannelNorm(CHANNEL_NORM_EPSILON, name="speaker_norm")
        self.speaker_input = initial.pointwise(3 * filters, embedding_dim, "speaker_input")
        sizes = (embedding_dim, embedding_dim, speaker_units, speaker_units)
        self.speaker_blocks = [
            ResidualBlock(*sizes[i : i + 2], initialization=initialization, name=f"speaker_block_{i}") for i in range(3)
        ]
        self.speaker_output = initial.pointwise(speaker_units, embedding_dim, "speaker_output")
        self.classifier = Initialization("uniform").pointwise(embedding_dim, classes, "classifier")
        self.mixture_norm = ChannelNorm(CHANNEL_NORM_EPSILON, name="mixture_norm")
        self.mixture_input = initial.pointwise(3 * filters, bottleneck, "mixture_input")
        self.blocks = [
            ConvBlock(
                bottleneck,
                units,
                2**j,
                taps,
                norm,
                norm_epsilon,
                causal,
                condition=0 if j else embedding_dim,
                initialization=initialization,
                name=f"block_{i}_{j}",
            )
            for i in range(repeats)
            for j in range(dilations)
        ]
        self.masks = [initial.pointwise(bottleneck, filters, f"mask_{branch}") for branch in BRANCHES]
        self.build()

    def build(self, input_shape=None):
        """Makes all weights, whatever the lengths of the inputs."""
        width = 3 * self.filters
        layers = [(self.speaker_norm, width), (self.speaker_input, width)]
        layers += [(block, block.channels) for block in self.speaker_blocks]
        layers += [(self.speaker_output, self.speaker_blocks[-1].filters)]
        layers += [(self.classifier, self.speaker_output.filters)]
        layers += [(self.mixture_norm, width), (self.mixture_input, width)]
        layers += [(layer, self.mixture_input.filters) for layer in [*self.blocks, *self.masks]]
        for layer, channels in layers:
            layer.build((None, None, channels))

    @property
    def shortest_enrolment(self):
        """Samples that an enrolment must have at least."""
        return shortest_enrolment(self.windows, self.average_pool)

    def count_macs(self, samples, enrolment_samples):
        """Multiply-accumulates of `call` on one mixture and one enrolment of so many samples."""
        encoder = sum(self.windows) * self.filters
        mixture = 2 * encoder + _size(self.mixture_input) + sum(map(_size, self.masks))
        at_once = 0  # what the embedding adds is the same in all frames
        for block in self.blocks:
            given = block.condition * block.units
            mixture += _size(block.expand) - given + block.taps * block.units + _size(block.reduce)
            at_once += given
        frames, enrolled = (int(frame_count(n, self.windows[0], self.hop)) for n in (samples, enrolment_samples))
        total = frames * mixture + at_once + _size(self.classifier) + enrolled * (encoder + _size(self.speaker_input))
        for block in self.speaker_blocks:
            total += enrolled * sum(map(_size, filter(None, (block.conv_1, block.conv_2, block.skip))))
            enrolled //= 3
        return total + enrolled * _size(self.speaker_output)

    def start_as_fourier(self):
        """Gives encoders and decoders the values of a short-time Fourier transform; training goes on from there.

        See models.layers.conv_tasnet.start_as_fourier. The short window with 2 * samples filters then gives the mixture
        back where its mask is 1.
        """
        for (encoder, encoder_bias), (decoder, decoder_bias) in zip(self.encoders, self.decoders):
            start_as_fourier(encoder, decoder, self.hop)
            for bias in (encoder_bias, decoder_bias):
                bias.assign(np.zeros(bias.shape, np.float32))

    # Parts --------------------------------------------------------------------------------------------

    def encode(self, waveforms):
        """[batch, samples] -> [batch, frames, 3 filters], the three windows one after the other."""
        frames = frame_count(ops.shape(waveforms)[1], self.windows[0], self.hop)
        cut = cut_frames(ops.cast(waveforms, self.compute_dtype), self.span, self.hop, frames)
        kernels = [
            ops.pad(ops.squeeze(kernel, axis=1), ((0, self.span - window), (0, 0)))
            for (kernel, _), window in zip(self.encoders, self.windows)
        ]
        bias = ops.concatenate([bias for _, bias in self.encoders])
        return ops.relu(pointwise(cut, ops.concatenate(kernels, axis=1), bias))

    def embed(self, enrolment, samples=None, training=False):
        """Speaker embedding [batch, embedding_dim] of enrolments [batch, samples]; `samples` [batch] of them count.

        Raises:
            ValueError: they are known to be too short; see `shortest_enrolment`.
        """
        known = enrolment.shape[1]
        if known is not None and known < self.shortest_enrolment:
            raise ValueError(
                f"enrolments of {known} samples, {self.shortest_enrolment} are needed; repeat them or lengthen them"
            )
        mask = None
        if samples is not None and not self.parity:
            enrolment = zero_behind(enrolment, samples)
        encoded = self.encode(enrolment)
        frames = None if samples is None else frame_count(samples, self.windows[0], self.hop)

        def mask_of(x, frames):
            return None if frames is None or self.parity else frames_below(frames, ops.shape(x)[1])

        x = normed_pointwise(encoded, self.speaker_norm, self.speaker_input)
        for block in self.speaker_blocks:
            x = block(x, mask_of(x, frames), training=training)
            frames = None if frames is None else frames // 3
        x = self.speaker_output(x)
        if self.average_pool:
            x = ops.average_pool(x, 3, strides=3, padding="valid", data_format="channels_last")
            frames = None if frames is None else frames // 3
        x = ops.cast(x, "float32")
        if frames is None or (self.parity and self.average_pool):
            return ops.mean(x, axis=1)
        mask = mask_of(x, frames)
        total = ops.sum(x if mask is None else x * mask, axis=1)
        return total / ops.expand_dims(ops.maximum(ops.cast(frames, "float32"), 1.0), 1)

    def classify(self, embedding):
        """Embeddings [batch, embedding_dim] -> logits [batch, classes]."""
        return ops.cast(self.classifier(embedding), "float32")

    def extract(self, mixture, embedding, samples=None, branches=BRANCHES[:1], training=False):
        """The talker with a given embedding.

        Args:
            mixture: [batch, samples].
            embedding: [batch, embedding_dim], or [1, embedding_dim] for all.
            samples: [batch], how many samples are not padding; None: all.
            branches: which of BRANCHES to compute; the first alone is the answer.

        Returns:
            {branch: [batch, samples]}.
        """
        masked = samples is not None and not self.parity
        if masked:
            mixture = zero_behind(mixture, samples)
        encoded = self.encode(mixture)
        count = ops.shape(encoded)[1]
        frames = frame_count(samples, self.windows[0], self.hop) if masked else None
        frame_mask = frames_below(frames, count) if masked else None
        x = normed_pointwise(encoded, self.mixture_norm, self.mixture_input)
        x = ops.squeeze(run_blocks([self.blocks], ops.expand_dims(x, 0), embedding, frame_mask, training), axis=0)
        length = ops.shape(mixture)[1]
        estimates = {}
        for branch in branches:
            i = BRANCHES.index(branch)
            size = (ops.shape(encoded)[0], count, self.filters)
            chosen = apply_mask(self.mask, self.masks[i](x)) * ops.slice(encoded, (0, 0, i * self.filters), size)
            if masked:
                chosen = chosen * ops.cast(frame_mask, chosen.dtype)
            estimate = fit(self._decode(chosen, i), length)
            if masked:
                end = ops.minimum(samples, (frames - 1) * self.hop + self.windows[i])
                estimate = zero_behind(estimate, end)
            estimates[branch] = estimate
        return estimates

    def _decode(self, x, i):
        """[batch, frames, filters] -> [batch, (frames - 1) hop + window]."""
        kernel, bias = self.decoders[i]
        frames = pointwise(x, ops.transpose(ops.squeeze(kernel, axis=1)))  # [B, frames, window]
        return ops.cast(overlap_add(ops.cast(frames, "float32"), self.hop) + ops.cast(bias, "float32"), "float32")

    def call(self, inputs, training=False):
        enrolment_samples, samples = inputs.get("enrolment_samples"), inputs.get("samples")
        embedding = self.embed(inputs["enrolment"], enrolment_samples, training=training)
        estimates = self.extract(inputs["mixture"], embedding, samples, BRANCHES, training=training)
        return estimates | {"logits": self.classify(embedding), "embedding": embedding}

    def get_config(self):
        return {"name": self.name} | self.settings


def shortest_enrolment(windows, average_pool):
    """Samples that an enrolment must have for one frame to be left of it; for the arguments see SpexPlus."""
    pooled = 81 if average_pool else 27  # frames of the encoder that make one that an embedding is the mean of
    return windows[0] + (pooled - 1) * (windows[0] // 2)


def _size(layer):
    """Weights of the kernel of a 1x1 convolution."""
    return int(np.prod(layer.kernel.shape))


def apply_mask(kind, x):
    """Masks of one of MASKS from what the last layer gives, [batch, frames, filters]."""
    if kind in ("relu", "sigmoid"):
        return getattr(ops, kind)(x)
    return ops.softmax(x, axis=0 if kind == "batch_softmax" else -1)
