"""Noise made here, for where there are no recordings of it."""

import os
import random

import numpy as np

from feat.base.parallel import progress
from feat.signals.audio import read_mono, resample, wav_info, write_pcm16

KINDS = ("white", "pink", "speech_shaped", "modulated", "hum", "babble")
BABBLERS = 8


def synthesise(kind, samples, sample_rate, rng, speech=()):
    """Noise of a kind.

    Args:
      kind: one of KINDS.
      samples: how many.
      sample_rate: Hz.
      rng: numpy Generator.
      speech: for babble, utterances [samples] of several talkers.

    Returns:
      float64 [samples] of power 1.
    """
    if kind == "babble":
        noise = np.zeros(samples)
        for utterance in speech:
            level = np.sqrt(np.mean(np.square(utterance))) + 1e-9
            noise += np.resize(np.roll(utterance, rng.integers(len(utterance))), samples) / level
    else:
        frequency = np.fft.rfftfreq(samples, 1 / sample_rate)
        noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * _shape(kind, frequency), samples)
    if kind == "modulated":
        slow = np.abs(rng.standard_normal(samples * 8 // sample_rate + 4))
        noise *= np.interp(np.arange(samples) * 8 / sample_rate, np.arange(len(slow)), slow)
    if kind == "hum":
        base = rng.choice([50.0, 60.0]) * rng.uniform(0.99, 1.01)
        phase = 2 * np.pi * base * np.arange(samples) / sample_rate
        harmonics = range(1, 1 + int(min(20, 0.45 * sample_rate // base)))
        tones = sum(np.sin(h * phase + rng.uniform(0, 6.3)) / h for h in harmonics)
        noise = tones + 0.3 * noise / np.std(noise)
    return noise / max(1e-9, np.sqrt(np.mean(noise**2)))


def write_recordings(folder, speech, sample_rate, seed=0, per_kind=8, seconds=12):
    """Writes KIND_NN.wav of every kind into a folder, those that are missing.

    Args:
      speech: paths of utterances, for babble.
      sample_rate: Hz.

    Returns:
      [path].
    """
    paths = []
    for name in progress([f"{kind}_{number:02d}" for kind in KINDS for number in range(per_kind)], "noise"):
        paths.append(os.path.join(folder, name + ".wav"))
        if os.path.exists(paths[-1]):
            continue
        chosen = random.Random(f"{seed} {name}").choices(speech, k=BABBLERS) if name.startswith("babble") else ()
        chosen = [resample(read_mono(path), wav_info(path).sample_rate, sample_rate) for path in chosen]
        rng = np.random.default_rng((seed, *name.encode()))
        noise = synthesise(name.rsplit("_", 1)[0], seconds * sample_rate, sample_rate, rng, chosen)
        write_pcm16(paths[-1], 0.9 * noise / np.abs(noise).max(), sample_rate)
    return paths


def _shape(kind, frequency):
    """Amplitude over frequency in Hz."""
    if kind == "white":
        return np.ones_like(frequency)
    if kind in ("pink", "hum"):
        return 1 / np.sqrt(np.maximum(frequency, 20))
    # Speech: even between 100 and 500 Hz, 9 dB less per octave above.
    frequency = np.maximum(frequency, 1)
    return np.minimum(1, (frequency / 100) ** 2) * np.minimum(1, (frequency / 500) ** -1.5)
