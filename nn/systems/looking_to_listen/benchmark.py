"""Benchmark of Looking to Listen."""

import numpy as np
import tensorflow as tf
from absl import flags

from feat.batches import common
from models.looking_to_listen.network import IMAGE_RATE, LookingToListen
from models.looking_to_listen.spectra import SAMPLE_RATE, Frontend
from nn.systems.looking_to_listen.training import AudioVisualSeparation
from nn.systems.noise import sizes_given, tensors
from nn.systems.system import Benchmark

FLAGS = flags.FLAGS
EMBEDDING_SIZE = 512  # of FaceNet


def make():
    """(model, objective) of Looking to Listen, as published but for --n_channels if given."""
    model = LookingToListen(FLAGS.talkers, **sizes_given({"channels": "n_channels"}))
    return model, AudioVisualSeparation(model)


def random_batch(settings, batch_size, seconds):
    """A batch of noise."""
    generator = np.random.default_rng(0)
    samples, images = int(seconds * SAMPLE_RATE), max(1, int(seconds * IMAGE_RATE))
    sources = generator.standard_normal((batch_size, FLAGS.talkers, samples), np.float32)
    embeddings = generator.standard_normal((batch_size, FLAGS.talkers, images, EMBEDDING_SIZE), np.float32)
    return tensors({"mixture": sources.mean(axis=1), "sources": sources, "embeddings": embeddings})


def inputs_of(batch):
    """(spectrum, embeddings) of a batch."""
    return Frontend().analyse(batch["mixture"])[0], batch["embeddings"]


def count_macs(model, batch):
    """Multiply-accumulates of a batch."""
    spectrum, embeddings = inputs_of(batch)
    return len(spectrum) * model.count_macs(spectrum.shape[1], embeddings.shape[2])


def fixed_lengths(batch):
    """{name: tf.TensorSpec}: all training batches have one length."""
    return {key: tf.TensorSpec(value.shape, value.dtype) for key, value in batch.items()}


BENCHMARKS = {
    "looking_to_listen": Benchmark(
        make=make,
        batch=random_batch,
        call=lambda model, batch: model(inputs_of(batch)),
        count_macs=count_macs,
        sample_rate=lambda settings: SAMPLE_RATE,
        free_lengths=common.free_lengths,
        step_lengths=fixed_lengths,
        cost_alone=True,
    )
}
