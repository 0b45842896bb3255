"""Compressed complex spectrograms of Looking to Listen, and what turns them back into waves.

Three kinds, of 257 bins a frame, hop 160 (10 ms at 16 kHz), window 400 (25 ms):

  "magnitude"  |Z| ** 0.3 with the phase kept
  "seed"       the complex number to the power 0.3, which makes phases smaller too; vitrioil/Speech-Separation
  "asteroid"   sign(r) |r| ** 0.3 of each part of a filter bank; asteroid-team/asteroid, egs/avspeech/looking-to-listen

Spectrograms are [..., frames, bins, 2], real and imaginary part.
"""

import numpy as np
from keras import ops

from models.layers.spectral import fourier_matrix, frame, inverse_fourier_matrix, overlap_add

SAMPLE_RATE = 16000
FFT_SIZE, HOP, WINDOW = 512, 160, 400
BINS = FFT_SIZE // 2 + 1
POWER = 0.3
FIXED_SAMPLES = 48050  # of the reference's clips
ASTEROID_SAMPLES = 48000  # that the recipe's decoder gives
KINDS = ("magnitude", "seed", "asteroid")
LEVELS = ("common", "separate", "none")
TINY = float(np.finfo("float32").tiny)
# Share of the largest sum of squared windows that the inverse divides by at least.
FLOOR = 1e-2


def hann(samples=WINDOW):
    """Periodic Hann window, float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(samples) / samples)


def padded_window():
    """The window in the middle of a frame of FFT_SIZE samples, float64."""
    before = (FFT_SIZE - WINDOW) // 2
    return np.pad(hann(), (before, FFT_SIZE - WINDOW - before))


def stft(waves):
    """[..., samples] -> [..., frames, bins, 2]; frame t covers the samples from HOP t on, FFT_SIZE of them."""
    # By a matrix: behind ops.rfft TensorFlow's optimiser takes the number of frames for that of bins in some gradients.
    matrix = padded_window()[:, None] * fourier_matrix(FFT_SIZE)
    frames = frame(waves, FFT_SIZE, HOP)
    spectra = ops.matmul(frames, ops.convert_to_tensor(matrix, "float32"))
    return ops.reshape(spectra, (*ops.shape(frames)[:-1], BINS, 2))


def istft(spectra, floor=FLOOR):
    """Weighted overlap-add inverse of `stft`: [..., frames, bins, 2] -> [..., HOP (frames - 1) + FFT_SIZE].

    Args:
        floor: the sum of squared windows is taken to be this share of its largest value at least; 0: sums are
            divided by as they are, however small, which makes ends large, as the reference does.
    """
    window = padded_window()
    squares = ops.convert_to_tensor(np.square(window), "float32")
    weights = overlap_add(ops.ones((ops.shape(spectra)[-3], 1)) * squares, HOP)
    matrix = ops.convert_to_tensor(inverse_fourier_matrix(FFT_SIZE) * window, "float32")
    flat = ops.reshape(spectra, (*ops.shape(spectra)[:-2], 2 * BINS))
    signal = overlap_add(ops.matmul(flat, matrix), HOP)
    if floor:
        return signal / ops.maximum(weights, float(floor * np.max(np.square(hann()))))
    return ops.where(weights > TINY, signal / ops.where(weights > TINY, weights, 1.0), signal)


def compress(spectra, kind):
    """Spectra -> compressed spectra of the same shape, of "magnitude" or "seed"."""
    return _power(spectra, POWER, kind)


def expand(spectra, kind):
    """Undoes `compress`; in "seed" phases beyond 0.3 pi wrap round. Has gradients everywhere."""
    return _power(spectra, 1 / POWER, kind)


def _power(spectra, exponent, kind):
    real, imaginary = (ops.squeeze(part, axis=-1) for part in ops.split(spectra, 2, axis=-1))
    # Squares of very small numbers vanish in float32.
    largest = ops.stop_gradient(ops.maximum(ops.abs(real), ops.abs(imaginary)))
    silent = largest <= 0.0
    safe = ops.where(silent, 1.0, largest)
    energy = ops.square(real / safe) + ops.square(imaginary / safe)
    energy = ops.where(silent, 1.0, energy)
    log_magnitude = ops.log(safe) + 0.5 * ops.log(energy)
    if kind == "magnitude":
        factor = ops.where(silent, 0.0, ops.exp((exponent - 1) * log_magnitude))
        return ops.expand_dims(factor, -1) * spectra
    if kind != "seed":
        raise ValueError(f"kind {kind!r}: should be magnitude or seed")
    magnitude = ops.where(silent, 0.0, ops.exp(exponent * log_magnitude))
    angle = exponent * ops.arctan2(ops.where(silent, 0.0, imaginary), ops.where(silent, 1.0, real))
    return ops.stack([magnitude * ops.cos(angle), magnitude * ops.sin(angle)], axis=-1)


# The recipe's filter bank ---------------------------------------------------------------------------


def asteroid_filters():
    """[WINDOW, 2 * BINS] float64: cosines, then negative sines, under the root of a Hann window."""
    before = (FFT_SIZE - WINDOW) // 2
    time = np.arange(WINDOW)[:, None] + before
    angle = 2 * np.pi * np.arange(BINS) * time / FFT_SIZE
    gain = 2 / np.sqrt(WINDOW * FFT_SIZE / HOP)
    cosines, sines = np.cos(angle), -np.sin(angle)
    cosines[:, [0, -1]] /= np.sqrt(2)
    sines[:, [0, -1]] = 0.0  # but for rounding
    return gain * np.sqrt(hann())[:, None] * np.concatenate([cosines, sines], axis=1)


def asteroid_encode(waves):
    """[..., samples] -> [..., frames, bins, 2], not compressed."""
    filtered = ops.matmul(frame(waves, WINDOW, HOP), ops.convert_to_tensor(asteroid_filters(), "float32"))
    return ops.stack(ops.split(filtered, 2, axis=-1), axis=-1)


def asteroid_compress(spectra):
    """Every number to the power 0.3, its sign kept, 1e-8 added before."""
    spectra = spectra + 1e-8
    return ops.sign(spectra) * ops.power(ops.abs(spectra), POWER)


def asteroid_decode(spectra, samples=ASTEROID_SAMPLES):
    """Compressed [..., frames, bins, 2] -> [..., samples], zeros at the end."""
    spectra = ops.sign(spectra) * ops.power(ops.abs(spectra), 1 / POWER)
    flat = ops.concatenate([ops.squeeze(part, axis=-1) for part in ops.split(spectra, 2, axis=-1)], axis=-1)
    signal = overlap_add(ops.matmul(flat, ops.convert_to_tensor(asteroid_filters().T, "float32")), HOP)
    return fit(signal, samples)


# Waves and spectrograms -----------------------------------------------------------------------------


def fit(waves, samples):
    """[..., samples'] cut at the end, or with zeros there."""
    length = ops.shape(waves)[-1]
    lead = [(0, 0)] * (len(waves.shape) - 1)
    return ops.pad(waves, [*lead, (0, ops.maximum(samples - length, 0))])[..., :samples]


def peak(waves):
    """Largest absolute value of [..., samples], [..., 1]; 1 for silence."""
    largest = ops.max(ops.abs(waves), axis=-1, keepdims=True)
    return ops.where(largest < TINY, 1.0, largest)


class Frontend:
    """Waves -> compressed spectrograms and back.

    Args:
        kind: one of KINDS.
        levels: "common": mixture and talkers are divided by the peak of the mixture; "separate": each by its own, as
            the seed does; "none": as they are, as the recipe does.
        fixed: clips of 3 s and frames from the first sample on, as the references have them; the first and last
            samples of estimates are then lost or loud. Otherwise any length: frame t lies around sample HOP t.
        strict: the inverse divides by the sum of squared windows however small.
    """

    def __init__(self, kind="magnitude", levels="common", fixed=False, strict=False):
        for name, value, known in (("spectrogram", kind, KINDS), ("levels", levels, LEVELS)):
            if value not in known:
                raise ValueError(f"{name} {value!r}: should be one of {', '.join(known)}")
        self.kind = kind
        self.levels = levels
        self.fixed = fixed
        self.strict = strict

    def frames(self, samples):
        """Frames of a wave of so many samples."""
        if self.kind == "asteroid":
            return (samples - WINDOW) // HOP + 1
        return (FIXED_SAMPLES - FFT_SIZE) // HOP + 1 if self.fixed else -(-samples // HOP) + 1

    def spectra(self, waves):
        """[..., samples] -> compressed [..., frames, bins, 2], without a change of level."""
        waves = ops.cast(waves, "float32")
        if self.kind == "asteroid":
            return asteroid_compress(asteroid_encode(waves))
        if self.fixed:
            return compress(stft(fit(waves, FIXED_SAMPLES)), self.kind)
        samples = ops.shape(waves)[-1]
        lead = [(0, 0)] * (len(waves.shape) - 1)
        after = self.frames(samples) * HOP - HOP + FFT_SIZE // 2 - samples
        return compress(stft(ops.pad(waves, [*lead, (FFT_SIZE // 2, after)])), self.kind)

    def analyse(self, mixture, sources=None):
        """Compressed spectrograms of a mixture and its talkers, and the mixture's peak.

        Args:
            mixture: [batch, samples].
            sources: [batch, talkers, samples] or None.

        Returns:
            (mixture [batch, frames, bins, 2], sources [batch, talkers, frames, bins, 2] or None, peak [batch, 1]); the
            peak is 1 where levels are "none".
        """
        mixture = ops.cast(mixture, "float32")
        if self.levels == "none":
            level = ops.ones_like(mixture[:, :1])
        else:
            level = peak(fit(mixture, FIXED_SAMPLES) if self.fixed else mixture)
        if sources is None:
            return self.spectra(mixture / level), None, level
        sources = ops.cast(sources, "float32")
        theirs = ops.expand_dims(level, 1)
        if self.levels == "separate":
            theirs = peak(fit(sources, FIXED_SAMPLES) if self.fixed else sources)
        return self.spectra(mixture / level), self.spectra(sources / theirs), level

    def synthesise(self, spectra, samples=None):
        """Compressed [..., frames, bins, 2] -> waves [..., samples], in the units of the spectrograms.

        Args:
            samples: None: all that the frames cover.
        """
        spectra = ops.cast(spectra, "float32")
        if self.kind == "asteroid":
            return asteroid_decode(spectra, ASTEROID_SAMPLES if samples is None else samples)
        waves = istft(expand(spectra, self.kind), floor=0 if self.strict else FLOOR)
        if not self.fixed:
            waves = waves[..., FFT_SIZE // 2 :]
            if samples is None:
                samples = ops.shape(waves)[-1] - FFT_SIZE // 2
        return waves if samples is None else fit(waves, samples)
