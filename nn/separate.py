"""Separates recordings of any format, rate, number of channels and length with a trained system.

    python nn/separate.py --resume_model exp/deep_casa/models in.wav [more.flac | folder] --output_dir out

--resume_model names a checkpoint of each stage (give it twice), or a folder below which they lie. config.json beside
a checkpoint says which system it is, its sizes and its rate. Writes out/<name>_s1.wav, _s2.wav, ...

Long files go through in overlapping windows, in memory that does not grow with their length. Causal systems go from
block to block instead, as nn/live.py does (--grouping online).

    from nn.separate import Separator
    talkers = Separator("exp/deep_casa/models")(waveform, sample_rate)      # [talkers, samples]
"""

import glob
import json
import os
import sys
import tempfile

import numpy as np
import soundfile
import tensorflow as tf
from absl import flags

from feat.audio import read_blocks, resample, resample_blocks, wav_info
from feat.files import UserError, atomic_path, make_writable_directory, require_free_bytes, run_script, write_text
from feat.parallel import progress
from feat.stft import istft, num_samples, stft_planes
from models.dense_unet import DenseUNet
from models.grouping import SequentialGrouping
from models.streaming import StreamingSeparator
from nn import checkpoint, clustering

FLAGS = flags.FLAGS

EXTENSIONS = tuple("." + name.lower() for name in soundfile.available_formats()) + (".aif", ".oga", ".opus")
BLOCK_SECONDS = 10.0  # read and written at a time
LEAST_SECONDS = 0.02  # of a recording


class DeepCasa:
    """Both stages of Deep CASA on windows of one length: spectra and embeddings, then talkers for the whole file.

    A first stage that was trained with --pit utterance needs no second one.

    Args:
        checkpoints: {system name: prefix}.
        seed: of the clustering.
    """

    SYSTEMS = ("dense_unet", "sequential_grouping")

    def __init__(self, checkpoints, seed=0):
        config = self._config(checkpoints["dense_unet"])
        self.unet = DenseUNet(**config["model"])
        checkpoint.load_for_inference(checkpoints["dense_unet"], "dense_unet", self.unet)
        self.grouping = None
        if "sequential_grouping" in checkpoints:
            theirs = self._config(checkpoints["sequential_grouping"])
            for name in ("sample_rate", "fft_size", "hop_size"):
                if theirs[name] != config[name]:
                    raise UserError(
                        f"{checkpoints['sequential_grouping']}: {name} is {theirs[name]}, that of the first stage"
                        f" {config[name]}; give stages that were trained together"
                    )
            self.grouping = SequentialGrouping(**theirs["model"])
            checkpoint.load_for_inference(checkpoints["sequential_grouping"], "sequential_grouping", self.grouping)
        elif config.get("pit", "frame") == "frame":
            raise UserError(
                f"{checkpoints['dense_unet']}: the first stage alone, trained frame by frame; give the checkpoint of the"
                " second stage too: --resume_model PREFIX1 --resume_model PREFIX2"
            )
        self.sample_rate = config["sample_rate"]
        self.fft_size, self.hop_size = config["fft_size"], config["hop_size"]
        self.talkers = self.unet.talkers
        self.seed = seed
        models = {"dense_unet": self.unet, "sequential_grouping": self.grouping}
        self.not_causal = [checkpoints[name] for name, model in models.items() if model and not model.causal]
        spec = tf.TensorSpec([1, None, self.unet.bins, 2])
        self._forward = tf.function(self._networks, input_signature=[spec])

    def stream(self):
        """A models.streaming.StreamingSeparator. Raises UserError unless both stages are causal."""
        if self.not_causal:
            raise UserError(
                f"{self.not_causal[0]}: not causal, it looks at what is still to come; train both stages with --causal,"
                " or separate whole recordings with nn/separate.py --grouping kmeans"
            )
        return StreamingSeparator(self.unet, self.grouping, self.fft_size, self.hop_size, compile_step)

    @staticmethod
    def _config(prefix):
        checkpoint.require(prefix)
        config = checkpoint.read_config(prefix)
        if config is None:
            raise UserError(
                f"{checkpoint.resolve(prefix)}: no config.json beside it, as beside the original's checkpoints; infer with"
                " nn/simul_group.py and nn/seq_group.py, whose flags give the sizes"
            )
        return config

    def _networks(self, mixture):
        estimates = self.unet(mixture)
        if self.grouping is None:
            return estimates, tf.zeros((1, tf.shape(mixture)[1], 1, 1))
        return estimates, self.grouping((mixture, estimates))

    def analyse(self, window):
        """[samples] -> (estimates [C, T, F, 2], embeddings [T, embeddings a frame, D]), float32."""
        planes = stft_planes(window[None], self.fft_size, self.hop_size)  # [1, 2, T, F]
        estimates, embeddings = self._forward(np.moveaxis(planes, 1, -1))
        return estimates[0].numpy(), embeddings[0].numpy()

    def synthesise(self, estimates, order):
        """Estimates [C, T, F, 2] and permutation indices [T] -> [C, samples]."""
        ordered = clustering.permute(estimates, order)
        return istft(ordered[..., 0] + 1j * ordered[..., 1], None, self.fft_size, self.hop_size, parity=False)


def compile_step(step, state, frames):
    """The `compile` of a StreamingSeparator: one graph for any number of frames."""
    spec = tf.nest.map_structure(tf.TensorSpec.from_tensor, state)
    return tf.function(step, input_signature=[spec, tf.TensorSpec([None, *frames.shape[1:]], tf.float32)])


def add_up(talkers, mixture):
    """Talkers [talkers, samples] that sum to the mixture [samples]: each gets an equal part of what is missing.

    Source: Wisdom et al., "Differentiable consistency constraints for improved deep speech enhancement", 2019, eq. 6.
    """
    return (talkers + (mixture - talkers.sum(axis=0)) / len(talkers)).astype(np.float32)


def separate_stream(stream, blocks):
    """Yields the talkers, [talkers, some samples], of blocks [samples] as they come; as many samples as came in.

    Args:
        stream: StreamingSeparator.
    """
    waiting = np.zeros(0, np.float32)  # samples whose talkers are still to come
    for block in blocks:
        talkers = stream.step(block)
        waiting = np.concatenate([waiting, block])
        ready, waiting = np.split(waiting, [talkers.shape[1]])
        yield add_up(talkers, ready)
    # Silence behind the recording, so that all of it lies in whole windows.
    last = stream.step(np.zeros(stream.latency, np.float32)), stream.flush()
    yield add_up(np.concatenate(last, axis=1)[:, : len(waiting)], waiting)


class Separator:
    """A trained system, ready for recordings.

    Args:
        checkpoints: a prefix, several prefixes, or a folder below which the checkpoints of one system lie.
        window_seconds: of what the networks see at once; memory grows with it.
        overlap_seconds: of neighbouring windows, cross-faded.
        seed: of the clustering.
        grouping: "online": frame by frame from the past alone, for causal checkpoints, without windows; "kmeans": over
            the whole file; "auto": online for causal checkpoints.

    Raises:
        UserError: a checkpoint is missing or of another kind.
    """

    def __init__(self, checkpoints, window_seconds=10.0, overlap_seconds=2.5, seed=0, grouping="auto"):
        if not 0 < 2 * overlap_seconds <= window_seconds:
            raise UserError(
                f"--overlap_seconds {overlap_seconds}: must lie above 0 and be at most half of --window_seconds"
                f" {window_seconds}"
            )
        self.checkpoints = find_checkpoints([checkpoints] if isinstance(checkpoints, (str, os.PathLike)) else checkpoints)
        self.system = DeepCasa(self.checkpoints, seed)
        self.sample_rate = self.system.sample_rate
        self.talkers = self.system.talkers
        frames_per_second = self.sample_rate / self.system.hop_size
        self.window = round(window_seconds * frames_per_second)
        self.step = self.window - round(overlap_seconds * frames_per_second)
        self.stream = None
        if grouping == "online" or grouping == "auto" and not self.system.not_causal:
            self.stream = self.system.stream()
            self.step = self.window

    def __call__(self, waveform, sample_rate):
        """Separates one channel.

        Args:
            waveform: [samples], any length.
            sample_rate: Hz; the result has it too.

        Returns:
            float32 [talkers, samples].
        """
        waveform = np.asarray(waveform, np.float32)
        if waveform.ndim != 1 or not waveform.size:
            raise ValueError(f"a waveform of shape {waveform.shape}; one channel, [samples], is needed")
        if not np.isfinite(waveform).all():
            raise ValueError("the waveform holds NaN or infinite samples")
        with tempfile.TemporaryFile() as spool:
            blocks = list(self.separate(resample(waveform, sample_rate, self.sample_rate), spool))
        talkers = np.concatenate(blocks, axis=1)
        talkers = np.stack([resample(talker, self.sample_rate, sample_rate) for talker in talkers])
        return talkers[:, : len(waveform)].astype(np.float32)

    def window_starts(self, frames):
        """First frames of the windows of a file; the last one ends with it. One window for a short file."""
        if frames <= self.window:
            return [0]
        starts = list(range(0, frames - self.window, self.step))
        return [*starts, frames - self.window]

    def separate(self, samples, spool, bar=None):
        """Separates a channel window by window, in memory that does not depend on its length.

        Args:
            samples: [samples] at the system's rate, an array or RawSamples.
            spool: binary file, open for writing and reading, for the spectra of all windows.
            bar: progress bar, to be told of every window twice.

        Yields:
            float32 [talkers, some samples], one after the other as many as there are in `samples`, to which they sum.
        """
        fft_size, hop = self.system.fft_size, self.system.hop_size
        if self.stream is not None:
            starts = [start * hop for start in self.window_starts(-(-len(samples) // hop))]
            self.stream.reset()
            blocks = (samples[first:last] for first, last in zip(starts, [*starts[1:], len(samples)]))
            for talkers in separate_stream(self.stream, blocks):
                if bar is not None:
                    bar.update(2)
                yield talkers
            return
        # Silence around the recording, so that its ends are seen by as many frames as all else.
        lead = fft_size
        frames = -(-(len(samples) + lead) // hop) + 1
        starts = self.window_starts(frames)
        length = num_samples(min(frames, self.window), fft_size, hop)
        grouped = clustering.WindowClustering(self.talkers, self.system.seed)
        shape = None
        for start in starts:
            estimates, embeddings = self.system.analyse(_piece(samples, start * hop - lead, length))
            shape = estimates.shape
            spool.write(estimates.data)
            if self.system.grouping is not None:
                grouped.add(start, estimates, embeddings)
            if bar is not None:
                bar.update()
        spool.seek(0)
        orders = grouped.orders() if self.system.grouping is not None else None
        kept, kept_from = None, 0
        for i, start in enumerate(starts):
            estimates = np.frombuffer(spool.read(4 * int(np.prod(shape))), np.float32).reshape(shape)
            order = np.zeros(shape[1], np.int64) if orders is None else orders[i]
            signals = self.system.synthesise(estimates, order)
            if kept is not None:
                signals = self._join(kept, kept_from, signals, start * hop, orders is None)
            # Up to where the next window begins nothing can change any more.
            begin = start * hop
            end = starts[i + 1] * hop if i + 1 < len(starts) else begin + signals.shape[1]
            kept, kept_from = signals[:, end - begin :], end
            first = max(begin, lead)
            last = max(first, min(end, lead + len(samples)))
            yield add_up(signals[:, first - begin : last - begin], samples[first - lead : last - lead])
            if bar is not None:
                bar.update()

    def _join(self, kept, kept_from, signals, begin, match):
        """Cross-fades what is left of the window before into `signals`, which begin at the same sample."""
        assert kept_from == begin
        overlap = kept.shape[1]
        if match:  # no embeddings tell the talkers: the order that agrees best with the window before
            signals = signals[clustering.best_order(kept, signals[:, :overlap])]
        fade = np.linspace(0, 1, overlap + 2)[1:-1]
        signals[:, :overlap] = (1 - fade) * kept + fade * signals[:, :overlap]
        return signals


def _piece(samples, start, length):
    """samples[start : start + length], with zeros where there are none."""
    piece = np.zeros(length, np.float32)
    first, last = max(start, 0), min(start + length, len(samples))
    if last > first:
        piece[first - start : last - start] = samples[first:last]
    return piece


def find_checkpoints(given):
    """{system: prefix} of prefixes or of a folder, below which every `best` is looked at.

    Raises:
        UserError: there is none, or there are several of one system.
    """
    prefixes = checkpoint.find_best(given)
    systems = {}
    for prefix in prefixes:
        checkpoint.require(prefix)
        system = checkpoint.Reader(prefix).system
        if system not in DeepCasa.SYSTEMS:
            raise UserError(f"{prefix}: holds {system}, which cannot separate; give one of {', '.join(DeepCasa.SYSTEMS)}")
        if system in systems:
            raise UserError(
                f"{prefix} and {systems[system]} are both of {system}; name the one to take: --resume_model PREFIX"
            )
        systems[system] = prefix
    if "dense_unet" not in systems:
        raise UserError(f"{prefixes[0]}: the second stage alone; give the checkpoint of the first stage too")
    return systems


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
    """{(channel or None for their mean, talker): path}"""
    return {
        (channel, talker): os.path.join(
            folder, name + ("" if channel is None else f"_ch{channel + 1}") + f"_s{talker + 1}.wav"
        )
        for channel in channels
        for talker in range(talkers)
    }


def separate_file(separator, path, outputs, subtype="PCM_16", show=progress):
    """Separates a recording into files.

    Args:
        separator: Separator.
        path: any format that libsndfile reads, any rate.
        outputs: {(channel, talker): path} of output_paths; they get the rate of the recording.
        subtype: sample format of the outputs. Where integers would be clipped, all are made quieter alike.
        show: makes the progress bar, called as feat.parallel.progress.

    Returns:
        the factor by which the outputs were made quieter, 1 mostly.

    Raises:
        UserError: the recording is shorter than LEAST_SECONDS, silent, or broken; nothing was written.
    """
    info = wav_info(path)
    if info.seconds < LEAST_SECONDS:
        raise UserError(
            f"{path}: {info.frames} samples, {1e3 * info.seconds:.1f} ms; nothing below {1e3 * LEAST_SECONDS:.0f} ms"
            " can be separated, give a longer recording"
        )
    channels = list(dict.fromkeys(channel for channel, _ in outputs))
    seconds = info.frames / info.sample_rate
    with tempfile.TemporaryDirectory() as folder:
        one = seconds * separator.sample_rate * 4
        spectra = one * 2 * separator.talkers * separator.system.fft_size / separator.system.hop_size * 1.4
        require_free_bytes(folder, int(spectra + one * (2 + separator.talkers * len(channels))), f"parts of {path}")
        parts, peak, heard = {}, 0.0, False
        for channel in channels:
            mixture = os.path.join(folder, "mixture")
            blocks = read_blocks(path, channel, BLOCK_SECONDS)
            _write_raw(mixture, resample_blocks(blocks, info.sample_rate, separator.sample_rate))
            samples = RawSamples(mixture)
            heard = heard or any(block.any() for block in _read_raw(mixture))
            files = [os.path.join(folder, f"{channel}_{talker}") for talker in range(separator.talkers)]
            frames = -(-(len(samples) + separator.system.fft_size) // separator.system.hop_size) + 1
            with (
                tempfile.TemporaryFile(dir=folder) as spool,
                show(None, os.path.basename(path), 2 * len(separator.window_starts(frames)), unit="window") as bar,
            ):
                streams = [open(file, "wb") for file in files]
                for block in separator.separate(samples, spool, bar):
                    peak = max(peak, float(np.max(np.abs(block), initial=0)))
                    for stream, talker in zip(streams, block):
                        stream.write(talker.data)
                for stream in streams:
                    stream.close()
            parts |= {(channel, talker): file for talker, file in enumerate(files)}
        if not heard:
            raise UserError(f"{path}: silent, every sample is 0; check how it was recorded")
        factor = 1 / peak if peak > 1 and subtype.startswith("PCM") else 1.0
        for key, output in outputs.items():
            blocks = resample_blocks(_read_raw(parts[key]), separator.sample_rate, info.sample_rate)
            _write_wav(output, blocks, info.sample_rate, info.frames, subtype, factor)
    return factor


class RawSamples:
    """float32 samples in a file, of which slices are read; a memory map's pages would count as memory."""

    def __init__(self, path):
        self.path = path
        self.count = os.path.getsize(path) // 4

    def __len__(self):
        return self.count

    def __getitem__(self, part):
        first, last, _ = part.indices(self.count)
        return np.fromfile(self.path, np.float32, max(last - first, 0), offset=4 * first)


def _write_raw(path, blocks):
    with open(path, "wb") as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block, np.float32).data)


def _read_raw(path):
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            yield np.frombuffer(block, np.float32)


def _write_wav(path, blocks, sample_rate, frames, subtype, factor):
    """Writes blocks as a wav of so many frames, whole or not at all."""
    with atomic_path(path) as temporary:
        with soundfile.SoundFile(temporary, "w", sample_rate, 1, subtype, format="WAV") as file:
            left = frames
            for block in blocks:
                # Resampling may overshoot by a little what was measured before it.
                file.write(np.clip(factor * block[:left], -1, 1) if subtype.startswith("PCM") else block[:left])
                left -= len(block[:left])


def _done(folder, options):
    """Whether outputs in a folder are of the same checkpoints and options; notes it for the next time."""
    marker = os.path.join(folder, "separate.json")
    text = json.dumps(options, indent=1) + "\n"
    if os.path.exists(marker):
        with open(marker, encoding="utf-8") as file:
            if file.read() == text:
                return True
    write_text(marker, text)
    return False


def main(argv):
    if len(argv) < 2:
        raise UserError("no recording given: python nn/separate.py --resume_model PREFIX in.wav --output_dir out")
    if not FLAGS.resume_model:
        raise UserError("--resume_model is missing: the prefix of each stage's checkpoint, or the folder of both")
    inputs = list_inputs(argv[1:])
    separator = Separator(FLAGS.resume_model, FLAGS.window_seconds, FLAGS.overlap_seconds, FLAGS.seed, FLAGS.grouping)
    make_writable_directory(FLAGS.output_dir)
    digests = {system: checkpoint.fingerprint(prefix) for system, prefix in separator.checkpoints.items()}
    names = ("window_seconds", "overlap_seconds", "seed", "grouping", "subtype", "channels")
    options = {name: FLAGS[name].value for name in names}
    same = _done(FLAGS.output_dir, digests | options)
    failed = 0
    for path, name in inputs:
        try:
            print(_separate(separator, path, name, same))
        except UserError as error:
            if len(inputs) == 1:
                raise
            failed += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
    if failed:
        raise UserError(f"{failed} of {len(inputs)} recordings were not separated; the others lie in {FLAGS.output_dir}")


def _separate(separator, path, name, same):
    """Separates a recording unless that was done (`same`: with these options); says what was written."""
    info = wav_info(path)
    channels = [None] if FLAGS.channels == "mean" or info.channels == 1 else range(info.channels)
    outputs = output_paths(FLAGS.output_dir, name, separator.talkers, channels)
    if same and all(os.path.exists(output) for output in outputs.values()):
        return f"{path}: separated already"
    factor = separate_file(separator, path, outputs, FLAGS.subtype)
    lines = [f"{path}: {info.seconds:.1f} s, {', '.join(outputs.values())}"]
    if factor < 1:
        quieter = -20 * np.log10(factor)
        lines.append(f"{path}: its parts were made quieter by {quieter:.1f} dB, together, to fit {FLAGS.subtype}")
    return "\n".join(lines)


main.takes_arguments = True

if __name__ == "__main__":
    flags.DEFINE_multi_string("resume_model", [], "checkpoint of a stage (give it for each), or a folder with all")
    flags.DEFINE_string("output_dir", "separated", "folder of the separated files")
    flags.DEFINE_enum("channels", "mean", ["mean", "each"], "separate the mean of a recording's channels, or each")
    flags.DEFINE_enum("subtype", "PCM_16", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"], "sample format of the outputs")
    flags.DEFINE_float("window_seconds", 10.0, "what the networks see at once; memory grows with it", lower_bound=0.1)
    flags.DEFINE_float("overlap_seconds", 2.5, "of neighbouring windows, cross-faded", lower_bound=0.01)
    flags.DEFINE_enum(
        "grouping", "auto", ["auto", "online", "kmeans"], "frame by frame (causal checkpoints), or over the whole file"
    )
    flags.DEFINE_integer("seed", 0, "of the clustering")
    run_script(main)
