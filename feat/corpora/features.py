"""STFT features of the mixtures of a corpus: their settings, the flags that give these, and their computation."""

import dataclasses
import functools

import numpy as np
from absl import flags

from feat.base.files import UserError, make_writable_directory, require_free_bytes, size_text
from feat.base.parallel import parallel_map
from feat.corpora import cache
from feat.corpora.lists import mixture_paths, source_names
from feat.signals.audio import FULL_SCALE, read_pcm16, wav_info
from feat.signals.stft import num_frames, num_samples, stft_planes

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class FeatureSettings:
    """Where the mixtures lie, where their features go, and the STFT.

    Attributes:
        data_folder: folder of 2speakers/wav8k/min/{tr,cv,tt}/{s1,s2,mix}.
        feat_folder: folder of the features, exp/<exp_name>/feat.
        talkers: talkers in a mixture.
        sample_rate: Hz.
        fft_size, hop_size: samples.
    """

    data_folder: str
    feat_folder: str
    talkers: int = 2
    sample_rate: int = 8000
    fft_size: int = 256
    hop_size: int = 64

    @property
    def bins(self):
        return self.fft_size // 2 + 1

    def wav_paths(self, set_name, name):
        """Paths of s1, s2, ..., mix, in this order."""
        paths = mixture_paths(self.data_folder, set_name, name, self.talkers, self.sample_rate)
        return [paths[source] for source in source_names(self.talkers)]


def read_mixture(settings, set_name, name):
    """The sources and the mixture `name`, [talkers + 1, samples] float32, mixture last.

    Raises:
        UserError: a wav is missing, broken, of another rate or not mono; lengths differ; below one window.
    """
    paths = settings.wav_paths(set_name, name)
    signals = [read_pcm16(path, settings.sample_rate) for path in paths]
    for path, signal in zip(paths, signals):
        _require_samples(settings, path, len(signal), paths[-1], len(signals[-1]))
    return np.stack(signals).astype(np.float32) / np.float32(FULL_SCALE)


def mixture_length(settings, set_name, name):
    """Samples of the mixture `name`, from the headers of its wavs, which must agree. Raises UserError."""
    paths = settings.wav_paths(set_name, name)
    headers = [wav_info(path) for path in paths]
    for path, header in zip(paths, headers):
        if header.sample_rate != settings.sample_rate or header.channels != 1 or header.subtype != "PCM_16":
            read_pcm16(path, settings.sample_rate)  # refuses by name
        _require_samples(settings, path, header.frames, paths[-1], headers[-1].frames)
    return headers[-1].frames


def compute_features(settings, signals):
    """[talkers + 1, samples] -> (features [2 * (talkers + 1), frames, bins], waveforms [talkers + 1, samples'])."""
    features = stft_planes(signals, settings.fft_size, settings.hop_size)  # [C + 1, 2, T, F]
    frames = features.shape[2]
    covered = num_samples(frames, settings.fft_size, settings.hop_size)
    return features.reshape(-1, frames, settings.bins), signals[:, :covered]


def _require_samples(settings, path, samples, mixture_path, mixture_samples):
    if samples != mixture_samples:
        raise UserError(
            f"{path}: {samples} samples, but {mixture_path} has {mixture_samples};"
            " mix and sources must be equally long, make them again"
        )
    if samples < settings.fft_size:
        raise UserError(
            f"{path}: {samples} samples are shorter than one window of {settings.fft_size}; remove it from the list"
        )


def define_feature_flags():
    """Flags of the corpus, the experiment and the STFT, which all scripts of Deep CASA share."""
    flags.DEFINE_string("data_folder", "corpus", "folder of 2speakers/wav8k/min/{tr,cv,tt}/{s1,s2,mix}")
    flags.DEFINE_string("wav_list_folder", "corpus/lists", "folder of the lists mix_2_spk_min_{tr,cv,tt}_mix")
    flags.DEFINE_string("exp_name", "deep_casa_wsj", "everything is written below exp/<exp_name>")
    flags.DEFINE_integer("talkers", 2, "talkers in a mixture", lower_bound=2, upper_bound=5)
    flags.DEFINE_integer("sample_rate", 8000, "of the wavs, Hz", lower_bound=1)
    flags.DEFINE_integer("fft_size", 256, "window of the STFT, samples", lower_bound=4)
    flags.DEFINE_integer("hop_size", 64, "step of the STFT, samples", lower_bound=1)
    flags.DEFINE_integer("feat_dim", 0, "frequency bins; 0 stands for fft_size / 2 + 1, no other value fits")


def settings_from_flags():
    """FeatureSettings of the flags. Raises UserError if they contradict each other."""
    settings = FeatureSettings(
        data_folder=FLAGS.data_folder,
        feat_folder=f"exp/{FLAGS.exp_name}/feat",
        talkers=FLAGS.talkers,
        sample_rate=FLAGS.sample_rate,
        fft_size=FLAGS.fft_size,
        hop_size=FLAGS.hop_size,
    )
    if FLAGS.fft_size % 2 or not 0 < FLAGS.hop_size <= FLAGS.fft_size // 2:
        raise UserError(
            f"--fft_size {FLAGS.fft_size} --hop_size {FLAGS.hop_size}: the window must be even"
            " and the hop at most half of it"
        )
    if FLAGS.feat_dim not in (0, settings.bins):
        raise UserError(
            f"--feat_dim {FLAGS.feat_dim}: --fft_size {FLAGS.fft_size} gives {settings.bins} bins;"
            " leave --feat_dim out or change --fft_size"
        )
    return settings


def _paths_and_shapes(settings, set_name, name, samples):
    """{path: shape} of the two files of a mixture."""
    frames = num_frames(samples, settings.fft_size, settings.hop_size)
    signals = settings.talkers + 1
    covered = num_samples(frames, settings.fft_size, settings.hop_size)
    return {
        cache.feature_path(settings.feat_folder, set_name, name): (2 * signals, frames, settings.bins),
        cache.wave_path(settings.feat_folder, set_name, name): (signals, covered),
    }


def _survey(settings, item):
    """Bytes that the files of a mixture will take; 0 if both are there, whole, and not older than its wavs."""
    files = _paths_and_shapes(settings, *item, mixture_length(settings, *item))
    wavs = settings.wav_paths(*item)
    if all(cache.array_shape(path) == shape and not cache.is_older(path, wavs) for path, shape in files.items()):
        return 0
    return sum(4 * int(np.prod(shape)) for shape in files.values())


def _write(settings, item):
    """Writes both files of a mixture; gives the names of its silent sources."""
    set_name, name = item
    signals = read_mixture(settings, set_name, name)
    features, waveforms = compute_features(settings, signals)
    # The waveform last: a whole pair is what _survey looks for, in either order.
    cache.write_array(cache.feature_path(settings.feat_folder, set_name, name), features)
    cache.write_array(cache.wave_path(settings.feat_folder, set_name, name), waveforms)
    return [path for path, signal in zip(settings.wav_paths(set_name, name), signals) if not signal.any()]


def generate(settings, lists, num_workers=0):
    """Writes the features of all mixtures that lack them.

    Args:
        settings: FeatureSettings.
        lists: {set name: [mixture name]}.
        num_workers: processes, 0 for all cores.

    Returns:
        (mixtures written, mixtures found whole).

    Raises:
        UserError: a wav is unusable, or the disk is too small; nothing was written then.
    """
    for set_name in lists:
        make_writable_directory(f"{settings.feat_folder}/{set_name}")
    items = [(set_name, name) for set_name, names in lists.items() for name in names]
    sizes = parallel_map(functools.partial(_survey, settings), items, num_workers, "check")
    todo = [item for item, size in zip(items, sizes) if size]
    needed = sum(sizes)
    print(
        f"{settings.feat_folder}: {len(items) - len(todo)} of {len(items)} mixtures are there,"
        f" {size_text(needed)} to write"
    )
    require_free_bytes(settings.feat_folder, needed, "the features")
    silent = parallel_map(functools.partial(_write, settings), todo, num_workers, "features")
    for path in sorted(set().union(*silent)):
        print(f"warning: {path}: silent; it is left out of the training objective")
    return len(todo), len(items) - len(todo)
