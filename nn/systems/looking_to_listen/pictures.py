"""TensorBoard pictures of Looking to Listen: spectrograms and the faces beside them."""

import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt

from feat.base.files import atomic_path
from feat.signals.stft import stft
from nn.training.pictures import figure_png, separation_figure


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
