"""Pseudo speech, and tiny corpora of it in the layout of WSJ0-2mix."""

import contextlib
import io
import itertools
import os
import pathlib
import resource
import runpy
import signal
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from feat.corpora.lists import mixture_paths, names_path, source_names
from feat.signals.audio import write_pcm16

ROOT = pathlib.Path(__file__).parent.parent
RATE = 8000  # Hz


def voice(talker, seed, seconds, rate=RATE):
    """float32 [samples]: a talker's harmonics, gliding, in syllables with pauses between them.

    Args:
        talker: number that sets pitch and timbre.
        seed: of what is said.
    """
    random = np.random.default_rng((talker, seed))
    samples = int(seconds * rate)
    time = np.arange(samples) / rate
    pitch_hz = (90 + 37 * talker) * (1 + 0.1 * np.sin(2 * np.pi * (random.uniform(1, 3) * time + random.uniform())))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate
    timbre = np.random.default_rng(talker).uniform(0.2, 1, 12)
    signal = sum(a * np.sin((h + 1) * phase) / (h + 1) for h, a in enumerate(timbre))
    syllables = random.uniform(0, 1, int(seconds / 0.15) + 2) * (random.uniform(size=int(seconds / 0.15) + 2) > 0.2)
    loudness = np.interp(time, 0.15 * np.arange(len(syllables)), syllables)
    breath = 0.01 * random.standard_normal(samples)
    return (0.1 * loudness * (signal + breath)).astype(np.float32)


def mixture_name(parts):
    """Name of the mixture of [(talker, utterance, gain)], as in the lists."""
    return "_".join(f"t{talker}-{utterance}_{gain:g}" for talker, utterance, gain in parts)


def make_corpus(folder, counts, talkers=2, seconds=(0.5, 0.9), voices=4):
    """Writes `folder`/data and `folder`/lists.

    Args:
        counts: {set name: number of mixtures}.
        talkers: in a mixture.
        seconds: shortest and longest mixture; the lengths lie evenly between.
        voices: different talkers.

    Returns:
        {set name: [mixture name]}.
    """
    groups = itertools.cycle(itertools.combinations(range(voices), talkers))
    lists = {}
    for set_name, count in counts.items():
        names = []
        for i, length in enumerate(np.linspace(*seconds, count)):
            parts = [(talker, f"{set_name}{i}", (0.5, -0.5, 0)[k]) for k, talker in enumerate(next(groups))]
            sources = [voice(talker, i, length) for talker, *_ in parts]
            names.append(mixture_name(parts))
            write_mixture(folder, set_name, names[-1], sources)
        write_list(folder, set_name, names, talkers)
        lists[set_name] = names
    return lists


def write_mixture(folder, set_name, name, sources):
    """Writes s1, s2, ... and mix, [samples] each, below `folder`/data."""
    paths = mixture_paths(os.path.join(folder, "data"), set_name, name, len(sources))
    for source, samples in zip(source_names(len(sources)), [*sources, np.sum(sources, axis=0)]):
        write_pcm16(paths[source], samples, RATE)


def write_list(folder, set_name, names, talkers=2):
    """Writes the list of the names of a set."""
    path = pathlib.Path(names_path(os.path.join(folder, "lists"), set_name, talkers))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(name + "\n" for name in names))


def command(script, *flags, corpus_flags=True, **named):
    """Arguments that run a script of the project, on the corpus of the folder it is started in if it takes one."""
    flags = [*flags, *(f"--{name}={value}" for name, value in named.items())]
    corpus = ["--data_folder=data", "--wav_list_folder=lists"] if corpus_flags else []
    return [sys.executable, str(ROOT / script), *corpus, *map(str, flags)]


STFT = dict(fft_size=64, hop_size=32)
SIMUL = STFT | dict(n_layers=1, n_channels=2, pictures=0)
SEQ = STFT | dict(
    n_layers=1, n_tcn_block=2, n_dilation_each_block=2, n_dilated_units=8, n_bottle=4, embedding_dim=3, pictures=0
)


def run(folder, script, *flags, largest_file=None, **named):
    """Runs a script to its end as a person does, in a process of its own; gives the CompletedProcess.

    Args:
        folder: working folder, which holds data/, lists/ and exp/.
        flags, named: "--flag=value" or flag=value.
        largest_file: bytes that a file may have, which stands for a full disk; None: any.
    """

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.run(
        command(script, *flags, **named),
        cwd=folder,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        preexec_fn=limit if largest_file else None,
    )


def run_here(folder, script, *given, **named):
    """`run` within this process, which saves the start of TensorFlow."""
    arguments = command(script, *given, **named)[1:]
    known, argv, here = set(flags.FLAGS), sys.argv, os.getcwd()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    policy = keras.mixed_precision.dtype_policy()
    out, err = io.StringIO(), io.StringIO()
    code = 0
    os.chdir(folder)
    sys.argv = arguments
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
        if isinstance(code, str):
            err.write(code + "\n")
            code = 1
    finally:
        os.chdir(here)
        sys.argv = argv
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        keras.mixed_precision.set_dtype_policy(policy)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def succeed(*arguments, runner=run_here, **named):
    """Runs a script, which must end well; gives what it printed."""
    done = runner(*arguments, **named)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refuse(*arguments, runner=run_here, **named):
    """Runs a script, which must end with one line of error and no traceback; gives the line."""
    done = runner(*arguments, **named)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


def refuse_once(folder, stumble, *arguments, **named):
    """Runs a script that cannot write the file `stumble`, and frees the way again."""
    stumble.unlink(missing_ok=True)
    stumble.mkdir(parents=True)
    assert stumble.name in refuse(folder, *arguments, **named)
    stumble.rmdir()


def listed(batches):
    """[{key: array}] of a tf.data.Dataset of batches."""
    return [{key: value.numpy() for key, value in batch.items()} for batch in batches]


def assert_same_batches(ours, theirs):
    """Of `listed` batches, to the last bit."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def checkpoint_arrays(prefix):
    """{name: array} of a checkpoint: weights, optimiser and state of the loop."""
    reader = tf.train.load_checkpoint(str(prefix))
    # The graph of objects that TensorFlow adds is written in no fixed order.
    names = set(reader.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    return {name: reader.get_tensor(name) for name in names}


def assert_same_checkpoints(ours, theirs):
    """Everything in two checkpoints is equal to the last bit."""
    ours, theirs = checkpoint_arrays(ours), checkpoint_arrays(theirs)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
