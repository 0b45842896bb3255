"""Cost of a system: parameters, MACs, time of the forward pass and of a training step, memory.

    python nn/benchmark.py --system dense_unet --seconds 1 --threads 1
    python nn/benchmark.py --system sequential_grouping --causal --json cost.json
    python nn/benchmark.py --system spex_plus --variant authors --seconds 4 --threads 1
    python nn/benchmark.py --system mimo_tasnet --seconds 4 --threads 1
    python nn/benchmark.py --system looking_to_listen --seconds 3 --batch_size 2 --threads 1
    python nn/benchmark.py --system ncsnpp --seconds 1 --threads 1 --repeats 3      the published size of DiffSep
    python nn/benchmark.py --system ncsnpp --nf 32 --ch_mult 1,1,2,2,2 --num_res_blocks 1 --seconds 0.976 --batch_size 4
    python nn/benchmark.py --measure input                      is reading ever the bottleneck?
    python nn/benchmark.py --measure features                   features, against loops over frames
    python nn/benchmark.py --measure loop                       what the training loop adds to the bare step
    python nn/benchmark.py --measure devices --batch_size 2     two virtual devices against one, on the same threads
    python nn/benchmark.py --measure streaming --threads 1      can a causal system keep up, block by block?
    python nn/benchmark.py --measure streaming --threads 1 --system mimo_tasnet

Times are medians. CPU seconds are those of the whole process and depend less on what else the machine does.
"""

import dataclasses
import itertools
import json
import os
import platform
import statistics
import tempfile
import time

from feat.base.script import run_script

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from feat.base.files import UserError, write_text
from feat.base.graph import compiled
from feat.batches import binaural_tasnet, common, spex_plus
from feat.batches import deep_casa as dataset
from feat.corpora import triplets
from feat.corpora.features import compute_features, generate, settings_from_flags
from feat.signals.audio import write_pcm16
from feat.signals.stft import num_frames, num_samples, sqrt_hann
from models.binaural_tasnet.network import WIRINGS, MimoTasnet
from models.binaural_tasnet.streaming import StreamingBinaural
from models.deep_casa.streaming import StreamingSeparator
from models.diffsep.cdiffuse import CDiffuse
from models.diffsep.ncsnpp import ScoreModel
from models.looking_to_listen.network import IMAGE_RATE, LookingToListen
from models.looking_to_listen.spectra import SAMPLE_RATE as AUDIO_VISUAL_RATE
from models.looking_to_listen.spectra import Frontend
from models.spex_plus.network import SAMPLE_RATES, VARIANTS, SpexPlus
from models.spex_plus.streaming import StreamingExtractor
from nn.recordings.streams import compile_step
from nn.systems.binaural_tasnet.training import BinauralSeparation
from nn.systems.deep_casa import training as deep_casa
from nn.systems.deep_casa.seq import SequentialGroupingObjective
from nn.systems.deep_casa.simul import SimultaneousGrouping
from nn.systems.looking_to_listen.training import AudioVisualSeparation
from nn.systems.spex_plus.training import TargetExtraction
from nn.training import cost, devices
from nn.training import loop as train
from nn.training.optimizers import make_optimizer
from nn.training.step import TrainStep
from nn.training.task import Epochs, LoopState, Task, TrainOptions

FLAGS = flags.FLAGS


def make_dense_unet():
    """(model, objective) of the first stage."""
    model = deep_casa.make_dense_unet()
    return model, SimultaneousGrouping(model, FLAGS.fft_size, FLAGS.hop_size)


def make_sequential_grouping():
    """(model, objective) of the second stage; its estimates are given."""
    model = deep_casa.make_grouping()
    return model, SequentialGroupingObjective(model)


# Constructor arguments of networks of the Conv-TasNet family that flags set.
TASNET_SIZES = dict(
    repeats="n_tcn_block",
    dilations="n_dilation_each_block",
    units="n_dilated_units",
    bottleneck="n_bottle",
)


def sizes_given(names):
    """{constructor argument: value} of the flags that were given."""
    return {name: FLAGS[flag].value for name, flag in names.items() if FLAGS[flag].present}


def make_spex_plus():
    """(model, objective) of SpEx+, as published but for sizes that were given and, with --causal, cumulative norms."""
    settings = VARIANTS[FLAGS.variant] | (dict(causal=True, norm="cumulative") if FLAGS.causal else {})
    model = SpexPlus(**settings | sizes_given(TASNET_SIZES | {"embedding_dim": "embedding_dim"}))
    return model, TargetExtraction(model, whole=True)


def make_mimo_tasnet():
    """(model, objective) of Binaural TasNet, as published but for sizes that were given; causal with norms by frame."""
    settings = dict(causal=True, norm="channel") if FLAGS.causal else {}
    model = MimoTasnet(FLAGS.wiring, FLAGS.talkers, **settings | sizes_given(TASNET_SIZES))
    return model, BinauralSeparation(model, whole=True)


def make_looking_to_listen():
    """(model, objective) of Looking to Listen, as published but for --n_channels if given."""
    model = LookingToListen(FLAGS.talkers, **sizes_given({"channels": "n_channels"}))
    return model, AudioVisualSeparation(model)


class Denoising:
    """Objective that costs what training a score network does: the square of its score and the noise that was added."""

    def __init__(self, model):
        self.model = model

    def __call__(self, batch, training=False):
        score = self.model(batch["state"], batch["time"], batch["mixture"], training=training)
        return tf.reduce_mean(tf.square(score + batch["noise"]), axis=(1, 2)), {}


def make_ncsnpp():
    """(model, objective) of DiffSep's NCSN++."""
    sizes = dict(multipliers=list(map(int, FLAGS.ch_mult)), attention=list(map(int, FLAGS.attn_resolutions)))
    model = ScoreModel(FLAGS.talkers, channels=FLAGS.nf, blocks=FLAGS.num_res_blocks, **sizes)
    return model, Denoising(model)


def make_cdiffuse():
    """(model, objective) of DiffSep's CDiffuse."""
    model = CDiffuse(FLAGS.talkers)
    return model, Denoising(model)


def score_inputs(batch):
    return {"state": batch["state"], "time": batch["time"], "mixture": batch["mixture"]}


# How to build each system, and what its model is called on.
SYSTEMS = {
    "dense_unet": (make_dense_unet, lambda batch: batch["mixture"]),
    "sequential_grouping": (make_sequential_grouping, lambda batch: (batch["mixture"], batch["estimates"])),
    "spex_plus": (make_spex_plus, lambda batch: {"mixture": batch["mixture"], "enrolment": batch["enrolment"]}),
    "mimo_tasnet": (make_mimo_tasnet, lambda batch: batch["mixture"]),
    "looking_to_listen": (
        make_looking_to_listen,
        lambda batch: (Frontend().analyse(batch["mixture"])[0], batch["embeddings"]),
    ),
    "ncsnpp": (make_ncsnpp, score_inputs),
    "cdiffuse": (make_cdiffuse, score_inputs),
}
EMBEDDING_SIZE = 512  # of looking_to_listen
SCORES = ("ncsnpp", "cdiffuse")  # networks of DiffSep
WAVEFORMS = ("spex_plus", "mimo_tasnet", *SCORES)  # systems that take these, and have no features
COST_ALONE = ("looking_to_listen", *SCORES)  # of which nothing else is measured here


def rate_of(system, settings):
    """Hz of the signals of a system."""
    return SAMPLE_RATES[FLAGS.variant] if system == "spex_plus" else settings.sample_rate


def make_batch(system, settings, batch_size, seconds):
    """A batch of noise for a system."""
    if system == "looking_to_listen":
        generator = np.random.default_rng(0)
        samples, images = int(seconds * AUDIO_VISUAL_RATE), max(1, int(seconds * IMAGE_RATE))
        sources = generator.standard_normal((batch_size, FLAGS.talkers, samples), np.float32)
        embeddings = generator.standard_normal((batch_size, FLAGS.talkers, images, EMBEDDING_SIZE), np.float32)
        batch = {"mixture": sources.mean(axis=1), "sources": sources, "embeddings": embeddings}
        return {key: tf.constant(value) for key, value in batch.items()}
    if system == "mimo_tasnet":
        shape = (batch_size, FLAGS.talkers, int(seconds * settings.sample_rate), 2)
        sources = np.random.default_rng(0).standard_normal(shape, np.float32)
        batch = {"mixture": sources.sum(axis=1), "sources": sources, "samples": np.full(batch_size, shape[2], np.int32)}
        return {key: tf.constant(value) for key, value in batch.items()}
    if system in SCORES:
        draw = np.random.default_rng(0).standard_normal
        samples = int(seconds * settings.sample_rate)
        state, noise = (draw((batch_size, FLAGS.talkers, samples), np.float32) for _ in range(2))
        time = np.linspace(0.1, 0.9, batch_size, dtype=np.float32)
        batch = {"state": state, "noise": noise, "time": time, "mixture": state.sum(axis=1)}
        return {key: tf.constant(value) for key, value in batch.items()}
    if system != "spex_plus":
        return random_batch(settings, batch_size, seconds)
    rate = SAMPLE_RATES[FLAGS.variant]
    generator = np.random.default_rng(0)
    lengths_of = (("", "mixture"), ("enrolment_", "enrolment"))
    lengths = dict(mixture=seconds, target=seconds, enrolment=FLAGS.enrolment_seconds or seconds)
    batch = {
        name: generator.standard_normal((batch_size, int(length * rate)), np.float32)
        for name, length in lengths.items()
    }
    batch |= {name: np.zeros(batch_size, np.int32) for name in ("speaker", "index")}
    batch |= {f"{before}samples": np.full(batch_size, batch[name].shape[1], np.int32) for before, name in lengths_of}
    return {key: tf.constant(value) for key, value in batch.items()}


def count_macs(model, inputs):
    """Multiply-accumulates of a call of a model."""
    if isinstance(model, SpexPlus):
        return len(inputs["mixture"]) * model.count_macs(inputs["mixture"].shape[1], inputs["enrolment"].shape[1])
    if isinstance(model, LookingToListen):
        spectrum, embeddings = inputs
        return len(spectrum) * model.count_macs(spectrum.shape[1], embeddings.shape[2])
    if isinstance(model, MimoTasnet):
        return len(inputs) * model.count_macs(inputs.shape[1])
    if isinstance(inputs, dict):
        return cost.count_macs(model, lambda: model(**inputs))
    return cost.count_macs(model, lambda: model(inputs))


def random_batch(settings, batch_size, seconds, seed=0):
    """A batch of noise, as feat.batches.deep_casa makes them, with estimates."""
    generator = np.random.default_rng(seed)
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
    return {key: tf.constant(value) for key, value in batch.items()}


def time_calls(function, repeats):
    """Median (CPU seconds, wall seconds) of a call, after one to trace and warm up."""
    function()
    cpu, wall = [], []
    for _ in range(repeats):
        start = time.process_time(), time.perf_counter()
        function()
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    return statistics.median(cpu), statistics.median(wall)


def time_forward(system, model, batch, spec, repeats):
    """Times of the forward pass and, of SpEx+, of extraction alone: {name: seconds}. Its graphs go when it returns."""
    inputs_of = SYSTEMS[system][1]

    def run(batch):
        inputs = inputs_of(batch)
        return model(**inputs) if system in SCORES else model(inputs)

    forward = compiled(run, spec)
    cpu, wall = time_calls(lambda: tf.nest.flatten(forward(batch))[0].numpy(), repeats)
    found = {"forward_cpu_s": cpu, "forward_wall_s": wall}
    if system == "spex_plus":
        extract = compiled(
            lambda batch: model.extract(batch["mixture"], model.embed(batch["enrolment"]))["short"], spec
        )
        found["extraction_cpu_s"], _ = time_calls(lambda: extract(batch).numpy(), repeats)
    return found


def measure_cost(system, settings, batch_size, seconds, repeats):
    """Cost of a system on random input: {name: number}."""
    build, inputs_of = SYSTEMS[system]
    model, objective = build()
    batch = make_batch(system, settings, batch_size, seconds)
    if system in SCORES:
        shapes = {key: [None] if key == "time" else [None, *value.shape[1:-1], None] for key, value in batch.items()}
        spec = {key: tf.TensorSpec(shape, tf.float32) for key, shape in shapes.items()}
    else:
        spec = common.free_lengths(batch)
    macs = count_macs(model, inputs_of(batch))
    trained = spec
    if system == "looking_to_listen":  # whose training batches all have one length
        trained = {key: tf.TensorSpec(value.shape, value.dtype) for key, value in batch.items()}
    # The step comes first, so that the peak is that of a process which only trains.
    step = make_step(model, objective, batch_size, trained)
    step_cpu, step_wall = time_calls(lambda: step([batch], 1e-4)["loss"].numpy(), repeats)
    peak = cost.peak_memory()["process"]
    forward = time_forward(system, model, batch, spec, repeats)
    return {
        "parameters": cost.count_parameters(model),
        "gmacs_per_second_of_audio": macs / 1e9 / (batch_size * seconds),
        **forward,
        "real_time_factor": forward["forward_wall_s"] / (batch_size * seconds),
        "training_step_cpu_s": step_cpu,
        "training_step_wall_s": step_wall,
        "peak_memory_mib": peak,
    }


def make_step(model, objective, batch_size, spec, strategy=None):
    """The training step of the loop, with Adam."""
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        optimizer = make_optimizer("adam", 1e-4)
        optimizer.build(model.trainable_variables)
    step = TrainStep(model, optimizer, objective, strategy, batch_size)
    step.compile(spec)
    return step


def time_ratio(first, second, repeats):
    """Median wall time of a call of `first` over that of `second`; in turn, as the machine's speed may drift."""
    first(), second()
    times = []
    for _ in range(repeats):
        marks = [time.perf_counter()]
        for function in (first, second):
            function()
            marks.append(time.perf_counter())
        times.append(np.diff(marks))
    return float(np.divide(*np.median(times, axis=0)))


def measure_input(system, settings, batch_size, seconds, repeats):
    """Wall time of a training step on batches that are read, over that on one held in memory; of Deep CASA stage 1."""
    with tempfile.TemporaryDirectory() as folder:
        system = system if system in WAVEFORMS else "dense_unet"
        files = {"spex_plus": triplet_files, "mimo_tasnet": binaural_files, "dense_unet": mixture_files}[system]
        found, step = {}, None
        for kind, batches_of in files(folder, settings, batch_size, seconds).items():

            def batches(batches_of=batches_of):
                for epoch in itertools.count():
                    yield from batches_of(epoch)

            stream = batches()
            held = next(stream)
            if step is None:
                model, objective = SYSTEMS[system][0]()
                step = make_step(model, objective, batch_size, common.free_lengths(held))

            def run(batch, step=step):
                step([batch], 1e-4)["loss"].numpy()

            found[kind] = time_ratio(
                lambda stream=stream, run=run: run(next(stream)), lambda held=held, run=run: run(held), repeats
            )
    return {f"{kind}_over_in_memory": ratio for kind, ratio in found.items()}


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
        "cached": dataset.cached_utterances(settings, "tr", names),
        "on_the_fly": dataset.wav_utterances(settings, "tr", names),
    }
    return {
        kind: lambda epoch, utterances=utterances: dataset.training_batches(utterances, batch_size, 0, epoch)
        for kind, utterances in found.items()
    }


def triplet_files(folder, settings, batch_size, seconds):
    """{kind of input of SpEx+: epoch -> batches} on noise written to a folder."""
    rate = SAMPLE_RATES[FLAGS.variant]
    generator = np.random.default_rng(0)
    for i in range(4 * batch_size):
        paths = triplets.triplet_paths(folder, triplets.part_stem(i % 2, (i + 1) % 2, i))
        for kind, path in paths.items():
            length = FLAGS.enrolment_seconds or seconds if kind == "enrolment" else seconds
            write_pcm16(path, generator.standard_normal(int(length * rate)).clip(-3, 3) / 10, rate)
    found = spex_plus.triplet_set(triplets.read_triplets(folder), rate)
    return {"on_the_fly": lambda epoch: spex_plus.training_batches(found, batch_size, 0, epoch)}


def binaural_files(folder, settings, batch_size, seconds):
    """{kind of input of Binaural TasNet: epoch -> batches} on noise written to a folder."""
    generator = np.random.default_rng(0)
    for i in range(4 * batch_size):
        sources = generator.uniform(-0.2, 0.2, (FLAGS.talkers, int(seconds * settings.sample_rate), 2))
        for kind, signal in zip(("mix", *(f"s{k + 1}" for k in range(FLAGS.talkers))), (sources.sum(axis=0), *sources)):
            write_pcm16(os.path.join(folder, kind, f"m{i}.wav"), signal, settings.sample_rate)
    found = binaural_tasnet.binaural_set(folder, settings.sample_rate, FLAGS.talkers)
    return {"on_the_fly": lambda epoch: binaural_tasnet.training_batches(found, batch_size, seed=0, epoch=epoch)}


def measure_loop(system, settings, batch_size, seconds, repeats):
    """Wall time of a step of the training loop, with all its logging, over that of the bare compiled step."""
    strategy = devices.make_strategy()
    with strategy.scope():
        model, objective = SYSTEMS[system][0]()
    batch = make_batch(system, settings, batch_size, seconds)
    step = make_step(model, objective, batch_size, common.free_lengths(batch), strategy)
    rate = rate_of(system, settings)
    lengths = dict(length_key="frames", seconds_per_frame=settings.hop_size / rate)
    if system in WAVEFORMS:
        lengths = dict(length_key="samples", seconds_per_frame=1 / rate)
    epochs = Epochs(2 * repeats * batch_size, batch_size, 1)
    task = Task(
        system=system,
        model=model,
        optimizer=step.optimizer,
        objective=objective,
        training_batches=lambda epoch, skip, share: tf.data.Dataset.from_tensors(batch).repeat(epochs.steps),
        validation_batches=None,
        epochs=epochs,
        rule=None,
        score="loss",
        higher_is_better=False,
        worst_score=0.0,
        **lengths,
    )
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(folder, "benchmark", strategy, log_steps=10)
        with train.Run(task, options, step, LoopState(), chief=True) as run:
            numbers = itertools.count(1)
            ratio = time_ratio(
                lambda: run.train_step(next(numbers), 1e-4), lambda: step([batch], 1e-4)["loss"].numpy(), repeats
            )
    return {"loop_over_bare_step": ratio}


def measure_devices(system, settings, batch_size, seconds, repeats):
    """Wall time of a training step on virtual devices over that of one device on the same threads and batch."""
    found = []
    for strategy in (devices.make_strategy(), tf.distribute.OneDeviceStrategy("/cpu:0")):
        with strategy.scope():
            model, objective = SYSTEMS[system][0]()

        def pieces(share):
            piece = make_batch(system, settings, share.piece_size(batch_size), seconds)
            return tf.data.Dataset.from_tensors(piece).repeat()

        distributed = devices.distribute(strategy, pieces)
        step = make_step(model, objective, batch_size, distributed.element_spec, strategy)
        held = next(iter(distributed))
        found.append(lambda step=step, held=held: step([held], 1e-4)["loss"].numpy())
    return {"devices": FLAGS.num_virtual_devices, "devices_over_one": time_ratio(*found, repeats)}


def measure_features(system, settings, batch_size, seconds, repeats):
    """CPU seconds of the features of a mixture, and how many times as long loops over its frames take."""
    shape = (settings.talkers + 1, int(seconds * settings.sample_rate))
    signals = np.random.default_rng(0).standard_normal(shape, np.float32)
    window = sqrt_hann(settings.fft_size)
    starts = range(0, shape[1] - settings.fft_size + 1, settings.hop_size)

    def loop(transform):
        frames = [[transform(window * x[i : i + settings.fft_size])[: settings.bins] for i in starts] for x in signals]
        return np.array(frames).astype(np.complex64)

    ours, _ = time_calls(lambda: compute_features(settings, signals), repeats)
    real_loop, _ = time_calls(lambda: loop(np.fft.rfft), repeats)
    complex_loop, _ = time_calls(lambda: loop(np.fft.fft), repeats)
    return {
        "features_cpu_s": ours,
        "loop_of_rfft_over_features": real_loop / ours,
        "loop_of_fft_over_features": complex_loop / ours,
    }


STREAMING_FRAMES = (1, 2, 4, 8, 16, 32)
STREAMING_FRAMES_WAVEFORMS = (8, 16, 32, 64, 128, 256)  # of 1.25 or 1 ms


def measure_streaming(system, settings, batch_size, seconds, repeats):
    """CPU seconds a second of audio, and the worst block as a share of its length, of a causal system by block size.

    Of Deep CASA both stages. The least of `repeats` runs over `seconds` each.
    """
    FLAGS.causal = True
    rate = rate_of(system, settings)
    if system == "spex_plus":
        model, _ = make_spex_plus()
        stream = StreamingExtractor(model, np.zeros(model.settings["embedding_dim"]), compile_step)
    elif system == "mimo_tasnet":
        stream = StreamingBinaural(make_mimo_tasnet()[0], compile_step)
    else:
        networks = deep_casa.make_dense_unet(), deep_casa.make_grouping()
        stream = StreamingSeparator(*networks, settings.fft_size, settings.hop_size, compile_step)
    block_frames = STREAMING_FRAMES_WAVEFORMS if system in WAVEFORMS else STREAMING_FRAMES
    samples = stream.latency + int(seconds * rate)
    noise = np.random.default_rng(0).standard_normal((stream.inputs, samples) if stream.inputs else samples)
    found = {}
    for frames in block_frames:
        size = frames * stream.hop_size
        block_seconds = size / rate
        factors, worst = [], []
        for _ in range(repeats + 1):  # the first warms up
            stream.reset()
            stream.step(noise[..., : stream.latency])
            marks = [time.process_time()]
            for start in range(stream.latency, samples - size + 1, size):
                stream.step(noise[..., start : start + size])
                marks.append(time.process_time())
            if len(marks) < 2:
                break
            factors.append((marks[-1] - marks[0]) / (len(marks) - 1) / block_seconds)
            worst.append(np.max(np.diff(marks)) / block_seconds)
        if factors:
            found[f"{frames}_frames_real_time_factor"] = min(factors[1:])
            found[f"{frames}_frames_worst_block"] = float(min(worst[1:]))
    return found


MEASURES = {
    "cost": measure_cost,
    "features": measure_features,
    "input": measure_input,
    "loop": measure_loop,
    "devices": measure_devices,
    "streaming": measure_streaming,
}


def machine():
    """What the numbers depend on."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": FLAGS.threads or os.cpu_count(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def main(_):
    if FLAGS.threads:
        tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    if FLAGS.measure == "devices" and not FLAGS.num_virtual_devices:
        FLAGS.num_virtual_devices = 2
    settings = settings_from_flags()
    if FLAGS.system in WAVEFORMS and FLAGS.measure == "features":
        raise UserError(f"--measure features: {FLAGS.system} has none, it takes waveforms")
    if FLAGS.system in COST_ALONE and FLAGS.measure != "cost":
        raise UserError(f"--measure {FLAGS.measure}: of {FLAGS.system} its cost alone is measured; leave --measure out")
    devices.set_precision()
    measure = MEASURES[FLAGS.measure]
    report = {
        "system": FLAGS.system,
        "causal": FLAGS.causal,
        "seconds": FLAGS.seconds,
        "batch_size": FLAGS.batch_size,
        FLAGS.measure: measure(FLAGS.system, settings, FLAGS.batch_size, FLAGS.seconds, FLAGS.repeats),
        "machine": machine(),
    }
    for name, value in report.items():
        if not isinstance(value, dict):
            print(f"{name:28} {value}")
    for group in report.values():
        if isinstance(group, dict):
            for name, value in group.items():
                print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")
    if FLAGS.json:
        write_text(FLAGS.json, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    deep_casa.define_flags(learning_rate=1e-4, lr_decay=1.0)
    deep_casa.define_grouping_flags()
    flags.DEFINE_enum("system", "dense_unet", list(SYSTEMS), "the model")
    flags.DEFINE_enum("variant", "seed", list(VARIANTS), "of spex_plus, which --causal gives cumulative norms")
    flags.DEFINE_enum("wiring", "parallel", list(WIRINGS), "of mimo_tasnet")
    flags.DEFINE_integer("nf", 128, "channels of ncsnpp's first level", lower_bound=4)
    flags.DEFINE_list("ch_mult", list("1122222"), "channels of each level of ncsnpp, over --nf")
    flags.DEFINE_integer("num_res_blocks", 2, "blocks of a level of ncsnpp", lower_bound=1)
    flags.DEFINE_list("attn_resolutions", ["16"], "rows at which ncsnpp has attention")
    flags.DEFINE_float("enrolment_seconds", 0.0, "of spex_plus; 0: as long as the mixtures", lower_bound=0)
    flags.DEFINE_float("seconds", 1.0, "length of the mixtures", lower_bound=0.1)
    flags.DEFINE_integer("threads", 0, "TensorFlow threads; 0: all cores", lower_bound=0)
    flags.DEFINE_integer("repeats", 7, "calls to take the median of", lower_bound=1)
    flags.DEFINE_enum("measure", "cost", list(MEASURES), "what about it")
    flags.DEFINE_string("json", "", "file for the same numbers")
    run_script(main)
