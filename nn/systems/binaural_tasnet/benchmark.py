"""Benchmark of Binaural TasNet."""

import os

import numpy as np
from absl import flags

from feat.batches import binaural_tasnet as batches
from feat.batches import common
from feat.signals.audio import write_pcm16
from models.binaural_tasnet.network import WIRINGS, MimoTasnet
from models.binaural_tasnet.streaming import StreamingBinaural
from nn.recordings.streams import compile_step
from nn.systems.binaural_tasnet.training import BinauralSeparation
from nn.systems.noise import TASNET_SIZES, normal, sizes_given, tensors
from nn.systems.system import Benchmark

FLAGS = flags.FLAGS


def define_flags():
    flags.DEFINE_enum("wiring", "parallel", list(WIRINGS), "of mimo_tasnet")


def make():
    """(model, objective) of Binaural TasNet, as published but for sizes that were given; causal with norms by frame."""
    settings = {"causal": True, "norm": "channel"} if FLAGS.causal else {}
    model = MimoTasnet(FLAGS.wiring, FLAGS.talkers, **settings | sizes_given(TASNET_SIZES))
    return model, BinauralSeparation(model, whole=True)


def random_batch(settings, batch_size, seconds):
    """A batch of noise."""
    samples = int(seconds * settings.sample_rate)
    sources = normal(batch_size, FLAGS.talkers, samples, 2)
    return tensors(
        {"mixture": sources.sum(axis=1), "sources": sources, "samples": np.full(batch_size, samples, np.int32)}
    )


def binaural_files(folder, settings, batch_size, seconds):
    """{kind of input: epoch -> batches} on noise written to a folder."""
    generator = np.random.default_rng(0)
    for i in range(4 * batch_size):
        sources = generator.uniform(-0.2, 0.2, (FLAGS.talkers, int(seconds * settings.sample_rate), 2))
        for kind, signal in zip(("mix", *(f"s{k + 1}" for k in range(FLAGS.talkers))), (sources.sum(axis=0), *sources)):
            write_pcm16(os.path.join(folder, kind, f"m{i}.wav"), signal, settings.sample_rate)
    found = batches.binaural_set(folder, settings.sample_rate, FLAGS.talkers)
    return {"on_the_fly": lambda epoch: batches.training_batches(found, batch_size, seed=0, epoch=epoch)}


BENCHMARKS = {
    "mimo_tasnet": Benchmark(
        make=make,
        batch=random_batch,
        call=lambda model, batch: model(batch["mixture"]),
        count_macs=lambda model, batch: len(batch["mixture"]) * model.count_macs(batch["mixture"].shape[1]),
        sample_rate=lambda settings: settings.sample_rate,
        free_lengths=common.free_lengths,
        length_seconds=lambda settings: 1 / settings.sample_rate,
        files=binaural_files,
        stream=lambda settings: StreamingBinaural(make()[0], compile_step),
    )
}
