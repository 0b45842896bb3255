"""Benchmarks of both stages of Deep CASA."""

import dataclasses

import numpy as np
from absl import flags

from feat.batches import common
from feat.batches import deep_casa as batches
from feat.corpora.features import generate
from feat.signals.audio import write_pcm16
from feat.signals.stft import num_frames, num_samples
from models.deep_casa.streaming import StreamingSeparator
from nn.recordings.streams import compile_step
from nn.systems.deep_casa import training
from nn.systems.deep_casa.seq import SequentialGroupingObjective
from nn.systems.deep_casa.simul import SimultaneousGrouping
from nn.systems.noise import tensors
from nn.systems.system import Benchmark
from nn.training import cost

FLAGS = flags.FLAGS


def define_flags():
    """The flags of both stages, which give the sizes of other networks too."""
    training.define_flags(learning_rate=1e-4, lr_decay=1.0)
    training.define_grouping_flags()


def make_dense_unet():
    """(model, objective) of the first stage."""
    model = training.make_dense_unet()
    return model, SimultaneousGrouping(model, FLAGS.fft_size, FLAGS.hop_size)


def make_sequential_grouping():
    """(model, objective) of the second stage; its estimates are given."""
    model = training.make_grouping()
    return model, SequentialGroupingObjective(model)


def random_batch(settings, batch_size, seconds):
    """A batch of noise, as feat.batches.deep_casa makes them, with estimates."""
    generator = np.random.default_rng(0)
    samples = int(seconds * settings.sample_rate)
    frames = max(1, num_frames(samples, settings.fft_size, settings.hop_size))
    covered = num_samples(frames, settings.fft_size, settings.hop_size)
    spectra = (batch_size, settings.talkers, frames, settings.bins, 2)
    batch = {
        "sources": generator.standard_normal(spectra, np.float32),
        "estimates": generator.standard_normal(spectra, np.float32),
        "waveforms": generator.standard_normal((batch_size, settings.talkers, covered), np.float32),
        "frames": np.full(batch_size, frames, np.int32),
        "index": np.arange(batch_size, dtype=np.int32),
    }
    batch["mixture"] = batch["sources"].sum(axis=1)
    return tensors(batch)


def mixture_files(folder, settings, batch_size, seconds):
    """{kind of input of stage 1: epoch -> batches} on noise written to a folder."""
    names = [f"mixture{i}" for i in range(4 * batch_size)]
    generator = np.random.default_rng(0)
    settings = dataclasses.replace(settings, data_folder=folder, feat_folder=f"{folder}/feat")
    for name in names:
        sources = 0.1 * generator.standard_normal((settings.talkers, int(seconds * settings.sample_rate)))
        signals = [*sources.clip(-0.4, 0.4), sources.sum(axis=0).clip(-0.9, 0.9)]
        for path, signal in zip(settings.wav_paths("tr", name), signals):
            write_pcm16(path, signal, settings.sample_rate)
    generate(settings, {"tr": names}, 1)
    found = {
        "cached": batches.cached_utterances(settings, "tr", names),
        "on_the_fly": batches.wav_utterances(settings, "tr", names),
    }
    return {
        kind: lambda epoch, utterances=utterances: batches.training_batches(utterances, batch_size, 0, epoch)
        for kind, utterances in found.items()
    }


def make_stream(settings):
    """Both stages as a stream."""
    networks = training.make_dense_unet(), training.make_grouping()
    return StreamingSeparator(*networks, settings.fft_size, settings.hop_size, compile_step)


def _benchmark(make, inputs_of):
    return Benchmark(
        make=make,
        batch=random_batch,
        call=lambda model, batch: model(inputs_of(batch)),
        count_macs=lambda model, batch: cost.count_macs(model, lambda: model(inputs_of(batch))),
        sample_rate=lambda settings: settings.sample_rate,
        free_lengths=common.free_lengths,
        length_key="frames",
        length_seconds=lambda settings: settings.hop_size / settings.sample_rate,
        files=mixture_files,
        stream=make_stream,
        block_frames=(1, 2, 4, 8, 16, 32),
        has_features=True,
    )


BENCHMARKS = {
    "dense_unet": _benchmark(make_dense_unet, lambda batch: batch["mixture"]),
    "sequential_grouping": _benchmark(make_sequential_grouping, lambda batch: (batch["mixture"], batch["estimates"])),
}
