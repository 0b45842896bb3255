"""Separators that take waveforms and give waveforms: what is exported, whatever the system computes inside."""

import keras
from keras import ops

from models import losses
from models.deep_casa import grouping
from models.layers import spectral


@keras.saving.register_keras_serializable("deep_casa.waveforms")
class DeepCasaSeparator(keras.Model):
    """Both stages of Deep CASA from the waveform of a mixture to those of its talkers, in one graph.

    Call: [1, samples] -> [1, talkers, samples], float32, at the rate of training; one recording at a time, because
    the frames of a recording are clustered together. It computes what nn.systems.separator.Separator does for a
    recording that is no longer than its window: STFT with silence around the recording, Dense-UNet, embeddings,
    clustering, permutation, inverse STFT. The whole recording is clustered at once. A causal system sees no silence
    before the recording and clusters frame by frame from the past. The order of the talkers is arbitrary, as always.

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
