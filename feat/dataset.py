"""Input pipelines (tf.data). The order, the crops and the mixtures of an epoch depend on (seed, epoch) alone.

Every pipeline gives batches that are dictionaries:

  mixture    [batch, frames, bins, 2]               real and imaginary parts
  sources    [batch, talkers, frames, bins, 2]
  waveforms  [batch, talkers, samples]              what the frames cover; absent where noted
  estimates  [batch, talkers, frames, bins, 2]      of the first stage; only from its files
  frames     [batch] int32                          true frames; the rest is zero padding at the end
  index      [batch] int32                          line of the list, for messages

All dimensions but talkers, bins and 2 are free, so that a tf.function traced once takes every batch.
"""

import dataclasses
import re

import numpy as np
import tensorflow as tf

from feat import cache
from feat.audio import read_mono
from feat.feat_gen import FeatureSettings, mixture_length
from feat.files import UserError
from feat.parallel import parallel_map
from feat.stft import num_frames, num_samples, sqrt_hann

# Axes whose size changes from batch to batch.
_FREE_AXES = {
    "mixture": (0, 1),
    "sources": (0, 2),
    "waveforms": (0, 2),
    "estimates": (0, 2),
    "frames": (0,),
    "index": (0,),
}
BUCKET_BATCHES = 50  # batches whose utterances are sorted by length together


@dataclasses.dataclass(frozen=True)
class Utterances:
    """The mixtures of a set, in the order of its list.

    Attributes:
        settings: FeatureSettings.
        set_name: "tr", "cv" or "tt".
        names: names of the mixtures.
        frames: whole frames of each, int array.
    """

    settings: FeatureSettings
    set_name: str
    names: list[str]
    frames: np.ndarray

    def __len__(self):
        return len(self.names)

    def first(self, count):
        """The first `count` utterances; all if count is 0."""
        if not count:
            return self
        return dataclasses.replace(self, names=self.names[:count], frames=self.frames[:count])


def cached_utterances(settings, set_name, names, with_estimates=False, scales=4):
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
    return Utterances(settings, set_name, list(names), np.array(frames, np.int64))


class _Length:
    """Frames of a mixture from the headers of its wavs; a class, so that worker processes can take it."""

    def __init__(self, settings, set_name):
        self.settings, self.set_name = settings, set_name

    def __call__(self, name):
        samples = mixture_length(self.settings, self.set_name, name)
        return num_frames(samples, self.settings.fft_size, self.settings.hop_size)


def wav_utterances(settings, set_name, names):
    """Utterances whose wavs were checked, by their headers. Raises UserError, see feat_gen.mixture_length."""
    frames = parallel_map(_Length(settings, set_name), names, 0 if len(names) > 2000 else 1, "check wavs")
    return Utterances(settings, set_name, list(names), np.array(frames, np.int64))


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
        except tf.errors.OpError as error:
            check()
            reason = error.message.splitlines()[0]
            raise UserError(f"a batch cannot be read ({reason}); run the same command again") from error
        yield batch


# Stored features ----------------------------------------------------------------------------------


def evaluation_batches(utterances, with_estimates=False, from_wavs=False):
    """Every utterance once, alone, in the order of the list."""
    count = len(utterances)
    read = _wav_reader(utterances) if from_wavs else _cache_reader(utterances, with_estimates)
    examples = tf.data.Dataset.from_tensor_slices((np.arange(count, dtype=np.int32), np.zeros(count, np.float32)))
    return examples.map(read, tf.data.AUTOTUNE).batch(1).prefetch(2)


def training_batches(
    utterances, batch_size, seed, epoch, skip=0, segment_frames=0, with_estimates=False, from_wavs=False
):
    """The batches of one epoch, without the first `skip`.

    Args:
        segment_frames: cut a piece of so many frames out of longer utterances; 0: whole utterances.
        with_estimates: read the estimates of the first stage too.
        from_wavs: compute the features from the wavs; no file of features is needed.
    """
    order = epoch_order(utterances.frames, batch_size, seed, epoch)
    cuts = np.random.default_rng((seed, epoch, 2)).random(order.shape).astype(np.float32)
    read = (
        _wav_reader(utterances, segment_frames)
        if from_wavs
        else _cache_reader(utterances, with_estimates, segment_frames)
    )
    examples = tf.data.Dataset.from_tensor_slices(
        (order[skip:].ravel().astype(np.int32), cuts[skip:].ravel())
    )
    examples = examples.map(read, tf.data.AUTOTUNE)
    return examples.padded_batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def segment_count(utterances, segment_frames):
    """Number of segments that `segment_batches` cuts an epoch into."""
    return int(np.sum(-(-utterances.frames // segment_frames)))


def segment_batches(utterances, segment_frames, batch_size, seed, epoch, skip=0, from_wavs=False):
    """One epoch of consecutive segments of all utterances, the last of each padded at its end.

    As the original trains its causal net: segments of 40 utterances at a time are shuffled. `frames` of a
    batch is always `segment_frames`; the padding counts.
    """
    generator = np.random.default_rng((seed, epoch, 3))
    order = generator.permutation(len(utterances)).astype(np.int32)
    read = _wav_reader(utterances) if from_wavs else _cache_reader(utterances)
    settings = utterances.settings
    hop, fft = settings.hop_size, settings.fft_size

    def cut(example):
        count = -(-example["frames"] // segment_frames)
        missing = count * segment_frames - example["frames"]

        mixture = tf.pad(example["mixture"], [[0, missing], [0, 0], [0, 0]])
        sources = tf.pad(example["sources"], [[0, 0], [0, missing], [0, 0], [0, 0]])
        bins, talkers = settings.bins, settings.talkers
        mixture = tf.reshape(mixture, (count, segment_frames, bins, 2))
        sources = tf.reshape(sources, (talkers, count, segment_frames, bins, 2))
        samples = num_samples(segment_frames, fft, hop)
        waveforms = tf.pad(example["waveforms"], [[0, 0], [0, missing * hop]])
        waveforms = tf.signal.frame(waveforms, samples, segment_frames * hop, axis=-1)
        return tf.data.Dataset.from_tensor_slices(
            {
                "mixture": mixture,
                "sources": tf.transpose(sources, (1, 0, 2, 3, 4)),
                "waveforms": tf.transpose(waveforms, (1, 0, 2)),
                "frames": tf.fill([count], segment_frames),
                "index": tf.fill([count], example["index"]),
            }
        )

    segments = tf.data.Dataset.from_tensor_slices((order, np.zeros(len(order), np.float32)))
    segments = segments.map(read, tf.data.AUTOTUNE).flat_map(cut)
    together = max(batch_size, 40 * segment_count(utterances, segment_frames) // len(utterances))
    shuffled = segments.shuffle(together, seed=int(generator.integers(2**31)))
    batches = shuffled.batch(batch_size, drop_remainder=True)
    return batches.skip(skip).prefetch(tf.data.AUTOTUNE)


def _cache_reader(utterances, with_estimates=False, segment_frames=0):
    """(index, cut in [0, 1)) -> example, from the .npy files."""
    settings, set_name = utterances.settings, utterances.set_name
    paths = {
        "features": [cache.feature_path(settings.feat_folder, set_name, name) for name in utterances.names],
        "waveforms": [cache.wave_path(settings.feat_folder, set_name, name) for name in utterances.names],
    }
    if with_estimates:
        paths["estimates"] = [
            cache.estimate_path(settings.feat_folder, set_name, name) for name in utterances.names
        ]
    paths = {key: tf.constant(value) for key, value in paths.items()}
    signals, bins = settings.talkers + 1, settings.bins

    def read(index, cut):
        features = tf.reshape(read_npy(paths["features"][index]), (signals, 2, -1, bins))
        spectra = tf.transpose(features, (0, 2, 3, 1))  # [C + 1, T, F, 2]
        waveforms = tf.ensure_shape(read_npy(paths["waveforms"][index]), (signals, None))[:-1]
        frames = tf.shape(spectra)[1]
        estimates = None
        if with_estimates:
            estimates = tf.ensure_shape(read_npy(paths["estimates"][index]), (settings.talkers, None, None))
            estimates = tf.reshape(estimates, (settings.talkers, tf.shape(estimates)[1], -1, 2))
            # The padding stands before the utterance, and around its bins.
            extra = (tf.shape(estimates)[2] - bins) // 2
            estimates = estimates[:, tf.shape(estimates)[1] - frames :, extra : extra + bins]
            estimates = tf.ensure_shape(estimates, (settings.talkers, None, bins, 2))
        return _example(settings, index, spectra, waveforms, estimates, cut, segment_frames)

    return read


def _example(settings, index, spectra, waveforms, estimates, cut, segment_frames):
    """Cuts a piece out of an utterance and names its parts."""
    frames = tf.shape(spectra)[1]
    if segment_frames:
        spare = tf.maximum(frames - segment_frames, 0)
        start = tf.cast(cut * tf.cast(spare + 1, tf.float32), tf.int32)
        frames = frames - spare
        samples = num_samples(frames, settings.fft_size, settings.hop_size)
        first = start * settings.hop_size
        spectra = spectra[:, start : start + frames]
        waveforms = waveforms[:, first : first + samples]
        if estimates is not None:
            estimates = estimates[:, start : start + frames]
    example = {
        "mixture": spectra[-1],
        "sources": spectra[:-1],
        "waveforms": waveforms,
        "frames": frames,
        "index": index,
    }
    if estimates is not None:
        example["estimates"] = estimates
    return example


def read_npy(path):
    """The float32 array of a C-order .npy file, with TensorFlow operations alone; they fail if it is cut short."""
    data = tf.io.read_file(path)
    header = 10 + tf.cast(tf.io.decode_raw(tf.strings.substr(data, 8, 2), tf.uint16)[0], tf.int32)
    values = tf.io.decode_raw(tf.strings.substr(data, header, -1), tf.float32)
    shape = tf.strings.regex_replace(tf.strings.substr(data, 10, header - 10), r"(?s).*\(([^)]*)\).*", r"\1")
    numbers = tf.strings.split(tf.strings.regex_replace(shape, r"[ ]", ""), ",")
    return tf.reshape(values, tf.strings.to_number(tf.boolean_mask(numbers, numbers != ""), tf.int32))


# Features on the fly ------------------------------------------------------------------------------


def _wav_reader(utterances, segment_frames=0):
    """(index, cut in [0, 1)) -> example, from the wavs."""
    settings = utterances.settings
    paths = tf.constant([settings.wav_paths(utterances.set_name, name) for name in utterances.names])

    def read(index, cut):
        signals = tf.stack([_read_wav(paths[index, i]) for i in range(settings.talkers + 1)])
        spectra = _stft(settings, signals)
        covered = num_samples(tf.shape(spectra)[1], settings.fft_size, settings.hop_size)
        # Not signals[:-1, :covered], which forgets the number of talkers.
        return _example(settings, index, spectra, signals[:-1][:, :covered], None, cut, segment_frames)

    return read


def _read_wav(path):
    """[samples], float32, of a 16-bit mono wav."""
    return tf.audio.decode_wav(tf.io.read_file(path), desired_channels=1)[0][:, 0]


def _stft(settings, signals):
    """[..., samples] -> [..., frames, bins, 2]."""
    frames = tf.signal.frame(signals, settings.fft_size, settings.hop_size)
    spectra = tf.signal.rfft(frames * sqrt_hann(settings.fft_size).astype(np.float32))
    return tf.stack([tf.math.real(spectra), tf.math.imag(spectra)], axis=-1)


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
    """

    settings: FeatureSettings
    paths: list[str]
    talkers: np.ndarray
    levels: np.ndarray
    samples: np.ndarray

    def __len__(self):
        return len(self.paths)


class _Level:
    """(root mean square, samples) of a wav; a class, so that worker processes can take it."""

    def __init__(self, settings):
        self.settings = settings

    def __call__(self, path):
        samples = read_mono(path, self.settings.sample_rate)
        if len(samples) < self.settings.fft_size:
            raise UserError(f"{path}: {len(samples)} samples are shorter than one window; remove it from the list")
        return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))), len(samples)


def source_pool(settings, set_name, names):
    """Pool of the different utterances that the mixtures of a list are made of; silent ones are left out.

    Utterance and talker are read off the names of the mixtures (see `parts_of_name`).

    Raises:
        UserError: a wav is unusable, or all utterances are of one talker.
    """
    found = {}
    for name in names:
        paths = settings.wav_paths(set_name, name)
        for utterance, path in zip(parts_of_name(name, settings.talkers), paths):
            found.setdefault(utterance, path)
    measured = parallel_map(_Level(settings), found.values(), 0 if len(found) > 2000 else 1, "measure sources")
    kept = [(u, p, level, n) for (u, p), (level, n) in zip(found.items(), measured) if level > 0]
    speakers = [talker_of(utterance) for utterance, *_ in kept]
    numbers = {speaker: i for i, speaker in enumerate(sorted(set(speakers)))}
    if len(numbers) < settings.talkers:
        raise UserError(
            f"{settings.data_folder}, {set_name}: {len(numbers)} talker(s) found in the names of the list,"
            f" {settings.talkers} are needed for --dynamic_mixing; leave it out"
        )
    return Pool(
        settings,
        [path for _, path, _, _ in kept],
        np.array([numbers[speaker] for speaker in speakers]),
        np.array([level for _, _, level, _ in kept]),
        np.array([samples for *_, samples in kept]),
    )


def parts_of_name(name, talkers):
    """Utterances in the name of a mixture: "01to030v_0.76_20ga010m_-0.76" -> ["01to030v", "20ga010m"]."""
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    match = re.fullmatch("_".join(rf"(.+?)_{number}" for _ in range(talkers)), name)
    if match is None:
        raise UserError(
            f"{name}: not a name like utterance_gain_utterance_gain, so its talkers are unknown;"
            " leave --dynamic_mixing out"
        )
    return list(match.groups())


def talker_of(utterance):
    """Talker of an utterance: what stands before the first "_" or "-"; in WSJ0 names the first three letters."""
    if re.fullmatch(r"\w{8}", utterance) and "_" not in utterance:
        return utterance[:3]
    return re.split(r"[-_]", utterance)[0]


def mixed_batches(pool, batch_size, batches, segment_frames, seed, epoch, skip=0, gain_db=2.5):
    """One epoch of mixtures that were never heard before.

    Talkers are drawn first, then one utterance of each, a piece of each, and gains: utterances of equal
    power are put up to `gain_db` above and below it, and the sum is scaled to a peak of 0.9, as WSJ0-2mix
    is. Sources shorter than the segment end in silence.

    Args:
        batches: batches in an epoch.
        segment_frames: frames of every mixture.
    """
    settings = pool.settings
    count, talkers = batches * batch_size, settings.talkers
    generator = np.random.default_rng((seed, epoch, 4))
    chosen = np.argsort(generator.random((count, pool.talkers.max() + 1)), axis=1)[:, :talkers]
    by_talker = [np.flatnonzero(pool.talkers == talker) for talker in range(pool.talkers.max() + 1)]
    sizes = np.array([len(some) for some in by_talker])
    table = np.stack([np.resize(some, sizes.max()) for some in by_talker])
    picked = table[chosen, (generator.random(chosen.shape) * sizes[chosen]).astype(np.int64)]
    samples = num_samples(segment_frames, settings.fft_size, settings.hop_size)
    spare = np.maximum(pool.samples[picked] - samples, 0)
    starts = (generator.random(picked.shape) * (spare + 1)).astype(np.int32)
    gains = generator.uniform(0, gain_db, count) * generator.choice([-1, 1], count)
    # As in the lists: the gains of two talkers are opposite, a third stays at 0 dB.
    gains_db = np.stack([gains, -gains, *[np.zeros(count)] * (talkers - 2)], axis=1)
    scales = (10 ** (gains_db / 20) / pool.levels[picked]).astype(np.float32)
    paths = tf.constant(pool.paths)

    def mix(index, picked, starts, scales):
        pieces = []
        for i in range(talkers):
            piece = _read_wav(paths[picked[i]])[starts[i] : starts[i] + samples]
            piece = tf.pad(piece, [[0, samples - tf.shape(piece)[0]]]) * scales[i]
            pieces.append(tf.ensure_shape(piece, (samples,)))
        sources = tf.stack(pieces)
        mixture = tf.reduce_sum(sources, axis=0)
        signals = tf.concat([sources, mixture[None]], axis=0)
        signals *= 0.9 / tf.maximum(tf.reduce_max(tf.abs(signals)), 1e-5)
        return _example(settings, index, _stft(settings, signals), signals[:-1], None, 0.0, 0)

    examples = (np.arange(count, dtype=np.int32), picked.astype(np.int32), starts, scales)
    examples = tf.data.Dataset.from_tensor_slices(tuple(array[skip * batch_size :] for array in examples))
    examples = examples.map(mix, tf.data.AUTOTUNE)
    return examples.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
