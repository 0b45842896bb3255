"""What the input pipelines of all systems share: the order of an epoch, pieces of batches, and the reading of files."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from feat.base.files import UserError, brief
from feat.base.graph import plain
from feat.base.parallel import parallel_map
from feat.signals.audio import FULL_SCALE, read_blocks, read_first_channel, samples_offset, wav_info

# Axes whose size changes from batch to batch.
_FREE_AXES = {
    "mixture": (0, 1),
    "sources": (0, 2),
    "waveforms": (0, 2),
    "estimates": (0, 2),
    "frames": (0,),
    "index": (0,),
    # Of feat/batches/binaural_tasnet.py (mixture [batch, samples, 2], sources [batch, talkers, samples, 2]) the same;
    # of feat/batches/spex_plus.py, whose mixtures are [batch, samples]:
    "target": (0, 1),
    "enrolment": (0, 1),
    "samples": (0,),
    "enrolment_samples": (0,),
    "speaker": (0,),
    # Of feat/batches/looking_to_listen.py, otherwise as of triplets:
    "embeddings": (0, 2),
}
BUCKET_BATCHES = 50  # batches whose utterances are sorted by length together


def workers_for(jobs):
    """Processes to start for quick jobs, one a file: all cores for many, none for a few."""
    return 0 if len(jobs) > 2000 else 1


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process makes of every global batch: a piece for each of its replicas.

    Attributes:
        replicas: of all processes; piece i of a batch is that of replica i.
        first, count: replicas of this process.
    """

    replicas: int = 1
    first: int = 0
    count: int = 1

    def piece_size(self, batch_size):
        """Examples in a piece. Raises UserError if the batch cannot be cut evenly."""
        if batch_size % self.replicas:
            raise UserError(
                f"--batch_size {batch_size} cannot be shared evenly by {self.replicas} devices;"
                f" take a multiple of {self.replicas}"
            )
        return batch_size // self.replicas

    def examples(self, array):
        """[batches, batch, ...] -> [examples of this process, ...], piece by piece."""
        batches, batch_size = array.shape[:2]
        pieces = array.reshape(batches, self.replicas, self.piece_size(batch_size), *array.shape[2:])
        return pieces[:, self.first : self.first + self.count].reshape(-1, *array.shape[2:])


def epoch_order(frames, batch_size, seed, epoch):
    """Order of an epoch: whole batches of utterances of like length, batches and utterances shuffled.

    Args:
        frames: length of every utterance.
        batch_size: utterances a batch; what is left over is dropped, others in every epoch.

    Returns:
        int64 [batches, batch_size], indices of utterances.
    """
    generator = np.random.default_rng((seed, epoch, 1))
    order = generator.permutation(len(frames))
    batches = []
    for start in range(0, len(order), BUCKET_BATCHES * batch_size):
        bucket = order[start : start + BUCKET_BATCHES * batch_size]
        if batch_size > 1:
            bucket = bucket[np.argsort(frames[bucket], kind="stable")]
        whole = len(bucket) // batch_size
        first = generator.integers(len(bucket) - whole * batch_size + 1)
        batches.append(bucket[first : first + whole * batch_size].reshape(whole, batch_size))
    batches = np.concatenate(batches)
    return batches[generator.permutation(len(batches))]


def free_lengths(batch):
    """TensorSpecs of a batch with every length free, for a tf.function that is to be traced once."""
    return {
        key: tf.TensorSpec(
            [None if axis in _FREE_AXES[key] else size for axis, size in enumerate(value.shape)], value.dtype
        )
        for key, value in batch.items()
    }


def checked(batches, check):
    """Iterates over batches of files that were checked before, and names the file that went bad since.

    Args:
        batches: a dataset, or what a tf.distribute strategy made of one.
        check: () -> anything; checks the files again, with a UserError that names the bad one.

    Raises:
        UserError: a batch cannot be read.
    """
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError):
            raise  # another process of a cluster is gone
        except tf.errors.OpError as error:
            check()
            reason = brief(error)
            raise UserError(f"a batch cannot be read ({reason}); run the same command again") from error
        yield batch


def batches_in_order(count, batch_size, share):
    """(index, lines) [batches, batch] of a set of `count`, in order; where it does not fill the last batch: -1, and 0.

    Args:
        batch_size: of the global batch; 1 stands for one on every replica.
    """
    batch_size = share.replicas if batch_size == 1 else batch_size
    lines = np.arange(-(-count // batch_size) * batch_size).reshape(-1, batch_size)
    index = np.where(lines < count, lines, -1)
    return index, np.maximum(index, 0)


def pieces(arrays, read, share, skip=0):
    """Dataset of this share's pieces of batches, the first `skip` left out.

    Args:
        arrays: [batches, batch, ...] each, what `read` takes.
        read: one value of each array -> example.
    """
    arrays = [array[skip:].astype(np.int32) if array.dtype == np.int64 else array[skip:] for array in arrays]
    examples = tf.data.Dataset.from_tensor_slices(tuple(map(share.examples, arrays))).map(plain(read), tf.data.AUTOTUNE)
    batches = examples.batch(share.piece_size(arrays[0].shape[1]), drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    # The thread that tunes sleeps for up to a minute, and the end of an iterator waits for it (TensorFlow 2.21).
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def read_npy(path):
    """The float32 array of a C-order .npy file, with TensorFlow operations alone; they fail if it is cut short."""
    data = tf.io.read_file(path)
    header = 10 + tf.cast(tf.io.decode_raw(tf.strings.substr(data, 8, 2), tf.uint16)[0], tf.int32)
    values = tf.io.decode_raw(tf.strings.substr(data, header, -1), tf.float32)
    shape = tf.strings.regex_replace(tf.strings.substr(data, 10, header - 10), r"(?s).*\(([^)]*)\).*", r"\1")
    numbers = tf.strings.split(tf.strings.regex_replace(shape, r"[ ]", ""), ",")
    return tf.reshape(values, tf.strings.to_number(tf.boolean_mask(numbers, numbers != ""), tf.int32))


def sample_reader(paths, samples, offsets, channels, sample_rate, parity=False):
    """(number, begin, end) -> float32 samples [begin, end) of the first channel of a file, as far as there are any.

    TensorFlow reads 16-bit wavs by itself, whatever their headers; what else there is goes through soundfile, in
    Python. A file that was cut short since it was looked at, or is no wav any more, fails.

    Args:
        paths: of all files.
        samples: that each has at `sample_rate`, int64.
        offsets: `feat.signals.audio.samples_offset` of the 16-bit wavs that have this rate, -1 of other files, int64.
        channels: of those wavs, int64.
        sample_rate: Hz of what is read.
        parity: resample as torchaudio does.
    """
    direct, mono = (offsets >= 0).all(), (channels <= 1).all()
    paths = tf.constant(paths)
    table = tf.constant(np.stack([samples, offsets, 2 * channels], axis=1), tf.int32)

    def anything(path, begin, end):
        return read_first_channel(path.decode(), sample_rate, parity, int(begin), int(end))

    def from_wav(path, offset, width, begin, count):
        data = tf.io.read_file(path)
        same = tf.equal(tf.strings.substr(data, offset - 8, 4), "data")
        # Not tf.debugging.assert_equal, whose branches take as long as the reading.
        with tf.control_dependencies([tf.raw_ops.Assert(condition=same, data=[path, "not the wav it was"])]):
            piece = tf.strings.substr(data, offset + begin * width, count * width)
        piece = tf.io.decode_raw(piece, tf.int16)
        # The shape fails where samples are missing.
        piece = tf.reshape(piece, (count,)) if mono else tf.reshape(piece, (count, width // 2))[:, 0]
        return tf.cast(piece, tf.float32) / FULL_SCALE

    def read(number, begin, end):
        path = tf.gather(paths, number)
        size, offset, width = tf.unstack(tf.gather(table, number))  # width: bytes of a sample of all channels
        end = tf.minimum(end, size)
        begin = tf.minimum(begin, end)
        count = end - begin
        if direct:
            return from_wav(path, offset, width, begin, count)
        piece = tf.cond(
            offset >= 0,
            lambda: from_wav(path, offset, width, begin, count),
            lambda: tf.numpy_function(anything, [path, begin, end], tf.float32),
        )
        return tf.reshape(piece, (count,))

    return read


SILENT_PEAK = 1e-4  # of a recording that shows no voice


@dataclasses.dataclass(frozen=True)
class Files:
    """Audio files by number.

    Attributes:
      paths: of each.
      samples: what each has at `sample_rate`, int64.
      direct: int64 [files, 2], byte where the samples begin and channels of a 16-bit wav of that rate, which
        TensorFlow reads by itself; -1, 0 of other files.
      sample_rate: Hz.
      parity: resample as torchaudio does.
    """

    paths: list[str]
    samples: np.ndarray
    direct: np.ndarray
    sample_rate: int
    parity: bool = False

    def reader(self):
        """(number, begin, end) -> the first channel of these samples of the file, as far as there are any."""
        return sample_reader(self.paths, self.samples, *self.direct.T, self.sample_rate, self.parity)

    def some(self, numbers):
        """Files of these numbers."""
        paths = [self.paths[i] for i in numbers]
        return dataclasses.replace(self, paths=paths, samples=self.samples[numbers], direct=self.direct[numbers])

    def check(self):
        """Looks at all files again, after one was no good. Raises UserError, which names the first that is not.

        16-bit wavs are told by their headers; the samples of others, which may not be finite, are read.
        """
        audio_files(self.paths, self.sample_rate)
        others = [path for path, offset in zip(self.paths, self.direct[:, 0]) if offset < 0]
        parallel_map(_read_through, others, workers_for(others), "read files")


def audio_files(paths, sample_rate, resampled=True, parity=False):
    """Files whose headers were read.

    Args:
      resampled: take files of other rates too.

    Raises:
      UserError: a file is missing or unusable (see feat.signals.audio.wav_info), or has another rate.
    """
    headers = parallel_map(functools.partial(_header, sample_rate), paths, workers_for(paths), "check files")
    for path, (info, _) in zip(paths, headers, strict=True):
        if info.sample_rate != sample_rate and not resampled:
            raise UserError(
                f"{path}: {info.sample_rate} Hz, {sample_rate} Hz is needed;"
                f" resample it, e.g. sox IN -r {sample_rate} OUT"
            )
    samples = [-(-info.frames * sample_rate // info.sample_rate) for info, _ in headers]
    direct = np.array([direct for _, direct in headers], np.int64).reshape(-1, 2)
    return Files(list(paths), np.array(samples, np.int64), direct, sample_rate, parity)


def _header(sample_rate, path):
    """(WavInfo, row of `Files.direct`) of a file."""
    info = wav_info(path)
    offset = samples_offset(path) if info.subtype == "PCM_16" and info.sample_rate == sample_rate else -1
    return info, (-1, 0) if offset < 0 else (offset, info.channels)


def _read_through(path):
    for _ in read_blocks(path, 0):
        pass
