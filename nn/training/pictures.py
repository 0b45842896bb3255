"""What people would rather look at: spectrograms, masks and frame assignments, in TensorBoard and as PNG."""

import io
import os

import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt

from feat.base.files import atomic_path
from feat.signals.stft import stft

matplotlib.use("Agg")

RANGE_DB = 60.0


def decibels(magnitude, largest):
    """Magnitudes -> dB below `largest`, at least -RANGE_DB."""
    return 20 * np.log10(np.maximum(magnitude / max(largest, 1e-12), 10 ** (-RANGE_DB / 20)))


def magnitude_db(spectra):
    """Real and imaginary parts [..., 2] -> dB below the largest value of the whole array."""
    magnitude = np.hypot(spectra[..., 0], spectra[..., 1])
    return decibels(magnitude, magnitude.max())


def draw_spectrogram(axis, levels, seconds, sample_rate, **options):
    """Draws [frames, bins], dB up to 0 unless the options of imshow say otherwise, over seconds and kHz."""
    options = dict(cmap="magma", vmin=-RANGE_DB, vmax=0) | options
    extent = (0, seconds, 0, sample_rate / 2000)
    axis.imshow(levels.T, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **options)


def separation_figure(title, settings, mixture, references, estimates, unordered=None, assign=None, oracle=None):
    """Spectrograms of a mixture, its talkers and their estimates, one column a talker.

    Args:
        title: of the figure.
        settings: FeatureSettings, for the axes.
        mixture: [frames, bins, 2].
        references, estimates: [talkers, frames, bins, 2].
        unordered: estimates as the first stage gave them; their masks are drawn.
        assign, oracle: [frames] indices of the chosen permutation and the one that the references choose.

    Returns:
        matplotlib figure.
    """
    talkers = len(references)
    rows = [("mixture", [mixture] * talkers), ("talker", references), ("estimate", estimates)]
    height = len(rows) + (unordered is not None) + (0.5 if assign is not None else 0)
    ratios = [1] * (len(rows) + (unordered is not None)) + ([0.4] if assign is not None else [])
    figure, axes = plt.subplots(
        len(ratios),
        talkers,
        figsize=(5 * talkers, 1.8 * height),
        squeeze=False,
        sharex=True,
        height_ratios=ratios,
        layout="constrained",
    )
    seconds = mixture.shape[0] * settings.hop_size / settings.sample_rate
    for row, (name, spectra) in enumerate(rows):
        for column in range(talkers):
            draw_spectrogram(axes[row, column], magnitude_db(spectra[column]), seconds, settings.sample_rate)
            axes[row, column].set_title(name if name == "mixture" else f"{name} {column + 1}", fontsize=9)
    if unordered is not None:
        loudness = np.hypot(mixture[..., 0], mixture[..., 1])
        for column in range(talkers):
            mask = np.hypot(unordered[column, ..., 0], unordered[column, ..., 1]) / np.maximum(loudness, 1e-8)
            look = dict(cmap="viridis", vmin=0, vmax=1.5)
            draw_spectrogram(axes[len(rows), column], mask, seconds, settings.sample_rate, **look)
            axes[len(rows), column].set_title(f"mask {column + 1}, frames unordered", fontsize=9)
    if assign is not None:
        times = np.arange(len(assign)) * settings.hop_size / settings.sample_rate
        for axis, (name, order) in zip(axes[-1], (("assignment", assign), ("oracle", oracle))):
            axis.step(times, order, where="post", linewidth=0.8)
            axis.set_title(name, fontsize=9)
            axis.set_yticks(range(int(max(np.max(assign), np.max(oracle), 1)) + 1))
    for axis in axes[: len(axes) - (assign is not None), 0]:
        axis.set_ylabel("kHz", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("s", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def figure_png(figure, dpi=80):
    """PNG bytes of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def write_signals(heard, sample_rate, group, folder, step):
    """Draws and plays signals, as SeparationPictures.

    Args:
        heard: {name of a mixture: {kind: [samples]}}.
        sample_rate: Hz.
        group: of the pictures in TensorBoard.
    """
    for name, signals in heard.items():
        figure, axes = plt.subplots(len(signals), 1, figsize=(6, 1.8 * len(signals)), layout="constrained")
        fft_size = sample_rate // 1000 * 32
        for axis, (kind, signal) in zip(axes, signals.items()):
            levels = np.abs(stft(signal, fft_size, fft_size // 4))
            draw_spectrogram(axis, decibels(levels, levels.max()), len(signal) / sample_rate, sample_rate)
            axis.set_title(kind, fontsize=9)
            axis.set_ylabel("kHz", fontsize=8)
        axes[-1].set_xlabel("s", fontsize=8)
        figure.suptitle(f"{name}, step {step}", fontsize=10)
        png = figure_png(figure)
        plt.close(figure)
        with atomic_path(os.path.join(folder, name + ".png")) as temporary, open(temporary, "wb") as file:
            file.write(png)
        tf.summary.image(f"{group}/{name}", tf.io.decode_png(png, 3)[None], step)
        for kind, signal in signals.items():
            signal = (signal / max(1.0, np.max(np.abs(signal)))).astype(np.float32)
            tf.summary.audio(f"{name}/{kind}", signal[None, :, None], sample_rate, step)
