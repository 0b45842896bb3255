"""How a binaural mixture is made: every talker through the responses of two ears, the sum, noise on top.

The recipe is that of Binaural-WSJ0Mix (huangzj421): one response for each ear and talker, the power of both ears
together kept, so that level differences between the ears stay and those between talkers are those of WSJ0-2mix.
"""

from dataclasses import dataclass

import numpy as np

NOISE_RATE_HZ = 16000  # samples of noise are counted at this rate
NOISE_MARGIN = 32000  # samples of noise before and after the speech are fewer
SNR_DB = (-2.5, 15.0)
PEAK = 0.9


def convolve(signal, responses, lead=None):
    """One signal through the responses of both ears.

    Args:
      signal: [samples].
      responses: [taps, 2].
      lead: samples cut off the beginning of the full convolution; None: (taps - 1) // 2, numpy's mode "same".

    Returns:
      float64 [samples, 2].
    """
    from scipy.signal import oaconvolve  # here, as training needs the numbers of this module alone

    lead = (len(responses) - 1) // 2 if lead is None else lead
    full = oaconvolve(np.asarray(signal, np.float64)[:, None], responses, axes=0)
    return full[lead : lead + len(signal)]


def keep_power(image, source):
    """(image scaled so that the mean power of its ears is that of the source, the factor).

    Args:
      image: [samples, 2].
      source: [samples].
    """
    energy = np.sum(np.square(image))
    factor = np.sqrt(2 * np.sum(np.square(source)) / energy) if energy else 0.0
    return image * factor, float(factor)


def render(source, responses, room=False, parity=False):
    """A source as both ears hear it, see `keep_power`.

    Args:
      source: [samples].
      responses: [taps, 2].
      room: responses of a room: the convolution is not centred, so that the beginning of the speech stays.
      parity: as the original renders rooms: centred, and the right ear hears the responses of both.

    Returns:
      (float64 [samples, 2], the factor).
    """
    if room and parity:
        responses = np.cumsum(responses, axis=1)
    return keep_power(convolve(source, responses, lead=0 if room and not parity else None), source)


def fix_length(sources, mode="min"):
    """[sources, samples], cut to the shortest ("min") or zero-padded to the longest ("max")."""
    length = (min if mode == "min" else max)(map(len, sources))
    return np.stack([np.pad(x[:length], (0, max(0, length - len(x)))) for x in sources])


def join_noise(images, noise, start, mode="min"):
    """Speech and noise brought together in time.

    Args:
      images: [sources, samples, 2].
      noise: [noise samples, 2].
      start: sample of the noise where the speech begins.
      mode: "min" cuts the noise to the speech, "max" puts zeros around the speech.

    Returns:
      (images, noise), [sources, samples, 2] and [samples, 2].
    """
    samples = images.shape[1]
    if mode == "min":
        return images, noise[start : start + samples]
    around = np.zeros((len(images), len(noise), 2))
    around[:, start : start + samples] = images[:, : len(noise) - start]
    return around, noise


def truncate16(signal):
    """(int16 as the original writes it, samples beyond full scale): cut toward zero, and wrapped around.

    Args:
      signal: floats, full scale is 32768.
    """
    whole = np.trunc(signal).astype(np.int64)
    return whole.astype(np.int16), int(np.sum((whole > 32767) | (whole < -32768)))


def save16(signal):
    """int16 [samples, ears] of a float signal as the original saves its results: each ear divided by its own peak.

    A silent ear stays silent. Levels between the ears are lost, so that this is for comparison only.
    """
    peaks = np.max(np.abs(signal), axis=0, keepdims=True)
    scaled = np.floor(signal / np.where(peaks > 0, peaks, 1) * 32768)
    return np.clip(scaled, -32768, 32767).astype(np.int16)


# Dynamic mixing -----------------------------------------------------------------------------------


def clip_gains_db(first, differences):
    """Levels of the sources of a dynamic mixture, dB: the first, and the others by their differences to it."""
    return np.clip([first, *(first + np.asarray(differences))], -45, 0)


def mix_dynamically(sources, gains_db, responses):
    """A mixture of pieces of speech, as the original's dynamic mixing adds them up.

    Args:
      sources: [sources, samples].
      gains_db: [sources], dB of the mean size of a sample.
      responses: for every source [taps, 2].

    Returns:
      (mixture [samples, 2], sources [sources, samples, 2]); the largest sample of all has size 0.9.
    """
    images = []
    for source, gain_db, response in zip(sources, gains_db, responses, strict=True):
        source = source / (np.mean(np.abs(source)) + 1e-14) * 10 ** (gain_db / 20)
        images.append(render(source, response)[0])
    mixture, images = np.sum(images, axis=0), np.stack(images)
    common = PEAK / max(np.abs(mixture).max(), np.abs(images).max())
    return mixture * common, images * common


# Noise --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseDraw:
    """Where the noise of a mixture comes from; samples at 16 kHz.

    Attributes:
      before, after: samples of noise before and after the speech.
      snr_db: first talker over noise.
      file: number of the file.
      begin, end: samples of the file.
    """

    before: int
    after: int
    snr_db: float
    file: int
    begin: int
    end: int


def draw_noise(speech_samples, file_samples, rng):
    """Draws the noise of a mixture in the original's order of random numbers.

    Args:
      speech_samples: of the longest utterance.
      file_samples: of every file, [files].
      rng: numpy RandomState; its state goes on from mixture to mixture.

    Returns:
      NoiseDraw.

    Raises:
      ValueError: the drawn file is shorter than what is needed of it.
    """
    before, after = rng.randint(0, NOISE_MARGIN, 2)
    snr_db = rng.uniform(*SNR_DB)
    rng.randint(0, 1)  # of the only band
    file_samples = np.asarray(file_samples)
    file = int(rng.choice(len(file_samples), p=file_samples / file_samples.sum()))
    needed = int(speech_samples + before + after)
    if file_samples[file] <= needed:
        raise ValueError(f"{file_samples[file]} samples at 16 kHz, more than {needed} are needed")
    begin = int(rng.randint(0, file_samples[file] - needed))
    return NoiseDraw(int(before), int(after), float(snr_db), file, begin, begin + needed)


def spread(first, second, sample_rate, field, distance_m=0.175, sound_m_per_s=343.0):
    """Noise at both ears.

    Args:
      first, second: [samples], two unrelated noises of one kind.
      field: "same" in both ears; "independent"; "diffuse", with the coherence sin(kd) / kd of sound that comes
        from everywhere, d the distance of the ears.

    Returns:
      float64 [samples, 2].
    """
    if field == "same":
        return np.stack([first, first], axis=1)
    if field == "independent":
        return np.stack([first, second], axis=1)
    frequency = np.fft.rfftfreq(len(first), 1 / sample_rate)
    coherence = np.sinc(2 * frequency * distance_m / sound_m_per_s)
    common, own = (np.sqrt((1 + sign * coherence) / 2) * np.fft.rfft(x) for sign, x in ((1, first), (-1, second)))
    return np.stack([np.fft.irfft(common + sign * own, len(first)) for sign in (1, -1)], axis=1)
