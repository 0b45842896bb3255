"""Any trained system on any recording, from Python.

from nn.systems.separator import Separator
talkers = Separator("exp/deep_casa/models")(waveform, sample_rate)      # [talkers, samples]
talker, = Separator("exp/spex_plus/models")(waveform, sample_rate, enrolment="voice.wav")
talkers = Separator("exp/binaural_tasnet/models")(ears, sample_rate)    # [2, samples] -> [talkers, 2, samples]
"""

import contextlib
import glob
import os
import tempfile
from typing import NamedTuple

import numpy as np
import soundfile

from feat.base.files import UserError, atomic_path, require_free_bytes
from feat.base.parallel import progress
from feat.signals.audio import read_blocks, require_stereo, resample, resample_blocks, wav_info
from nn.recordings.stopwatch import Stopwatch
from nn.recordings.windows import OVERLAP_S, WINDOW_S, Windows
from nn.systems.trained import enrol, find_checkpoints, make_system

EXTENSIONS = tuple("." + name.lower() for name in soundfile.available_formats()) + (".aif", ".oga", ".opus")
BLOCK_SECONDS = 10.0  # read and written at a time
LEAST_SECONDS = 0.02  # of a recording


class Separator:
    """A trained system, ready for recordings.

    Args:
        checkpoints: a prefix, several prefixes, or a folder below which the checkpoints of one system lie.
        window_seconds: of what the networks see at once; memory grows with it.
        overlap_seconds: of neighbouring windows, cross-faded.
        grouping: "online": frame by frame from the past alone, for causal checkpoints, without windows; "kmeans": over
            the whole file; "auto": online for causal checkpoints, but for SpEx+, whose levels are then those of the
            whole recording.
        options: of the system: `seed` of Deep CASA's clustering; `level`, `reject` and `threshold` of SpEx+, see
            nn.systems.spex_plus.recordings.TargetTalker; `steps`, `snr`, `corrector_steps`, `solver` and `seed` of
            DiffSep, see nn.systems.diffsep.recordings.Diffusion.

    Attributes:
        channels: that are separated together, 2 for systems of two ears; None for those of one channel.
        confidence: of SpEx+ that the talker is in the last recording, -1 to 1; None online and for other systems.

    Raises:
        UserError: a checkpoint is missing or of another kind.
    """

    def __init__(self, checkpoints, window_seconds=WINDOW_S, overlap_seconds=OVERLAP_S, grouping="auto", **options):
        if not 0 < 2 * overlap_seconds <= window_seconds:
            raise UserError(
                f"--overlap_seconds {overlap_seconds}: must lie above 0 and be at most half of --window_seconds"
                f" {window_seconds}"
            )
        single = isinstance(checkpoints, (str, os.PathLike))
        self.checkpoints = find_checkpoints([checkpoints] if single else checkpoints)
        self.system = make_system(self.checkpoints, **options)
        self.sample_rate = self.system.sample_rate
        self.talkers = self.system.talkers
        self.channels = self.system.CHANNELS
        self.windows = Windows.of_seconds(self.sample_rate / self.system.hop_size, window_seconds, overlap_seconds)
        self.stream = None
        if grouping == "online" or grouping == "auto" and self.system.causal:
            self.stream = Stopwatch(self.system)
            self.stream.warm_up()
            self.windows = Windows(self.windows.length, self.windows.length)

    @property
    def confidence(self):
        return getattr(self.system, "confidence", None)

    def enrol(self, enrolments, sample_rate=None):
        """The voice to extract, for `separate` and `separate_file`; None for a system that takes all talkers apart.

        Args:
            enrolments: recordings of the wanted talker, one or several: paths, or [samples] at a sample rate in Hz.

        Raises:
            UserError: there are none and the system needs them, or the other way round, or one is of no use.
        """
        return enrol(self.system, enrolments, sample_rate)

    def __call__(self, waveform, sample_rate, enrolment=None):
        """Separates one channel, or the two of a system of two ears.

        Args:
            waveform: [samples], any length; of two ears [2, samples], the left one first.
            sample_rate: Hz; the result has it too.
            enrolment: for SpEx+, what `enrol` takes; waveforms are at `sample_rate`.

        Returns:
            float32 [talkers, samples]; of two ears [talkers, 2, samples].
        """
        waveform = np.asarray(waveform, np.float32)
        if waveform.shape[:-1] != self._lead or not waveform.size:
            wanted = "two ears, [2, samples], are" if self.channels else "one channel, [samples], is"
            raise ValueError(f"a waveform of shape {waveform.shape}; {wanted} needed")
        if not np.isfinite(waveform).all():
            raise ValueError("the waveform holds NaN or infinite samples")
        voice = self.enrol(enrolment, sample_rate)
        with tempfile.TemporaryFile() as spool:
            brought = resample(waveform.T, sample_rate, self.sample_rate).T
            talkers = np.concatenate(list(self.separate(brought, spool, None, voice)), axis=-1)
        talkers = resample(talkers.T, self.sample_rate, sample_rate).T
        return talkers[..., : waveform.shape[-1]].astype(np.float32)

    @property
    def _lead(self):
        """Shape of samples but for their number."""
        return (self.channels,) if self.channels else ()

    def windows_of(self, samples):
        """How many windows a recording of so many samples has."""
        return len(self.windows.starts(self.system.frames(samples)))

    def separate(self, samples, spool, bar=None, enrolment=None):
        """Separates a channel, or two ears, window by window, in memory that does not depend on their length.

        Args:
            samples: [samples], or [2, samples], at the system's rate, an array or RawSamples.
            spool: binary file, open for writing and reading, for what is made of all windows.
            bar: progress bar, to be told of every window twice.
            enrolment: what `enrol` gave.

        Yields:
            float32 [talkers, some samples], or [talkers, 2, some samples], one after the other as many as there are in
            `samples`.
        """
        if self.stream is None:
            yield from self.system.separate(samples, self.windows, spool, bar, enrolment)
            return
        total = samples.shape[-1]
        starts = [start * self.system.hop_size for start in self.windows.starts(self.system.frames(total))]
        self.stream.begin(enrolment)
        blocks = (samples[..., first:last] for first, last in zip(starts, [*starts[1:], total]))
        for talkers in self.system.live(self.stream, blocks):
            if bar is not None:
                bar.update(2)
            yield talkers


# Files --------------------------------------------------------------------------------------------


def list_inputs(arguments):
    """[(path, name of the outputs)] of files and folders.

    Raises:
        UserError: there are none, or two would write the same outputs.
    """
    found = []
    for argument in arguments:
        if os.path.isdir(argument):
            inside = sorted(
                path
                for path in glob.glob(os.path.join(glob.escape(argument), "**", "*"), recursive=True)
                if path.lower().endswith(EXTENSIONS)
            )
            if not inside:
                raise UserError(f"{argument}: no audio file below it")
            found += [(path, os.path.splitext(os.path.relpath(path, argument))[0]) for path in inside]
        else:
            found.append((argument, os.path.splitext(os.path.basename(argument))[0]))
    names = {}
    for path, name in found:
        if name in names:
            raise UserError(f"{path} and {names[name]} would both be written as {name}; rename one of them")
        names[name] = path
    return found


def output_paths(folder, name, talkers, channels):
    """{(channel, talker): path}; the channel is None for the mean of all, and for two ears together."""
    return {
        (channel, talker): os.path.join(
            folder, name + ("" if channel is None else f"_ch{channel + 1}") + f"_s{talker + 1}.wav"
        )
        for channel in channels
        for talker in range(talkers)
    }


class Separated(NamedTuple):
    """What happened to a recording.

    Attributes:
        factor: by which the outputs were made quieter, 1 mostly.
        confidences: that the wanted talker is in each channel; empty for systems that have none.
    """

    factor: float
    confidences: list


def separate_file(separator, path, outputs, subtype="PCM_16", show=progress, voice=None):
    """Separates a recording into files.

    Args:
        separator: Separator.
        path: any format that libsndfile reads, any rate.
        outputs: {(channel, talker): path} of output_paths; they get the rate of the recording.
        subtype: sample format of the outputs. Where integers would be clipped, all are made quieter alike.
        show: makes the progress bar, called as feat.base.parallel.progress.
        voice: what Separator.enrol gave.

    Returns:
        Separated.

    Raises:
        UserError: the recording is shorter than LEAST_SECONDS, silent, or broken, or a system of two ears is given one
            of other channels; nothing was written.
    """
    info = wav_info(path)
    if separator.channels:
        require_stereo(path, info)
    if info.seconds < LEAST_SECONDS:
        raise UserError(
            f"{path}: {info.frames} samples, {1e3 * info.seconds:.1f} ms; nothing below {1e3 * LEAST_SECONDS:.0f} ms"
            " can be separated, give a longer recording"
        )
    channels = list(dict.fromkeys(channel for channel, _ in outputs))
    ears = separator.channels or 1
    with tempfile.TemporaryDirectory() as folder:
        samples = -(-info.frames * separator.sample_rate // info.sample_rate)
        raw = 4 * samples * ears * (2 + separator.talkers * len(channels))
        require_free_bytes(folder, raw + separator.system.spool_bytes(samples), f"parts of {path}")
        parts, confidences, peak, heard = {}, [], 0.0, False
        for channel in channels:
            mixtures = [os.path.join(folder, f"mixture{ear}") for ear in range(ears)]
            for ear, mixture in enumerate(mixtures):
                blocks = read_blocks(path, ear if separator.channels else channel, BLOCK_SECONDS)
                _write_raw(mixture, resample_blocks(blocks, info.sample_rate, separator.sample_rate))
                heard = heard or any(block.any() for block in _read_raw(mixture))
            samples = RawSamples(mixtures if separator.channels else mixtures[0])
            files = {
                (talker, ear): os.path.join(folder, f"{channel}_{talker}_{ear}")
                for talker in range(separator.talkers)
                for ear in range(ears)
            }
            with (
                tempfile.TemporaryFile(dir=folder) as spool,
                show(None, os.path.basename(path), 2 * separator.windows_of(samples.shape[-1]), unit="window") as bar,
                contextlib.ExitStack() as stack,
            ):
                streams = [stack.enter_context(open(file, "wb")) for file in files.values()]
                for block in separator.separate(samples, spool, bar, voice):
                    peak = max(peak, float(np.max(np.abs(block), initial=0)))
                    for stream, signal in zip(streams, block.reshape(len(files), -1)):
                        stream.write(np.ascontiguousarray(signal).data)
            confidences += [] if separator.confidence is None else [separator.confidence]
            parts |= {
                (channel, talker): [files[talker, ear] for ear in range(ears)] for talker in range(separator.talkers)
            }
        if not heard:
            raise UserError(f"{path}: silent, every sample is 0; check how it was recorded")
        factor = 1 / peak if peak > 1 and subtype.startswith("PCM") else 1.0
        for key, output in outputs.items():
            rates = separator.sample_rate, info.sample_rate
            blocks = map(np.stack, zip(*(resample_blocks(_read_raw(file), *rates) for file in parts[key])))
            _write_wav(output, blocks, info.sample_rate, info.frames, ears, subtype, factor)
    return Separated(factor, confidences)


class RawSamples:
    """float32 samples in a file, of which slices are read; a memory map's pages would count as memory.

    Args:
        path: of [samples], or a list of those of the channels of [channels, samples].
    """

    def __init__(self, path):
        self.paths = path
        self.several = isinstance(path, list)
        self.count = os.path.getsize(path[0] if self.several else path) // 4

    @property
    def shape(self):
        return (len(self.paths), self.count) if self.several else (self.count,)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, part):
        """[first:last] of one channel, [..., first:last] of whatever there is."""
        first, last, _ = (part[-1] if isinstance(part, tuple) else part).indices(self.count)

        def read(path):
            return np.fromfile(path, np.float32, max(last - first, 0), offset=4 * first)

        return np.stack([read(path) for path in self.paths]) if self.several else read(self.paths)


def _write_raw(path, blocks):
    with open(path, "wb") as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block, np.float32).data)


def _read_raw(path):
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            yield np.frombuffer(block, np.float32)


def _write_wav(path, blocks, sample_rate, frames, channels, subtype, factor):
    """Writes blocks [channels, samples] as a wav of so many frames, whole or not at all."""
    with atomic_path(path) as temporary:
        with soundfile.SoundFile(temporary, "w", sample_rate, channels, subtype, format="WAV") as file:
            left = frames
            for block in blocks:
                block = block[:, :left].T
                # Resampling may overshoot by a little what was measured before it.
                file.write(np.clip(factor * block, -1, 1) if subtype.startswith("PCM") else block)
                left -= len(block)


def presence_lines(system, path, confidences):
    """What to say of the confidences that the wanted talker is in each channel of a recording; [] without any."""
    if not confidences:
        return []
    line = f"{path}: confidence that the talker is there {', '.join(f'{value:.3f}' for value in confidences)}"
    if system.threshold is not None and min(confidences) < system.threshold:
        line += f", below {system.threshold:.3f}: most likely not" + ("; silence" if system.reject != "no" else "")
    return [line]
