"""Benchmark of SpEx+."""

import numpy as np
from absl import flags

from feat.batches import common
from feat.batches import spex_plus as batches
from feat.corpora import triplets
from feat.signals.audio import write_pcm16
from models.spex_plus.network import SAMPLE_RATES, VARIANTS, SpexPlus
from models.spex_plus.streaming import StreamingExtractor
from nn.recordings.streams import compile_step
from nn.systems.noise import TASNET_SIZES, sizes_given, tensors
from nn.systems.spex_plus.training import TargetExtraction
from nn.systems.system import Benchmark

FLAGS = flags.FLAGS


def define_flags():
    flags.DEFINE_enum("variant", "seed", list(VARIANTS), "of spex_plus, which --causal gives cumulative norms")
    flags.DEFINE_float("enrolment_seconds", 0.0, "of spex_plus; 0: as long as the mixtures", lower_bound=0)


def sample_rate(settings):
    """Hz of the variant."""
    return SAMPLE_RATES[FLAGS.variant]


def make():
    """(model, objective) of SpEx+, as published but for sizes that were given and, with --causal, cumulative norms."""
    settings = VARIANTS[FLAGS.variant] | ({"causal": True, "norm": "cumulative"} if FLAGS.causal else {})
    model = SpexPlus(**settings | sizes_given(TASNET_SIZES | {"embedding_dim": "embedding_dim"}))
    return model, TargetExtraction(model, whole=True)


def random_batch(settings, batch_size, seconds):
    """A batch of noise."""
    generator = np.random.default_rng(0)
    lengths_of = (("", "mixture"), ("enrolment_", "enrolment"))
    lengths = {"mixture": seconds, "target": seconds, "enrolment": FLAGS.enrolment_seconds or seconds}
    rate = sample_rate(settings)
    batch = {
        name: generator.standard_normal((batch_size, int(length * rate)), np.float32)
        for name, length in lengths.items()
    }
    batch |= {name: np.zeros(batch_size, np.int32) for name in ("speaker", "index")}
    batch |= {f"{before}samples": np.full(batch_size, batch[name].shape[1], np.int32) for before, name in lengths_of}
    return tensors(batch)


def count_macs(model, batch):
    """Multiply-accumulates of a batch."""
    mixture, enrolment = batch["mixture"], batch["enrolment"]
    return len(mixture) * model.count_macs(mixture.shape[1], enrolment.shape[1])


def triplet_files(folder, settings, batch_size, seconds):
    """{kind of input: epoch -> batches} on noise written to a folder."""
    rate = sample_rate(settings)
    generator = np.random.default_rng(0)
    for i in range(4 * batch_size):
        paths = triplets.triplet_paths(folder, triplets.part_stem(i % 2, (i + 1) % 2, i))
        for kind, path in paths.items():
            length = FLAGS.enrolment_seconds or seconds if kind == "enrolment" else seconds
            write_pcm16(path, generator.standard_normal(int(length * rate)).clip(-3, 3) / 10, rate)
    found = batches.triplet_set(triplets.read_triplets(folder), rate)
    return {"on_the_fly": lambda epoch: batches.training_batches(found, batch_size, 0, epoch)}


def make_stream(settings):
    """An extractor for a voice of zeros, as a stream."""
    model, _ = make()
    return StreamingExtractor(model, np.zeros(model.settings["embedding_dim"]), compile_step)


BENCHMARKS = {
    "spex_plus": Benchmark(
        make=make,
        batch=random_batch,
        call=lambda model, batch: model({"mixture": batch["mixture"], "enrolment": batch["enrolment"]}),
        count_macs=count_macs,
        sample_rate=sample_rate,
        free_lengths=common.free_lengths,
        length_seconds=lambda settings: 1 / sample_rate(settings),
        timed={
            "extraction_cpu_s": lambda model, batch: model.extract(batch["mixture"], model.embed(batch["enrolment"]))[
                "short"
            ]
        },
        files=triplet_files,
        stream=make_stream,
    )
}
