"""Separators that take waveforms and give waveforms: what is exported, whatever the system computes inside."""

import keras
from keras import ops

from models import grouping, losses, spectral


@keras.saving.register_keras_serializable("deep_casa")
class DeepCasaSeparator(keras.Model):
    """Both stages of Deep CASA from the waveform of a mixture to those of its talkers, in one graph.

    Call: [1, samples] -> [1, talkers, samples], float32, at the rate of training; one recording at a time, because
    the frames of a recording are clustered together. It computes what nn.separate.Separator does for a recording
    that is no longer than its window: STFT with silence around the recording, Dense-UNet, embeddings, clustering,
    permutation, inverse STFT. The whole recording is clustered at once. A causal system sees no silence before the
    recording and clusters frame by frame from the past. The order of the talkers is arbitrary, as always.

    Args:
        unet: DenseUNet.
        sequential: SequentialGrouping, or None after utterance-level training, which needs no second stage.
        fft_size, hop_size: of the STFT, samples.
        real: no complex numbers inside, for runtimes that have none.
    """

    def __init__(self, unet, sequential=None, fft_size=256, hop_size=64, real=False, **kwargs):
        super().__init__(**{"name": "deep_casa_separator"} | kwargs)
        self.unet = unet
        self.sequential = sequential
        self.fft_size = fft_size
        self.hop_size = hop_size
        self.real = real
        self.talkers = unet.talkers
        self.causal = all(net.causal for net in (unet, sequential) if net is not None)
        self.built = True  # as its nets are

    def call(self, waveforms):
        stft, istft = (spectral.real_stft, spectral.real_istft) if self.real else (spectral.stft, spectral.istft)
        samples = ops.shape(waveforms)[1]
        # Silence around the recording, so that its ends are seen by as many frames as all else.
        lead = 0 if self.causal else self.fft_size
        frames = (samples + lead + self.hop_size - 1) // self.hop_size + 1
        behind = (frames - 1) * self.hop_size + self.fft_size - lead - samples
        mixture = stft(ops.pad(waveforms, ((0, 0), (lead, behind))), self.fft_size, self.hop_size)
        estimates = self.unet(mixture)  # [1, C, T, F, 2]
        if self.sequential is not None:
            embeddings = self.sequential((mixture, estimates))[0]
            assignment = self.assign(mixture[0], estimates[0], embeddings)
            estimates = losses.permute_frames(estimates, ops.expand_dims(assignment, 0))
        talkers = istft(estimates, self.fft_size, self.hop_size)
        talkers = ops.slice(talkers, (0, 0, lead), (1, self.talkers, samples))
        # Each talker gets an equal part of what is missing for their sum to be the mixture.
        missing = ops.expand_dims(waveforms, 1) - ops.sum(talkers, axis=1, keepdims=True)
        return talkers + missing / self.talkers

    def assign(self, mixture, estimates, embeddings):
        """Order of the estimates in every frame, [frames], index into `permutations(talkers)`.

        Args:
            mixture: [frames, bins, 2].
            estimates: [talkers, frames, bins, 2].
            embeddings: [frames, embeddings a frame, embedding_dim].
        """
        if not self.causal:
            return grouping.whole_file_assignment(embeddings, estimates)
        online = grouping.OnlineClustering(self.talkers)
        energies = ops.sum(ops.square(mixture), axis=(-2, -1))
        return online.assign(online.initial_state(self.sequential.embedding_dim), embeddings, energies)[1]

    def get_config(self):
        nets = {"unet": self.unet, "sequential": self.sequential}
        nets = {name: net and keras.saving.serialize_keras_object(net) for name, net in nets.items()}
        return {"name": self.name, "fft_size": self.fft_size, "hop_size": self.hop_size, "real": self.real} | nets

    @classmethod
    def from_config(cls, config):
        nets = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("unet", "sequential")}
        return cls(**config | nets)


@keras.saving.register_keras_serializable("deep_casa")
class TargetExtractor(keras.Model):
    """SpEx+ from the waveforms of a mixture and an enrolment to that of the enrolled talker, in one graph.

    Call: [1, samples], [1, samples'] -> [1, 1, samples], float32, at the rate of training: the short window's estimate,
    as loud as it is in the mixture by least squares. A mixture that is shorter than a window is filled up with zeros,
    an enrolment that is too short repeated.

    Args:
        model: SpexPlus.
    """

    def __init__(self, model, **kwargs):
        super().__init__(**{"name": "target_extractor"} | kwargs)
        self.model = model
        self.built = True  # as the model is

    def call(self, mixture, enrolment):
        samples, enrolled = ops.shape(mixture)[1], ops.shape(enrolment)[1]
        again = ops.arange(ops.maximum(enrolled, self.model.shortest_enrolment)) % enrolled
        embedding = self.model.embed(ops.take(enrolment, again, axis=1))
        padded = ops.pad(mixture, ((0, 0), (0, ops.maximum(self.model.windows[0] - samples, 0))))
        estimate = ops.slice(self.model.extract(padded, embedding)["short"], (0, 0), (1, samples))
        # As products of matrices, which runtimes do not sum up one by one.
        column = ops.transpose(estimate)
        level = ops.matmul(mixture, column) / ops.maximum(ops.matmul(estimate, column), 1e-9)
        return ops.expand_dims(level * estimate, 1)

    def get_config(self):
        return {"name": self.name, "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"model": keras.saving.deserialize_keras_object(config["model"])})


@keras.saving.register_keras_serializable("deep_casa")
class OneRecording(keras.Model):
    """A separator without the axis of the batch: [samples] -> [talkers, samples], or of several waveforms.

    Args:
        separator: model of [batch, samples], once or several times, -> [batch, talkers, samples].
    """

    def __init__(self, separator, **kwargs):
        super().__init__(**{"name": "one_recording"} | kwargs)
        self.separator = separator
        self.built = separator.built

    def call(self, *waveforms):
        return ops.squeeze(self.separator(*(ops.expand_dims(waveform, 0) for waveform in waveforms)), 0)

    def get_config(self):
        return {"name": self.name, "separator": keras.saving.serialize_keras_object(self.separator)}

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"separator": keras.saving.deserialize_keras_object(config["separator"])})


@keras.saving.register_keras_serializable("deep_casa")
class AtTrainingLevels(keras.Model):
    """A TargetExtractor that gets signals at the levels of its training, as nn.extraction.Extractor brings them there.

    Args:
        extractor: TargetExtractor.
        levels_db: {"mixture", "enrolment": dB}.
    """

    def __init__(self, extractor, levels_db, **kwargs):
        super().__init__(**{"name": "at_training_levels"} | kwargs)
        self.extractor = extractor
        self.levels_db = dict(levels_db)
        self.built = True  # as the extractor is

    def call(self, mixture, enrolment):
        gain = self.gain("mixture", mixture)
        return self.extractor(gain * mixture, self.gain("enrolment", enrolment) * enrolment) / gain

    def gain(self, kind, signal):
        """See Extractor.gain; of a signal [1, samples], by masks where loud frames are picked there."""
        if kind not in self.levels_db:
            return 1.0
        frame, samples = self.extractor.model.windows[1], ops.shape(signal)[1]
        frames = ops.maximum(samples // frame, 1)
        filled = ops.pad(signal, ((0, 0), (0, ops.maximum(frame - samples, 0))))
        filled = ops.reshape(ops.slice(filled, (0, 0), (1, frames * frame)), (-1, frame))
        powers = ops.sum(ops.square(filled), axis=1) / ops.cast(ops.minimum(samples, frame), "float32")  # [frames]
        loud = ops.cast(powers >= 0.01 * ops.max(powers), "float32")
        level = ops.sum(loud * powers) / ops.sum(loud)
        wanted = 10 ** (self.levels_db[kind] / 20)
        return ops.where(level > 0, wanted / ops.sqrt(ops.maximum(level, 1e-20)), 1.0)

    def get_config(self):
        extractor = keras.saving.serialize_keras_object(self.extractor)
        return {"name": self.name, "extractor": extractor, "levels_db": self.levels_db}

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"extractor": keras.saving.deserialize_keras_object(config["extractor"])})
