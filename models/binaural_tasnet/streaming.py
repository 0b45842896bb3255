"""Causal Binaural TasNet on a recording of two ears that comes in blocks: what comes out equals what the file gives.

Both ears' networks go side by side, so that a block takes no more operations than it does in one network. What is not
this network's own lies in models/layers/streaming.py.
"""

import numpy as np
from keras import ops

from models.binaural_tasnet.network import EARS, FEATURE_HOP, FFT_SIZE, features_of_spectra, project, spectra_of_frames
from models.layers.streaming import (
    Affine,
    StreamingConvBlocks,
    WaveformStream,
    beside,
    pointwise,
    tensor,
    to_numpy,
    weights_of,
)


class StreamingBinaural(WaveformStream):
    """Separates one recording of two ears block by block. One per stream.

    Concatenated, the outputs are `model(mixture)` of the whole recording, as many samples as came in, of which those
    behind the last whole frame, less than a hop, are 0. A sample comes out as soon as the frame that begins at it or
    last before it has come in: the algorithmic latency is a window, 2 ms at the published size, and the block.

    Args:
        model: MimoTasnet, causal and not with the global norm.
        compile: as in models.deep_casa.streaming.StreamingSeparator.

    Raises:
        ValueError: the model is not causal, or draws anew what it does with the features of "cross".
    """

    # A second of 8 kHz, over which the weights are read once.
    most_frames = 1000

    def __init__(self, model, compile=lambda step, state, frames: step):
        super().__init__(len(EARS) * model.talkers, model.window, model.hop, inputs=len(EARS))
        self.network = StreamingMimoTasnet(model)
        # Samples before a frame that features may need: they change every FEATURE_HOP.
        self.before = FFT_SIZE - model.window + FEATURE_HOP - 1 if self.network.features else 0
        self.reset()
        frames = np.zeros((1, len(EARS), model.window + (FFT_SIZE if self.network.features else 0)), "float32")
        self._step = compile(self.network, self._state, frames)

    def reset(self):
        super().reset()
        self._past = np.zeros((len(EARS), self.before))
        self._state = self.network.initial_state()

    def step(self, samples):
        """Takes the next samples, [2, n], left ear first; returns what is ready, float32 [talkers, 2, m]."""
        return self._by_talker(super().step(samples))

    def flush(self):
        """Ends the recording: the samples still to come, float32 [talkers, 2, m]. The next `step` begins another."""
        return self._by_talker(super().flush())

    @staticmethod
    def _by_talker(signals):
        return signals.reshape(len(signals) // len(EARS), len(EARS), -1)

    def _run(self, frames):
        if self.before:
            frames = np.concatenate([frames, self._feature_frames(frames.shape[1])], axis=-1)
        frames = np.moveaxis(frames, 0, 1).astype("float32")  # [frames, ears, samples]
        self._state, pieces = self._step(self._state, ops.convert_to_tensor(frames))
        return ops.convert_to_numpy(pieces).reshape(self.parts, -1, self.piece_size)

    def _feature_frames(self, count):
        """What the features of the next `count` frames are made of, [ears, count, FFT_SIZE]."""
        hop, before = self.hop_size, self.before
        signal = np.concatenate([self._past, self._samples[:, : (count - 1) * hop + self.window_size]], axis=1)
        self._past = signal[:, count * hop : count * hop + before]
        frames = np.lib.stride_tricks.sliding_window_view(signal, FFT_SIZE, axis=-1)
        starts = (self._frames + np.arange(count)) * hop
        return frames[:, starts // FEATURE_HOP * FEATURE_HOP - self._frames * hop + FEATURE_HOP - 1]


class StreamingMimoTasnet:
    """Causal MimoTasnet as a pure function of a state and some frames.

    Call: (state, frames [frames, 2, window]) -> (state, pieces [talkers, 2, frames, window], to be added up). With
    features, which those of "cross" have, the FFT_SIZE samples that these are made of stand behind each window.
    """

    def __init__(self, model):
        self.features = model.features if model.wiring == "cross" else ()
        if self.features and (model.projection == "random" or model.parity):
            what = "has features of frames to come" if model.parity else "projects features by new random numbers"
            raise ValueError(f"{model.name}: {what}; such a network cannot stream")
        separators = model.separators
        self.blocks = StreamingConvBlocks([separator.blocks for separator in separators])
        self.window, self.talkers, self.masks, self.used = model.window, model.talkers, model.masks, model.used_masks
        # One product of both ears' samples, one behind the other, with what either separator takes of them.
        left, right = (to_numpy(kernel)[:, 0] for kernel in model.encoders)
        zeros = np.zeros_like(left)
        if model.wiring == "parallel":
            kernels = [np.block([[first, zeros], [zeros, second]]) for first, second in ((left, right), (right, left))]
        else:
            kernels = [np.concatenate([left, zeros]), np.concatenate([zeros, right])]
        self.encoder = beside(kernels)
        inputs = [Affine.of(s.norm).fold(*weights_of(s.input_conv)) for s in separators]
        self.input = [beside(x) for x in zip(*((kernel, bias, kernel.sum(axis=0)) for kernel, bias in inputs))]
        self.epsilon = separators[0].norm.epsilon
        kernels = [weights_of(s.mask_conv)[0].reshape(-1, self.talkers, model.width) for s in separators]
        self.mask = beside([kernel[..., : self.used].reshape(len(kernel), -1) for kernel in kernels])
        decoders = [to_numpy(kernel)[:, 0].T for kernel in model.decoders]  # [filters, window]
        ways = 2 if model.wiring == "parallel" else 1  # encodings that a decoder sums up
        self.decoder = beside([np.tile(kernel, (ways, 1)) for kernel in decoders])
        if self.features:
            self.projection = [tensor(x) for x in weights_of(model.projected)]

    def initial_state(self):
        return self.blocks.initial_state()

    def __call__(self, state, frames):
        windows = frames[..., : self.window] if self.features else frames
        windows = ops.reshape(windows, (1, -1, len(EARS) * self.window))
        encoded = ops.relu(ops.matmul(windows, self.encoder))  # [ears, frames, channels]
        seen = encoded
        if self.features:
            ears = ops.split(frames[..., self.window :], len(EARS), axis=1)
            spectra = spectra_of_frames([ops.reshape(ear, (1, -1, FFT_SIZE)) for ear in ears])
            projected = project(features_of_spectra(*spectra, self.features), *self.projection)
            seen = ops.concatenate([encoded, ops.concatenate(projected, axis=0)], axis=-1)
        mean = ops.mean(seen, axis=-1, keepdims=True)
        variance = ops.maximum(ops.mean(ops.square(seen), axis=-1, keepdims=True) - ops.square(mean), 0.0)
        kernel, bias, sums = self.input
        x = (ops.matmul(seen, kernel) - mean * sums) * ops.rsqrt(variance + self.epsilon) + bias
        state, x = self.blocks(state, x)
        logits = ops.reshape(pointwise(x, self.mask), (len(EARS), -1, self.talkers, self.used))
        chosen = ops.reshape(self.masks(logits) * ops.expand_dims(encoded, 2), (len(EARS), -1, self.used))
        pieces = ops.reshape(ops.matmul(chosen, self.decoder), (len(EARS), -1, self.talkers, self.window))
        return state, ops.transpose(pieces, (2, 0, 1, 3))
