"""Benchmarks of the networks of DiffSep."""

import numpy as np
import tensorflow as tf
from absl import flags

from models.diffsep.cdiffuse import CDiffuse
from models.diffsep.ncsnpp import ScoreModel
from nn.systems.noise import tensors
from nn.systems.system import Benchmark
from nn.training import cost

FLAGS = flags.FLAGS


def define_flags():
    flags.DEFINE_integer("nf", 128, "channels of ncsnpp's first level", lower_bound=4)
    flags.DEFINE_list("ch_mult", list("1122222"), "channels of each level of ncsnpp, over --nf")
    flags.DEFINE_integer("num_res_blocks", 2, "blocks of a level of ncsnpp", lower_bound=1)
    flags.DEFINE_list("attn_resolutions", ["16"], "rows at which ncsnpp has attention")


class Denoising:
    """Objective that costs what training a score network does: the square of its score and the noise that was added."""

    def __init__(self, model):
        self.model = model

    def __call__(self, batch, training=False):
        score = self.model(batch["state"], batch["time"], batch["mixture"], training=training)
        return tf.reduce_mean(tf.square(score + batch["noise"]), axis=(1, 2)), {}


def make_ncsnpp():
    """(model, objective) of NCSN++."""
    sizes = {"multipliers": list(map(int, FLAGS.ch_mult)), "attention": list(map(int, FLAGS.attn_resolutions))}
    model = ScoreModel(FLAGS.talkers, channels=FLAGS.nf, blocks=FLAGS.num_res_blocks, **sizes)
    return model, Denoising(model)


def make_cdiffuse():
    """(model, objective) of CDiffuse."""
    model = CDiffuse(FLAGS.talkers)
    return model, Denoising(model)


def random_batch(settings, batch_size, seconds):
    """A batch of noise."""
    draw = np.random.default_rng(0).standard_normal
    samples = int(seconds * settings.sample_rate)
    state, noise = (draw((batch_size, FLAGS.talkers, samples), np.float32) for _ in range(2))
    time = np.linspace(0.1, 0.9, batch_size, dtype=np.float32)
    return tensors({"state": state, "noise": noise, "time": time, "mixture": state.sum(axis=1)})


def free_lengths(batch):
    """{name: tf.TensorSpec} with free batch sizes and numbers of samples."""
    shapes = {key: [None] if key == "time" else [None, *value.shape[1:-1], None] for key, value in batch.items()}
    return {key: tf.TensorSpec(shape, tf.float32) for key, shape in shapes.items()}


def call(model, batch):
    """The score of a batch."""
    return model(state=batch["state"], time=batch["time"], mixture=batch["mixture"])


def _benchmark(make):
    return Benchmark(
        make=make,
        batch=random_batch,
        call=call,
        count_macs=lambda model, batch: cost.count_macs(model, lambda: call(model, batch)),
        sample_rate=lambda settings: settings.sample_rate,
        free_lengths=free_lengths,
        cost_alone=True,
    )


BENCHMARKS = {"ncsnpp": _benchmark(make_ncsnpp), "cdiffuse": _benchmark(make_cdiffuse)}
