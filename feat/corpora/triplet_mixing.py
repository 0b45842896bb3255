"""How a triplet for target-speaker extraction is made: a mixture, its target, an enrolment of the target's talker.

The recipe is that of the LibriSpeech mixtures of ir4kgl/ss_dla: loudness of ITU-R BS.1770 (pyloudnorm), the
trimming and the activity rule of librosa, the target-to-interferer ratio set over every segment.
"""

import functools
import random
from dataclasses import dataclass

import numpy as np

from feat.signals.audio import FULL_SCALE

SOURCE_LUFS = -29.0  # of target and interferer before they are mixed
LUFS = -23.0  # of everything that is written
LOUDNESS_BLOCK_S = 0.4  # nothing shorter has a loudness
FRAME, HOP = 2048, 512  # of the activity rule, samples at any rate
HIGHEST_PEAK = 0.999


class Unusable(Exception):
    """Why no triplet can be made of some utterances, in one line; `role` says of which of them, if of one."""

    def __init__(self, reason, role=None):
        super().__init__(reason)
        self.role = role


@dataclass(frozen=True)
class MixSettings:
    """How triplets are mixed.

    Attributes:
      sample_rate: Hz.
      trim_db: cut what is so far below the loudest frame off both ends of every utterance; None: nothing.
      vad_db: in training mode, cut pauses out, frames that are so far below the loudest.
      segment_s: length of the segments of training mode.
      test: one mixture of full length, rather than segments of speech without its pauses.
      parity: as the original to the last bit: without `trim_db` the levels of the files stay, and the 16-bit
        samples are clipped and rounded down. Otherwise everything is normalised, what would clip is scaled
        down, and samples are rounded.
    """

    sample_rate: int = 16000
    trim_db: float | None = 20
    vad_db: float = 20
    segment_s: float = 3
    test: bool = False
    parity: bool = False

    @property
    def segment_samples(self):
        return int(round(self.segment_s * self.sample_rate))


@dataclass(frozen=True)
class Part:
    """What is left of an utterance: signal = gain * samples, of the ranges [begin, end) of the file, joined.

    Attributes:
      signal: float64 [samples].
      gain: factor.
      ranges: int64 [ranges, 2], samples of the file at the rate of the settings.
    """

    signal: np.ndarray
    gain: float
    ranges: np.ndarray


@dataclass(frozen=True)
class Mixed:
    """One pair of a mixture and its target, float64 [samples] each, and the factors behind them.

    Attributes:
      target: target_gain * the target's ranges of its file.
      mixture: mixture_target_gain * the same + mixture_noise_gain * the interferer's ranges of its file.
      target_ranges, noise_ranges: int64 [ranges, 2]; in test mode the shorter ends in zeros.
    """

    mixture: np.ndarray
    target: np.ndarray
    target_gain: float
    mixture_target_gain: float
    mixture_noise_gain: float
    target_ranges: np.ndarray
    noise_ranges: np.ndarray


@dataclass(frozen=True)
class Draw:
    """What a triplet is made of: two talkers, a file of each for the mixture, another of the first to enrol it."""

    target_speaker: str
    noise_speaker: str
    target: str
    reference: str
    noise: str


# Level and activity -------------------------------------------------------------------------------


def loudness(signal, sample_rate):
    """Integrated loudness of `signal` ([samples], floats) in LUFS; -inf if it is silent.

    Raises:
      Unusable: it is shorter than 0.4 s.
    """
    if len(signal) < LOUDNESS_BLOCK_S * sample_rate:
        raise Unusable(f"{len(signal)} samples are shorter than {LOUDNESS_BLOCK_S} s and have no loudness")
    return _meter(sample_rate).integrated_loudness(np.asarray(signal, np.float64))


def loudness_gain(signal, sample_rate, lufs):
    """Factor that brings `signal` to `lufs`. Raises Unusable if it is silent or too short."""
    measured = loudness(signal, sample_rate)
    if not np.isfinite(measured):
        raise Unusable("silent, or nearly so")
    return 10 ** ((lufs - measured) / 20)


def activity(signal, top_db):
    """Which frames of a signal are less than `top_db` below the loudest.

    Frame i lies around sample 512 i and has 2048 samples; beyond the ends of the signal there are zeros.

    Returns:
      bool [1 + samples // 512].
    """
    hops = 1 + len(signal) // HOP
    energy = np.zeros(hops * HOP)
    energy[: len(signal)] = signal
    energy = np.einsum("ij,ij->i", *[energy.reshape(hops, HOP)] * 2)
    around = np.pad(energy, (FRAME // HOP // 2, FRAME // HOP // 2 - 1))
    power = np.lib.stride_tricks.sliding_window_view(around, FRAME // HOP).sum(axis=1) / FRAME
    level_db = 10 * np.log10(np.maximum(1e-10, power))
    return level_db - level_db.max() > -top_db


def trim_range(signal, top_db):
    """(begin, end) of what is left when the inactive frames at both ends are cut off; (0, 0) if none is active."""
    active = np.flatnonzero(activity(signal, top_db))
    if not active.size:
        return 0, 0
    return HOP * int(active[0]), min(len(signal), HOP * (int(active[-1]) + 1))


def active_ranges(signal, top_db):
    """int64 [ranges, 2], the [begin, end) of the runs of active frames."""
    edges = np.flatnonzero(np.diff(activity(signal, top_db).astype(np.int8), prepend=0, append=0))
    return np.minimum(HOP * edges.reshape(-1, 2), len(signal))


def match_lengths(first, second, mode="max"):
    """Two signals, the shorter ended with zeros ("max") or the longer cut ("min")."""
    length = (max if mode == "max" else min)(len(first), len(second))
    return tuple(np.pad(x[:length], (0, max(0, length - len(x)))) for x in (first, second))


# Mixing -------------------------------------------------------------------------------------------


def prepare(samples, settings, lufs, pauses=True):
    """Brings one utterance to its level and cuts what is not wanted of it.

    Args:
      samples: [samples], floats.
      lufs: its loudness before it is cut.
      pauses: keep the pauses.

    Returns:
      Part.

    Raises:
      Unusable: it is silent, shorter than 0.4 s, or nothing is left of it.
    """
    samples = np.asarray(samples, np.float64)
    gain = loudness_gain(samples, settings.sample_rate, lufs)
    begin, end = 0, len(samples)
    if settings.trim_db is not None:
        begin, end = trim_range(samples * gain, settings.trim_db)
    elif settings.parity:
        gain = 1.0
    signal = samples[begin:end] * gain
    ranges = np.array([[0, len(signal)]], np.int64)
    if not pauses:
        ranges = active_ranges(signal, settings.vad_db)
        signal = np.concatenate([signal[:0], *[signal[i:j] for i, j in ranges]])
    if not np.any(signal):
        raise Unusable("nothing but silence is left of it")
    return Part(signal, gain, ranges + begin)


def number_of_segments(target, noise, samples):
    """Whole segments in both signals. A segment that ends where a signal ends does not count."""
    return max(0, (min(len(target), len(noise)) - 1) // samples)


def mix_at_snr(target, noise, snr_db):
    """target + gain * noise with the ratio of their energies in dB, and that gain.

    Raises:
      Unusable: one of the two is silent.
    """
    energies = np.linalg.norm(target), np.linalg.norm(noise)
    if not all(energies):
        raise Unusable(f"the {'interferer' if energies[0] else 'target'} is silent")
    gain = energies[0] / 10 ** (snr_db / 20) / energies[1]
    return target + gain * noise, gain


def mix_parts(target, noise, snr_db, settings, segment=None):
    """Mixes two Parts, or a segment of them, at a ratio in dB; target and mixture each to -23 LUFS.

    Returns:
      Mixed.

    Raises:
      Unusable: one of the two is silent there, or too short.
    """
    if segment is None:
        s1, s2 = match_lengths(target.signal, noise.signal)
        ranges = target.ranges, noise.ranges
    else:
        begin, end = segment * settings.segment_samples, (segment + 1) * settings.segment_samples
        s1, s2 = target.signal[begin:end], noise.signal[begin:end]
        ranges = [_cut_ranges(part.ranges, begin, end) for part in (target, noise)]
    mixture, noise_gain = mix_at_snr(s1, s2, snr_db)
    target_gain, mixture_gain = (_written_gain(x, settings) for x in (s1, mixture))
    return Mixed(
        mixture * mixture_gain,
        s1 * target_gain,
        float(target.gain * target_gain),
        float(target.gain * mixture_gain),
        float(noise.gain * noise_gain * mixture_gain),
        *ranges,
    )


def make_triplet(target, noise, reference, snr_db, settings):
    """All that one triplet gives.

    Args:
      target, noise, reference: [samples], floats, of one rate.
      snr_db: energy of the target over that of the interferer.

    Returns:
      reference: Part; its signal is what is written.
      mixtures: {segment: Mixed or Unusable}; in test mode {None: Mixed}.

    Raises:
      Unusable: nothing can be made of these utterances.
    """
    parts = []
    for name, samples, lufs in (
        ("target", target, SOURCE_LUFS),
        ("interferer", noise, SOURCE_LUFS),
        ("enrolment", reference, LUFS),
    ):
        try:
            parts.append(prepare(samples, settings, lufs, pauses=settings.test or name == "enrolment"))
        except Unusable as error:
            raise Unusable(str(error), name) from error
    s1, s2, enrolment = parts
    if len(enrolment.signal) < settings.sample_rate:
        raise Unusable(f"{len(enrolment.signal)} samples are left of it, less than a second", "enrolment")
    if not settings.parity:
        gain = min(1.0, HIGHEST_PEAK / np.abs(enrolment.signal).max())
        enrolment = Part(enrolment.signal * gain, float(enrolment.gain * gain), enrolment.ranges)
    if settings.test:
        return enrolment, {None: mix_parts(s1, s2, snr_db, settings)}
    count = number_of_segments(s1.signal, s2.signal, settings.segment_samples)
    if not count:
        raise Unusable(
            f"{len(s1.signal)} and {len(s2.signal)} samples are left of them, and a segment needs more than"
            f" {settings.segment_samples} of both"
        )
    mixtures = {}
    for segment in range(count):
        try:
            mixtures[segment] = mix_parts(s1, s2, snr_db, settings, segment)
        except Unusable as error:
            mixtures[segment] = error
    return enrolment, mixtures


def pcm16(signal, parity=False):
    """int16 of a float signal; in parity clipped and rounded down, otherwise rounded (its peak must be at most 1)."""
    scaled = np.asarray(signal) * FULL_SCALE
    scaled = np.floor(scaled) if parity else np.round(scaled)
    return np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def join_ranges(samples, ranges):
    """The ranges [begin, end) of `samples`, one after the other."""
    return np.concatenate([samples[:0], *[samples[begin:end] for begin, end in ranges]])


# Drawing ------------------------------------------------------------------------------------------


def draw_in_parity(files, count, seed):
    """Draws triplets in the original's order of random numbers.

    Args:
      files: {speaker: [file]}; the order of both counts.
      count: triplets.
      seed: of Python's generator.

    Returns:
      [Draw].
    """
    rng = random.Random(seed)
    speakers = list(files)
    _require_speakers(files)
    draws = []
    while len(draws) < count:
        pair = rng.sample(speakers, 2)
        if all(len(files[speaker]) > 1 for speaker in pair):
            draws.append(_draw_files(files, pair, rng))
    return draws


def draw_triplet(files, snr_levels, seed, number, attempt=0):
    """Draws the triplet of a number, whatever the others are.

    Args:
      files: {speaker: [file]}, sorted, two or more of each.
      snr_levels: dB, one of them is drawn.
      attempt: counts the draws that could not be used.

    Returns:
      (Draw, SNR in dB).
    """
    rng = random.Random(f"{seed} {number} {attempt}")
    return _draw_files(files, rng.sample(list(files), 2), rng), rng.choice(snr_levels)


def _draw_files(files, pair, rng):
    target, reference = rng.sample(files[pair[0]], 2)
    return Draw(*pair, target, reference, rng.choice(files[pair[1]]))


def _require_speakers(files):
    if sum(len(names) > 1 for names in files.values()) < 2:
        raise ValueError("fewer than two speakers with two files")


@functools.cache
def _meter(sample_rate):
    import pyloudnorm  # here, as only the making of corpora needs it

    return pyloudnorm.Meter(sample_rate)


def _written_gain(signal, settings):
    """Factor to -23 LUFS, or less if that would clip."""
    gain = loudness_gain(signal, settings.sample_rate, LUFS)
    return gain if settings.parity else min(gain, HIGHEST_PEAK / np.abs(signal).max())


def _cut_ranges(ranges, begin, end):
    """The ranges that make up the samples [begin, end) of the joined ones."""
    ends = np.cumsum(ranges[:, 1] - ranges[:, 0])
    offsets = ranges[:, 1] - ends  # from joined to own samples
    cut = np.stack([np.maximum(ranges[:, 0], begin + offsets), np.minimum(ranges[:, 1], end + offsets)], axis=1)
    return cut[cut[:, 0] < cut[:, 1]]
