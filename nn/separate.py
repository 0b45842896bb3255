"""Separates recordings of any format, rate, number of channels and length with a trained system.

    python nn/separate.py --resume_model exp/deep_casa/models in.wav [more.flac | folder] --output_dir out
    python nn/separate.py --resume_model exp/spex_plus/models --enrolment voice.wav in.wav --output_dir out
    python nn/separate.py --resume_model exp/looking_to_listen/models --video talk.mp4 [--render] --output_dir out

--resume_model names a checkpoint of each stage (give it twice), or a folder below which they lie. config.json beside
a checkpoint says which system it is, its sizes and its rate. Writes out/<name>_s1.wav, _s2.wav, ...; SpEx+, which
extracts the talker of the enrolment, _s1.wav alone; Binaural TasNet takes recordings of two ears, and writes stereo;
DiffSep for enhancement writes the speech as _s1.wav, the noise as _s2.wav. Looking to Listen writes the voice of every
face of a video, from left to right, see nn/separate_video.py.

Long files go through in overlapping windows, in memory that does not grow with their length. Causal systems go from
block to block instead, as nn/live.py does (--grouping online), and their latency and real-time factor are printed;
SpEx+ only if told so, as windows know the level of the whole recording.

    from nn.separate import Separator
    talkers = Separator("exp/deep_casa/models")(waveform, sample_rate)      # [talkers, samples]
    talker, = Separator("exp/spex_plus/models")(waveform, sample_rate, enrolment="voice.wav")
    talkers = Separator("exp/binaural_tasnet/models")(ears, sample_rate)    # [2, samples] -> [talkers, 2, samples]
"""

import contextlib
import glob
import hashlib
import json
import os
import sys
import tempfile
from typing import NamedTuple

from feat.script import run_script

import numpy as np
import soundfile
from absl import flags

from feat.audio import read_blocks, require_stereo, resample, resample_blocks, wav_info
from feat.avspeech.clips import faces_path
from feat.avspeech.embed_faces import DETECTORS
from feat.files import UserError, atomic_path, make_writable_directory, require_free_bytes, stamps, write_text
from feat.parallel import progress
from nn import checkpoint
from nn.diffusion import SOLVER_NAMES
from nn.extraction import LEVELS, REJECT
from nn.systems import Stopwatch, enrol, find_checkpoints, make_system, options_of_flags
from nn.windows import OVERLAP_S, WINDOW_S, Windows

FLAGS = flags.FLAGS

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
            nn.extraction.TargetTalker; `steps`, `snr`, `corrector_steps`, `solver` and `seed` of DiffSep, see
            nn.diffusion.Diffusion.

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
        show: makes the progress bar, called as feat.parallel.progress.
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


class Done:
    """What lies whole in a folder of outputs, and what it was made of and how: separate.json in it.

    It holds {"options": {digest: options}, "recordings": {name of the outputs: entry}}, entries of the digest of the
    options and of `stamps` of inputs and outputs. As these tell whatever was written over later, by whomever, entries
    never have to be taken out.

    Args:
        folder: of the outputs.
        options: how they are made now, for JSON: checkpoints, options and voice.
    """

    def __init__(self, folder, options):
        self.folder, self.options = folder, options
        self.path = os.path.join(folder, "separate.json")
        self.digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
        self.recordings = self._read()[1]

    def has(self, name, inputs):
        """Whether all outputs of a name are there, made with these options of `inputs`, which `stamps` gave."""
        found = self.recordings.get(name)
        if found is None or (found["options"], found["inputs"]) != (self.digest, inputs):
            return False
        outputs = found["outputs"]
        return stamps([os.path.join(self.folder, output) for output, *_ in outputs], self.folder) == outputs

    def add(self, name, inputs, outputs):
        """Notes that all outputs of a name are there, files of these paths, made of `inputs`."""
        options, recordings = self._read()  # again, as another run may have been here
        recordings[name] = {"options": self.digest, "inputs": inputs, "outputs": stamps(outputs, self.folder)}
        options[self.digest] = self.options
        used = {entry["options"] for entry in recordings.values()}
        options = {digest: value for digest, value in options.items() if digest in used}
        write_text(self.path, json.dumps({"options": options, "recordings": recordings}, indent=1) + "\n")

    def _read(self):
        """(options, recordings) of separate.json; nothing of one that is missing, damaged or of an older format."""
        try:
            with open(self.path, encoding="utf-8") as file:
                told = json.load(file)
            options, recordings = dict(told["options"]), dict(told["recordings"])
            whole = all({"options", "inputs", "outputs"} <= set(entry) for entry in recordings.values())
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        return (options, recordings) if whole else ({}, {})


def main(argv):
    if len(argv) < 2 and not FLAGS.video:
        raise UserError("no recording given: python nn/separate.py --resume_model PREFIX in.wav --output_dir out")
    if not FLAGS.resume_model:
        raise UserError("--resume_model is missing: the prefix of each stage's checkpoint, or the folder of both")
    inputs = list_inputs([*argv[1:], *FLAGS.video])
    checkpoints = find_checkpoints(FLAGS.resume_model)
    options = options_of_flags(next(iter(checkpoints)))
    separator = Separator(checkpoints.values(), FLAGS.window_seconds, FLAGS.overlap_seconds, FLAGS.grouping, **options)
    system = separator.system
    if separator.channels and FLAGS["channels"].present:
        raise UserError(f"--channels: {system.NAME} takes both ears of a recording together; leave it out")
    names = ["window_seconds", "overlap_seconds", "grouping", "subtype", "channels"]
    voice = separator.enrol(FLAGS.enrolment)
    if system.FACES:
        if len(argv) > 1:
            raise UserError(f"{argv[1]}: {system.NAME} separates by faces; give a video, --video {argv[1]}")
        from nn import separate_video

        voice = separate_video.embedder_of(system, FLAGS.face_weights)
        names += ["detector", "render"]
    elif FLAGS.video:
        raise UserError(f"--video: {system.NAME} does not look at faces; give a checkpoint of Looking to Listen")
    make_writable_directory(FLAGS.output_dir)
    digests = {system: checkpoint.fingerprint(prefix) for system, prefix in separator.checkpoints.items()}
    options |= {name: FLAGS[name].value for name in names}
    if system.ENROLMENT:
        options |= {"voice": hashlib.sha256(voice.tobytes()).hexdigest(), "threshold": system.threshold}
    done = Done(FLAGS.output_dir, digests | options)
    failed = 0
    for path, name in inputs:
        try:
            print((_separate_video if system.FACES else _separate)(separator, path, name, voice, done))
        except UserError as error:
            if len(inputs) == 1:
                raise
            failed += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
    if separator.stream is not None and separator.stream.samples:
        print(f"causal: {separator.stream.say_latency()}; {separator.stream.say_speed()}")
    if failed:
        raise UserError(
            f"{failed} of {len(inputs)} recordings were not separated; the others lie in {FLAGS.output_dir}"
        )


def _separate_video(separator, path, name, embedder, done):
    """Separates a video unless that was done; says what was written."""
    from nn import separate_video

    inputs = stamps([path, *([faces_path(path)] if FLAGS.detector == "told" else [])])
    if done.has(name, inputs):
        return f"{path}: separated already"
    options = dict(detector=FLAGS.detector, subtype=FLAGS.subtype, render=FLAGS.render)
    lines, files = separate_video.separate_video(separator, path, FLAGS.output_dir, name, embedder, **options)
    done.add(name, inputs, files)
    return "\n".join(lines)


def _separate(separator, path, name, voice, done):
    """Separates a recording unless that was done; says what was written."""
    inputs, info = stamps([path]), wav_info(path)
    if done.has(name, inputs):
        return f"{path}: separated already"
    together = separator.channels or FLAGS.channels == "mean" or info.channels == 1
    channels = [None] if together else range(info.channels)
    outputs = output_paths(FLAGS.output_dir, name, separator.talkers, channels)
    factor, confidences = separate_file(separator, path, outputs, FLAGS.subtype, voice=voice)
    done.add(name, inputs, outputs.values())
    lines = [f"{path}: {info.seconds:.1f} s, {', '.join(outputs.values())}"]
    if factor < 1:
        quieter = -20 * np.log10(factor)
        lines.append(f"{path}: its parts were made quieter by {quieter:.1f} dB, together, to fit {FLAGS.subtype}")
    return "\n".join(lines + presence_lines(separator.system, path, confidences))


def presence_lines(system, path, confidences):
    """What to say of the confidences that the wanted talker is in each channel of a recording; [] without any."""
    if not confidences:
        return []
    line = f"{path}: confidence that the talker is there {', '.join(f'{value:.3f}' for value in confidences)}"
    if system.threshold is not None and min(confidences) < system.threshold:
        line += f", below {system.threshold:.3f}: most likely not" + ("; silence" if system.reject != "no" else "")
    return [line]


main.takes_arguments = True

if __name__ == "__main__":
    flags.DEFINE_multi_string("resume_model", [], "checkpoint of a stage (give it for each), or a folder with all")
    flags.DEFINE_string("output_dir", "separated", "folder of the separated files")
    flags.DEFINE_enum("channels", "mean", ["mean", "each"], "separate the mean of a recording's channels, or each")
    flags.DEFINE_enum("subtype", "PCM_16", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"], "sample format of the outputs")
    flags.DEFINE_float(
        "window_seconds", WINDOW_S, "what the networks see at once; memory grows with it", lower_bound=0.1
    )
    flags.DEFINE_float("overlap_seconds", OVERLAP_S, "of neighbouring windows, cross-faded", lower_bound=0.01)
    flags.DEFINE_enum(
        "grouping",
        "auto",
        ["auto", "online", "kmeans"],
        "online: frame by frame, of causal checkpoints (auto too, but for SpEx+); kmeans: over the whole file",
    )
    flags.DEFINE_integer("seed", 0, "of Deep CASA's clustering, of DiffSep's noise", lower_bound=0)
    flags.DEFINE_integer("steps", None, "DiffSep: steps of the reverse process; default: as validated", lower_bound=1)
    flags.DEFINE_float("snr", None, "DiffSep: size of the corrector's steps", lower_bound=0)
    flags.DEFINE_integer("corrector_steps", None, "DiffSep: of the corrector at every time", lower_bound=0)
    flags.DEFINE_enum("solver", None, SOLVER_NAMES, "DiffSep: reference, or one of fewer calls; see the README")
    flags.DEFINE_multi_string(
        "video", [], "Looking to Listen: video whose faces say whose voices to take apart; repeat"
    )
    flags.DEFINE_bool("render", False, "Looking to Listen: also write a video of every face with its voice")
    flags.DEFINE_enum("detector", "mtcnn", DETECTORS, "of faces; told: boxes are in <video>.faces.csv")
    flags.DEFINE_string("face_weights", "", "FaceNet's weights, for networks that go by its embeddings")
    flags.DEFINE_multi_string("enrolment", [], "SpEx+: recording of the wanted talker; repeat to average several")
    flags.DEFINE_enum("level", "projection", LEVELS, "SpEx+: as loud as in the mixture, or its peak, or as it comes")
    flags.DEFINE_enum(
        "reject", "no", REJECT, "SpEx+: silence where the talker seems absent, from the file or from windows of it"
    )
    flags.DEFINE_float("threshold", None, "SpEx+: confidence of absence; default: as measured by --absent", -1, 1)
    run_script(main)
