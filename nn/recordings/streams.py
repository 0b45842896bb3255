"""Recordings that go through a causal system block by block."""

import itertools
import operator

import numpy as np
import tensorflow as tf

from feat.base.graph import compiled
from feat.signals.audio import resample_blocks


def compile_step(step, state, frames):
    """The `compile` of a stream in models/: one graph for any number of frames."""
    spec = tf.nest.map_structure(tf.TensorSpec.from_tensor, state)
    return compiled(step, spec, tf.TensorSpec([None, *frames.shape[1:]], tf.float32))


def add_up(talkers, mixture):
    """Talkers [talkers, samples] that sum to the mixture [samples]: each gets an equal part of what is missing.

    Source: Wisdom et al., "Differentiable consistency constraints for improved deep speech enhancement", 2019, eq. 6.
    """
    return (talkers + (mixture - talkers.sum(axis=0)) / len(talkers)).astype(np.float32)


def stream_through(stream, blocks):
    """Yields what comes out of a stream, [..., some samples], and the samples that it is of, as many as came in.

    Args:
        stream: models.layers.streaming.WaveformStream.
        blocks: iterable of [some samples] or [channels, some samples], as they come.
    """
    waiting = np.zeros(0 if stream.inputs is None else (stream.inputs, 0), np.float32)
    for block in blocks:
        waiting = np.concatenate([waiting, block], axis=-1)
        ready = stream.step(block)
        count = ready.shape[-1]
        yield ready, waiting[..., :count]
        waiting = waiting[..., count:]
    # Silence behind the recording, so that all of it lies in whole windows.
    last = stream.step(np.zeros((*waiting.shape[:-1], stream.latency), np.float32)), stream.flush()
    yield np.concatenate(last, axis=-1)[..., : waiting.shape[-1]], waiting


def resample_channels(blocks, from_hz, to_hz, seconds=1.0):
    """feat.signals.audio.resample_blocks of blocks [samples] or [channels, samples]."""
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
