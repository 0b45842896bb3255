"""What people would rather look at: spectrograms, masks and frame assignments, in TensorBoard and as PNG."""

import io
import os
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt

from feat import dataset
from feat.files import atomic_path
from feat.stft import istft, stft
from nn import spatial_metrics

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


class SeparationPictures:
    """Draws and plays a few fixed validation mixtures; called inside the default summary writer.

    Args:
        utterances: feat.dataset.Utterances to show.
        decode: batch -> dict with `estimates` [C, T, F, 2] in talker order and, if there are any,
            `unordered`, `assign`, `oracle`.
    """

    def __init__(self, utterances, decode):
        self.utterances = utterances
        self.decode = decode

    def __call__(self, folder, step):
        """Writes summaries for TensorBoard, and PNGs into `folder`, over those of earlier steps."""
        settings = self.utterances.settings
        if not len(self.utterances):
            return
        for name, batch in zip(self.utterances.names, dataset.evaluate(self.utterances)):
            decoded = self.decode(batch)
            mixture, references = batch["mixture"][0].numpy(), batch["sources"][0].numpy()
            shown = {key: decoded.get(key) for key in ("unordered", "assign", "oracle")}
            figure = separation_figure(
                f"{name}, step {step}", settings, mixture, references, decoded["estimates"], **shown
            )
            png = figure_png(figure)
            plt.close(figure)
            with atomic_path(os.path.join(folder, name + ".png")) as temporary, open(temporary, "wb") as file:
                file.write(png)
            tf.summary.image(f"separation/{name}", tf.io.decode_png(png, 3)[None], step)
            heard = {"mixture": mixture}
            heard |= {f"talker_{i + 1}": x for i, x in enumerate(references)}
            heard |= {f"estimate_{i + 1}": x for i, x in enumerate(decoded["estimates"])}
            for what, spectra in heard.items():
                signal = istft(
                    spectra[..., 0] + 1j * spectra[..., 1], None, settings.fft_size, settings.hop_size, parity=False
                )
                signal = (signal / max(1.0, np.max(np.abs(signal)))).astype(np.float32)
                tf.summary.audio(f"{name}/{what}", signal[None, :, None], settings.sample_rate, step)


class ExtractionPictures:
    """Draws and plays the first few validation mixtures with the talkers extracted from them.

    Args:
        names: of these mixtures.
        batches: () -> iterable of batches of one mixture, in the same order.
        sample_rate: Hz.
        extract: batch of one -> estimate [samples].
    """

    def __init__(self, names, batches, sample_rate, extract):
        self.names = names
        self.batches = batches
        self.sample_rate = sample_rate
        self.extract = extract

    def __call__(self, folder, step):
        """As SeparationPictures."""
        heard = {}
        for name, batch in zip(self.names, self.batches() if self.names else ()):
            heard[name] = {kind: batch[kind][0].numpy() for kind in ("enrolment", "mixture", "target")}
            heard[name]["estimate"] = self.extract(batch)
        write_signals(heard, self.sample_rate, "extraction", folder, step)


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


WINDOW_SECONDS = 0.25  # of the cues that are drawn


def cue_tracks(ears, sample_rate):
    """Time and level difference of [samples, 2] along time: (seconds, microseconds, dB), each [windows].

    Windows overlap by half; those 40 dB below the loudest have NaN.
    """
    size = max(2, min(len(ears), round(WINDOW_SECONDS * sample_rate)))
    starts = np.arange(0, len(ears) - size + 1, max(1, size // 2))
    pieces = [ears[start : start + size] for start in starts]
    energy = np.array([np.sum(piece**2) for piece in pieces])
    heard = energy > 1e-4 * energy.max()
    times = [spatial_metrics.time_difference(x, sample_rate) if h else np.nan for x, h in zip(pieces, heard)]
    levels = [spatial_metrics.level_difference(x) if h else np.nan for x, h in zip(pieces, heard)]
    return (starts + size / 2) / sample_rate, np.array(times), np.array(levels)


def cues_figure(title, references, estimates, sample_rate, scores):
    """Time and level differences of every talker and of its estimate along time, one column a talker.

    Args:
        references, estimates: [talkers, samples, 2], in one order.
        scores: of nn.spatial_metrics.score.

    Returns:
        matplotlib figure.
    """
    talkers = len(references)
    figure, axes = plt.subplots(
        2, talkers, figsize=(4.5 * talkers, 4.5), squeeze=False, sharex=True, layout="constrained"
    )
    for column, pair in enumerate(zip(references, estimates)):
        for ears, look in zip(
            pair, (dict(label="talker", linewidth=2), dict(label="estimate", marker=".", linewidth=1))
        ):
            seconds, times, levels = cue_tracks(ears, sample_rate)
            axes[0, column].plot(seconds, times, **look)
            axes[1, column].plot(seconds, levels, **look)
        for row, (cue, unit) in enumerate((("itd", "us"), ("ild", "dB"))):
            values = scores[cue][column], scores[cue + "_estimate"][column]
            axes[row, column].set_title(f"{cue.upper()} {values[0]:.1f}, estimate {values[1]:.1f} {unit}", fontsize=9)
        axes[1, column].set_xlabel("s", fontsize=8)
        axes[0, column].set_ylim(-spatial_metrics.LONGEST_US, spatial_metrics.LONGEST_US)
    axes[0, 0].set_ylabel("us, positive: from the right", fontsize=8)
    axes[1, 0].set_ylabel("dB, positive: from the left", fontsize=8)
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


class BinauralPictures:
    """Draws the cues of the first few validation mixtures, and plays them with what was separated from them.

    Scalars of the same mixtures say how well cues are kept: validation_cues/snr_i, /delta_ITD and /delta_ILD.

    Args:
        names: of these mixtures.
        batches: () -> iterable of batches of one mixture, in the same order.
        sample_rate: Hz.
        separate: [samples, 2] -> [talkers, samples, 2].
    """

    def __init__(self, names, batches, sample_rate, separate):
        self.names = names
        self.batches = batches
        self.sample_rate = sample_rate
        self.separate = separate

    def __call__(self, folder, step):
        """As SeparationPictures."""
        rate, every = self.sample_rate, []
        for name, batch in zip(self.names, self.batches() if self.names else ()):
            mixture, references = batch["mixture"][0].numpy(), batch["sources"][0].numpy()
            estimates = self.separate(mixture)
            scores = spatial_metrics.score(estimates, references, mixture, rate)
            every.append(scores)
            estimates = estimates[scores["output"] - 1]
            figure = cues_figure(f"{name}, step {step}", references, estimates, rate, scores)
            png = figure_png(figure)
            plt.close(figure)
            with atomic_path(os.path.join(folder, name + ".png")) as temporary, open(temporary, "wb") as file:
                file.write(png)
            tf.summary.image(f"cues/{name}", tf.io.decode_png(png, 3)[None], step)
            heard = {"mixture": mixture}
            for k, pair in enumerate(zip(references, estimates)):
                heard |= {f"{kind}_{k + 1}": x for kind, x in zip(("talker", "estimate"), pair)}
            peak = max(1.0, *(np.max(np.abs(x)) for x in heard.values()))
            for kind, signal in heard.items():
                tf.summary.audio(f"{name}/{kind}", (signal / peak).astype(np.float32)[None], rate, step)
        for column in ("snr_i", "delta_ITD", "delta_ILD"):
            if every:
                value = spatial_metrics.mean([scores[column] for scores in every])
                tf.summary.scalar(f"validation_cues/{column}", value, step)


class AudioVisualPictures:
    """Draws and plays the first few validation mixtures with the voices of the faces in them.

    Args:
        names: of these mixtures.
        batches: () -> iterable of batches of one mixture, in the same order.
        sample_rate: Hz.
        separate: (mixture [samples], embeddings [faces, images, size]) -> voices [faces, samples].
    """

    def __init__(self, names, batches, sample_rate, separate):
        self.names = names
        self.batches = batches
        self.settings = _Axes(sample_rate // 1000 * 10, sample_rate)
        self.separate = separate

    def __call__(self, folder, step):
        """As SeparationPictures."""
        rate, hop = self.settings.sample_rate, self.settings.hop_size

        def spectra(signal):
            complex_spectra = stft(np.pad(signal, (0, max(0, 4 * hop - len(signal)))), 4 * hop, hop)
            return np.stack([complex_spectra.real, complex_spectra.imag], axis=-1)

        for name, batch in zip(self.names, self.batches() if self.names else ()):
            mixture, references = batch["mixture"][0].numpy(), batch["sources"][0].numpy()
            voices = self.separate(mixture, batch["embeddings"][0].numpy())
            shown = [np.stack([spectra(x) for x in signals]) for signals in (mixture[None], references, voices)]
            title = f"{name}, step {step}"
            figure = separation_figure(title, self.settings, shown[0][0], *shown[1:])
            png = figure_png(figure)
            plt.close(figure)
            with atomic_path(os.path.join(folder, name + ".png")) as temporary, open(temporary, "wb") as file:
                file.write(png)
            tf.summary.image(f"voices/{name}", tf.io.decode_png(png, 3)[None], step)
            heard = {"mixture": mixture}
            for k, pair in enumerate(zip(references, voices)):
                heard |= {f"{kind}_{k + 1}": x for kind, x in zip(("talker", "estimate"), pair)}
            peak = max(1.0, *(np.max(np.abs(x)) for x in heard.values()))
            for kind, signal in heard.items():
                tf.summary.audio(f"{name}/{kind}", (signal / peak).astype(np.float32)[None, :, None], rate, step)


class _Axes(NamedTuple):
    """What `separation_figure` wants to know of the frames."""

    hop_size: int
    sample_rate: int
