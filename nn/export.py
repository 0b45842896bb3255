"""Writes a trained system as files that separate waveforms without this project: SavedModel, ONNX, LiteRT.

    python nn/export.py --resume_model exp/deep_casa/models --output_dir out [--formats saved_model,onnx,litert]

--resume_model names a checkpoint of each stage of Deep CASA (give it twice), one of SpEx+, or a folder below which they
lie. Every file holds one graph, float32 [samples] -> [talkers, samples] at the rate of training, with everything
between: STFT, networks, clustering, inverse STFT. That of SpEx+ takes the mixture and an enrolment, each [samples], and
gives one talker. SavedModel and ONNX take any length, LiteRT `--seconds` and `--enrolment_seconds` alone.

Each file is run in its own runtime and compared with Keras before it is kept. `out/export.json` tells the sample rate,
the sizes, the checkpoints and the errors found.

ONNX and LiteRT need `pip install -e '.[export]'`.
"""

import contextlib
import glob
import importlib
import io
import json
import logging
import os
import shutil
import tempfile
import time
import typing
import warnings

from feat.base.script import run_script

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from feat.base.files import UserError, brief, make_writable_directory, write_text
from feat.base.graph import compiled
from models.layers.conv import portable_graphs
from models.layers.waveforms import OneRecording
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.systems.registry import SYSTEMS
from nn.systems.trained import find_checkpoints, system_of

FLAGS = flags.FLAGS

STAGING = ".export_"  # start of the folder in which files are made, before they are moved into place
METADATA = "export.json"
CHECK_SECONDS = (0.05, 0.7, 1.9)  # lengths at which files of free length are compared with Keras
CHECK_ENROLMENT_SECONDS = (0.6, 1.5, 0.06)  # beside them


def load_trained(checkpoints):
    """Exported of {checkpoint name: prefix}. Raises UserError for what cannot be exported."""
    system = system_of(checkpoints)
    if system.exportable not in checkpoints:
        checkpoint, prefix = next(iter(checkpoints.items()))
        raise UserError(
            f"{prefix}: holds {checkpoint}, which alone cannot be exported; give one of"
            f" {', '.join(other.exportable for other in SYSTEMS if other.exportable)}"
        )
    return system.load("export").export(checkpoints)


# Formats ------------------------------------------------------------------------------------------


class Format(typing.NamedTuple):
    """A kind of file."""

    path: str  # in the output folder
    packages: tuple  # that are needed besides TensorFlow
    static: bool  # one length alone
    write: typing.Callable  # (trained, path, samples of each input or None)
    load: typing.Callable  # path -> function of {input: [samples]}, [talkers, samples]


def signature(trained, samples):
    lengths = samples or [None] * len(trained.inputs)
    return [keras.InputSpec(shape=(n,), dtype="float32", name=name) for n, name in zip(lengths, trained.inputs)]


def write_saved_model(trained, path, samples):
    OneRecording(trained.separator).export(
        path, "tf_saved_model", verbose=False, input_signature=signature(trained, samples)
    )


def load_saved_model(path):
    loaded = tf.saved_model.load(path)
    return lambda waveforms: loaded.serve(*waveforms.values()).numpy()


def write_onnx(trained, path, samples):
    with portable_graphs():
        OneRecording(trained.portable).export(path, "onnx", verbose=False, input_signature=signature(trained, samples))


def load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda waveforms: session.run(None, waveforms)[0]


def write_litert(trained, path, samples):
    with portable_graphs():
        OneRecording(trained.portable).export(
            path,
            "litert",
            verbose=False,
            input_signature=signature(trained, samples),
            # Nothing that would need TensorFlow's own kernels on the device.
            target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
        )


def load_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    separate = Interpreter(path).get_signature_runner()
    return lambda waveforms: separate(**waveforms)["output_0"]


FORMATS = {
    "saved_model": Format("saved_model", (), False, write_saved_model, load_saved_model),
    "onnx": Format("separator.onnx", ("tf2onnx", "onnx", "onnxruntime"), False, write_onnx, load_onnx),
    "litert": Format("separator.tflite", ("ai_edge_litert",), True, write_litert, load_litert),
}


def choose_formats(names):
    """Formats of these names, in the order of FORMATS.

    Raises:
        UserError: one is unknown, or lacks a package.
    """
    for name in names:
        if name not in FORMATS:
            raise UserError(f"--formats {name}: unknown; give some of {','.join(FORMATS)}")
        for package in FORMATS[name].packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise UserError(
                    f"--formats {name} needs the package {package} ({brief(error)}); pip install -e '.[export]'"
                ) from error
    if not names:
        raise UserError(f"--formats is empty; give some of {','.join(FORMATS)}")
    return {name: form for name, form in FORMATS.items() if name in names}


# Checking -----------------------------------------------------------------------------------------


def check_waveform(samples, sample_rate):
    """float32 [samples]: two gliding voices in syllables, and some noise; the same at every call."""
    random = np.random.default_rng(0)
    seconds = np.arange(samples) / sample_rate
    total = 0.003 * random.standard_normal(samples)
    for pitch, rhythm in ((110.0, 2.3), (190.0, 3.1)):  # Hz
        phase = 2 * np.pi * pitch * (seconds + 0.02 * np.sin(2 * np.pi * 0.7 * seconds))
        voice = sum(np.sin(k * phase + k) / k for k in range(1, 12))
        total = total + 0.05 * voice * np.maximum(np.sin(2 * np.pi * rhythm * seconds + pitch), 0)
    return total.astype(np.float32)


def relative_error(ours, theirs):
    """Largest difference, as a share of the largest value of `theirs`."""
    return float(np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-9))


def largest_error(separate, reference, inputs, lengths, sample_rate):
    """Largest relative error of a loaded file at some lengths.

    Args:
        separate, reference: functions of {input: [samples]}, the second in Keras.
        inputs: their names.
        lengths: samples of each.
    """
    errors = []
    for samples in lengths:
        waveforms = {name: check_waveform(n, sample_rate) for name, n in zip(inputs, samples)}
        errors.append(relative_error(separate(waveforms), reference(waveforms)))
    return max(errors, key=lambda error: (error != error, error))  # NaN is the worst


@contextlib.contextmanager
def quiet():
    """Nothing of what the converters say about themselves."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


# Writing ------------------------------------------------------------------------------------------


def export(trained, formats, folder, seconds, tolerance):
    """Writes and checks files.

    Args:
        trained: Exported.
        formats: {name: Format}.
        folder: where to write, below a path of each format.
        seconds: length of each input for formats of one length.
        tolerance: largest relative error.

    Returns:
        {name of the format: what export.json says of it}.

    Raises:
        UserError: a file differs from Keras by more than the tolerance.
    """
    spec = [tf.TensorSpec([None], tf.float32)] * len(trained.inputs)
    model = OneRecording(trained.separator)
    in_keras = compiled(model, *spec)
    files = {}
    free = list(zip(CHECK_SECONDS, CHECK_ENROLMENT_SECONDS))
    for name, form in formats.items():
        start = time.perf_counter()
        path = os.path.join(folder, form.path)
        checked = [
            [round(s * trained.sample_rate) for s in some[: len(trained.inputs)]]
            for some in ([seconds] if form.static else free)
        ]
        samples = checked[0] if form.static else None
        with quiet():
            form.write(trained, path, samples)
            separate = form.load(path)
            reference = lambda waveforms: in_keras(*waveforms.values()).numpy()
            error = largest_error(separate, reference, trained.inputs, checked, trained.sample_rate)
        lengths = [lengths[0] if len(lengths) == 1 else lengths for lengths in checked]
        found = f"{name}: largest relative error {error:.1e} at {', '.join(map(str, lengths))} samples"
        if not error <= tolerance:
            raise UserError(f"{found}, over --tolerance {tolerance:g}; nothing was kept")
        print(f"{found}, {time.perf_counter() - start:.0f} s")
        files[name] = {
            "path": form.path,
            "samples": lengths[0] if form.static else None,
            "bytes": size_of(path),
            "largest_relative_error": error,
            "checked_samples": lengths,
        }
    return files


def size_of(path):
    """Bytes of a file, or of all in a folder."""
    inside = glob.glob(os.path.join(glob.escape(path), "**", "*"), recursive=True) if os.path.isdir(path) else [path]
    return sum(os.path.getsize(file) for file in inside if os.path.isfile(file))


def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def main(_):
    if not FLAGS.resume_model:
        raise UserError("--resume_model is missing: the checkpoint of each network of a system, or a folder with all")
    formats = choose_formats(FLAGS.formats)
    checkpoints = find_checkpoints(FLAGS.resume_model)
    trained = load_trained(checkpoints)
    seconds = FLAGS.seconds, FLAGS.enrolment_seconds or FLAGS.seconds
    output = FLAGS.output_dir
    made = not os.path.exists(output)
    make_writable_directory(output)
    for leftover in glob.glob(os.path.join(glob.escape(output), STAGING + "*")):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = tempfile.mkdtemp(prefix=STAGING, dir=output)
    try:
        files = export(trained, formats, staging, seconds, FLAGS.tolerance)
        description = {
            "input": f"{', '.join(trained.inputs)}: float32 [samples], one channel at sample_rate",
            "output": "float32 [talkers, samples]",
            "sample_rate": trained.sample_rate,
            "talkers": trained.talkers,
            **trained.settings,
            "tolerance": FLAGS.tolerance,
            "files": files,
            "checkpoints": {system: readers.fingerprint(prefix) for system, prefix in checkpoints.items()},
            "config": {system: checkpoint.read_config(prefix) for system, prefix in checkpoints.items()},
        }
        # What lies there of an earlier export goes first, so that no file stands beside another's description.
        remove(os.path.join(output, METADATA))
        for form in FORMATS.values():
            remove(os.path.join(output, form.path))
        for name in files:
            os.rename(os.path.join(staging, formats[name].path), os.path.join(output, formats[name].path))
        write_text(os.path.join(output, METADATA), json.dumps(description, indent=1) + "\n")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if made and not os.listdir(output):
            os.rmdir(output)
    for entry in files.values():
        print(f"{os.path.join(output, entry['path'])}: {entry['bytes'] / 1e6:.2f} MB")


if __name__ == "__main__":
    flags.DEFINE_multi_string("resume_model", [], "checkpoint of each network (give it for each), or a folder with all")
    flags.DEFINE_string("output_dir", "exported", "folder of the exported files")
    flags.DEFINE_list("formats", list(FORMATS), "what to write: " + ", ".join(FORMATS))
    flags.DEFINE_float("seconds", 4.0, "length that formats of one length are made for (litert)", lower_bound=0.05)
    flags.DEFINE_float(
        "enrolment_seconds", 0.0, "length of an enrolment, for systems that take one; 0: --seconds", lower_bound=0
    )
    flags.DEFINE_float("tolerance", 1e-3, "largest difference from Keras, as a share of its largest value", 0.0)
    run_script(main)
