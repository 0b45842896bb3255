"""Input pipelines of audio-visual separation. An epoch depends on (seed, epoch) alone.

Below one data folder lie 3 s pieces of single talkers, the embeddings of their faces, and tables:

  audio/<clip>_part<k>.wav    mono, 16 kHz
  embed/<clip>_part<k>.npy    float32 [images, size], 25 images a second, zeros where no face was seen
  embed/embedder.json         {"name", "size", ...}: what made them
  train.csv, val.csv          video_1..video_P, audio_1..audio_P, mixed_audio and perhaps noise, several of them parted
                              by colons; paths are relative to the folder

A mixture is the mean of what is in it, talkers and noises, the shorter ones with silence behind.

Every pipeline gives batches that are dictionaries:

  mixture     [batch, samples] float32
  sources     [batch, faces, samples] float32        as they are in the mixture
  embeddings  [batch, faces, images, size] float32   of the same talkers
  samples     [batch] int32                          true length; the rest is zero padding at the end
  index       [batch] int32                          line of the table, for messages

In training all lengths are known; in evaluation they are free, so that a tf.function traced once
(feat.batches.common.free_lengths) takes every batch. Several processes and devices share a global
batch, see feat.batches.common.Share.
"""

import dataclasses
import os

import numpy as np
import tensorflow as tf

from feat.avspeech import embedders, tables
from feat.avspeech.clips import EMBED, SAMPLE_RATE, video_id
from feat.avspeech.clips import FRAME_RATE as IMAGE_RATE
from feat.base.files import UserError
from feat.batches.common import Files, Share, audio_files, batches_in_order, checked, epoch_order, pieces, read_npy
from feat.corpora import cache

SAMPLES_PER_IMAGE = SAMPLE_RATE // IMAGE_RATE
EMBEDDER = os.path.join(EMBED, embedders.CARD)
MEND = "make the embeddings again"


# Tables ---------------------------------------------------------------------------------------------


def read_table(path):
    """[feat.avspeech.tables.Row] of a table. Raises UserError, which names the line."""
    rows, _, _ = tables.read_table(path)
    if not rows:
        raise UserError(f"{path}: holds no mixtures; make it again from more pieces")
    return rows


def read_embedder(folder):
    """embed/embedder.json of a data folder. Raises UserError."""
    found = embedders.read_card(os.path.join(folder, EMBED))
    if found is None:
        raise UserError(
            f'{os.path.join(folder, EMBEDDER)}: no such file, so nobody knows what made the embeddings; write {{"name":'
            ' ..., "size": ...} there'
        )
    return found


def require_embedder(folder, wanted, source):
    """Raises UserError unless the embeddings of a folder are of the embedder that a model was trained with.

    Args:
        wanted: {"name", "size", ...} of the model, None: it does not say.
        source: of the model, for the message.

    Returns:
        That of the folder.
    """
    found = read_embedder(folder)
    for key, value in (wanted or {}).items():
        if found.get(key) != value:
            raise UserError(
                f"{os.path.join(folder, EMBEDDER)}: {key} of the embeddings is {found.get(key)}, {source} was trained"
                f" with {value}; make them again with that embedder"
            )
    return found


# Sets -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AudioVisualSet:
    """Mixtures whose files were looked at; made by `audio_visual_set`.

    Attributes:
        folder: of the data.
        rows: [Row].
        faces: talkers that are wanted of each mixture, the first ones.
        size: of the embeddings.
        files: Files; all mixtures, then all first talkers, ...
        scales: what a talker of each mixture was multiplied by, float32.
    """

    folder: str
    rows: list
    faces: int
    size: int
    files: Files
    scales: np.ndarray

    def __len__(self):
        return len(self.rows)

    @property
    def names(self):
        return [row.name for row in self.rows]

    @property
    def samples(self):
        """Of every mixture, int64."""
        return self.files.samples[: len(self)]

    def some(self, lines):
        """The mixtures of the given lines."""
        lines = np.asarray(list(lines), np.int64)
        numbers = (np.arange(self.faces + 1)[:, None] * len(self) + lines).ravel()
        files = dataclasses.replace(
            self.files,
            paths=[self.files.paths[i] for i in numbers],
            samples=self.files.samples[numbers],
            direct=self.files.direct[numbers],
        )
        rows = [self.rows[i] for i in lines]
        return dataclasses.replace(self, rows=rows, files=files, scales=self.scales[lines])

    def paths(self, line):
        """Of what the mixture of a line is read from."""
        embeddings = [os.path.join(self.folder, path) for path in self.rows[line].embeddings[: self.faces]]
        return [*self.files.paths[line :: len(self)], *embeddings]

    def check(self):
        """Looks at all files again. Raises UserError, which names the first that cannot be used."""
        audio_visual_set(self.folder, self.rows, self.faces, self.size)


def audio_visual_set(folder, rows, faces, size):
    """AudioVisualSet of [Row].

    Raises:
        UserError: a file is missing, unusable, of another rate or of another size, or a row has too few talkers.
    """
    for row in rows:
        if len(row.audios) < faces:
            raise UserError(f"{folder}: {row.mixed} is of {len(row.audios)} talkers, the network has {faces} faces")
        if not row.mixed.endswith(".wav"):
            raise UserError(f"{folder}: mixed_audio {row.mixed}: should be a wav; make the table again")
    paths = [row.mixed for row in rows]
    paths += [row.audios[i] for i in range(faces) for row in rows]
    files = audio_files([os.path.join(folder, path) for path in paths], SAMPLE_RATE, resampled=False)
    for path in dict.fromkeys(path for row in rows for path in row.embeddings[:faces]):
        cache.require_shape(os.path.join(folder, path), (None, size), MEND)
    scales = np.array([1 / (len(row.audios) + len(row.noises)) for row in rows], np.float32)
    return AudioVisualSet(folder, list(rows), faces, size, files, scales)


def evaluation_batches(mixtures, share=Share()):
    """Every mixture once, alone, in the order of the table; where replicas do not come out even, index is -1."""
    index, lines = batches_in_order(len(mixtures), 1, share)
    longest = mixtures.samples[lines]
    images = np.broadcast_to(longest.max(axis=1, keepdims=True), longest.shape) // SAMPLES_PER_IMAGE
    seen = np.ones((*lines.shape, mixtures.faces))
    return _batches(mixtures, index, lines, (longest, np.maximum(images, 1)), seen, share)


def evaluate(mixtures):
    """Iterates over `evaluation_batches`; a file that went bad since the check is named."""
    return checked(evaluation_batches(mixtures), mixtures.check)


def training_batches(mixtures, batch_size, seed, epoch, skip=0, samples=3 * SAMPLE_RATE, drop_faces=0.0, share=Share()):
    """The batches of one epoch over the mixtures of a table, the first `skip` left out.

    Args:
        batch_size: of the global batch.
        samples: of every mixture, which is cut or padded at its end.
        drop_faces: probability that a face is not seen, see `seen_faces`.
    """
    order = epoch_order(mixtures.samples, batch_size, seed, epoch)
    seen = seen_faces((*order.shape, mixtures.faces), drop_faces, np.random.default_rng((seed, epoch, 31)))
    return _batches(mixtures, order, order, (samples, samples // SAMPLES_PER_IMAGE), seen, share, skip)


def seen_faces(shape, drop, generator):
    """1 for faces [..., faces] that are seen, 0 for others; of each mixture one is seen at least, float32."""
    seen = generator.random(shape) >= drop
    kept = generator.integers(shape[-1], size=shape[:-1])
    seen[(*np.indices(shape[:-1]), kept)] = True
    return seen.astype(np.float32)


def _batches(mixtures, index, lines, lengths, seen, share, skip=0):
    """`lengths`: samples and images of every example, numbers or, where they are not all the same, arrays."""
    read_file = mixtures.files.reader()
    embeddings = tf.constant([row.embeddings[: mixtures.faces] for row in mixtures.rows])
    samples, scales = tf.constant(mixtures.samples, tf.int32), tf.constant(mixtures.scales)
    count = len(mixtures)
    vary = isinstance(lengths[0], np.ndarray)

    def read(index, line, seen, *own_lengths):
        longest, images = own_lengths if vary else lengths
        signals = [_fit(read_file(line + i * count, 0, longest), longest) for i in range(mixtures.faces + 1)]
        faces = [_fit(_read_embedding(mixtures, embeddings[line, i]), images) * seen[i] for i in range(mixtures.faces)]
        return {
            "mixture": signals[0],
            "sources": tf.stack(signals[1:]) * scales[line],
            "embeddings": tf.stack(faces),
            "samples": tf.minimum(samples[line], longest),
            "index": index,
        }

    return pieces((index, lines, seen.astype(np.float32), *(lengths if vary else ())), read, share, skip)


def _read_embedding(data, path):
    embedding = read_npy(tf.strings.join([os.fspath(data.folder), path], os.sep))
    return tf.ensure_shape(embedding, (None, data.size))


def _fit(x, length):
    """[n, ...] cut or padded with zeros to [length, ...]; the length is known if it is no tensor."""
    x = x[:length]
    x = tf.pad(x, [[0, length - tf.shape(x)[0]], *[[0, 0]] * (x.shape.rank - 1)])
    return x if tf.is_tensor(length) else tf.ensure_shape(x, (length, *x.shape[1:]))


# Mixing on the fly ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Pieces of single talkers, to be mixed anew in every epoch; made by `audio_visual_pieces`.

    Attributes:
        folder: of the data.
        files: of the pieces, then of noises.
        embeddings: path of each, below the folder.
        videos: number of the video of each.
        talkers: in a mixture.
        faces: of them that are wanted, the first ones.
        size: of the embeddings.
    """

    folder: str
    files: Files
    embeddings: list[str]
    videos: np.ndarray
    talkers: int
    faces: int
    size: int

    def __len__(self):
        return len(self.embeddings)

    def check(self):
        """Looks at all files again. Raises UserError, which names the first that cannot be used."""
        audio_files(self.files.paths, SAMPLE_RATE)
        for path in self.embeddings:
            cache.require_shape(os.path.join(self.folder, path), (None, self.size), MEND)


def audio_visual_pieces(folder, rows, talkers, faces, size, noises=()):
    """Pieces of all that the rows of a table are made of.

    Args:
        noises: paths of recordings of noise, at any rate.

    Raises:
        UserError: a file is unusable, or there are fewer videos than talkers in a mixture.
    """
    found = {audio: video for row in rows for audio, video in zip(row.audios, row.videos)}
    names = {video: number for number, video in enumerate(sorted({video_id(video) for video in found.values()}))}
    if len(names) < talkers:
        raise UserError(f"{folder}: pieces of {len(names)} videos, a mixture needs {talkers}; add some")
    audios = sorted(found)
    noises = list(noises)
    files = audio_files([*(os.path.join(folder, path) for path in audios), *noises], SAMPLE_RATE, resampled=True)
    pieces_of = Pieces(
        folder,
        files,
        [tables.embedding_of(audio) for audio in audios],
        np.array([names[video_id(found[audio])] for audio in audios]),
        talkers,
        faces,
        size,
    )
    for path in pieces_of.embeddings:
        cache.require_shape(os.path.join(folder, path), (None, size), MEND)
    return pieces_of


@dataclasses.dataclass(frozen=True)
class Draws:
    """What the mixtures of an epoch are made of.

    Attributes:
        picked: numbers of pieces, int64 [count, talkers].
        gains: their factors, float32 [count, talkers].
        shifts: images that each piece is late by, or early where negative, int64 [count, talkers].
        noise: number of a file of noise or -1, int64 [count]; noise_start, first sample; noise_gain, factor.
        seen: see `seen_faces`.
    """

    picked: np.ndarray
    gains: np.ndarray
    shifts: np.ndarray
    noise: np.ndarray
    noise_start: np.ndarray
    noise_gain: np.ndarray
    seen: np.ndarray

    def arrays(self):
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def draw_mixtures(
    pool, count, samples, seed, epoch, gain_db=5.0, shift_images=12, noise_share=0.0, noise_gain=0.3, drop_faces=0.0
):
    """Draws of an epoch: talkers of different videos, at different times and levels.

    Args:
        pool: Pieces.
        count: mixtures.
        samples: of each.
        gain_db: highest and, negative, lowest level of a talker, as it is in its file 0.
        shift_images: a piece begins up to so many images earlier or later, with its face.
        noise_share: of the mixtures that have noise.
        noise_gain: its largest factor; drawn evenly between 0 and this.
        drop_faces: see `training_batches`.
    """
    generator = np.random.default_rng((seed, epoch, 32))
    videos = pool.videos.max() + 1
    chosen = np.argsort(generator.random((count, videos)), axis=1)[:, : pool.talkers]
    order = np.argsort(pool.videos, kind="stable")
    sizes = np.bincount(pool.videos, minlength=videos)
    first = np.cumsum(sizes) - sizes
    picked = order[first[chosen] + (generator.random(chosen.shape) * sizes[chosen]).astype(np.int64)]
    gains = (10 ** (generator.uniform(-gain_db, gain_db, chosen.shape) / 20)).astype(np.float32)
    shifts = generator.integers(-shift_images, shift_images + 1, chosen.shape)
    noises = len(pool.files.paths) - len(pool)
    noise = np.full(count, -1)
    start = np.zeros(count, np.int64)
    noise_gains = np.zeros(count, np.float32)
    if noises:
        number = len(pool) + generator.integers(noises, size=count)
        noise = np.where(generator.random(count) < noise_share, number, -1)
        spare = np.maximum(0, pool.files.samples[number] - samples)
        start = (generator.random(count) * (spare + 1)).astype(np.int64)
        noise_gains = generator.uniform(0, noise_gain, count).astype(np.float32)
    seen = seen_faces((count, pool.faces), drop_faces, generator)
    return Draws(picked, gains, shifts, noise, start, noise_gains, seen)


def mixed_batches(pool, batch_size, batches, seed, epoch, skip=0, samples=3 * SAMPLE_RATE, share=Share(), **options):
    """One epoch of mixtures that were never heard before, see `draw_mixtures`, which takes the options.

    A mixture is the mean of its talkers and noise. `samples` of each mixture are as given.
    """
    count, images = batches * batch_size, samples // SAMPLES_PER_IMAGE
    drawn = draw_mixtures(pool, count, samples, seed, epoch, **options)
    read_file = pool.files.reader()
    embeddings = tf.constant(pool.embeddings)
    noisy = bool((drawn.noise >= 0).any())

    def read(index, picked, gains, shifts, noise, noise_start, noise_gain, seen):
        sources, faces = [], []
        for i in range(pool.talkers):
            skipped = tf.maximum(-shifts[i], 0)
            late = tf.maximum(shifts[i], 0)
            signal = read_file(picked[i], skipped * SAMPLES_PER_IMAGE, skipped * SAMPLES_PER_IMAGE + samples)
            signal = tf.pad(signal, [[late * SAMPLES_PER_IMAGE, 0]])
            sources.append(_fit(signal, samples) * gains[i])
            if i < pool.faces:
                face = _read_embedding(pool, embeddings[picked[i]])[skipped:]
                faces.append(_fit(tf.pad(face, [[late, 0], [0, 0]]), images) * seen[i])
        parts = tf.cast(pool.talkers, tf.float32)
        mixture = tf.add_n(sources)
        if noisy:
            has_noise = tf.cast(noise >= 0, tf.float32)
            added = _fit(read_file(tf.maximum(noise, 0), noise_start, noise_start + samples), samples)
            mixture += added * noise_gain * has_noise
            parts += has_noise
        return {
            "mixture": mixture / parts,
            "sources": tf.stack(sources[: pool.faces]) / parts,
            "embeddings": tf.stack(faces),
            "samples": samples,
            "index": index,
        }

    arrays = [np.arange(count), *drawn.arrays()]
    return pieces([array.reshape(batches, batch_size, *array.shape[1:]) for array in arrays], read, share, skip)
