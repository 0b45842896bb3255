"""STFT and inverse STFT in keras.ops, equal to feat/signals/stft.py.

Frames are not centred: frame t covers the samples hop * t ... hop * t + fft - 1. The window is the square
root of the periodic Hann window, used for analysis and synthesis. Source: yuzhou-git/deep-casa.

`real_stft` and `real_istft` are the same by matrices of cosines and sines, for runtimes without complex numbers.
"""

import numpy as np
from keras import ops

# Share of the interior sum of squared windows under which an edge is faded in instead of amplified.
FADE = 0.25


def sqrt_hann(fft_size):
    """Square root of the periodic Hann window, [fft_size], float64."""
    return np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_size) / fft_size))


def num_frames(samples, fft_size=256, hop_size=64):
    """Number of whole frames in `samples` samples; int or integer tensor."""
    return (samples - fft_size) // hop_size + 1


def stft(waveforms, fft_size=256, hop_size=64):
    """[..., samples], float32 -> [..., frames, fft_size // 2 + 1, 2] (real, imaginary)."""
    windowed = frame(waveforms, fft_size, hop_size) * ops.convert_to_tensor(sqrt_hann(fft_size), "float32")
    return ops.stack(ops.rfft(windowed, fft_length=fft_size), axis=-1)


def real_stft(waveforms, fft_size=256, hop_size=64):
    """`stft` as one product of the frames and the windowed cosines and sines, in real numbers alone."""
    frames = frame(waveforms, fft_size, hop_size)
    kernel = fourier_matrix(fft_size) * sqrt_hann(fft_size)[:, None]
    spectra = ops.matmul(frames, ops.convert_to_tensor(kernel, "float32"))
    return ops.reshape(spectra, (*ops.shape(frames)[:-1], fft_size // 2 + 1, 2))


def fourier_matrix(fft_size):
    """[fft_size, bins * 2]: a real signal times it is its spectrum, real and imaginary parts in turn; float64."""
    spectra = np.fft.rfft(np.eye(fft_size), axis=-1)
    return np.stack([spectra.real, spectra.imag], axis=-1).reshape(fft_size, -1)


def fourier_filters(window):
    """[window, 2 window] float32: under the root of a Hann window, every sine and cosine and their negatives.

    Columns have unit norm; bins ascend.
    """
    time = np.arange(window)
    root = np.sin(np.pi * (time + 0.5) / window)
    columns = []
    for bin_ in range(window // 2 + 1):
        for wave in (np.cos, np.sin):
            column = root * wave(2 * np.pi * bin_ * (time + 0.5) / window)
            norm = np.linalg.norm(column)
            if norm > 1e-6:
                columns += [column / norm, -column / norm]
    return np.stack(columns, axis=1).astype(np.float32)


def inverse_fourier_matrix(fft_size):
    """[bins * 2, fft_size]: undoes `fourier_matrix`; the rows of the parts that `istft` ignores are 0."""
    bins = fft_size // 2 + 1
    unit = np.eye(2 * bins).reshape(2 * bins, bins, 2)
    return np.fft.irfft(unit[..., 0] + 1j * unit[..., 1], n=fft_size, axis=-1)


def frame(waveforms, fft_size, hop_size):
    """[..., samples] -> [..., frames, fft_size], without a window."""
    lead = ops.shape(waveforms)[:-1]
    parts = -(-fft_size // hop_size)  # hops per frame, rounded up
    frames = num_frames(ops.shape(waveforms)[-1], fft_size, hop_size)
    needed = (frames + parts - 1) * hop_size
    short = ops.maximum(needed - ops.shape(waveforms)[-1], 0)
    waveforms = ops.pad(waveforms, [(0, 0)] * len(lead) + [(0, short)])
    hops = ops.reshape(waveforms[..., :needed], (*lead, frames + parts - 1, hop_size))
    framed = ops.concatenate([hops[..., i : i + frames, :] for i in range(parts)], axis=-1)
    return framed[..., :fft_size]


def overlap_add(frames, hop_size):
    """[..., frames, fft_size] -> [..., (frames - 1) * hop_size + fft_size]."""
    *lead, count, fft_size = ops.shape(frames)
    parts = -(-fft_size // hop_size)
    spare = parts * hop_size - fft_size
    no_pad = [(0, 0)] * len(lead)
    frames = ops.pad(frames, [*no_pad, (0, 0), (0, spare)])
    hops = ops.reshape(frames, (*lead, count, parts, hop_size))
    total = sum(ops.pad(hops[..., i, :], [*no_pad, (i, parts - 1 - i), (0, 0)]) for i in range(parts))
    total = ops.reshape(total, (*lead, (count + parts - 1) * hop_size))
    return total[..., : (count + parts - 1) * hop_size - spare]


def istft(spectra, fft_size=256, hop_size=64, frame_mask=None, frames_before=0, parity=False):
    """Weighted overlap-add inverse: [..., frames, bins, 2] -> [..., (frames - 1) * hop_size + fft_size].

    Args:
        spectra: real and imaginary parts; those of the imaginary at bin 0 and Nyquist are ignored.
        frame_mask: [batch, frames], 1 for frames of the utterance, 0 for padding; padding then does not
            count in the window sum. None: all frames count.
        frames_before: silent frames before the first that count in the window sum, as the leading padding
            of the original's training graph does (parity).
        parity: divide by the window sum however small, as the original does, which makes clicks at the
            ends; otherwise the first and last few milliseconds are faded.
    """
    spectra = ops.cast(spectra, "float32")
    frames = ops.irfft((spectra[..., 0], spectra[..., 1]), fft_length=fft_size)
    return synthesise(frames, fft_size, hop_size, frame_mask, frames_before, parity)


def real_istft(spectra, fft_size=256, hop_size=64, frame_mask=None, frames_before=0, parity=False):
    """`istft` as one product of the spectra and cosines and sines, in real numbers alone."""
    *lead, bins, _ = ops.shape(spectra)
    flat = ops.reshape(ops.cast(spectra, "float32"), (*lead, 2 * bins))
    frames = ops.matmul(flat, ops.convert_to_tensor(inverse_fourier_matrix(fft_size), "float32"))
    return synthesise(frames, fft_size, hop_size, frame_mask, frames_before, parity)


def synthesise(frames, fft_size, hop_size, frame_mask=None, frames_before=0, parity=False):
    """Windows, overlap-adds and weighs frames [..., frames, fft_size]; the arguments are those of `istft`."""
    window = ops.convert_to_tensor(sqrt_hann(fft_size), "float32")
    signal = overlap_add(frames * window, hop_size)
    count = ops.shape(frames)[-2]
    if frame_mask is None:
        frame_mask = ops.ones((1, frames_before + count))
    squares = ops.expand_dims(ops.cast(frame_mask, "float32"), -1) * ops.square(window)
    weights = overlap_add(squares, hop_size)[:, frames_before * hop_size :]  # [1 or batch, samples]
    interior = fft_size / 2 / hop_size
    floor = 0.5 - 0.5 * np.cos(2 * np.pi / fft_size) if parity else FADE * interior
    weights = ops.maximum(weights, float(floor))
    while weights.ndim < signal.ndim:
        weights = ops.expand_dims(weights, 1)
    return signal / weights


# Centred frames ------------------------------------------------------------------------------------
#
# Frame t is centred on sample hop * t, with zeros around the signal and a Hann window, as torch.stft has it.


def hann(fft_size):
    """Periodic Hann window, [fft_size], float64."""
    return sqrt_hann(fft_size) ** 2


def centred_stft(waveforms, fft_size, hop_size):
    """[..., samples] -> real and imaginary part, each [..., 1 + samples // hop_size, fft_size // 2 + 1]; float32.

    For an even fft_size; half of it is zeros before and behind the signal.
    """
    half = fft_size // 2
    waveforms = ops.cast(waveforms, "float32")
    padded = ops.pad(waveforms, [(0, 0)] * (waveforms.ndim - 1) + [(half, half)])
    windowed = frame(padded, fft_size, hop_size) * ops.convert_to_tensor(hann(fft_size), "float32")
    return ops.rfft(windowed, fft_length=fft_size)


def centred_istft(real, imaginary, fft_size, hop_size):
    """Undoes `centred_stft`: [..., frames, bins] twice -> [..., hop_size * (frames - 1)].

    Imaginary parts of bin 0 and the last are ignored.
    """
    window = hann(fft_size)
    frames = ops.irfft((real, imaginary), fft_length=fft_size) * ops.convert_to_tensor(window, "float32")
    count = ops.shape(real)[-2]
    squares = ops.ones((count, 1)) * ops.convert_to_tensor(window**2, "float32")
    half, samples = fft_size // 2, hop_size * (count - 1)

    def inside(x):
        return overlap_add(x, hop_size)[..., half : half + samples]

    return inside(frames) / inside(squares)
