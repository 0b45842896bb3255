"""Caches the spectrograms of pieces and mixtures: DATA/spec/<wav stem>.npy, float32 [257, 298, 2].

    python feat/avspeech/spectrograms.py --data_folder DATA

Which is what vitrioil/Speech-Separation keeps, for programs that read it; training here computes them faster than a
disk reads them, so it needs no cache. The space is said first, and beyond --most_gb nothing is written without --yes.
Those that are there are left alone.
"""

import glob
import os

from feat.base.script import run_script

import numpy as np
from absl import flags

from feat.avspeech.clips import AUDIO, MIXED, SAMPLE_RATE, stem_of
from feat.base.files import UserError, atomic_path, make_writable_directory, require_free_bytes
from feat.base.parallel import parallel_map
from feat.signals.audio import read_mono

SPEC = "spec"
SAMPLES, FRAMES, BINS = 48050, 298, 257
WINDOW, FFT, HOP = 400, 512, 160
POWER = 0.3
BYTES = 128 + BINS * FRAMES * 2 * 4


def compressed_spectrogram(samples):
    """The reference's spectrogram: fitted to 48,050 samples, peak 1, not centred, and to the complex power of 0.3.

    Args:
      samples: [samples] at 16 kHz.

    Returns:
      float32 [257, 298, 2], real and imaginary part. The power shrinks angles too.
    """
    x = np.zeros(SAMPLES, np.float64)
    x[: min(SAMPLES, len(samples))] = samples[:SAMPLES]
    peak = np.abs(x).max()
    if peak >= np.finfo(np.float32).tiny:
        x /= peak
    window = np.zeros(FFT)
    edge = (FFT - WINDOW) // 2
    window[edge : edge + WINDOW] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = np.lib.stride_tricks.sliding_window_view(x, FFT)[::HOP][:FRAMES]
    spectra = np.fft.rfft(frames * window).T  # [257, 298]
    small = np.abs(spectra) ** POWER * np.exp(1j * POWER * np.angle(spectra))
    return np.stack([small.real, small.imag], axis=-1).astype(np.float32)


def cache_spectrograms(data_folder, most_bytes=50e9, mixtures=True, num_workers=0):
    """Writes the spectrograms that are missing.

    Args:
      data_folder: see feat/avspeech/clips.py.
      most_bytes: that may be written; None: any.
      mixtures: also of the mixtures, not only of the pieces.
      num_workers: processes; 0 takes one for every core.

    Returns:
      The number of those that were made now.

    Raises:
      UserError: there are no wavs, or it would be more than `most_bytes` or than the disk has.
    """
    folders = [AUDIO, MIXED] if mixtures else [AUDIO]
    wavs = [
        path for name in folders for path in sorted(glob.glob(os.path.join(glob.escape(data_folder), name, "*.wav")))
    ]
    if not wavs:
        raise UserError(f"{data_folder}: no wavs in {' or '.join(folders)}; run feat/avspeech/cut_audio.py first")
    folder = os.path.join(data_folder, SPEC)
    jobs = [(path, os.path.join(folder, stem_of(path) + ".npy")) for path in wavs]
    jobs = [job for job in jobs if not os.path.exists(job[1])]
    needed = len(jobs) * BYTES
    print(f"{folder}: {len(jobs)} spectrograms, {needed / 1e9:.2f} GB will be written", flush=True)
    if most_bytes is not None and needed > most_bytes:
        raise UserError(f"{folder}: {needed / 1e9:.1f} GB would be written; give --yes to agree, or raise --most_gb")
    require_free_bytes(folder, needed, "the spectrograms")
    make_writable_directory(folder)
    parallel_map(_write_spectrogram, jobs, num_workers, "spectrograms")
    return len(jobs)


def _write_spectrogram(job):
    wav, path = job
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, compressed_spectrogram(read_mono(wav, SAMPLE_RATE)))


def define_flags():
    flags.DEFINE_string("data_folder", "faces", "folder of the pieces and mixtures")
    flags.DEFINE_bool("mixtures", True, "also of the mixtures")
    flags.DEFINE_float("most_gb", 50.0, "GB that may be written without --yes", lower_bound=0)
    flags.DEFINE_bool("yes", False, "write however much it is")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


def main(_):
    values = flags.FLAGS
    most = None if values.yes else 1e9 * values.most_gb
    made = cache_spectrograms(values.data_folder, most, values.mixtures, values.num_workers)
    print(f"{os.path.join(values.data_folder, SPEC)}: {made} spectrograms written")


if __name__ == "__main__":
    define_flags()
    run_script(main)
