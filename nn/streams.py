"""Recordings that go through a causal system block by block."""

import collections
import itertools
import operator

import numpy as np
import tensorflow as tf

from feat.audio import resample_blocks


def compile_step(step, state, frames):
    """The `compile` of a stream in models/: one graph for any number of frames."""
    spec = tf.nest.map_structure(tf.TensorSpec.from_tensor, state)
    return tf.function(step, input_signature=[spec, tf.TensorSpec([None, *frames.shape[1:]], tf.float32)])


def add_up(talkers, mixture):
    """Talkers [talkers, samples] that sum to the mixture [samples]: each gets an equal part of what is missing.

    Source: Wisdom et al., "Differentiable consistency constraints for improved deep speech enhancement", 2019, eq. 6.
    """
    return (talkers + (mixture - talkers.sum(axis=0)) / len(talkers)).astype(np.float32)


def separate_stream(stream, blocks):
    """Yields the talkers, [talkers, some samples], of blocks [samples] as they come; as many samples as came in.

    Args:
        stream: models.streaming.StreamingSeparator.
    """
    waiting = np.zeros(0, np.float32)  # samples whose talkers are still to come
    for block in blocks:
        talkers = stream.step(block)
        waiting = np.concatenate([waiting, block])
        ready, waiting = np.split(waiting, [talkers.shape[1]])
        yield add_up(talkers, ready)
    # Silence behind the recording, so that all of it lies in whole windows.
    last = stream.step(np.zeros(stream.latency, np.float32)), stream.flush()
    yield add_up(np.concatenate(last, axis=1)[:, : len(waiting)], waiting)


def stream_through(stream, blocks):
    """Yields what comes out of a stream, [..., some samples], for blocks as they come; as many samples as came in.

    Args:
        stream: models.streaming_mimo_tasnet.StreamingBinaural.
        blocks: iterable of [channels, some samples].
    """
    missing = 0
    for block in blocks:
        ready = stream.step(block)
        missing += block.shape[-1] - ready.shape[-1]
        yield ready
    # Silence behind the recording, so that all of it lies in whole windows.
    last = stream.step(np.zeros((stream.inputs, stream.latency), np.float32)), stream.flush()
    yield np.concatenate(last, axis=-1)[..., :missing]


def resample_channels(blocks, from_hz, to_hz, seconds=1.0):
    """feat.audio.resample_blocks of blocks [samples] or [channels, samples]."""
    blocks = iter(blocks)
    first = next(blocks, None)
    if first is None:
        return
    blocks = itertools.chain([first], blocks)
    if first.ndim == 1:
        yield from resample_blocks(blocks, from_hz, to_hz, seconds)
        return
    # What one channel has taken waits for the others.
    copies = itertools.tee(blocks, len(first))
    channels = [map(operator.itemgetter(i), copy) for i, copy in enumerate(copies)]
    yield from map(np.stack, zip(*(resample_blocks(channel, from_hz, to_hz, seconds) for channel in channels)))


def extract_stream(stream, blocks, gain):
    """Yields the talker, [1, some samples], of blocks [samples], as loud as in the mixture so far.

    Args:
        stream: models.streaming_tasnet.StreamingExtractor.
        gain: RunningGain, or another function of a block, for what the network sees.
    """
    level, waiting = RunningLevel(), np.zeros(0, np.float32)
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        (talker,) = stream.step(gain(block) * block)
        yield level(talker, waiting[: len(talker)])[None]
        waiting = waiting[len(talker) :]
    (talker,) = stream.flush()
    yield level(talker, waiting)[None]


class RunningLevel:
    """Scales an estimate to the share that it has in the mixture, by least squares over all samples up to each."""

    def __init__(self):
        self.shared = self.energy = 0.0

    def __call__(self, estimate, mixture):
        """The next samples of both, [samples] -> [samples]."""
        shared = self.shared + np.cumsum(np.multiply(mixture, estimate, dtype=np.float64))
        energy = self.energy + np.cumsum(np.square(estimate, dtype=np.float64))
        if len(estimate):
            self.shared, self.energy = shared[-1], energy[-1]
        return (shared / np.maximum(energy, 1e-12) * estimate).astype(np.float32)


class RunningGain:
    """What brings a recording to a level, by its frames up to the end of each block.

    Args:
        gain: function of the powers of frames, as nn.extraction.Extractor.gain.
        frame: samples.
        frames: how many of the last frames count.
    """

    def __init__(self, gain, frame, frames=6000):
        self.gain, self.frame = gain, frame
        self.powers = collections.deque(maxlen=frames)
        self.rest = np.zeros(0, np.float32)

    def __call__(self, block):
        samples = np.concatenate([self.rest, block])
        whole = len(samples) // self.frame * self.frame
        self.rest = samples[whole:]
        self.powers.extend(np.mean(np.square(samples[:whole].reshape(-1, self.frame)), axis=1))
        return self.gain(np.array(self.powers))
