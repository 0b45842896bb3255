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
    python nn/benchmark.py --measure long --resume_model exp/deep_casa/models     dialogues in one file, and memory

Times are medians. CPU seconds are those of the whole process and depend less on what else the machine does.
"""

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
from feat.batches import common
from feat.corpora.features import compute_features, settings_from_flags
from feat.signals.stft import sqrt_hann
from nn.systems import long_recordings
from nn.systems.registry import SYSTEMS, by_checkpoint
from nn.training import cost, devices, loop
from nn.training.optimizers import make_optimizer
from nn.training.step import TrainStep
from nn.training.task import Epochs, LoopState, Task, TrainOptions

FLAGS = flags.FLAGS


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


def time_forward(benchmark, model, batch, spec, repeats):
    """Times of the forward pass, and of what else the system has timed: {name: seconds}.

    The graphs are freed when it returns.
    """
    forward = compiled(lambda batch: benchmark.call(model, batch), spec)
    cpu, wall = time_calls(lambda: tf.nest.flatten(forward(batch))[0].numpy(), repeats)
    found = {"forward_cpu_s": cpu, "forward_wall_s": wall}
    for name, function in benchmark.timed.items():
        graph = compiled(lambda batch, function=function: function(model, batch), spec)
        found[name], _ = time_calls(lambda graph=graph: graph(batch).numpy(), repeats)
    return found


def measure_cost(benchmark, settings, batch_size, seconds, repeats):
    """Cost of a network on random input: {name: number}."""
    model, objective = benchmark.make()
    batch = benchmark.batch(settings, batch_size, seconds)
    spec = benchmark.free_lengths(batch)
    macs = benchmark.count_macs(model, batch)
    # The step comes first, so that the peak is that of a process which only trains.
    step = make_step(model, objective, batch_size, (benchmark.step_lengths or benchmark.free_lengths)(batch))
    step_cpu, step_wall = time_calls(lambda: step([batch], 1e-4)["loss"].numpy(), repeats)
    peak = cost.peak_memory()["process"]
    forward = time_forward(benchmark, model, batch, spec, repeats)
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


def measure_input(benchmark, settings, batch_size, seconds, repeats):
    """Wall time of a training step on batches that are read, over that on a batch held in memory."""
    with tempfile.TemporaryDirectory() as folder:
        found, step = {}, None
        for kind, batches_of in benchmark.files(folder, settings, batch_size, seconds).items():

            def batches(batches_of=batches_of):
                for epoch in itertools.count():
                    yield from batches_of(epoch)

            stream = batches()
            held = next(stream)
            if step is None:
                model, objective = benchmark.make()
                step = make_step(model, objective, batch_size, common.free_lengths(held))

            def run(batch, step=step):
                step([batch], 1e-4)["loss"].numpy()

            found[kind] = time_ratio(
                lambda stream=stream, run=run: run(next(stream)), lambda held=held, run=run: run(held), repeats
            )
    return {f"{kind}_over_in_memory": ratio for kind, ratio in found.items()}


def measure_loop(benchmark, settings, batch_size, seconds, repeats):
    """Wall time of a step of the training loop, with all its logging, over that of the bare compiled step."""
    strategy = devices.make_strategy()
    with strategy.scope():
        model, objective = benchmark.make()
    batch = benchmark.batch(settings, batch_size, seconds)
    step = make_step(model, objective, batch_size, common.free_lengths(batch), strategy)
    epochs = Epochs(2 * repeats * batch_size, batch_size, 1)
    task = Task(
        system=FLAGS.system,
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
        length_key=benchmark.length_key,
        seconds_per_frame=benchmark.length_seconds(settings),
    )
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(folder, "benchmark", strategy, log_steps=10)
        with loop.Run(task, options, step, LoopState(), chief=True) as run:
            numbers = itertools.count(1)
            ratio = time_ratio(
                lambda: run.train_step(next(numbers), 1e-4), lambda: step([batch], 1e-4)["loss"].numpy(), repeats
            )
    return {"loop_over_bare_step": ratio}


def measure_devices(benchmark, settings, batch_size, seconds, repeats):
    """Wall time of a training step on virtual devices over that of one device on the same threads and batch."""
    found = []
    for strategy in (devices.make_strategy(), tf.distribute.OneDeviceStrategy("/cpu:0")):
        with strategy.scope():
            model, objective = benchmark.make()

        def pieces(share):
            piece = benchmark.batch(settings, share.piece_size(batch_size), seconds)
            return tf.data.Dataset.from_tensors(piece).repeat()

        distributed = devices.distribute(strategy, pieces)
        step = make_step(model, objective, batch_size, distributed.element_spec, strategy)
        held = next(iter(distributed))
        found.append(lambda step=step, held=held: step([held], 1e-4)["loss"].numpy())
    return {"devices": FLAGS.num_virtual_devices, "devices_over_one": time_ratio(*found, repeats)}


def measure_features(benchmark, settings, batch_size, seconds, repeats):
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


def measure_streaming(benchmark, settings, batch_size, seconds, repeats):
    """CPU seconds a second of audio, and the worst block as a share of its length, of a causal system by block size.

    Of Deep CASA both stages. The least of `repeats` runs over `seconds` each.
    """
    FLAGS.causal = True
    rate = benchmark.sample_rate(settings)
    stream = benchmark.stream(settings)
    samples = stream.latency + int(seconds * rate)
    noise = np.random.default_rng(0).standard_normal((stream.inputs, samples) if stream.inputs else samples)
    found = {}
    for frames in benchmark.block_frames:
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
    "long": lambda benchmark, settings, *_: long_recordings.measure(settings),
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
    benchmark = by_checkpoint()[FLAGS.system].load("benchmark").BENCHMARKS[FLAGS.system]
    if FLAGS.measure == "features" and not benchmark.has_features:
        raise UserError(f"--measure features: {FLAGS.system} has none, it takes waveforms")
    if FLAGS.measure not in ("cost", "long") and benchmark.cost_alone:
        raise UserError(f"--measure {FLAGS.measure}: of {FLAGS.system} its cost alone is measured; leave --measure out")
    devices.set_precision()
    measure = MEASURES[FLAGS.measure]
    report = {
        "system": FLAGS.system,
        "causal": FLAGS.causal,
        "seconds": FLAGS.seconds,
        "batch_size": FLAGS.batch_size,
        FLAGS.measure: measure(benchmark, settings, FLAGS.batch_size, FLAGS.seconds, FLAGS.repeats),
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
    for system in SYSTEMS:
        getattr(system.load("benchmark"), "define_flags", lambda: None)()
    long_recordings.define_flags()
    flags.DEFINE_enum("system", "dense_unet", list(by_checkpoint()), "the network")
    flags.DEFINE_float("seconds", 1.0, "length of the mixtures", lower_bound=0.1)
    flags.DEFINE_integer("threads", 0, "TensorFlow threads; 0: all cores", lower_bound=0)
    flags.DEFINE_integer("repeats", 7, "calls to take the median of", lower_bound=1)
    flags.DEFINE_enum("measure", "cost", list(MEASURES), "what about it")
    flags.DEFINE_string("json", "", "file for the same numbers")
    run_script(main)
