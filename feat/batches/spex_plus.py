"""Input pipelines (tf.data) of target-speaker extraction. An epoch depends on (seed, epoch) alone.

Every pipeline gives batches that are dictionaries:

  mixture            [batch, samples] float32
  target             [batch, samples] float32
  enrolment          [batch, enrolment samples] float32   speech of the target's talker
  samples            [batch] int32     true length of mixture and target; the rest is zero padding at the end
  enrolment_samples  [batch] int32     that of the enrolment
  speaker            [batch] int32     label of the target's talker; -1: none of the classes
  index              [batch] int32     line of the set, for messages

Batch and samples are free, so that a tf.function traced once (feat.batches.common.free_lengths) takes every batch.
Several processes and devices share a global batch, see feat.batches.common.Share.
"""

import dataclasses
import os
import random

import numpy as np
import tensorflow as tf

from feat.base.files import UserError
from feat.base.parallel import parallel_map
from feat.batches.common import (
    SILENT_PEAK,
    Files,
    Share,
    audio_files,
    batches_in_order,
    checked,
    epoch_order,
    pieces,
    workers_for,
)
from feat.signals.audio import read_blocks

LEVEL_DB = -23.0  # root mean square of the speech in dynamic mixtures


def _is_silent(path):
    """Whether the first channel of a file is silent. Reads no further than to the first sound. Raises UserError."""
    return all(np.max(np.abs(block)) < SILENT_PEAK for block in read_blocks(path, 0, 0.5))


def _silent(paths):
    """bool [paths], which are silent."""
    return np.array(parallel_map(_is_silent, paths, workers_for(paths), "check for silence"), bool)


# Sets of triplets ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TripletSet:
    """Triplets whose files were looked at; made by `triplet_set`.

    Attributes:
      triplets: [Triplet] of feat.corpora.triplets.
      files: Files; mixtures, then targets, then enrolments.
      limits: samples of mixture and target that count, int64 [triplets, 2].
      first_enrolment, enrolments: number of the first enrolment file of each, and how many there are.
    """

    triplets: list
    files: Files
    limits: np.ndarray
    first_enrolment: np.ndarray
    enrolments: np.ndarray

    def __len__(self):
        return len(self.triplets)

    @property
    def sample_rate(self):
        return self.files.sample_rate

    @property
    def names(self):
        """Of the triplets."""
        return [triplet.name for triplet in self.triplets]

    @property
    def samples(self):
        """Samples of each that mixture and target both have."""
        return self.limits.min(axis=1)

    def check(self):
        """See Files."""
        self.files.check()

    def require(self, mixture, enrolment):
        """Raises UserError, which names the first file that is too short, or an enrolment that is silent.

        Args:
          mixture, enrolment: samples that each must have at least.
        """
        for line in np.flatnonzero(self.samples < mixture):
            triplet, (whole, target) = self.triplets[line], self.limits[line]
            raise UserError(
                f"{triplet.mixture if whole <= target else triplet.target}: {min(whole, target)} samples at"
                f" {self.sample_rate} Hz count, {mixture} are needed; leave the mixture out"
            )
        paths, samples = self.files.paths[2 * len(self) :], self.files.samples[2 * len(self) :]
        for i in np.flatnonzero(samples < enrolment):
            raise UserError(
                f"{paths[i]}: {samples[i]} samples of the wanted talker at {self.sample_rate} Hz, {enrolment} are"
                " needed; give a longer enrolment, or leave its mixture out"
            )
        for i in np.flatnonzero(_silent(paths)):
            raise UserError(
                f"{paths[i]}: silent, so it shows no voice; give another enrolment, or leave its mixture out"
            )


def triplet_set(triplets, sample_rate, resampled=True, parity=False):
    """TripletSet of [Triplet]; every header is read.

    Args:
      sample_rate: Hz of the batches.
      resampled: take files of other rates too.
      parity: resample as torchaudio does.

    Raises:
      UserError: a file is missing, unusable or of another rate.
    """
    enrolments = np.array([len(triplet.enrolments) for triplet in triplets], np.int64)
    paths = [t.mixture for t in triplets] + [t.target for t in triplets]
    paths += [path for t in triplets for path in t.enrolments]
    files = audio_files(paths, sample_rate, resampled, parity)
    limits = files.samples[: 2 * len(triplets)].reshape(2, -1).T.copy()
    for line, triplet in enumerate(triplets):
        if triplet.seconds is not None:
            limits[line] = np.minimum(limits[line], int(triplet.seconds * sample_rate))
    first = 2 * len(triplets) + np.cumsum(enrolments) - enrolments
    return TripletSet(list(triplets), files, limits, first, enrolments)


def evaluation_batches(triplets, batch_size=1, share=Share()):
    """Every triplet once, in the order of the set, whole, with its first enrolment; zero-padded to the longest.

    Where the set does not fill the last batch, the first triplet fills it up, with index -1.

    Args:
      triplets: TripletSet.
      batch_size: of the global batch; 1 stands for one on every replica.
    """
    index, lines = batches_in_order(len(triplets), batch_size, share)
    enrolment = triplets.first_enrolment[lines]
    limits = triplets.limits[lines]
    cut = _Cut.whole(lines, limits[..., 0], limits.max(axis=2), triplets.files.samples[enrolment])
    return _batches(triplets, cut, enrolment, index, share)


def evaluate(triplets, batch_size=1):
    """Iterates over `evaluation_batches`; a file that went bad since the check is named."""
    return checked(evaluation_batches(triplets, batch_size), triplets.check)


def training_batches(
    triplets,
    batch_size,
    seed,
    epoch,
    skip=0,
    segment_samples=0,
    enrolment_samples=0,
    gain_db=None,
    share=Share(),
):
    """The batches of one epoch, triplets of like length together, without the first `skip`.

    Args:
      triplets: TripletSet.
      batch_size: of the global batch.
      segment_samples: cut a piece of so many samples out of longer mixtures; 0: whole ones.
      enrolment_samples: the same for enrolments. Of several enrolments one is drawn.
      gain_db: (lowest, highest) of a random gain, one for mixture and target, another for the enrolment.
    """
    whole = triplets.samples
    order = epoch_order(whole, batch_size, seed, epoch)
    generator = np.random.default_rng((seed, epoch, 11))
    enrolment = _draw_enrolments(triplets, order, generator)
    cut = _Cut(
        order,
        *_crop(whole[order], segment_samples, generator),
        *_crop(triplets.files.samples[enrolment], enrolment_samples, generator),
    )
    return _batches(triplets, cut, enrolment, order, share, skip, _draw_gains(gain_db, order.shape, generator))


def shortest_batches(triplets, batch_size, seed, epoch, skip=0, gain_db=None, share=Share()):
    """One epoch as ir4kgl/ss_dla trains: mixtures, targets and enrolments cut to the shortest of the batch.

    Triplets are shuffled whatever their lengths; those that fill no batch are dropped, others in every epoch.
    """
    generator = np.random.default_rng((seed, epoch, 12))
    count = len(triplets) // batch_size * batch_size
    order = generator.permutation(len(triplets))[:count].reshape(-1, batch_size)
    enrolment = _draw_enrolments(triplets, order, generator)
    cut = _Cut.shortest(order, triplets.samples[order], triplets.files.samples[enrolment])
    return _batches(triplets, cut, enrolment, order, share, skip, _draw_gains(gain_db, order.shape, generator))


def chunk_batches(triplets, chunk_samples, hop_samples, batch_size, seed, epoch, skip=0, gain_db=None, share=Share()):
    """One epoch of chunks as gemengtju/SpEx_Plus trains, see `chunks`; enrolments are whole.

    Half a batch of utterances at a time goes into a pool of chunks, which is shuffled and emptied by batches;
    what is left at the end is dropped.
    """
    rng = random.Random(f"{seed} {epoch} chunks")
    samples = triplets.samples
    lines = list(range(len(triplets)))
    rng.shuffle(lines)
    pool, rows = [], []
    fetched = max(1, batch_size // 2)
    for first in range(0, len(lines), fetched):
        for line in lines[first : first + fetched]:
            pool += [(line, *chunk) for chunk in chunks(int(samples[line]), chunk_samples, hop_samples, rng)]
        rng.shuffle(pool)
        full = len(pool) // batch_size * batch_size
        rows += pool[:full]
        del pool[:full]
    order, starts, valid = np.array(rows, np.int64).reshape(-1, batch_size, 3).transpose(2, 0, 1)
    generator = np.random.default_rng((seed, epoch, 13))
    enrolment = _draw_enrolments(triplets, order, generator)
    enrolled = triplets.files.samples[enrolment]
    cut = _Cut(order, starts, valid, np.zeros_like(starts), enrolled, longest=np.full_like(valid, chunk_samples))
    return _batches(triplets, cut, enrolment, order, share, skip, _draw_gains(gain_db, order.shape, generator))


def chunks(samples, chunk_samples, hop_samples, rng=None):
    """Chunks of an utterance, [(first sample, true length)].

    Fewer than `hop_samples` give none, fewer than `chunk_samples` one, to be padded. Longer ones are cut every
    `hop_samples`, from the start, or with `rng` (random.Random) from a place up to the remainder of the hop.
    """
    if samples < hop_samples:
        return []
    if samples < chunk_samples:
        return [(0, samples)]
    first = rng.randint(0, samples % hop_samples) if rng else 0
    return [(start, chunk_samples) for start in range(first, samples - chunk_samples + 1, hop_samples)]


def chunk_count(triplets, chunk_samples, hop_samples):
    """Chunks in an epoch of `chunk_batches`, those counted that fill no batch."""
    return sum(len(chunks(int(samples), chunk_samples, hop_samples)) for samples in triplets.samples)


@dataclasses.dataclass
class _Cut:
    """What every example of an epoch takes of its files, all int64 [batches, batch].

    Attributes:
      lines: of the set.
      starts, samples: of mixture and target.
      enrolment_starts, enrolment_samples: of the enrolment.
      stops: end of what is read of mixture and target; None: starts + samples.
      longest, enrolment_longest: length after padding; None: the longest of the batch.
    """

    lines: np.ndarray
    starts: np.ndarray
    samples: np.ndarray
    enrolment_starts: np.ndarray
    enrolment_samples: np.ndarray
    stops: np.ndarray | None = None
    longest: np.ndarray | None = None
    enrolment_longest: np.ndarray | None = None

    def __post_init__(self):
        if self.stops is None:
            self.stops = self.starts + self.samples
        if self.longest is None:
            self.longest = _longest(self.samples)
        if self.enrolment_longest is None:
            self.enrolment_longest = _longest(self.enrolment_samples)

    @classmethod
    def whole(cls, lines, samples, read, enrolment_samples):
        """Everything, padded to the longest; `read`: the longer of mixture and target."""
        zeros = np.zeros_like(lines)
        return cls(lines, zeros, samples, zeros, enrolment_samples, stops=_longest(read), longest=_longest(read))

    @classmethod
    def shortest(cls, lines, samples, enrolment_samples):
        """The beginnings, as long as the shortest of the batch."""
        zeros = np.zeros_like(lines)
        return cls(lines, zeros, -_longest(-samples), zeros, -_longest(-enrolment_samples))


def _longest(samples):
    return np.broadcast_to(samples.max(axis=1, keepdims=True), samples.shape)


def _crop(whole, wanted, generator):
    """(starts, samples) of random pieces of `wanted` samples; 0: of everything."""
    samples = np.minimum(whole, wanted) if wanted else whole
    return (generator.random(whole.shape) * (whole - samples + 1)).astype(np.int64), samples


def _draw_enrolments(triplets, order, generator):
    """Number of an enrolment file of every triplet."""
    drawn = (generator.random(order.shape) * triplets.enrolments[order]).astype(np.int64)
    return triplets.first_enrolment[order] + drawn


def _draw_gains(gain_db, shape, generator):
    """Factors float32 [*shape, 2], for mixture and target, and for the enrolment."""
    if gain_db is None:
        return np.ones((*shape, 2), np.float32)
    return (10 ** (generator.uniform(*gain_db, (*shape, 2)) / 20)).astype(np.float32)


def _batches(triplets, cut, enrolment, index, share, skip=0, gains=None):
    read_file = triplets.files.reader()
    limits = tf.constant(triplets.limits.astype(np.int32))
    labels = tf.constant([triplet.label for triplet in triplets.triplets], tf.int32)
    count = len(triplets)

    def read(index, line, start, samples, stop, longest, enrolment, first, enrolled, enrolled_longest, gains):
        signals = {}
        for i, name in enumerate(("mixture", "target")):
            signal = read_file(line + i * count, start, tf.minimum(stop, limits[line, i])) * gains[0]
            signals[name] = _pad(signal, longest)
        enrolment = read_file(enrolment, first, first + enrolled) * gains[1]
        return signals | {
            "enrolment": _pad(enrolment, enrolled_longest),
            "samples": samples,
            "enrolment_samples": enrolled,
            "speaker": labels[line],
            "index": index,
        }

    arrays = (
        index, cut.lines, cut.starts, cut.samples, cut.stops, cut.longest, enrolment,
        cut.enrolment_starts, cut.enrolment_samples, cut.enrolment_longest,
        np.ones((*index.shape, 2), np.float32) if gains is None else gains,
    )  # fmt: skip
    return pieces(arrays, read, share, skip)


def _pad(signal, samples):
    return tf.pad(signal, [[0, samples - tf.shape(signal)[0]]])


# Dynamic mixing -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TalkerPool:
    """Single-talker utterances, to be mixed anew in every epoch; made by `talker_pool`.

    Attributes:
      speakers: talkers in the order of their labels, also those who are never drawn.
      files: Files, utterances sorted by talker.
      labels: of the talkers who are drawn.
      first, counts: number of each one's first utterance, and how many there are, at least 2.
    """

    speakers: list[str]
    files: Files
    labels: np.ndarray
    first: np.ndarray
    counts: np.ndarray

    def check(self):
        """See Files."""
        self.files.check()


def talker_pool(corpus_folder, utterances, sample_rate, speakers=None, shortest=1):
    """TalkerPool of a corpus; headers are read, and all up to the first sound.

    Utterances that can enrol nobody, as they are too short or silent, are left out, which is printed; so are talkers
    with fewer than two others.

    Args:
      corpus_folder: what paths are relative to.
      utterances: {talker: [path]}, see feat.corpora.find.find_speakers.
      sample_rate: Hz of the batches.
      speakers: talkers in the order of their labels, which all stay, whoever is left out; None: those drawn, sorted.
      shortest: samples that an utterance must have.

    Raises:
      UserError: a file is unusable, fewer than two talkers have two utterances, or one is not in `speakers`.
    """
    several = {talker: paths for talker, paths in utterances.items() if len(paths) > 1}
    if speakers is not None and (unknown := sorted(several.keys() - set(speakers))):
        raise UserError(f"talker {unknown[0]} is not among the {len(speakers)} classes; leave the talker out")
    able = sorted(several) if speakers is None else [talker for talker in speakers if talker in several]
    paths = [os.path.join(corpus_folder, path) for talker in able for path in several[talker]]
    talkers = np.repeat(np.arange(len(able)), [len(several[talker]) for talker in able])
    files = audio_files(paths, sample_rate)
    useless = (files.samples < shortest) | _silent(paths)
    counts = np.bincount(talkers[~useless], minlength=len(able))
    if np.sum(counts > 1) < 2:
        raise UserError(
            f"{corpus_folder}: {np.sum(counts > 1)} of {len(utterances)} talkers have two utterances or more that are"
            f" not silent and have {shortest} samples, and dynamic mixing needs two; give it a larger corpus"
        )
    if useless.any():
        print(
            f"{corpus_folder}: {np.sum(useless)} of {len(paths)} utterances are left out, silent or of fewer than"
            f" {shortest} samples at {sample_rate} Hz, the first of them {paths[np.argmax(useless)]}"
        )
    files = files.some(np.flatnonzero(~useless & (counts[talkers] > 1)))
    drawn = [talker for talker, count in zip(able, counts) if count > 1]
    speakers = drawn if speakers is None else list(speakers)
    labels = np.array([speakers.index(talker) for talker in drawn], np.int64)
    counts = counts[counts > 1]
    return TalkerPool(speakers, files, labels, np.cumsum(counts) - counts, counts)


def draw_mixed_triplets(pool, count, samples, enrolment_samples, snr_db, seed, epoch, both=False):
    """What the triplets of an epoch are made of.

    Two talkers are drawn, an utterance of each, another of the first to enrol it, a piece of each, and a ratio.

    Args:
      count: triplets.
      samples, enrolment_samples: of each; 0 takes enrolments whole.
      snr_db: (lowest, highest), energy of the target's piece over that of the interferer's.
      both: every second triplet is the mixture before it, with the other talker as its target.

    Returns:
      (labels int64 [count] of the targets; files and starts int64 [count, 3] of target, interferer and
      enrolment; enrolment lengths int64 [count]; ratios in dB float32 [count]).
    """
    generator = np.random.default_rng((seed, epoch, 14))
    drawn = -(-count // 2) if both else count
    talkers = len(pool.labels)
    target = generator.integers(talkers, size=drawn)
    noise = (target + 1 + generator.integers(talkers - 1, size=drawn)) % talkers
    said = (generator.random(drawn) * pool.counts[target]).astype(np.int64)
    enrolled = _another(said, pool.counts[target], generator)
    other = (generator.random(drawn) * pool.counts[noise]).astype(np.int64)
    files = np.stack([pool.first[target] + said, pool.first[noise] + other, pool.first[target] + enrolled], axis=1)
    starts, lengths = _draw_pieces(pool, files, samples, enrolment_samples, generator)
    ratios = generator.uniform(*snr_db, drawn).astype(np.float32)
    if not both:
        return pool.labels[target], files, starts, lengths, ratios
    swapped = np.stack(
        [files[:, 1], files[:, 0], pool.first[noise] + _another(other, pool.counts[noise], generator)], 1
    )
    swapped_starts, swapped_lengths = _draw_pieces(pool, swapped, samples, enrolment_samples, generator)
    swapped_starts[:, :2] = starts[:, 1::-1]
    labels = pool.labels[target], pool.labels[noise]
    pairs = labels, (files, swapped), (starts, swapped_starts), (lengths, swapped_lengths), (ratios, -ratios)
    return tuple(np.stack(pair, axis=1).reshape(2 * drawn, *pair[0].shape[1:])[:count] for pair in pairs)


def _another(drawn, counts, generator):
    """Of each talker's `counts` utterances one that is not the one drawn."""
    return (drawn + 1 + (generator.random(len(drawn)) * (counts - 1)).astype(np.int64)) % counts


def _draw_pieces(pool, files, samples, enrolment_samples, generator):
    """(starts [count, 3], enrolment lengths [count]) of files [count, 3]."""
    whole = pool.files.samples[files]
    lengths = whole[:, 2] if not enrolment_samples else np.minimum(whole[:, 2], enrolment_samples)
    spare = np.maximum(0, whole - np.stack([np.full(len(files), samples)] * 2 + [lengths], axis=1))
    return (generator.random(files.shape) * (spare + 1)).astype(np.int64), lengths


def mixed_batches(
    pool,
    batch_size,
    batches,
    segment_samples,
    seed,
    epoch,
    skip=0,
    enrolment_samples=0,
    snr_db=(0.0, 5.0),
    both=False,
    gain_db=None,
    share=Share(),
):
    """One epoch of triplets that were never heard before, see `draw_mixed_triplets`.

    Target and interferer keep their ratio, mixture minus target is the interferer; levels are such that the
    mixture and the enrolment lie near -23 dB rms. Utterances shorter than the segment end in silence.

    Args:
      pool: TalkerPool.
      batch_size: of the global batch.
      batches: batches in an epoch.
      segment_samples: samples of every mixture.
      enrolment_samples: longest enrolment, a piece of longer ones; 0: whole ones.
      snr_db, both: see `draw_mixed_triplets`.
      gain_db: range in dB, see `training_batches`; the two triplets of a mixture have gains of their own.
    """
    count = batches * batch_size
    drawn = draw_mixed_triplets(pool, count, segment_samples, enrolment_samples, snr_db, seed, epoch, both)
    labels, files, starts, lengths, ratios = (array.reshape(batches, batch_size, *array.shape[1:]) for array in drawn)
    gains = _draw_gains(gain_db, labels.shape, np.random.default_rng((seed, epoch, 15)))
    read_file = pool.files.reader()
    level = 10 ** (LEVEL_DB / 20)

    def mix(index, label, file, start, enrolled, longest, ratio_db, gains):
        target, noise = (
            _pad(read_file(file[i], start[i], start[i] + segment_samples), segment_samples) for i in range(2)
        )
        norms = [tf.maximum(tf.norm(signal), 1e-6) for signal in (target, noise)]
        ratio = 10 ** (ratio_db / 20)
        target *= level * np.sqrt(segment_samples) / (norms[0] * tf.sqrt(1 + ratio**-2))
        noise *= level * np.sqrt(segment_samples) / (norms[1] * tf.sqrt(1 + ratio**2))
        enrolment = read_file(file[2], start[2], start[2] + enrolled)
        rms = tf.sqrt(tf.reduce_mean(tf.square(enrolment)))
        target *= gains[0]
        return {
            "mixture": tf.ensure_shape(target + noise * gains[0], (segment_samples,)),
            "target": tf.ensure_shape(target, (segment_samples,)),
            "enrolment": _pad(enrolment * (gains[1] * level / tf.maximum(rms, 1e-6)), longest),
            "samples": segment_samples,
            "enrolment_samples": enrolled,
            "speaker": label,
            "index": index,
        }

    arrays = (np.arange(count).reshape(batches, batch_size), labels, files, starts, lengths, _longest(lengths), ratios)
    return pieces((*arrays, gains), mix, share, skip)
