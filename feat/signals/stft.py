"""STFT and inverse STFT of Deep CASA in NumPy, double precision inside; models/layers/spectral.py is equal to it.

Frames are not centred and nothing is padded: frame t covers the samples hop * t ... hop * t + fft - 1,
and the samples behind the last whole frame belong to none. The window is the square root of the periodic
Hann window, for analysis and synthesis. Source: yuzhou-git/deep-casa.
"""

import numpy as np
from scipy import fft as scipy_fft

FADE = 0.25  # as in models/layers/spectral.py
CACHED_SAMPLES = 1 << 14


def sqrt_hann(fft_size):
    """Square root of the periodic Hann window, [fft_size], float64."""
    return np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_size) / fft_size))


def num_frames(samples, fft_size=256, hop_size=64):
    """Number of whole frames in `samples` samples; 0 or less if there is none."""
    return (samples - fft_size) // hop_size + 1


def num_samples(frames, fft_size=256, hop_size=64):
    """Number of samples that `frames` frames cover."""
    return (frames - 1) * hop_size + fft_size


def stft(signals, fft_size=256, hop_size=64):
    """[..., samples] -> complex128 [..., frames, fft_size // 2 + 1]. Raises ValueError below one frame."""
    return scipy_fft.rfft(_frames(signals, fft_size, hop_size) * sqrt_hann(fft_size), axis=-1)


def stft_planes(signals, fft_size=256, hop_size=64):
    """`stft` of [signals, samples] as float32 [signals, 2 (real, imaginary), frames, bins], four times as fast.

    A few frames at a time stay in the processor's cache, from the window to the rounding, in memory that the
    allocator has at hand.
    """
    frames = _frames(signals, fft_size, hop_size)
    window = sqrt_hann(fft_size)
    planes = np.empty((len(signals), 2, frames.shape[1], fft_size // 2 + 1), np.float32)
    at_once = max(1, CACHED_SAMPLES // fft_size)
    for signal, plane in zip(frames, planes):
        for first in range(0, len(signal), at_once):
            spectra = scipy_fft.rfft(signal[first : first + at_once] * window, axis=-1)
            plane[0, first : first + at_once] = spectra.real
            plane[1, first : first + at_once] = spectra.imag
    return planes


def _frames(signals, fft_size, hop_size):
    """[..., samples] -> a view [..., frames, fft_size]."""
    if num_frames(signals.shape[-1], fft_size, hop_size) < 1:
        raise ValueError(f"{signals.shape[-1]} samples are shorter than one window of {fft_size}")
    return np.lib.stride_tricks.sliding_window_view(signals, fft_size, axis=-1)[..., ::hop_size, :]


def istft(spectra, samples=None, fft_size=256, hop_size=64, parity=True):
    """Weighted overlap-add inverse.

    Args:
        spectra: complex [..., frames, bins]; imaginary parts of bin 0 and Nyquist are ignored.
        samples: length of the result, cut or filled with zeros; default: what the frames cover.
        parity: divide by the sum of squared windows however small, as the original, which makes clicks at
            the ends; otherwise the first and last few milliseconds are faded.

    Returns:
        float64 [..., samples].
    """
    window = sqrt_hann(fft_size)
    count = spectra.shape[-2]
    frames = scipy_fft.irfft(spectra, n=fft_size, axis=-1) * window
    covered = num_samples(count, fft_size, hop_size)
    signal = np.zeros((*spectra.shape[:-2], covered))
    weights = np.zeros(covered)
    # One addition a residue class of frames: those of a class do not overlap.
    apart = -(-fft_size // hop_size)
    for first in range(min(apart, count)):
        some = frames[..., first::apart, :]
        starts = hop_size * (first + apart * np.arange(some.shape[-2]))
        index = (starts[:, None] + np.arange(fft_size)).ravel()
        signal[..., index] += some.reshape(*some.shape[:-2], -1)
        weights[index] += np.tile(np.square(window), some.shape[-2])
    if parity:
        weights[weights == 0] = 1
    else:
        weights = np.maximum(weights, FADE * fft_size / 2 / hop_size)
    signal /= weights
    if samples is None or samples == covered:
        return signal
    if samples < covered:
        return signal[..., :samples]
    return np.concatenate([signal, np.zeros((*signal.shape[:-1], samples - covered))], axis=-1)
