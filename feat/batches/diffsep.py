"""Input pipelines (tf.data) of diffusion separation and enhancement. An epoch depends on (seed, epoch) alone.

Every pipeline gives batches that are dictionaries:

  mixture   [batch, samples] float32
  sources   [batch, sources, samples] float32   of enhancement [speech, noise]
  samples   [batch] int32     true length; the rest is zero padding, half of it in front
  index     [batch] int32     line of the set, for messages

Batch and samples are free, so that a tf.function traced once (feat.batches.common.free_lengths) takes every batch.
Several processes and devices share a global batch, see feat.batches.common.Share. Signals are as the files have them,
models.diffsep.sde.normalise is for whoever takes them.

Source of the rules: fakufaku/diffusion-separation. Two of them are its own, see `crop_choices`.
"""

import dataclasses
import os

import numpy as np
import tensorflow as tf

from feat.base.files import UserError
from feat.batches.common import Files, Share, audio_files, batches_in_order, checked, epoch_order, pieces
from feat.corpora.find import NOISY_FOLDERS
from feat.corpora.lists import mixture_folder, plain_talker
from feat.signals.audio import read_resampled

SPLITS = ("train", "val", "test", "libri-clean", "libri-noisy")
TASKS = ("separation", "enhancement")
TRAINING_SHARE = 0.9  # of the folder train/ of VCTK-DEMAND; the rest validates


# Sets ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MixtureSet:
    """Mixtures whose files were looked at; made by `mixture_set` and `noisy_set`.

    Attributes:
        names: of the mixtures.
        sources: in each.
        files: Files; all mixtures, then all first sources, ...; of enhancement noisy, then clean speech.
        enhancement: the sources are clean speech and what the mixture has besides.
        resampled: files of other rates are taken too.
    """

    names: list[str]
    sources: int
    files: Files
    enhancement: bool = False
    resampled: bool = False

    def __len__(self):
        return len(self.names)

    @property
    def sample_rate(self):
        return self.files.sample_rate

    @property
    def samples(self):
        """Of every mixture, int64."""
        return self.files.samples[: len(self)]

    def some(self, lines):
        """The mixtures of the given lines."""
        lines = np.asarray(list(lines), np.int64)
        signals = len(self.files.paths) // len(self)
        numbers = (np.arange(signals)[:, None] * len(self) + lines).ravel()
        files = dataclasses.replace(
            self.files,
            paths=[self.files.paths[i] for i in numbers],
            samples=self.files.samples[numbers],
            direct=self.files.direct[numbers],
        )
        return dataclasses.replace(self, names=[self.names[i] for i in lines], files=files)

    def first(self, count):
        """The first `count` mixtures; 0: all."""
        return self.some(range(min(count, len(self)))) if count else self

    def read(self, line):
        """(mixture [samples], sources [sources, samples]) of a line, whole, float32."""
        numbers = range(line, len(self.files.paths), len(self))
        mixture, *sources = (read_resampled(self.files.paths[number], self.sample_rate) for number in numbers)
        return mixture, np.stack([*sources, mixture - sources[0]] if self.enhancement else sources)

    def check(self):
        """Looks at the headers of all files again. Raises UserError, which names the first that cannot be used."""
        _checked_files(self.files.paths, len(self), self.sample_rate, self.resampled)


def mixture_set(folder, sample_rate, sources=2, mixtures="mix"):
    """The mixtures of a folder with mix/, s1/, s2/, ..., in the order of their names.

    Args:
        folder: such as wsj0_mix/2speakers/wav8k/max/tr.
        sample_rate: Hz that the files must have.
        sources: in a mixture.
        mixtures: name of the folder of the mixtures.

    Raises:
        UserError: there are none, or a file is missing, unusable, of another rate or length.
    """
    names = _names(os.path.join(folder, mixtures), "check the data folder, or make it with feat/wsj0_mix.py")
    signals = [mixtures, *(f"s{c + 1}" for c in range(sources))]
    for signal in signals[1:]:
        if not os.path.isdir(os.path.join(folder, signal)):
            raise UserError(f"{os.path.join(folder, signal)}: no such folder; mixtures of {sources} talkers have one")
    paths = [os.path.join(folder, signal, name + ".wav") for signal in signals for name in names]
    return MixtureSet(names, sources, _checked_files(paths, len(names), sample_rate))


def noisy_set(folder, split, sample_rate, resampled=False):
    """VCTK-DEMAND's noisy and clean recordings of "train" or "test", in the order of their names.

    Args:
        folder: holds train/ and test/ with noisy/ and clean/ in each, or the folders as they are published.
        sample_rate: Hz of the batches.
        resampled: take files of other rates; the published ones have 48 kHz.

    Raises:
        UserError: see `mixture_set`.
    """
    layouts = NOISY_FOLDERS[split]
    present = [pair for pair in layouts if os.path.isdir(os.path.join(folder, pair[0]))]
    noisy, clean = (os.path.join(folder, name) for name in (present or layouts)[0])
    names = _names(noisy, "check the data folder, or make it with feat/vctk_demand.py")
    paths = [os.path.join(below, name + ".wav") for below in (noisy, clean) for name in names]
    files = _checked_files(paths, len(names), sample_rate, resampled)
    return MixtureSet(names, 2, files, enhancement=True, resampled=resampled)


def divide(mixtures, seed=0, share=TRAINING_SHARE):
    """(training, validation) mixtures of a set, drawn by the seed; each in the order of the set."""
    order = np.random.default_rng((seed, 31)).permutation(len(mixtures))
    count = int(share * len(mixtures))
    if not 0 < count < len(mixtures):
        raise UserError(
            f"{mixtures.files.paths[0]}: {len(mixtures)} recordings beside it, too few to train and to validate on"
        )
    return mixtures.some(sorted(order[:count])), mixtures.some(sorted(order[count:]))


@dataclasses.dataclass(frozen=True)
class Corpora:
    """Where the data sets of a task lie. None is looked at before it is asked for.

    Attributes:
        task: one of TASKS.
        wsj0_mix, vctk_demand, librimix: folders.
        sources: talkers of a mixture.
        sample_rate: Hz.
        mode: length rule, "min" or "max".
        resampled: see `noisy_set`.
        seed: divides the training set of enhancement.
    """

    task: str = "separation"
    wsj0_mix: str = "data/wsj0_mix"
    vctk_demand: str = "data/VCTK_DEMAND"
    librimix: str = "data/LibriMix"
    sources: int = 2
    sample_rate: int = 8000
    mode: str = "max"
    resampled: bool = False
    seed: int = 0

    def open(self, split):
        """The MixtureSet of one of SPLITS. Raises UserError if it is not there or not whole."""
        if split not in SPLITS:
            raise UserError(f"split {split}: should be one of {', '.join(SPLITS)}")
        if self.task == "enhancement":
            if split.startswith("libri"):
                raise UserError(f"split {split}: of talkers; enhancement has train, val and test")
            if split == "test":
                return noisy_set(self.vctk_demand, "test", self.sample_rate, self.resampled)
            everything = noisy_set(self.vctk_demand, "train", self.sample_rate, self.resampled)
            return divide(everything, self.seed)[("train", "val").index(split)]
        if split.startswith("libri"):
            mixtures = {"libri-clean": "mix_clean", "libri-noisy": "mix_both"}[split]
            return mixture_set(self.librimix_folder(), self.sample_rate, self.sources, mixtures)
        set_name = {"train": "tr", "val": "cv", "test": "tt"}[split]
        folder = mixture_folder(self.wsj0_mix, set_name, self.sources, self.sample_rate, self.mode)
        return mixture_set(folder, self.sample_rate, self.sources)

    def librimix_folder(self):
        """Folder of LibriMix's test set, below 2speakers/ or below Libri2Mix/ as LibriMix's scripts make it."""
        usual = mixture_folder(self.librimix, "test", self.sources, self.sample_rate, self.mode)
        below = os.path.relpath(usual, os.path.join(self.librimix, f"{self.sources}speakers"))
        own = f"Libri{self.sources}Mix"
        choices = [usual, os.path.join(self.librimix, own, below), os.path.join(self.librimix, below)]
        return next((folder for folder in choices if os.path.isdir(folder)), usual)


def _names(folder, mend):
    """Sorted names of the wavs of a folder, without .wav. Raises UserError if there are none."""
    try:
        names = sorted(name[:-4] for name in os.listdir(folder) if name.lower().endswith(".wav") and name[0] != ".")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror.lower()}; {mend}") from error
    if not names:
        raise UserError(f"{folder}: no wavs in it; {mend}")
    return names


def _checked_files(paths, mixtures, sample_rate, resampled=False):
    """Files of paths; the first `mixtures` are mixtures, what comes later goes with them in turn."""
    missing = next((path for path in paths if not os.path.exists(path)), None)
    if missing:
        raise UserError(f"{missing}: no such file, but there is a mixture of this name; make the set again")
    files = audio_files(paths, sample_rate, resampled)
    wrong = np.flatnonzero(files.samples.reshape(-1, mixtures) != files.samples[:mixtures])
    if wrong.size:
        number, other = wrong[0], wrong[0] % mixtures
        raise UserError(
            f"{paths[number]}: {files.samples[number]} samples, its mixture {paths[other]} has"
            f" {files.samples[other]}; make them again"
        )
    return files


# Batches ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cut:
    """What every example takes of its files, all int64 [batches, batch].

    Attributes:
        lines: of the set.
        starts: first samples.
        samples: true lengths; where they exceed the file, it comes twice.
    """

    lines: np.ndarray
    starts: np.ndarray
    samples: np.ndarray

    @property
    def longest(self):
        """Length after padding, that of the longest of the batch."""
        return np.broadcast_to(self.samples.max(axis=1, keepdims=True), self.samples.shape)


def crop_choices(whole, segment, enhancement=False, parity=False):
    """How many places a crop of `segment` samples has in files of `whole` samples; 1 where they are no longer.

    Args:
        parity: as the reference's, which never takes the last place of a mixture of talkers.
    """
    return np.maximum(np.asarray(whole) - segment + (0 if parity and not enhancement else 1), 1)


def crop(mixtures, lines, segment, generator, parity=False):
    """Cut of random pieces of `segment` samples; 0: of everything.

    Of enhancement, recordings that are shorter are repeated once, as far as needed.
    """
    whole = mixtures.samples[lines]
    if not segment:
        return Cut(lines, np.zeros_like(whole), whole)
    choices = crop_choices(whole, segment, mixtures.enhancement, parity)
    starts = (generator.random(lines.shape) * choices).astype(np.int64)
    starts[whole <= segment] = 0
    return Cut(lines, starts, np.minimum((1 + mixtures.enhancement) * whole, segment))


def training_batches(
    mixtures, batch_size, seed, epoch, skip=0, segment_samples=0, shuffle_noise=False, parity=False, share=Share()
):  # fmt: skip
    """The batches of one epoch, mixtures of like length together, without the first `skip`.

    Args:
        mixtures: MixtureSet.
        batch_size: of the global batch.
        segment_samples: cut a piece of so many samples out of longer mixtures; 0: whole ones.
        shuffle_noise: of enhancement, give every speech the noise of another in the batch.
        parity: crop as the reference does, see `crop_choices`.
    """
    order = epoch_order(mixtures.samples, batch_size, seed, epoch)
    generator = np.random.default_rng((seed, epoch, 32))
    cut = crop(mixtures, order, segment_samples, generator, parity)
    partner = None
    if shuffle_noise:
        if not mixtures.enhancement:
            raise UserError("noise can be shuffled only where mixtures are of speech and noise")
        partner = np.argsort(generator.random(order.shape), axis=1)
    return cut_batches(mixtures, order, cut, share, skip, partner)


def evaluation_batches(mixtures, batch_size=1, segment_samples=0, seed=0, share=Share()):
    """Every mixture once, in the order of the set; padded to the longest of the batch.

    Where the set does not fill the last batch, the first mixture fills it up, with index -1.

    Args:
        mixtures: MixtureSet.
        batch_size: of the global batch; 1 stands for one on every replica.
        segment_samples: of longer mixtures a piece, drawn by the seed; 0: whole ones.
    """
    index, lines = batches_in_order(len(mixtures), batch_size, share)
    # Drawn by line, so that the batch size does not matter.
    cut = crop(mixtures, np.arange(len(mixtures)), segment_samples, np.random.default_rng((seed, 33)))
    return cut_batches(mixtures, index, Cut(lines, cut.starts[lines], cut.samples[lines]), share)


def evaluate(mixtures, batch_size=1, segment_samples=0, seed=0):
    """Iterates over `evaluation_batches`; a file that went bad since the check is named."""
    return checked(evaluation_batches(mixtures, batch_size, segment_samples, seed), mixtures.check)


def cut_batches(mixtures, index, cut, share=Share(), skip=0, partner=None):
    """Dataset of the batches of a Cut, without the first `skip`.

    Args:
        mixtures: MixtureSet.
        index: what batches say, int64 [batches, batch].
        partner: of enhancement, place in the batch whose noise an example takes, int64 [batches, batch]; None: its own.
    """
    read_file = mixtures.files.reader()
    count, lengths = len(mixtures), tf.constant(mixtures.samples.astype(np.int32))

    def load(line, start, samples, longest):
        """All signals of a line, [1 + sources, longest], the mixture first."""
        signals = []
        for number in range(1 if mixtures.enhancement else mixtures.sources):
            signals.append(read_file(line + (number + 1) * count, start, tf.minimum(start + samples, lengths[line])))
        mixture = read_file(line, start, tf.minimum(start + samples, lengths[line]))
        if mixtures.enhancement:
            signals.append(mixture - signals[0])
        signals = tf.stack([mixture, *signals])
        if mixtures.enhancement:
            signals = tf.concat([signals, signals], axis=1)[:, :samples]
        return _padded(signals, longest)

    def read(index, line, start, samples, longest, *other):
        signals = load(line, start, samples, longest)
        if other:
            speech, noise = signals[1], load(*other, longest)[2]
            signals = tf.stack([speech + noise, speech, noise])
        return {
            "mixture": signals[0],
            "sources": tf.ensure_shape(signals[1:], (mixtures.sources, None)),
            "samples": samples,
            "index": index,
        }

    arrays = [index, cut.lines, cut.starts, cut.samples, cut.longest]
    if partner is not None:
        arrays += [np.take_along_axis(array, partner, axis=1) for array in (cut.lines, cut.starts, cut.samples)]
    return pieces(arrays, read, share, skip)


def _padded(signals, longest):
    """[signals, samples] -> [signals, longest], half of the zeros in front, the odd one behind."""
    missing = longest - tf.shape(signals)[1]
    return tf.pad(signals, [[0, 0], [missing // 2, missing - missing // 2]])


# Dynamic mixing -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pool:
    """Recordings of single talkers, and of noise, to be mixed anew in every epoch; made by `mixing_pool`.

    Attributes:
        talkers: in a mixture.
        files: Files: utterances sorted by talker, then noises.
        first, counts: number of a talker's first utterance, and how many there are.
        noises: numbers of the noises; without any, talkers are separated.
        genders: "male", "female" or "" of every talker, or None.
    """

    talkers: int
    files: Files
    first: np.ndarray
    counts: np.ndarray
    noises: np.ndarray
    genders: np.ndarray | None = None

    @property
    def sample_rate(self):
        return self.files.sample_rate

    def check(self):
        """Looks at the headers of all files again. Raises UserError, which names the first that cannot be used."""
        audio_files(self.files.paths, self.sample_rate)


def mixing_pool(corpus_folder, utterances, sample_rate, talkers=2, noises=(), genders=None):
    """Pool; headers are read.

    Args:
        corpus_folder: what paths are relative to.
        utterances: {talker: [path]} of the training set, see feat.corpora.find.find_utterances.
        sample_rate: Hz of the batches; other files are resampled.
        talkers: of a mixture; 1 where there are noises.
        noises: paths of recordings of noise.
        genders: {talker: "male" or "female"}, see feat.corpora.talkers.read_genders, for mixtures of one of each; or
        None.

    Raises:
        UserError: a file is unusable, or there are too few talkers.
    """
    if len(utterances) < talkers:
        raise UserError(f"{corpus_folder}: {len(utterances)} talkers, dynamic mixing needs {talkers}")
    everybody = sorted(utterances)
    if genders is not None:
        genders = np.array([genders.get(plain_talker(talker), "") for talker in everybody])
        if not {"male", "female"} <= set(genders):
            raise UserError(f"{corpus_folder}: mixtures of a man and a woman need some of both in the table of talkers")
    counts = np.array([len(utterances[talker]) for talker in everybody], np.int64)
    paths = [os.path.join(corpus_folder, path) for talker in everybody for path in utterances[talker]]
    files = audio_files([*paths, *noises], sample_rate)
    noises = np.arange(len(paths), len(files.paths))
    return Pool(talkers, files, np.cumsum(counts) - counts, counts, noises, genders)


def draw_talkers(pool, count, generator, both_genders=False):
    """[count, talkers] different talkers; `both_genders`: a man and a woman."""
    if both_genders:
        return np.stack(
            [generator.choice(np.flatnonzero(pool.genders == gender), count) for gender in ("male", "female")], axis=1
        )
    rows = [
        np.argsort(generator.random((min(4096, count - begin), len(pool.first))), axis=1)[:, : pool.talkers]
        for begin in range(0, count, 4096)
    ]
    return np.concatenate(rows)


def draw_pieces(pool, count, samples, seed, epoch, gain_db=2.5, snr_db=(0.0, 15.0), both_genders=False):
    """What the mixtures of an epoch are made of.

    Talkers are drawn first, see `draw_talkers`, then one utterance of each, and a piece of each.

    Returns:
        (files, starts int64 [count, sources]; levels in dB float32 [count, sources]). Levels of two talkers are
        opposite, up to `gain_db`, as in WSJ0-2mix, a third stays at 0 dB; those of noise are -`snr_db`, uniform.
    """
    generator = np.random.default_rng((seed, epoch, 34))
    talkers = draw_talkers(pool, count, generator, both_genders)
    files = pool.first[talkers] + (generator.random(talkers.shape) * pool.counts[talkers]).astype(np.int64)
    if len(pool.noises):
        files = np.concatenate([files, generator.choice(pool.noises, (count, 1))], axis=1)
        levels = np.stack([np.zeros(count), -generator.uniform(*snr_db, count)], axis=1)
    else:
        gains = generator.uniform(-gain_db, gain_db, count)
        levels = np.stack([gains, -gains, *[np.zeros(count)] * (pool.talkers - 2)], axis=1)[:, : pool.talkers]
    spare = np.maximum(pool.files.samples[files] - samples, 0)
    starts = (generator.random(files.shape) * (spare + 1)).astype(np.int64)
    return files, starts, levels.astype(np.float32)


def mixed_batches(
    pool, batch_size, batches, segment_samples, seed, epoch, skip=0, gain_db=2.5, snr_db=(0.0, 15.0), share=Share(),
    both_genders=False,
):  # fmt: skip
    """One epoch of mixtures that were never heard before, see `draw_pieces`.

    Sources of equal power are put at their levels, and all scaled to a peak of 0.9. Those shorter than the segment
    end in silence.

    Args:
        batch_size: of the global batch.
        batches: batches in an epoch.
        segment_samples: samples of every mixture.
        both_genders: every mixture has a man and a woman. With a pool that knows genders, batches say in "ordered" for
            every mixture whether it is so.
    """
    count = batches * batch_size
    drawn = draw_pieces(pool, count, segment_samples, seed, epoch, gain_db, snr_db, both_genders)
    read_file = pool.files.reader()

    def mix(index, files, starts, levels_db):
        sources = []
        for c in range(files.shape[0]):
            source = read_file(files[c], starts[c], starts[c] + segment_samples)
            rms = tf.sqrt(tf.reduce_mean(tf.square(source)))
            source *= 10 ** (levels_db[c] / 20) / tf.maximum(rms, 1e-6)
            source = tf.pad(source, [[0, segment_samples - tf.shape(source)[0]]])
            sources.append(tf.ensure_shape(source, (segment_samples,)))
        mixture = tf.add_n(sources)
        signals = tf.stack([mixture, *sources])
        signals *= 0.9 / tf.maximum(tf.reduce_max(tf.abs(signals)), 1e-6)
        ordered = {} if pool.genders is None else {"ordered": both_genders}
        return {"mixture": signals[0], "sources": signals[1:], "samples": segment_samples, "index": index} | ordered

    arrays = [array.reshape(batches, batch_size, *array.shape[1:]) for array in (np.arange(count), *drawn)]
    return pieces(arrays, mix, share, skip)
