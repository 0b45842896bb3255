"""What a model costs: multiply-accumulates, memory, and the time and disk of a whole training run."""

import resource
import time

import numpy as np
import tensorflow as tf

from feat.base.files import free_bytes
from models.layers.conv import FrequencyMapping, UpConv2D
from nn.checkpoints import ours as checkpoint
from nn.training import devices

TIMED_STEPS = 8


def count_macs(model, run):
    """Multiply-accumulates in convolutions and matrix products, as if computed directly.

    Fast algorithms (FFT, Winograd) need fewer; norms, activations and the STFT are left out.

    Args:
        run: calls the model once, not compiled.
    """
    total = 0

    def watch(layer, call):
        def counted(x, *arguments, **options):
            nonlocal total
            result = call(x, *arguments, **options)
            # Every value of a kernel is used once at every position of the output, save two layers.
            positions = int(np.prod(result.shape[:-1]))
            if isinstance(layer, UpConv2D):
                positions = int(np.prod(x.shape[:-1]))
            elif isinstance(layer, FrequencyMapping):
                positions = int(np.prod(x.shape)) // x.shape[1]
            total += positions * int(np.prod(layer.kernel.shape))
            return result

        return counted

    layers = [layer for layer in model._flatten_layers() if getattr(layer, "kernel", None) is not None]
    calls = [layer.call for layer in layers]
    for layer, call in zip(layers, calls):
        layer.call = watch(layer, call)
    try:
        run()
    finally:
        for layer, call in zip(layers, calls):
            layer.call = call
    return total


def count_parameters(model):
    """Trainable numbers of a model."""
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def peak_memory():
    """{where: MiB}, the most that this process held so far, and each GPU for it."""
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    for gpu in tf.config.list_logical_devices("GPU"):
        found[gpu.name.removeprefix("/device:")] = tf.config.experimental.get_memory_info(gpu.name)["peak"] / 2**20
    return found


def print_forecast(task, options, step):
    """Takes a few steps at learning rate 0 and prints what the whole run would cost. Writes nothing.

    Args:
        task, options: nn.training.task.Task and TrainOptions.
        step: nn.training.step.TrainStep.
    """
    epochs = task.epochs
    distributed = devices.distribute(options.strategy, lambda share: task.training_batches(0, 0, share))
    step.compile(distributed.element_spec)
    batches = iter(distributed)
    timed = max(1, min(TIMED_STEPS, epochs.steps - 1))
    seconds, audio_seconds = [], 0.0
    start = time.perf_counter()
    for _ in range(min(1 + timed, epochs.steps)):
        found = step([next(batches) for _ in range(options.accumulate)], 0.0)
        audio_seconds += float(found["audio_seconds"])
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    first, step_seconds = seconds[0], np.mean(seconds[1:] or seconds)
    audio_seconds /= len(seconds)
    example = next(iter(task.validation_batches()))
    if task.count_macs is None:
        macs = count_macs(task.model, lambda: task.objective(example, training=False))
    else:
        macs = task.count_macs(example)
    macs /= float(example[task.length_key][0]) * task.seconds_per_frame
    start = time.perf_counter()
    task.objective(example, training=False)
    validation_seconds = (time.perf_counter() - start) * task.validation_batches().cardinality().numpy()
    size = checkpoint.size_bytes(task.model, task.optimizer, step.state)
    kept = 1 + options.keep_checkpoints if options.keep_checkpoints else 1 + epochs.total // epochs.steps
    hours = step_seconds * epochs.steps / 3600
    in_all = (step_seconds * epochs.total + validation_seconds * (1 + epochs.total // epochs.steps)) / 3600
    rows = {
        "parameters": f"{count_parameters(task.model):,}",
        "MACs of the forward pass": f"{macs / 1e9:.2f} G per second of mixture",
        "peak memory": ", ".join(f"{where} {size:.0f} MiB" for where, size in peak_memory().items()),
        "checkpoints": f"{kept} of {size / 1e6:.1f} MB, {kept * size / 1e9:.2f} GB;"
        f" {free_bytes(options.folder) / 1e9:.2f} GB are free",
        "steps": f"{epochs.steps} an epoch, {epochs.total} in all, of {audio_seconds:.1f} s of mixtures",
        "first step": f"{first:.1f} s with compilation",
        "step": f"{step_seconds:.3f} s, the mean of {max(1, len(seconds) - 1)}",
        "validation": f"about {validation_seconds:.0f} s",
        "epoch": f"{hours:.2f} hours and the validation",
        "whole run": f"{in_all:.2f} hours",
    }
    for name, value in rows.items():
        print(f"{name:26} {value}")
