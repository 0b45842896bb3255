"""Separates a recording while it is made, with a trained causal system: a microphone, a pipe or a file.

Deep CASA gives all talkers, SpEx+ the one whom --enrolment shows, Binaural TasNet all talkers as two ears hear them.

    arecord -f S16_LE -r 8000 -t raw | python nn/live.py --resume_model exp/deep_casa/models --output_dir out
    python nn/live.py --resume_model exp/deep_casa/models --input microphone
    python nn/live.py --resume_model exp/deep_casa/models --input in.wav --stdout raw | aplay -f FLOAT_LE -c 2 -r 8000
    python nn/live.py --resume_model exp/spex_plus/models --enrolment VOICE.wav --input microphone
    python nn/live.py --resume_model exp/binaural_tasnet/models --input ears.wav
    arecord -c 2 ... | python nn/live.py --resume_model exp/binaural_tasnet/models --input_channels 2 --output_dir out

Writes out/live_s1.wav, _s2.wav, ... (named after a file) as the talkers come out; Ctrl-C ends the recording, and what
came in is separated and kept. What is printed goes to stderr.
"""

import contextlib
import os
import queue
import signal
import sys

from feat.base.script import run_script

import numpy as np
import soundfile
from absl import flags

from feat.base.files import UserError, atomic_path, make_writable_directory
from feat.signals.audio import read_blocks, require_stereo, wav_info
from nn.recordings.stopwatch import Stopwatch
from nn.recordings.streams import resample_channels
from nn.systems.trained import define_options, enrol, find_checkpoints, make_system, options_of_flags, system_of

FLAGS = flags.FLAGS

FORMATS = {"s16le": ("<i2", 32768.0), "f32le": ("<f4", 1.0)}  # type, full scale


# Where samples come from --------------------------------------------------------------------------
#
# Blocks are [samples], the mean of all channels, or, of systems that take several, [channels, samples].


def raw_blocks(stream, dtype, full_scale, channels, size, together=False):
    """Raw samples as they come; one that is cut off at the end is dropped. With `together`, [channels, samples]."""
    frame = np.dtype(dtype).itemsize * channels
    rest = b""
    # Not `read`, which waits until so many are there.
    read = getattr(stream, "read1", stream.read)
    while data := read(size * frame):
        data = rest + data
        rest = data[len(data) // frame * frame :]
        samples = np.frombuffer(data[: len(data) - len(rest)], dtype).reshape(-1, channels)
        samples = samples.T.astype(np.float32) if together else samples.mean(axis=1, dtype=np.float32)
        yield samples / np.float32(full_scale)


def microphone_blocks(sample_rate, size, channels=None):
    """What the default microphone hears, until Ctrl-C."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise UserError(
            f"--input microphone: sounddevice cannot be loaded ({error}); pip install 'deep-casa[live]' and PortAudio,"
            " or pipe raw samples in: --input -"
        ) from error
    heard = queue.SimpleQueue()
    try:
        with sounddevice.InputStream(
            sample_rate,
            size,
            channels=channels or 1,
            dtype="float32",
            callback=lambda block, *_: heard.put(block.T.copy()),
        ):
            while True:
                block = heard.get()
                yield block if channels else block[0]
    except sounddevice.PortAudioError as error:
        raise UserError(
            f"--input microphone: {error}; choose another device or pipe raw samples in: --input -"
        ) from error


def open_input(name, sample_rate, seconds, channels=None):
    """(name of the outputs, rate, blocks) of what --input says; `channels` that a system takes together, if it does."""
    if name == "microphone":
        return "live", sample_rate, microphone_blocks(sample_rate, max(1, round(seconds * sample_rate)), channels)
    raw = name == "-" or os.path.splitext(name)[1].lower() in (".raw", ".pcm")
    if not raw:
        info = wav_info(name)
        if channels:
            require_stereo(name, info)
            blocks = map(np.stack, zip(*(read_blocks(name, channel, seconds) for channel in range(channels))))
        else:
            blocks = read_blocks(name, None, seconds)
        return os.path.splitext(os.path.basename(name))[0], info.sample_rate, blocks
    if channels and FLAGS.input_channels != channels:
        raise UserError(
            f"--input_channels {FLAGS.input_channels}: the system takes a left and a right ear; give it raw samples of"
            f" {channels} channels, --input_channels {channels}"
        )
    rate = FLAGS.rate or sample_rate
    if name == "-":
        stem, stream = "live", sys.stdin.buffer
    elif not os.path.isfile(name):
        raise UserError(f"{name}: no such file; give a recording, - for stdin or microphone")
    else:
        stem, stream = os.path.splitext(os.path.basename(name))[0], open(name, "rb")
    size = max(1, round(seconds * rate))
    return stem, rate, raw_blocks(stream, *FORMATS[FLAGS.format], FLAGS.input_channels, size, bool(channels))


# Where talkers go ---------------------------------------------------------------------------------


class Outputs:
    """Wavs of the talkers, whole under their names at the end, and raw samples on stdout.

    Args:
        stack: contextlib.ExitStack that closes them.
        paths: of the wavs, one for each talker.
        channels: of each.
        stdout: also write float32, talkers and their channels interleaved, there.
    """

    def __init__(self, stack, paths, sample_rate, channels, subtype, stdout):
        self.files = []
        self.clip = subtype.startswith("PCM")
        for path in paths:
            temporary = stack.enter_context(atomic_path(path))
            file = soundfile.SoundFile(temporary, "w", sample_rate, channels, subtype, format="WAV")
            self.files.append(stack.enter_context(file))
        self.stdout = stdout

    def write(self, talkers):
        """Takes [talkers, (channels,) samples]; says whether there still is somebody to read stdout."""
        for file, samples in zip(self.files, talkers):
            file.write(np.clip(samples, -1, 1).T if self.clip else samples.T)
        if self.stdout and talkers.size:
            try:
                sys.stdout.buffer.write(np.ascontiguousarray(talkers.reshape(-1, talkers.shape[-1]).T, "<f4").data)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                # Python would complain once more when it closes stdout.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return False
        return True


class Ending:
    """Ctrl-C and SIGTERM end the recording: at once while it is waited for, else after the block; twice: leave."""

    def __init__(self):
        self.asked = self.waiting = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number, frame):
        again, self.asked = self.asked, True
        if self.waiting or again:
            raise KeyboardInterrupt(number)

    def until(self, blocks):
        """The blocks before the end."""
        while not self.asked:
            try:
                self.waiting = True
                block = next(blocks, None)
            except KeyboardInterrupt:
                return
            finally:
                self.waiting = False
            if block is None:
                return
            yield block


def main(_):
    if not FLAGS.resume_model:
        raise UserError("--resume_model is missing: a checkpoint of each network of a system, or a folder with all")
    if FLAGS.stdout == "none" and not FLAGS.output_dir:
        raise UserError("nowhere to write: give --output_dir FOLDER or --stdout raw")
    checkpoints = find_checkpoints(FLAGS.resume_model)
    system = make_system(checkpoints, **options_of_flags(system_of(checkpoints)))
    seconds, to_hz = FLAGS.block_seconds, system.sample_rate
    channels = system.CHANNELS
    stream = Stopwatch(system, enrol(system, FLAGS.enrolment))
    name, rate, blocks = open_input(FLAGS.input, to_hz, seconds, channels)
    stream.warm_up(round(seconds * to_hz))
    paths = []
    if FLAGS.output_dir:
        make_writable_directory(FLAGS.output_dir)
        paths = [os.path.join(FLAGS.output_dir, f"{name}_s{i + 1}.wav") for i in range(system.talkers)]
    print(
        stream.say_latency(seconds)
        + (f"; more for resampling from {rate} to {to_hz} Hz, up to the block and 20 ms" if rate != to_hz else ""),
        file=sys.stderr,
        flush=True,
    )
    ending = Ending()
    blocks = resample_channels(ending.until(blocks), rate, to_hz, seconds)
    with contextlib.ExitStack() as stack:
        outputs = Outputs(stack, paths, to_hz, channels or 1, FLAGS.subtype, FLAGS.stdout == "raw")
        for talkers in system.live(stream, blocks):
            if not outputs.write(talkers):
                ending.asked = True  # nobody reads any more
    print(
        f"{stream.say_speed()}, worst block {1e3 * stream.worst:.0f} ms" + "".join(f", {path}" for path in paths),
        file=sys.stderr,
    )


if __name__ == "__main__":
    flags.DEFINE_multi_string("resume_model", [], "checkpoint of each network (give it for each), or a folder with all")
    flags.DEFINE_multi_string("enrolment", [], "recording of the wanted talker, for systems that extract one; repeat")
    flags.DEFINE_string(
        "input", "-", "-: raw samples from stdin; microphone; a recording; or a file of raw samples, .raw"
    )
    flags.DEFINE_string("output_dir", "separated", "folder of the talkers' wavs; empty: none")
    flags.DEFINE_enum("stdout", "none", ["none", "raw"], "raw: float32 little-endian to stdout, interleaved")
    flags.DEFINE_float("block_seconds", 0.064, "taken at a time; shorter is sooner, longer costs less", 0.001, 60.0)
    flags.DEFINE_integer("rate", 0, "of raw samples, Hz; 0: that of the checkpoint", lower_bound=0)
    flags.DEFINE_enum("format", "s16le", list(FORMATS), "of raw samples")
    flags.DEFINE_integer("input_channels", 1, "of raw samples; their mean is separated, or both ears", lower_bound=1)
    flags.DEFINE_enum("subtype", "PCM_16", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"], "sample format of the wavs")
    define_options(live=True)
    run_script(main)
