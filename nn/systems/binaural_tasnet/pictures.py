"""TensorBoard pictures of Binaural TasNet: spectrograms, and the spatial cues over time."""

import os

import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt

from feat.base.files import atomic_path
from nn.scoring import spatial_metrics
from nn.training.pictures import figure_png

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
        scores: of nn.scoring.spatial_metrics.score.

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
