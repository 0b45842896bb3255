"""TensorBoard pictures of both stages of Deep CASA: spectrograms of mixture, references and estimates."""

import os

import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt

from feat.base.files import atomic_path
from feat.batches import deep_casa
from feat.signals.stft import istft
from nn.training.pictures import figure_png, separation_figure


class SeparationPictures:
    """Draws and plays a few fixed validation mixtures; called inside the default summary writer.

    Args:
        utterances: feat.batches.deep_casa.Utterances to show.
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
        for name, batch in zip(self.utterances.names, deep_casa.evaluate(self.utterances)):
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
