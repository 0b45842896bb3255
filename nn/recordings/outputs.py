"""The folder that inference writes to, and the checkpoint that it takes."""

import os

import numpy as np
from absl import flags

from feat.base.files import UserError, atomic_path, make_writable_directory
from feat.signals.audio import write_pcm16
from nn.training import flags as training_flags

FLAGS = flags.FLAGS


class OutputFolder:
    """Where inference writes: `<name>.bin` in the original's layout, `<name>_s1.wav`, ... beside it.

    A .bin is raw little-endian float32, C order, [3 * talkers, samples]: the references, the outputs, then
    the mixture once for every talker.

    Args:
        folder: is made.
        settings: FeatureSettings.
    """

    def __init__(self, folder, settings):
        self.folder = folder
        self.settings = settings
        make_writable_directory(folder)

    def has(self, name):
        return os.path.exists(os.path.join(self.folder, name + ".bin"))

    def write(self, name, signals, outputs, **arrays):
        """Writes one mixture.

        Args:
            signals: [talkers + 1, samples], references and mixture.
            outputs: [talkers, samples].
            arrays: for `<name>_assign.npz`, if any.

        Returns:
            whether the wavs had to be made quieter.
        """
        path = os.path.join(self.folder, name)
        outputs = np.asarray(outputs, np.float32)
        peak = np.max(np.abs(outputs))
        for i, output in enumerate(outputs):
            # All talkers by one factor, so that their balance is kept.
            write_pcm16(f"{path}_s{i + 1}.wav", output / max(1.0, peak), self.settings.sample_rate)
        if arrays:
            with atomic_path(path + "_assign.npz") as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays)
        rows = np.concatenate([signals[:-1], outputs, np.repeat(signals[-1:], len(outputs), axis=0)])
        with atomic_path(path + ".bin") as temporary, open(temporary, "wb") as file:
            file.write(rows.astype("<f4").data)
        return bool(peak > 1)

    def finish(self, quieter):
        """Says what was written; `quieter`: what `write` gave for every mixture."""
        print(f"{self.folder}: {len(quieter)} mixtures separated, .bin and .wav")
        if any(quieter):
            print(f"{self.folder}: {sum(quieter)} of them were made quieter in the .wav, not the .bin, to fit 16 bits")


def fit_length(signals, samples):
    """Cuts [..., samples'] to `samples`, or fills it with zeros at the end."""
    signals = signals[..., :samples]
    missing = samples - signals.shape[-1]
    return np.pad(signals, [(0, 0)] * (signals.ndim - 1) + [(0, missing)])


def checkpoint_to_use():
    """The checkpoint for inference: --resume_model, or else the best of the run's folder.

    Raises:
        UserError: neither is there.
    """
    if FLAGS.resume_model:
        return FLAGS.resume_model
    best = os.path.join(training_flags.run_folder(), "best")
    if not os.path.exists(best):
        raise UserError(f"{best}: no such checkpoint; train first, or give --resume_model PREFIX")
    return best
