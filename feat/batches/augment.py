"""Augmentation of binaural mixtures for training, with TensorFlow operations: speed, shifts, dropped chunks and bands.

The rules are those of the BinauralWSJ0Mix recipe of SpeechBrain. What is drawn is drawn beforehand, see
feat/batches/binaural_tasnet.py; the functions here compute.
"""

import functools
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

CHUNKS, CHUNK_SAMPLES = (1, 5), (1000, 2000)  # fewest and most; shortest and longest
BANDS = (1, 3)
BAND_WIDTH = 0.05  # of the Nyquist frequency
BAND_TAPS = 101
ZERO_CROSSINGS, ROLLOFF = 6, 0.99  # torchaudio's resampler


@dataclass(frozen=True)
class Augmentation:
    """What is done to mixtures in training.

    Attributes:
      speeds: in percent; every source has one of them, the same at both ears. None: as they are.
      shift: (lowest, highest + 1) samples that every source is moved by, around its ends; None: not at all.
      drop_chunks: silence 1 to 5 pieces of the mixture.
      drop_bands: take 1 to 3 narrow bands out of the mixture.
      parity: as the original: no shift without `speeds`, and the ears are mixed up where bands are dropped.
    """

    speeds: tuple[int, ...] = (95, 100, 105)
    shift: tuple[int, int] | None = None
    drop_chunks: bool = False
    drop_bands: bool = False
    parity: bool = False

    @property
    def shifts(self):
        return self.shift is not None and (bool(self.speeds) or not self.parity)

    @property
    def remixes(self):
        """Whether sources change, so that the mixture is their sum."""
        return bool(self.speeds) or self.shifts


# Speed --------------------------------------------------------------------------------------------


@functools.cache
def speed_ratio(speed, sample_rate):
    """(samples in, samples out) of a period of the resampler that changes the speed to so many percent."""
    new_rate = round(sample_rate * 100 / speed)
    common = np.gcd(sample_rate, new_rate)
    return int(sample_rate // common), int(new_rate // common)


def speed_samples(samples, speed, sample_rate):
    """Samples that `change_speed` makes of so many."""
    period_in, period_out = speed_ratio(speed, sample_rate)
    return -(-samples * period_out // period_in)


@functools.cache
def speed_filter(speed, sample_rate):
    """The filter of every output sample of a period: (first input sample int32 [out], taps float32 [out, taps]).

    A sinc of 6 zero crossings under a Hann window reaches over some 14 samples, whatever the period.
    """
    period_in, period_out = speed_ratio(speed, sample_rate)
    base = ROLLOFF * min(period_in, period_out)
    phase = np.arange(period_out)
    reach = ZERO_CROSSINGS * period_in / base
    first = np.ceil(phase * period_in / period_out - reach).astype(np.int64)
    place = first[:, None] + np.arange(int(np.ceil(2 * reach)) + 1)
    # torchaudio rounds the phase to float32.
    rounded = (phase.astype(np.float32) / np.float32(period_out)).astype(np.float64)[:, None]
    time = np.clip(base * (place / period_in - rounded), -ZERO_CROSSINGS, ZERO_CROSSINGS)
    taps = np.cos(np.pi * time / (2 * ZERO_CROSSINGS)) ** 2 * np.sinc(time) * (base / period_in)
    return first.astype(np.int32), taps.astype(np.float32)


def change_speed(signal, speed, sample_rate):
    """A signal [samples, ears] at so many percent of its speed, [speed_samples(samples), ears]."""
    period_in, period_out = speed_ratio(speed, sample_rate)
    if period_in == period_out:
        return signal
    first, taps = speed_filter(speed, sample_rate)
    samples = tf.shape(signal, tf.int64)[0]
    output = tf.range(tf.cast(-(-samples * period_out // period_in), tf.int32))
    period, phase = output // period_out, output % period_out
    before = -int(first.min())
    padded = tf.pad(signal, [[before, taps.shape[1] + period_in], [0, 0]])
    start = period * period_in + tf.gather(first, phase) + before
    pieces = tf.gather(padded, start[:, None] + tf.range(taps.shape[1]))  # [output, taps, ears]
    return tf.reduce_sum(pieces * tf.gather(taps, phase)[..., None], axis=1)


# Dropping -----------------------------------------------------------------------------------------


def drop_chunks(signal, starts, lengths):
    """[samples, ears] with zeros in [start, start + length) of all chunks; `starts`, `lengths`: [chunks]."""
    place = tf.range(tf.shape(signal)[0])[:, None]
    dropped = tf.reduce_any((place >= starts) & (place < tf.add(starts, lengths)), axis=1)
    return tf.where(dropped[:, None], 0.0, signal)


def notch(frequency):
    """Filter float32 [101] that takes out a band at a share of the Nyquist frequency.

    The upper edge lies two widths above the lower, as in SpeechBrain.
    """
    place = np.arange(BAND_TAPS, dtype=np.float64) - BAND_TAPS // 2
    window = 0.42 - 0.5 * np.cos(2 * np.pi * np.arange(BAND_TAPS) / BAND_TAPS)
    window += 0.08 * np.cos(4 * np.pi * np.arange(BAND_TAPS) / BAND_TAPS)

    def lowpass(cutoff):
        taps = np.sinc(3 * cutoff * place / np.pi) * window
        return taps / taps.sum()

    taps = lowpass(frequency) - lowpass(frequency + 2 * BAND_WIDTH)
    taps[BAND_TAPS // 2] += 1
    return taps.astype(np.float32)


def notches(frequencies):
    """One filter float32 [101] for all of the bands."""
    taps = np.zeros(BAND_TAPS)
    taps[BAND_TAPS // 2] = 1
    for frequency in frequencies:
        taps = np.convolve(taps, notch(frequency)[::-1], "same")  # correlated, as layers of networks do
    return taps.astype(np.float32)


def drop_bands(signal, taps, parity=False):
    """[samples, ears] through the filter of `notches`.

    Args:
      parity: as SpeechBrain filters stereo: not the ears but the two halves of all samples, taken in turn from both.
    """
    samples, ears = tf.shape(signal)[0], signal.shape[1]
    rows = tf.reshape(signal, (ears, samples)) if parity else tf.transpose(signal)
    rows = tf.nn.conv1d(rows[..., None], taps[:, None, None], 1, "SAME")[..., 0]
    return tf.reshape(rows, (samples, ears)) if parity else tf.transpose(rows)
