"""Causal SpEx+ on a mixture that comes in blocks: what comes out equals what the whole file gives.

Only the branch of the short window is computed. The blocks of dilated convolutions, their norms and the overlap-add,
which other causal networks of the Conv-TasNet family need too, are those of models/layers/streaming.py.
"""

import numpy as np
from keras import ops

from models.layers.streaming import Affine, StreamingConvBlocks, WaveformStream, pointwise, tensor, to_numpy, weights_of
from models.spex_plus.network import apply_mask


class StreamingExtractor(WaveformStream):
    """Extracts one talker from one recording block by block. One per stream.

    Concatenated, the outputs are `model.extract(mixture, embedding)["short"]` on the whole mixture, as many samples as
    came in; a mixture shorter than a frame is filled up with zeros. A sample comes out as soon as the long window of
    the last frame that covers it has come in, so that the algorithmic latency is that window, 20 ms, and the block.

    Args:
        model: SpexPlus, causal and not with the global norm.
        embedding: [embedding_dim], of the wanted talker.
        compile: as in models.deep_casa.streaming.StreamingSeparator.
        gain: what brings the mixture to the level of training, with the methods of
            nn.systems.spex_plus.recordings.RunningGain; None: the mixture goes through as it comes. A frame of the
            network goes through with one gain, that of the mixture up to its end, which is taken out of what comes out
            of this frame; where it is infinite, 0 comes out.

    Raises:
        ValueError: the model is not causal.
    """

    # A second of audio, over which the weights are read once.
    most_frames = 800

    def __init__(self, model, embedding, compile=lambda step, state, frames: step, gain=None):
        super().__init__(1, model.windows[2], model.hop, piece=model.windows[0])
        self.gain = gain
        self.network = StreamingSpexPlus(model)
        self.bias = self.network.output_bias
        self.set_enrolment(embedding)
        self.reset()
        self._step = compile(self.network, self._state, np.zeros((1, self.window_size), "float32"))

    def set_enrolment(self, embedding):
        """Extracts the talker of this embedding, [embedding_dim], from the next frame on."""
        self._shifts = self.network.condition(embedding)

    def reset(self):
        """Forgets the mixture, not the embedding."""
        super().reset()
        self._state = {"blocks": self.network.initial_state(), "shifts": self._shifts}
        if self.gain is not None:
            self.gain.reset()

    def step(self, samples):
        if self.gain is not None:
            self.gain.add(samples)
        return super().step(samples)

    def _run(self, frames):
        gains = self._gains(len(frames))
        frames = np.where(np.isfinite(gains), gains, 1) * frames
        state = self._state | {"shifts": self._shifts}
        self._state, pieces = self._step(state, ops.convert_to_tensor(frames.astype("float32")))
        pieces = ops.convert_to_numpy(pieces) / gains
        # Once for every sample: up to where the next frame begins, behind the last one in `_last_frames`.
        pieces[:, : self.hop_size] += self.bias / gains
        self._last_gain = gains[-1, 0]
        return pieces[None]

    def _gains(self, count):
        """Of the next frames, [frames, 1]."""
        if self.gain is None:
            return np.ones((count, 1), "float32")
        ends = (self._frames + np.arange(count)) * self.hop_size + self.window_size
        return self.gain.until(np.minimum(ends, self._received))[:, None]

    def _last_frames(self):
        """With zeros behind the mixture, which its last frames see in their middle and long windows."""
        if not self._received:
            return []
        frames = max(self._received - self.piece_size, 0) // self.hop_size + 1 - self._frames
        needed = (frames - 1) * self.hop_size + self.window_size
        self._samples = np.pad(self._samples, (0, max(needed - len(self._samples), 0)))[:needed]
        ready = self._whole_frames()
        self._tail += self.bias / self._last_gain
        return ready


class StreamingSpexPlus:
    """Causal SpexPlus as a pure function of a state and some frames.

    Call: (state, frames [frames, long window]) -> (state, pieces [frames, short window], to be added up).
    """

    def __init__(self, model):
        self.blocks = StreamingConvBlocks(model.blocks)
        self.conditions = {}  # number of the block: kernel and bias
        for i, block in enumerate(model.blocks):
            if block.condition:
                kernel, bias = weights_of(block.expand)
                self.conditions[i] = kernel[block.channels :], bias
        kernels, biases = zip(*((to_numpy(kernel)[:, 0], to_numpy(bias)) for kernel, bias in model.encoders))
        kernels = [np.pad(kernel, ((0, model.windows[2] - len(kernel)), (0, 0))) for kernel in kernels]
        self.encoder = tensor(np.concatenate(kernels, axis=1)), tensor(np.concatenate(biases))
        self.filters = model.filters
        self.epsilon = model.mixture_norm.epsilon
        kernel, bias = Affine.of(model.mixture_norm).fold(*weights_of(model.mixture_input))
        self.input = tensor(kernel), tensor(bias), tensor(kernel.sum(axis=0))
        self.masks = [tensor(x) for x in weights_of(model.masks[0])]
        self.mask = model.mask
        kernel, bias = model.decoders[0]
        self.decoder = tensor(to_numpy(kernel)[:, 0].T)
        self.output_bias = float(to_numpy(bias)[0])

    def initial_state(self):
        return self.blocks.initial_state()

    def condition(self, embedding):
        """What an embedding [embedding_dim] adds to the blocks that are given it, with their biases."""
        embedding = to_numpy(embedding)
        return [tensor(embedding @ kernel + bias) for kernel, bias in self.conditions.values()]

    def __call__(self, state, frames):
        encoded = ops.relu(pointwise(frames, *self.encoder))
        mean = ops.mean(encoded, axis=1, keepdims=True)
        variance = ops.maximum(ops.mean(ops.square(encoded), axis=1, keepdims=True) - ops.square(mean), 0.0)
        kernel, bias, sums = self.input
        x = (ops.matmul(encoded, kernel) - mean * sums) * ops.rsqrt(variance + self.epsilon) + bias
        blocks, x = self.blocks(state["blocks"], x, zip(self.conditions, state["shifts"]))
        mask = apply_mask(self.mask, ops.expand_dims(pointwise(x, *self.masks), 0))[0]
        pieces = ops.matmul(mask * encoded[:, : self.filters], self.decoder)
        return {"blocks": blocks, "shifts": state["shifts"]}, pieces
