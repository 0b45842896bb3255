"""Input pipelines (tf.data). The order, the crops and the mixtures of an epoch depend on (seed, epoch) alone.

Every pipeline gives batches that are dictionaries:

  mixture    [batch, frames, bins, 2]               real and imaginary parts
  sources    [batch, talkers, frames, bins, 2]
  waveforms  [batch, talkers, samples]              what the frames cover; absent where noted
  estimates  [batch, talkers, frames, bins, 2]      of the first stage; only from its files
  frames     [batch] int32                          true frames; the rest is zero padding at the end
  index      [batch] int32                          line of the list, for messages

All dimensions but talkers, bins and 2 are free, so that a tf.function traced once takes every batch.

Several processes and devices share a global batch: see Share.
"""

import dataclasses
import functools
import os

import numpy as np
import tensorflow as tf

from feat.base.files import UserError
from feat.base.parallel import parallel_map
from feat.batches.common import (
    Share,
    batches_in_order,
    checked,
    epoch_order,
    pieces,
    read_npy,
    sample_reader,
    workers_for,
)
from feat.corpora import cache
from feat.corpora.features import FeatureSettings, mixture_length
from feat.corpora.lists import parts_of_name, read_source_paths, talker_of, talkers_of_paths
from feat.signals.audio import FULL_SCALE, read_pcm16, samples_offset
from feat.signals.stft import num_frames, num_samples, sqrt_hann


@dataclasses.dataclass(frozen=True)
class Utterances:
    """The mixtures of a set, in the order of its list; made by `cached_utterances` or `wav_utterances`.

    Attributes:
        settings: FeatureSettings.
        set_name: "tr", "cv" or "tt".
        names: names of the mixtures.
        frames: whole frames of each, int array.
        from_wavs: features are computed from the wavs; otherwise they are read.
        offsets: with from_wavs, `samples_offset` of the wavs of each, int64 [mixtures, talkers + 1].
        with_estimates: those of the first stage are read too.
    """

    settings: FeatureSettings
    set_name: str
    names: list[str]
    frames: np.ndarray
    from_wavs: bool
    with_estimates: bool = False
    offsets: np.ndarray | None = None

    def __len__(self):
        return len(self.names)

    def first(self, count):
        """The first `count` utterances."""
        return self.some(range(min(count, len(self))))

    def some(self, lines):
        """Those of the given lines of the list."""
        lines = list(lines)
        offsets = None if self.offsets is None else self.offsets[lines]
        names = [self.names[i] for i in lines]
        return dataclasses.replace(self, names=names, frames=self.frames[lines], offsets=offsets)

    def files(self, name):
        """Paths of what the mixture `name` is read from."""
        paths, where = self.settings.wav_paths(self.set_name, name), (self.settings.feat_folder, self.set_name, name)
        if not self.from_wavs:
            paths = [*paths, cache.feature_path(*where), cache.wave_path(*where)]
        return [*paths, cache.estimate_path(*where)] if self.with_estimates else paths

    def check(self):
        """Looks at the headers of all files again. Raises UserError, which names the first that cannot be used."""
        if self.from_wavs:
            wav_utterances(self.settings, self.set_name, self.names)
        else:
            cached_utterances(self.settings, self.set_name, self.names, self.with_estimates)


def cached_utterances(settings, set_name, names, with_estimates=False):
    """Utterances whose feature files were checked, by their headers.

    Args:
        with_estimates: the estimates of the first stage must be there as well.

    Raises:
        UserError: a file is missing, cut short, or was made with other settings.
    """
    signals = settings.talkers + 1
    mend = "run feat/feat_gen.py with the same flags"
    frames = []
    for name in names:
        path = cache.feature_path(settings.feat_folder, set_name, name)
        count = cache.require_shape(path, (2 * signals, None, settings.bins), mend)[1]
        covered = num_samples(count, settings.fft_size, settings.hop_size)
        cache.require_shape(cache.wave_path(settings.feat_folder, set_name, name), (signals, covered), mend)
        if with_estimates:
            path = cache.estimate_path(settings.feat_folder, set_name, name)
            shape = cache.require_shape(
                path, (settings.talkers, None, None), "run nn/simul_group.py --is_deploy 2 with the same flags"
            )
            if shape[1] < count or shape[2] < 2 * settings.bins or shape[2] % 2:
                raise UserError(
                    f"{path}: shape {shape} does not fit {count} frames of {settings.bins} bins;"
                    " run nn/simul_group.py --is_deploy 2 again"
                )
        frames.append(count)
    return Utterances(settings, set_name, list(names), np.array(frames, np.int64), False, with_estimates)


def wav_utterances(settings, set_name, names):
    """Utterances whose wavs were checked, by their headers. Raises UserError, see feat_gen.mixture_length."""
    survey = functools.partial(_survey_wavs, settings, set_name)
    found = np.array(parallel_map(survey, names, workers_for(names), "check wavs"), np.int64)
    frames = num_frames(found[:, 0], settings.fft_size, settings.hop_size)
    return Utterances(settings, set_name, list(names), frames, True, offsets=found[:, 1:])


def _survey_wavs(settings, set_name, name):
    """(samples of the mixture `name`, `samples_offset` of every wav of it)."""
    samples = mixture_length(settings, set_name, name)
    paths = settings.wav_paths(set_name, name)
    offsets = [samples_offset(path) for path in paths]
    for path, offset in zip(paths, offsets):
        if offset < 0:  # compressed, as FLAC is, it may be broken behind a sound header
            read_pcm16(path, settings.sample_rate)
    return samples, *offsets


# Pipelines ----------------------------------------------------------------------------------------


def evaluation_batches(utterances, share=Share()):
    """Every utterance once, alone, in the order of the list.

    Replicas take turns. Where they do not come out even, the last ones get the first utterance with index -1.
    """
    index, lines = batches_in_order(len(utterances), 1, share)
    frames = utterances.frames[lines]
    return pieces((index, 0 * frames, frames, frames), _reader(utterances), share)


def evaluate(utterances):
    """Iterates over `evaluation_batches`; a file that went bad since the check is named."""
    return checked(evaluation_batches(utterances), utterances.check)


def training_batches(utterances, batch_size, seed, epoch, skip=0, segment_frames=0, share=Share()):
    """The batches of one epoch, without the first `skip`.

    Args:
        batch_size: of the global batch.
        segment_frames: cut a piece of so many frames out of longer utterances; 0: whole utterances.
    """
    order = epoch_order(utterances.frames, batch_size, seed, epoch)
    cuts = np.random.default_rng((seed, epoch, 2)).random(order.shape)
    whole = utterances.frames[order]
    frames = np.minimum(whole, segment_frames) if segment_frames else whole
    starts = (cuts * (whole - frames + 1)).astype(np.int64)
    longest = np.broadcast_to(frames.max(axis=1, keepdims=True), frames.shape)
    return pieces((order, starts, frames, longest), _reader(utterances), share, skip)


def segment_count(utterances, segment_frames):
    """Number of segments that `segment_batches` cuts an epoch into."""
    return int(np.sum(-(-utterances.frames // segment_frames)))


def segment_batches(utterances, segment_frames, batch_size, seed, epoch, skip=0, share=Share()):
    """One epoch of consecutive segments of all utterances, the last of each padded at its end.

    As the original trains its causal net: segments of 40 utterances at a time are shuffled. `frames` of a
    batch is always `segment_frames`; the padding counts.
    """
    generator = np.random.default_rng((seed, epoch, 3))
    counts = -(-utterances.frames // segment_frames)
    order = generator.permutation(len(utterances))
    lines, places = [], []
    for some in np.split(order, range(40, len(order), 40)):
        shuffled = generator.permutation(counts[some].sum())
        lines.append(np.repeat(some, counts[some])[shuffled])
        places.append(np.concatenate([np.arange(count) for count in counts[some]])[shuffled])
    whole = sum(map(len, lines)) // batch_size * batch_size
    lines, places = (np.concatenate(x)[:whole].reshape(-1, batch_size) for x in (lines, places))
    starts = places * segment_frames
    frames = np.minimum(utterances.frames[lines] - starts, segment_frames)
    # Read as padded to the segment, and all of it counts.
    read = _reader(utterances, frames_of_batch=segment_frames)
    return pieces((lines, starts, frames, np.full_like(frames, segment_frames)), read, share, skip)


def _reader(utterances, frames_of_batch=None):
    """(index, start, frames, longest) -> example: `frames` frames of a mixture, padded to `longest`.

    Args:
        frames_of_batch: what the example's `frames` says; None: the truth.
    """
    settings = utterances.settings
    hop = settings.hop_size
    load = _load_wavs(utterances) if utterances.from_wavs else _load_files(utterances)

    def read(index, start, frames, longest):
        samples = num_samples(frames, settings.fft_size, hop)
        missing = longest - frames
        example = load(tf.maximum(index, 0), start, frames, start * hop, samples)
        paddings = {
            "mixture": [[0, missing], [0, 0], [0, 0]],
            "sources": [[0, 0], [0, missing], [0, 0], [0, 0]],
            "waveforms": [[0, 0], [0, missing * hop]],
            "estimates": [[0, 0], [0, missing], [0, 0], [0, 0]],
        }
        example = {key: tf.pad(value, paddings[key]) for key, value in example.items()}
        return example | {"frames": frames if frames_of_batch is None else frames_of_batch, "index": index}

    return read


def _load_files(utterances):
    """(index, start, frames, first, samples) -> that part of a mixture, from the .npy files."""
    settings, set_name = utterances.settings, utterances.set_name
    kinds = {"features": cache.feature_path, "waveforms": cache.wave_path, "estimates": cache.estimate_path}
    if not utterances.with_estimates:
        del kinds["estimates"]
    paths = {
        kind: tf.constant([path(settings.feat_folder, set_name, name) for name in utterances.names])
        for kind, path in kinds.items()
    }
    signals, bins = settings.talkers + 1, settings.bins

    def load(index, start, frames, first, samples):
        features = tf.reshape(read_npy(paths["features"][index]), (signals, 2, -1, bins))
        total = tf.shape(features)[2]
        spectra = tf.transpose(features[:, :, start : start + frames], (0, 2, 3, 1))  # [C + 1, T, F, 2]
        waveforms = tf.ensure_shape(read_npy(paths["waveforms"][index]), (signals, None))
        example = {
            "mixture": spectra[-1],
            "sources": spectra[:-1],
            "waveforms": waveforms[:-1][:, first : first + samples],
        }
        if utterances.with_estimates:
            estimates = tf.ensure_shape(read_npy(paths["estimates"][index]), (settings.talkers, None, None))
            estimates = tf.reshape(estimates, (settings.talkers, tf.shape(estimates)[1], -1, 2))
            # The padding stands before the utterance, and around its bins.
            extra = (tf.shape(estimates)[2] - bins) // 2
            begin = tf.shape(estimates)[1] - total + start
            estimates = estimates[:, begin : begin + frames, extra : extra + bins]
            example["estimates"] = tf.ensure_shape(estimates, (settings.talkers, None, bins, 2))
        return example

    return load


def _load_wavs(utterances):
    """(index, start, frames, first, samples) -> that part of a mixture, from the wavs."""
    settings, signals = utterances.settings, utterances.settings.talkers + 1
    paths = [path for name in utterances.names for path in settings.wav_paths(utterances.set_name, name)]
    covered = num_samples(utterances.frames, settings.fft_size, settings.hop_size)
    offsets = utterances.offsets.ravel()
    read = sample_reader(paths, np.repeat(covered, signals), offsets, np.ones_like(offsets), settings.sample_rate)

    def load(index, start, frames, first, samples):
        pieces = [read(index * signals + i, first, first + samples) for i in range(signals)]
        return _features(settings, tf.stack(pieces))

    return load


def _features(settings, signals):
    """Signals of the talkers and the mixture, [talkers + 1, samples] -> parts of an example."""
    frames = tf.signal.frame(signals, settings.fft_size, settings.hop_size)
    spectra = tf.signal.rfft(frames * sqrt_hann(settings.fft_size).astype(np.float32))
    spectra = tf.stack([tf.math.real(spectra), tf.math.imag(spectra)], axis=-1)
    return {"mixture": spectra[-1], "sources": spectra[:-1], "waveforms": signals[:-1]}


# Dynamic mixing -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pool:
    """Single-talker utterances of a set, to be mixed anew in every epoch.

    Attributes:
        settings: FeatureSettings.
        paths: wav of every utterance.
        talkers: number of the talker of every utterance.
        levels: its root mean square.
        samples: its length.
        offsets: its `samples_offset`.
    """

    settings: FeatureSettings
    paths: list[str]
    talkers: np.ndarray
    levels: np.ndarray
    samples: np.ndarray
    offsets: np.ndarray

    def __len__(self):
        return len(self.paths)

    def check(self):
        """Reads all wavs again. Raises UserError, which names the first that cannot be used."""
        _levels(self.settings, self.paths)


def _levels(settings, paths):
    """`_level` of each."""
    return parallel_map(functools.partial(_level, settings), paths, workers_for(paths), "measure sources")


def _level(settings, path):
    """(root mean square, samples, `samples_offset`) of a wav that feat/feat_gen.py takes."""
    samples = read_pcm16(path, settings.sample_rate) / np.float64(FULL_SCALE)
    if len(samples) < settings.fft_size:
        raise UserError(f"{path}: {len(samples)} samples are shorter than one window; remove it from the list")
    return float(np.sqrt(np.mean(np.square(samples)))), len(samples), samples_offset(path)


def source_pool(settings, set_name, names, lists_folder=None):
    """Pool of the different utterances that the mixtures of a list are made of; silent ones are left out.

    Which utterance and which talker it is say the lists of the sources' paths, or, where these are not there, the
    names of the mixtures (see `parts_of_name`).

    Args:
        lists_folder: where the list lies; paths are looked for there and in lists/ of the data folder.

    Raises:
        UserError: a wav is unusable, or all utterances are of one talker.
    """
    utterances, talkers = _sources_of(settings, set_name, names, lists_folder)
    found = {}
    for name in names:
        for utterance, path in zip(utterances[name], settings.wav_paths(set_name, name)):
            found.setdefault(utterance, path)
    measured = _levels(settings, list(found.values()))
    kept = [(*item, *rest) for item, rest in zip(found.items(), measured) if rest[0] > 0]
    numbers = {talker: i for i, talker in enumerate(sorted({talkers[utterance] for utterance, *_ in kept}))}
    if len(numbers) < settings.talkers:
        raise UserError(
            f"{settings.data_folder}, {set_name}: {len(numbers)} talker(s) found in the list,"
            f" {settings.talkers} are needed for --dynamic_mixing; leave it out"
        )
    said, paths, levels, samples, offsets = zip(*kept)
    numbers = [numbers[talkers[utterance]] for utterance in said]
    return Pool(settings, list(paths), *map(np.array, (numbers, levels, samples, offsets)))


def _sources_of(settings, set_name, names, lists_folder):
    """({mixture: its utterances}, {utterance: talker}), by the sources' paths if they are known, or by the names."""
    for folder in (lists_folder, os.path.join(settings.data_folder, "lists")):
        utterances = read_source_paths(folder, set_name, settings.talkers) if folder else {}
        if all(name in utterances for name in names) and (talkers := talkers_of_paths(utterances.values())):
            return utterances, talkers
    utterances = {name: parts_of_name(name, settings.talkers) for name in names}
    talkers = {utterance: talker_of(utterance) for parts in utterances.values() for utterance in parts}
    for name, parts in utterances.items():
        if len({talkers[utterance] for utterance in parts}) < len(parts):
            print(
                f"warning: {name}: names a talker twice, so names may not tell the talkers of {set_name} apart; lay"
                " the lists of the sources' paths (mix_2_spk_min_tr_1, ...) beside the list of the names"
            )
            break
    return utterances, talkers


def draw_mixtures(pool, count, samples, seed, epoch, gain_db=2.5):
    """What the mixtures of an epoch are made of.

    Talkers are drawn first, then one utterance of each, a piece of each, and gains: utterances of equal power
    are put up to `gain_db` above and below it, as in WSJ0-2mix.

    Args:
        count: mixtures.
        samples: of each.

    Returns:
        (picked, starts, scales), each [count, talkers]: indices in the pool, first samples, factors.
    """
    talkers = pool.settings.talkers
    generator = np.random.default_rng((seed, epoch, 4))
    chosen = np.argsort(generator.random((count, pool.talkers.max() + 1)), axis=1)[:, :talkers]
    by_talker = [np.flatnonzero(pool.talkers == talker) for talker in range(pool.talkers.max() + 1)]
    sizes = np.array([len(some) for some in by_talker])
    table = np.stack([np.resize(some, sizes.max()) for some in by_talker])
    picked = table[chosen, (generator.random(chosen.shape) * sizes[chosen]).astype(np.int64)]
    spare = np.maximum(pool.samples[picked] - samples, 0)
    starts = (generator.random(picked.shape) * (spare + 1)).astype(np.int32)
    gains = generator.uniform(0, gain_db, count) * generator.choice([-1, 1], count)
    # As in the lists: the gains of two talkers are opposite, a third stays at 0 dB.
    gains_db = np.stack([gains, -gains, *[np.zeros(count)] * (talkers - 2)], axis=1)
    return picked.astype(np.int32), starts, (10 ** (gains_db / 20) / pool.levels[picked]).astype(np.float32)


def mixed_batches(pool, batch_size, batches, segment_frames, seed, epoch, skip=0, gain_db=2.5, share=Share()):
    """One epoch of mixtures that were never heard before, see `draw_mixtures`.

    The sum is scaled to a peak of 0.9, as WSJ0-2mix is. Sources shorter than the segment end in silence.

    Args:
        batch_size: of the global batch.
        batches: batches in an epoch.
        segment_frames: frames of every mixture.
    """
    settings = pool.settings
    count, talkers = batches * batch_size, settings.talkers
    samples = num_samples(segment_frames, settings.fft_size, settings.hop_size)
    drawn = draw_mixtures(pool, count, samples, seed, epoch, gain_db)
    read = sample_reader(pool.paths, pool.samples, pool.offsets, np.ones_like(pool.offsets), settings.sample_rate)

    def mix(index, picked, starts, scales):
        pieces = []
        for i in range(talkers):
            piece = read(picked[i], starts[i], starts[i] + samples)
            piece = tf.pad(piece, [[0, samples - tf.shape(piece)[0]]]) * scales[i]
            pieces.append(tf.ensure_shape(piece, (samples,)))
        sources = tf.stack(pieces)
        mixture = tf.reduce_sum(sources, axis=0)
        signals = tf.concat([sources, mixture[None]], axis=0)
        signals *= 0.9 / tf.maximum(tf.reduce_max(tf.abs(signals)), 1e-5)
        return _features(settings, signals) | {"frames": segment_frames, "index": index}

    arrays = [array.reshape(batches, batch_size, *array.shape[1:]) for array in (np.arange(count), *drawn)]
    return pieces(arrays, mix, share, skip)
