"""Input pipelines (tf.data) of binaural separation. An epoch depends on (seed, epoch) alone.

Every pipeline gives batches that are dictionaries:

  mixture   [batch, samples, 2] float32             left and right ear
  sources   [batch, talkers, samples, 2] float32
  samples   [batch] int32     true length; the rest is zero padding at the end
  index     [batch] int32     line of the set, for messages

Batch and samples are free, so that a tf.function traced once (feat.batches.common.free_lengths) takes every batch.
Several processes and devices share a global batch, see feat.batches.common.Share.
"""

import dataclasses
import os

import numpy as np
import soundfile
import tensorflow as tf

from feat.base.files import UserError
from feat.base.parallel import parallel_map, progress
from feat.batches.augment import (
    BANDS,
    CHUNK_SAMPLES,
    CHUNKS,
    Augmentation,
    change_speed,
    drop_bands,
    drop_chunks,
    notches,
    speed_samples,
)
from feat.batches.common import Files, Share, audio_files, batches_in_order, checked, epoch_order, pieces, workers_for
from feat.corpora.binaural_sets import NOISE_SIGNALS, SHORTEST, read_manifest
from feat.signals import binaural
from feat.signals.audio import require_stereo, resample, samples_offset, wav_info
from feat.signals.hrir import AZIMUTHS
from feat.signals.rooms import AZIMUTHS_IN_ROOMS, RATE_HZ, simulate

LONGEST_DIRECT_TAPS = 256  # longer responses are convolved by FFT
# Levels of dynamic mixing, dB of the mean size of a sample: mean and standard deviation of the first talker's, and
# of the others' difference to it.
FIRST_LEVEL_DB, DIFFERENCE_DB = (-27.43, 2.57), (-2.51, 2.66)
NONE = Augmentation(speeds=())
LISTENED = 3  # mixtures of a set whose ears are compared
# Of energy: of a mixture less its parts, and of that with the ears of one of them exchanged.
LEFT_SHARE, EXCHANGED_SHARE = 1e-3, 0.1


# Sets ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StereoFiles:
    """Stereo files by number.

    Attributes:
      paths: of each.
      samples: of each, int64.
      offsets: byte where the samples begin, -1 where TensorFlow cannot read the file by itself, int64.
      floats: whether they are 32-bit floats rather than 16-bit integers, bool.
    """

    paths: list[str]
    samples: np.ndarray
    offsets: np.ndarray
    floats: np.ndarray

    def reader(self):
        """number -> float32 [samples, 2]."""
        paths, floats = tf.constant(self.paths), tf.constant(self.floats)
        offsets, samples = (tf.constant(array, tf.int32) for array in (self.offsets, self.samples))

        def integers(data):
            return tf.cast(tf.io.decode_raw(data, tf.int16), tf.float32) / 32768

        def plain(number):
            count = samples[number] * tf.where(floats[number], 8, 4)
            data = tf.strings.substr(tf.io.read_file(paths[number]), offsets[number], count)
            if self.floats.all():
                values = tf.io.decode_raw(data, tf.float32)
            elif not self.floats.any():
                values = integers(data)
            else:
                values = tf.cond(floats[number], lambda: tf.io.decode_raw(data, tf.float32), lambda: integers(data))
            return tf.reshape(values, (samples[number], 2))

        def read(number):
            if (self.offsets >= 0).all():
                return plain(number)
            anything = tf.cond(
                offsets[number] >= 0,
                lambda: plain(number),
                lambda: tf.numpy_function(lambda path: _read_anything(path.decode()), [paths[number]], tf.float32),
            )
            return tf.ensure_shape(anything, (None, 2))

        return read


@dataclasses.dataclass(frozen=True)
class BinauralSet:
    """Mixtures whose files were looked at; made by `binaural_set`.

    Attributes:
      names: of the mixtures.
      talkers: in each.
      files: StereoFiles; all mixtures, then all first sources, ..., then the noises, if there are any.
      sample_rate: Hz.
      noisy: whether there is noise.
    """

    names: list[str]
    talkers: int
    files: StereoFiles
    sample_rate: int
    noisy: bool

    def __len__(self):
        return len(self.names)

    @property
    def samples(self):
        """Of every mixture, int64."""
        return self.files.samples[: len(self)]

    def some(self, lines):
        """The mixtures of the given lines."""
        lines = np.asarray(list(lines), np.int64)
        signals = self.talkers + 1 + self.noisy
        numbers = (np.arange(signals)[:, None] * len(self) + lines).ravel()
        files = StereoFiles(
            [self.files.paths[i] for i in numbers],
            *(array[numbers] for array in (self.files.samples, self.files.offsets, self.files.floats)),
        )
        return dataclasses.replace(self, names=[self.names[i] for i in lines], files=files)

    def check(self):
        """Looks at the headers of all files again. Raises UserError, which names the first that cannot be used."""
        _stereo_files(self.files.paths, self.sample_rate, len(self))


def binaural_set(folder, sample_rate=8000, talkers=None):
    """The mixtures in a folder with mix/ (or mix_both/), s1/, s2/, ..., noise/; every header is read.

    Args:
      folder: as feat.binaural_mix.set_folder gives it, or that of a published set.
      sample_rate: Hz that the files must have.
      talkers: that must be there; None: as many as there are.

    Raises:
      UserError: the set is not whole, or a file is missing, mono, of another rate, of another length than its
        mixture, or shorter than 1040 samples; or, of the first mixtures, has its ears exchanged.
    """
    mixtures = next((name for name in ("mix", NOISE_SIGNALS[-1]) if os.path.isdir(os.path.join(folder, name))), None)
    if mixtures is None:
        raise UserError(f"{folder}: no mix/ or {NOISE_SIGNALS[-1]}/ in it; make it with feat/binaural_mix.py")
    sources = [f"s{c}" for c in range(1, 10) if os.path.isdir(os.path.join(folder, f"s{c}"))]
    if len(sources) < 2 or talkers not in (None, len(sources)):
        raise UserError(f"{folder}: sources of {len(sources)} talkers, {talkers or 'two or more'} are needed")
    made_here = os.path.exists(os.path.join(folder, *[os.pardir] * 3, "settings.json"))
    if made_here or os.path.exists(os.path.join(folder, "manifest.csv")):
        names = [row["name"] for row in read_manifest(folder)]
    else:
        names = sorted(name[:-4] for name in os.listdir(os.path.join(folder, mixtures)) if name.endswith(".wav"))
    if not names:
        raise UserError(f"{folder}: no mixtures in it; make it with feat/binaural_mix.py")
    noisy = mixtures != "mix" and os.path.isdir(os.path.join(folder, "noise"))
    signals = [mixtures, *sources, *(["noise"] if noisy else [])]
    paths = [os.path.join(folder, signal, name + ".wav") for signal in signals for name in names]
    found = BinauralSet(names, len(sources), _stereo_files(paths, sample_rate, len(names)), sample_rate, noisy)
    _require_ears(found)
    return found


def _require_ears(mixtures):
    """Raises UserError if a signal of the first mixtures is not the mixture's share unless its ears are exchanged."""
    count = len(mixtures)
    for line in range(min(count, LISTENED)):
        paths = mixtures.files.paths[line::count]
        signals = [_read_anything(path) for path in paths]
        if len({len(x) for x in signals}) > 1:  # cut off, which is found when it is needed
            continue
        signals[0] *= -1  # all together leave nothing
        rest = sum(signals)
        left = np.sum(np.square(rest))
        exchanged = [np.sum(np.square(rest - x + x[:, ::-1])) for x in signals]
        best = int(np.argmin(exchanged))
        if left > LEFT_SHARE * np.sum(np.square(signals[0])) and exchanged[best] < EXCHANGED_SHARE * left:
            raise UserError(
                f"{paths[best]}: left and right are exchanged against the others of its mixture; make it again"
            )


def _stereo_files(paths, sample_rate, mixtures):
    """StereoFiles of paths; the first `mixtures` are mixtures, what comes later goes with them in turn."""
    headers = parallel_map(_header, paths, workers_for(paths), "check files")
    for path, (info, _) in zip(paths, headers):
        require_stereo(path, info, sample_rate)
    samples = np.array([info.frames for info, _ in headers], np.int64)
    for number in np.flatnonzero(samples.reshape(-1, mixtures) != samples[:mixtures]):
        other = number % mixtures
        raise UserError(
            f"{paths[number]}: {samples[number]} samples, its mixture {paths[other]} has {samples[other]};"
            " make them again"
        )
    short = np.flatnonzero(samples[:mixtures] < SHORTEST)
    if short.size:
        raise UserError(f"{paths[short[0]]}: {samples[short[0]]} samples, {SHORTEST} are needed; leave it out")
    offsets = np.array([offset for _, offset in headers], np.int64)
    return StereoFiles(list(paths), samples, offsets, np.array([info.subtype == "FLOAT" for info, _ in headers], bool))


def _header(path):
    """(WavInfo, byte where the samples of a 16-bit or float wav begin or -1)."""
    info = wav_info(path)
    return info, samples_offset(path) if info.subtype in ("PCM_16", "FLOAT") else -1


def _read_anything(path):
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


# Batches ------------------------------------------------------------------------------------------


def evaluation_batches(mixtures, batch_size=1, share=Share()):
    """Every mixture once, in the order of the set, whole; zero-padded to the longest of the batch.

    Where the set does not fill the last batch, the first mixture fills it up, with index -1.

    Args:
      mixtures: BinauralSet.
      batch_size: of the global batch; 1 stands for one on every replica.
    """
    index, lines = batches_in_order(len(mixtures), batch_size, share)
    samples = mixtures.samples[lines]
    return _batches(mixtures, index, lines, samples, 0, NONE, None, share)


def evaluate(mixtures, batch_size=1):
    """Iterates over `evaluation_batches`; a file that went bad since the check is named."""
    return checked(evaluation_batches(mixtures, batch_size), mixtures.check)


def training_batches(mixtures, batch_size, seed, epoch, skip=0, segment_samples=0, augmentation=NONE, share=Share()):
    """The batches of one epoch, mixtures of like length together, without the first `skip`.

    Args:
      mixtures: BinauralSet.
      batch_size: of the global batch.
      segment_samples: cut a piece of so many samples out of longer mixtures; 0: whole ones.
      augmentation: feat.batches.augment.Augmentation. Where it changes sources, the mixture is their sum and the noise.
    """
    order = epoch_order(mixtures.samples, batch_size, seed, epoch)
    samples = mixtures.samples[order]
    generator = np.random.default_rng((seed, epoch, 21))
    drawn = _draw(
        augmentation, samples, mixtures.talkers, mixtures.sample_rate, segment_samples, generator,
        noisy=mixtures.noisy,
    )  # fmt: skip
    return _batches(mixtures, order, order, samples, skip, augmentation, drawn, share)


@dataclasses.dataclass(frozen=True)
class _Draws:
    """What augmentation does to every mixture of an epoch, [batches, batch, ...].

    Attributes:
      speeds: number of the speed of every source, int64 [..., talkers].
      shifts: samples, int64 [..., talkers].
      chunk_starts, chunk_lengths: int64 [..., 5]; unused chunks have length 0.
      bands: filters, float32 [..., 101].
      start, samples: of the piece, int64 [...].
      longest: length after padding, int64 [...].
    """

    speeds: np.ndarray
    shifts: np.ndarray
    chunk_starts: np.ndarray
    chunk_lengths: np.ndarray
    bands: np.ndarray
    start: np.ndarray
    samples: np.ndarray
    longest: np.ndarray

    def arrays(self):
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def _draw(augmentation, samples, talkers, sample_rate, segment_samples, generator, longest=None, noisy=False):
    """_Draws for mixtures of `samples`, int64 [batches, batch]; `longest`: after padding, None: that of the batch."""
    shape = samples.shape
    speeds = augmentation.speeds or (100,)
    speed = generator.integers(len(speeds), size=(*shape, talkers))
    changed = np.stack([speed_samples(samples, s, sample_rate) for s in speeds], axis=-1)
    whole = np.take_along_axis(changed, speed, axis=-1).min(axis=-1)
    if noisy:  # noise keeps its length, and ends what got longer
        whole = np.minimum(whole, samples)
    shift = np.zeros((*shape, talkers), np.int64)
    if augmentation.shifts:
        shift = generator.integers(*augmentation.shift, size=shift.shape)
    starts = np.zeros((*shape, CHUNKS[1]), np.int64)
    lengths = np.zeros_like(starts)
    if augmentation.drop_chunks:
        used = np.arange(CHUNKS[1]) < generator.integers(CHUNKS[0], CHUNKS[1] + 1, size=(*shape, 1))
        lengths = generator.integers(CHUNK_SAMPLES[0], CHUNK_SAMPLES[1] + 1, size=starts.shape) * used
        room = np.maximum(0, whole - lengths.max(axis=-1))[..., None]
        starts = (generator.random(starts.shape) * (room + 1)).astype(np.int64)
    bands = np.zeros((*shape, 1), np.float32)
    if augmentation.drop_bands:
        counts = generator.integers(BANDS[0], BANDS[1] + 1, size=shape)
        frequencies = generator.random((*shape, BANDS[1]))
        filters = [notches(f[:n]) for f, n in zip(frequencies.reshape(-1, BANDS[1]), counts.ravel())]
        bands = np.reshape(filters, (*shape, -1))
    piece = np.minimum(whole, segment_samples) if segment_samples else whole
    start = (generator.random(shape) * (whole - piece + 1)).astype(np.int64)
    longest = np.broadcast_to(piece.max(axis=1, keepdims=True), shape) if longest is None else longest
    return _Draws(speed, shift, starts, lengths, bands, start, piece, longest)


def remix(sources, mixture, noise, augmentation, sample_rate, speeds=None, shifts=None):
    """Changes speed and place of sources, and mixes them anew.

    Args:
      sources: for every talker float32 [samples, 2].
      mixture: [samples, 2], what is mixed if nothing changes; None: the sum of the sources.
      noise: [samples, 2] or None.
      speeds: number of the speed of every source in augmentation.speeds, [talkers].
      shifts: samples, [talkers].

    Returns:
      (mixture [samples, 2], sources [talkers, samples, 2]), as long as the shortest of all.
    """
    if augmentation.remixes:
        mixture = None
    if augmentation.speeds:
        sources = [
            tf.switch_case(
                speeds[c],
                [lambda s=s, x=source: change_speed(x, s, sample_rate) for s in augmentation.speeds],
            )
            for c, source in enumerate(sources)
        ]
    if augmentation.shifts:
        sources = [tf.roll(source, shifts[c], axis=0) for c, source in enumerate(sources)]
    lengths = [tf.shape(source)[0] for source in sources]
    if noise is not None and mixture is None:
        lengths.append(tf.shape(noise)[0])
    shortest = tf.reduce_min(lengths)
    sources = tf.stack([source[:shortest] for source in sources])
    if mixture is None:
        mixture = tf.reduce_sum(sources, axis=0)
        if noise is not None:
            mixture += noise[:shortest]
    return mixture, sources


def _finish(sources, mixture, noise, augmentation, sample_rate, index, drawn):
    """Example of sources ([samples, 2] each), see `remix`; `drawn`: one value of each of _Draws, None: nothing."""
    speed, shift, chunk_starts, chunk_lengths, bands, start, samples, longest = drawn
    mixture, sources = remix(sources, mixture, noise, augmentation, sample_rate, speed, shift)
    if augmentation.drop_chunks:
        mixture = drop_chunks(mixture, chunk_starts, chunk_lengths)
    if augmentation.drop_bands:
        mixture = drop_bands(mixture, bands, augmentation.parity)
    mixture, sources = mixture[start : start + samples], sources[:, start : start + samples]
    missing = longest - tf.shape(mixture)[0]
    return {
        "mixture": tf.ensure_shape(tf.pad(mixture, [[0, missing], [0, 0]]), (None, 2)),
        "sources": tf.ensure_shape(tf.pad(sources, [[0, 0], [0, missing], [0, 0]]), (None, None, 2)),
        "samples": samples,
        "index": index,
    }


def _batches(mixtures, index, lines, samples, skip, augmentation, drawn, share):
    read_file = mixtures.files.reader()
    count, talkers = len(mixtures), mixtures.talkers
    if drawn is None:
        drawn = _draw(NONE, samples, talkers, mixtures.sample_rate, 0, np.random.default_rng(0))

    def read(index, line, *drawn):
        sources = [read_file(line + (c + 1) * count) for c in range(talkers)]
        mixture = None if augmentation.remixes else read_file(line)
        noise = read_file(line + (talkers + 1) * count) if mixtures.noisy and augmentation.remixes else None
        return _finish(sources, mixture, noise, augmentation, mixtures.sample_rate, index, drawn)

    return pieces((index, lines, *drawn.arrays()), read, share, skip)


# Dynamic mixing -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ResponseBank:
    """Responses of listeners or rooms, to place talkers with; made by `head_bank` and `room_bank`.

    Attributes:
      responses: float32 [places, directions, taps, 2].
      azimuth: number of the azimuth of every direction, int64 [directions]; sorted.
      available: bool [directions], those that every place has.
      lead: samples cut off the convolution; None: mode "same".
    """

    responses: np.ndarray
    azimuth: np.ndarray
    available: np.ndarray
    lead: int | None = None


def head_bank(heads, sample_rate, parity=False):
    """ResponseBank of [Head] at `sample_rate` Hz; in parity resampled as the original's dynamic mixing does."""
    have = np.logical_and.reduce([head.available() for head in heads])
    if have.any(axis=1).sum() < 3:
        raise UserError(f"{heads[0].path}: the listeners share fewer than three azimuths; take other listeners")
    responses = [
        np.concatenate([head.responses(azimuth, sample_rate, sinc=parity) for azimuth in AZIMUTHS])
        for head in progress(heads, "listeners")
    ]
    taps = min(len(row[0]) for row in responses)
    responses = np.stack([row[:, :taps] for row in responses]).astype(np.float32)
    return ResponseBank(responses, np.repeat(np.arange(len(AZIMUTHS)), have.shape[1]), have.ravel())


def room_bank(rooms, sample_rate, seed=0, num_workers=0):
    """ResponseBank of [feat.signals.rooms.Room], simulated now."""
    jobs = [(room, azimuth, seed) for room in rooms for azimuth in AZIMUTHS_IN_ROOMS]
    found = parallel_map(_simulate, jobs, num_workers, "rooms")
    found = [resample(response, RATE_HZ, sample_rate) for response in found]
    bank = np.zeros((len(jobs), max(map(len, found)), 2), np.float32)
    for row, response in zip(bank, found):
        row[: len(response)] = response
    directions = len(AZIMUTHS_IN_ROOMS)
    return ResponseBank(
        bank.reshape(len(rooms), directions, -1, 2), np.arange(directions), np.ones(directions, bool), lead=0
    )


def _simulate(job):
    return simulate(*job)


@dataclasses.dataclass(frozen=True)
class BinauralPool:
    """Mono utterances and responses, to be mixed anew in every epoch; made by `binaural_pool`.

    Attributes:
      talkers: in a mixture.
      files: Files of feat.batches.spex_plus: utterances sorted by talker, then noises.
      first, counts: number of a talker's first utterance, and how many there are.
      bank: ResponseBank.
      noises: numbers of the noises.
    """

    talkers: int
    files: Files
    first: np.ndarray
    counts: np.ndarray
    bank: ResponseBank
    noises: np.ndarray

    @property
    def sample_rate(self):
        return self.files.sample_rate

    def check(self):
        """Looks at the headers of all files again. Raises UserError, which names the first that cannot be used."""
        audio_files(self.files.paths, self.sample_rate)


def binaural_pool(corpus_folder, utterances, bank, sample_rate=8000, talkers=2, noises=()):
    """BinauralPool; headers are read.

    Args:
      corpus_folder: what paths are relative to.
      utterances: {talker: [path]}, see feat.corpora.find.find_utterances.
      bank: ResponseBank at `sample_rate`, of listeners or rooms of the training set alone.
      talkers: of a mixture.
      noises: paths of recordings of noise.

    Raises:
      UserError: a file is unusable, or there are too few talkers.
    """
    if len(utterances) < talkers:
        raise UserError(f"{corpus_folder}: {len(utterances)} talkers, dynamic mixing needs {talkers}")
    everybody = sorted(utterances)
    counts = np.array([len(utterances[talker]) for talker in everybody], np.int64)
    paths = [os.path.join(corpus_folder, path) for talker in everybody for path in utterances[talker]]
    files = audio_files([*paths, *noises], sample_rate)
    short = np.flatnonzero(files.samples < SHORTEST)
    if short.size:
        raise UserError(
            f"{files.paths[short[0]]}: {files.samples[short[0]]} samples, {SHORTEST} are needed; leave it out"
        )
    numbers = np.arange(len(paths), len(files.paths))
    return BinauralPool(talkers, files, np.cumsum(counts) - counts, counts, bank, numbers)


@dataclasses.dataclass(frozen=True)
class DynamicDraws:
    """What the dynamic mixtures of an epoch are made of, [mixtures, ...].

    Attributes:
      files, starts: utterance and first sample of every talker, int64 [..., talkers].
      samples: of every piece, int64 [...].
      gains_db: levels of the talkers, float32 [..., talkers].
      place: listener or room, int64 [...].
      directions: of the talkers, int64 [..., talkers].
      noise, noise_start: number of the noise and its first sample, int64 [...].
      snr_db: first talker over noise, float32 [...].
    """

    files: np.ndarray
    starts: np.ndarray
    samples: np.ndarray
    gains_db: np.ndarray
    place: np.ndarray
    directions: np.ndarray
    noise: np.ndarray
    noise_start: np.ndarray
    snr_db: np.ndarray


def draw_dynamic(pool, count, samples, seed, epoch, snr_db=binaural.SNR_DB):
    """DynamicDraws of an epoch.

    Talkers of a mixture differ, those with more utterances come more often; one listener hears all of them, at
    azimuths of their own, with one elevation for both ears.

    Args:
      count: mixtures.
      samples: of a piece; the shortest utterance of the mixture ends it.
      snr_db: (lowest, highest), where there is noise.
    """
    generator = np.random.default_rng((seed, epoch, 22))
    talkers = _distinct(np.log(pool.counts), count, pool.talkers, generator)
    said = (generator.random(talkers.shape) * pool.counts[talkers]).astype(np.int64)
    files = pool.first[talkers] + said
    whole = pool.files.samples[files]
    lengths = np.minimum(whole.min(axis=1), samples)
    starts = (generator.random(files.shape) * (whole - lengths[:, None] + 1)).astype(np.int64)
    first = generator.normal(*FIRST_LEVEL_DB, (count, 1)).clip(-45, 0)
    others = (first + generator.normal(*DIFFERENCE_DB, (count, pool.talkers - 1))).clip(-45, 0)
    place = generator.integers(len(pool.bank.responses), size=count)
    # Available directions of every azimuth, one after the other.
    directions = np.flatnonzero(pool.bank.available)
    azimuths, begin, number = np.unique(pool.bank.azimuth[directions], return_index=True, return_counts=True)
    if len(azimuths) < pool.talkers:
        raise UserError(f"responses of {len(azimuths)} azimuths, {pool.talkers} talkers need as many")
    rows = _distinct(np.zeros(len(azimuths)), count, pool.talkers, generator)
    direction = directions[begin[rows] + (generator.random(rows.shape) * number[rows]).astype(np.int64)]
    noise, noise_start, snr = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.float32)
    if len(pool.noises):
        noise = generator.choice(pool.noises, size=count, p=_shares(pool.files.samples[pool.noises]))
        spare = np.maximum(0, pool.files.samples[noise] - lengths)
        noise_start = (generator.random(count) * (spare + 1)).astype(np.int64)
        snr = generator.uniform(*snr_db, count).astype(np.float32)
    gains = np.concatenate([first, others], axis=1).astype(np.float32)
    return DynamicDraws(files, starts, lengths, gains, place, direction, noise, noise_start, snr)


def _shares(sizes):
    return sizes / sizes.sum()


def _distinct(logits, count, chosen, generator):
    """int64 [count, chosen], different numbers drawn one after the other by weights exp(logits)."""
    rows = [
        np.argsort(-(logits + generator.gumbel(size=(min(4096, count - begin), len(logits)))), axis=1)[:, :chosen]
        for begin in range(0, count, 4096)
    ]
    return np.concatenate(rows)


def mix_dynamically(sources, gains_db, responses, lead=None, noise=None, snr_db=0.0):
    """feat.signals.binaural.mix_dynamically with TensorFlow operations, and with noise.

    Args:
      sources: [talkers, samples].
      gains_db: [talkers].
      responses: [talkers, taps, 2].
      lead: samples cut off the convolution; None: mode "same".
      noise: [samples], the same at both ears, or None.
      snr_db: mean power of the first talker over that of the noise.

    Returns:
      (sources [talkers, samples, 2], noise [samples, 2] or None); the largest sample of them and of their sum is 0.9.
    """
    mean = tf.reduce_mean(tf.abs(sources), axis=1, keepdims=True)
    sources = sources / (mean + 1e-14) * (10 ** (gains_db / 20))[:, None]
    images = convolve(sources, responses, lead)
    energy = tf.reduce_sum(tf.square(images), axis=(1, 2))
    factor = tf.sqrt(tf.math.divide_no_nan(2 * tf.reduce_sum(tf.square(sources), axis=1), energy))
    images *= factor[:, None, None]
    mixture = tf.reduce_sum(images, axis=0)
    if noise is not None:
        ratio = tf.norm(sources[0]) / tf.maximum(tf.norm(noise), 1e-9) * 10 ** (-snr_db / 20)
        noise = tf.stack([noise, noise], axis=1) * ratio
        mixture += noise
    peak = tf.maximum(tf.reduce_max(tf.abs(mixture)), tf.reduce_max(tf.abs(images)))
    common = tf.math.divide_no_nan(binaural.PEAK, peak)
    return images * common, None if noise is None else noise * common


def convolve(sources, responses, lead=None):
    """feat.signals.binaural.convolve: [talkers, samples], [talkers, taps, 2] -> [talkers, samples, 2]."""
    taps = responses.shape[1]
    lead = (taps - 1) // 2 if lead is None else lead
    samples = tf.shape(sources)[1]
    if taps > LONGEST_DIRECT_TAPS:
        size = samples + taps - 1
        # A size with small factors alone would be best; a multiple of 2048 has many.
        size = -(-size // 2048) * 2048
        spectrum = tf.signal.rfft(sources, [size])[:, None] * tf.signal.rfft(tf.transpose(responses, (0, 2, 1)), [size])
        full = tf.transpose(tf.signal.irfft(spectrum, [size]), (0, 2, 1))
        return full[:, lead : lead + samples]
    images = []
    padded = tf.pad(sources, [[0, 0], [taps - 1 - lead, lead]])
    for c in range(sources.shape[0]):
        # Convolution layers do not turn the filter.
        kernel = responses[c, ::-1, None, :]
        images.append(tf.nn.conv1d(padded[c][None, :, None], kernel, 1, "VALID")[0])
    return tf.stack(images)


def mixed_batches(
    pool, batch_size, batches, segment_samples, seed, epoch, skip=0, augmentation=NONE,
    snr_db=binaural.SNR_DB, share=Share(),
):  # fmt: skip
    """One epoch of mixtures that were never heard before, see `draw_dynamic`.

    Args:
      pool: BinauralPool.
      batch_size: of the global batch.
      batches: batches in an epoch.
      segment_samples: samples of every mixture; those with a shorter utterance end in silence.
      augmentation: feat.batches.augment.Augmentation, of what was mixed.
      snr_db: range of the first talker over the noise, where the pool has noise.
    """
    count = batches * batch_size
    # What is sped up needs more to begin with.
    longest = -(-segment_samples * max(augmentation.speeds or (100,)) // 100) + 1
    given = draw_dynamic(pool, count, longest, seed, epoch, snr_db)
    given = [
        getattr(given, field.name).reshape(batches, batch_size, *getattr(given, field.name).shape[1:])
        for field in dataclasses.fields(given)
    ]
    drawn = _draw(
        augmentation, given[2], pool.talkers, pool.sample_rate, segment_samples,
        np.random.default_rng((seed, epoch, 23)), longest=np.full((batches, batch_size), segment_samples),
        noisy=len(pool.noises) > 0,
    )  # fmt: skip
    read_file, bank = pool.files.reader(), tf.constant(pool.bank.responses)
    talkers = range(pool.talkers)

    def mix(index, files, starts, samples, gains_db, place, directions, noise, noise_start, snr_db, *drawn):
        sources = tf.stack([read_file(files[c], starts[c], starts[c] + samples) for c in talkers])
        responses = tf.stack([bank[place, directions[c]] for c in talkers])
        babble = None
        if len(pool.noises):
            babble = read_file(noise, noise_start, noise_start + samples)
            babble = tf.pad(babble, [[0, samples - tf.shape(babble)[0]]])
        images, babble = mix_dynamically(sources, gains_db, responses, pool.bank.lead, babble, snr_db)
        noisy = babble is not None and not augmentation.remixes
        mixture = tf.reduce_sum(images, axis=0) + babble if noisy else None
        return _finish(tf.unstack(images), mixture, babble, augmentation, pool.sample_rate, index, drawn)

    arrays = (np.arange(count).reshape(batches, batch_size), *given, *drawn.arrays())
    return pieces(arrays, mix, share, skip)
