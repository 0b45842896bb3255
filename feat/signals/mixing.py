"""How WSJ0-2mix and WSJ0-3mix are mixed: active speech level, gains, length rule, common scale; and drawing.

The arithmetic is that of the create-speaker-mixtures scripts (merl.com), of voicebox's activlev for the
level (ITU-T P.56, method B). With `feat.signals.audio.to_int16` as the last step, wavs are those of pywsj0-mix.
"""

import random

import numpy as np

from feat.base.files import UserError
from feat.corpora.lists import MixtureLine

LEVEL_RATE_HZ = 8000  # levels are measured at this rate, also for mixtures at other rates
LEVEL_REVISIONS = ("padded", "unpadded", "padded_scaled")
MODES = ("min", "max")
MAX_GAIN_DB = 2.5
PEAK = 0.9

# ITU-T P.56 as voicebox carries it out.
_THRESHOLD_DB = 15.9
_BINS = 20
_HANGOVER_S = 0.2
_PADDING_S = 0.35
_TIME_CONSTANT_S = 0.03
_HIGHPASS_HZ = 200
_LOWPASS_HZ = 5500
_LOWPASS_FROM_RATE_HZ = {"padded": 12100, "unpadded": 14000, "padded_scaled": 12100}
# Fifth-order elliptic high-pass prototype: 0.25 dB down at 1 rad/s, stop band at -50 dB.
_ZEROS = np.array([0, 0.37843443673309j, -0.37843443673309j, 0.23388534441447j, -0.23388534441447j])
_POLES = np.array(
    [
        -0.66793268833792,
        -0.20640255179496 + 0.73942185906851j,
        -0.20640255179496 - 0.73942185906851j,
        -0.54036889596392 + 0.45698784092898j,
        -0.54036889596392 - 0.45698784092898j,
    ]
)


def active_level(x, sample_rate, revision="padded"):
    """Active speech level of ITU-T P.56, method B.

    Args:
      x: [samples], speech of one talker.
      sample_rate: Hz.
      revision: which revision of voicebox's activlev: "padded" (2017, appends 0.35 s of zeros), "unpadded"
        (earlier) or "padded_scaled" (2022, level bins aligned to the mean power).

    Returns:
      level: power (not dB) of the speech while it is active.
      activity: share of the time that it is active; a little above 1 is possible with "padded_scaled".

    Raises:
      ValueError: the signal is silent, so that it has no level.
    """
    if revision not in LEVEL_REVISIONS:
        raise ValueError(f"revision {revision!r}: one of {', '.join(LEVEL_REVISIONS)} is needed")
    from scipy.ndimage import maximum_filter1d  # here, as it takes 50 MB that training has no use for
    from scipy.signal import lfilter

    x = np.asarray(x, np.float64)
    signal_samples = len(x)
    if revision != "unpadded":
        x = np.pad(x, (0, int(np.ceil(_PADDING_S * sample_rate))))

    y = _speech_band(x, sample_rate, lowpass=sample_rate >= _LOWPASS_FROM_RATE_HZ[revision])
    energy = np.sum(y**2)
    if energy == 0:
        raise ValueError("the signal is silent and has no speech level")
    scale = len(x) / energy if revision == "padded_scaled" else 1.0

    # Envelope in steps of a factor of two in power, held for the hang-over time.
    decay = np.exp(-1 / (_TIME_CONSTANT_S * sample_rate))
    envelope = lfilter([(1 - decay) ** 2], [1, -2 * decay, decay**2], np.abs(y))
    power = envelope**2 * scale
    exponent = np.where(power > 0, np.frexp(power)[1], -np.inf)
    hangover = int(np.ceil(_HANGOVER_S * sample_rate))
    # The origin moves the window from around the sample to the sample and those before it.
    exponent = maximum_filter1d(
        exponent, hangover + 1, mode="constant", cval=-np.inf, origin=hangover - (hangover + 1) // 2
    )

    # Samples with an envelope above each of the thresholds, which descend in steps of 3 dB.
    top = exponent.max() + 1
    step = np.minimum(top - exponent, _BINS).astype(int)  # 1 ... 20
    counts = np.cumsum(np.bincount(step, minlength=_BINS + 1)[1:])
    level_db = 10 * np.log10(energy / counts)
    threshold_db = 10 * np.log10(2) * (top - np.arange(1, _BINS + 1) - 1) - 10 * np.log10(scale)
    level = 10 ** (_crossing(level_db, level_db - threshold_db - _THRESHOLD_DB) / 10)

    samples = signal_samples if revision == "padded_scaled" else len(x)
    return level, energy / (samples * level)


def mix_sources(sources, levels, gains_db, mode="min"):
    """Mixes one utterance of every talker, levels as wanted.

    Args:
      sources: for every talker, [samples], floats, all at one rate.
      levels: for every talker, the active level as a power (see `active_level`); it becomes 0 dB.
      gains_db: for every talker, the level in the mixture, as a number or its text.
      mode: "min" cuts all to the shortest, "max" appends zeros up to the longest.

    Returns:
      mixture: float64 [samples], the sum of the sources below.
      sources: for every talker, float64 [samples]. The largest sample of all signals has size 0.9.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: one of {', '.join(MODES)} is needed")
    length = (min if mode == "min" else max)(len(source) for source in sources)
    scaled = np.zeros((len(sources), length))
    for row, source, level, gain_db in zip(scaled, sources, levels, gains_db, strict=True):
        cut = np.asarray(source[:length], np.float64)
        row[: len(cut)] = cut * (10 ** (float(gain_db) / 20) / np.sqrt(level))
    mixture = scaled.sum(axis=0)
    common = PEAK / max(np.abs(mixture).max(), np.abs(scaled).max())
    return mixture * common, list(scaled * common)


def draw_sets(utterances_of_set, count_of_set, talkers, seed):
    """Draws what the mixtures of every set are made of; see `draw_mixtures`.

    Args:
      utterances_of_set: {set: {talker: [path]}}.
      count_of_set: {set: number of mixtures}.
      talkers: talkers of a mixture, 2 or 3.
      seed: integer; a set's list depends on it, on the set's own utterances and on its count.

    Returns:
      {set: [MixtureLine]}.

    Raises:
      UserError: a set cannot supply that many different mixtures.
    """
    lines_of_set = {}
    for set_name, count in count_of_set.items():
        try:
            rng = random.Random(f"{seed} {set_name} {talkers} talkers")
            lines_of_set[set_name] = draw_mixtures(utterances_of_set[set_name], count, talkers, rng)
        except ValueError as error:
            raise UserError(f"set {set_name}: {error}") from error
    return lines_of_set


def draw_mixtures(utterances, count, talkers, rng):
    """Draws what mixtures are made of.

    The talkers of a mixture differ. The first gain is uniform between -2.5 and 2.5 dB, the second its
    negative, the third 0. (The published lists keep the first positive, so that s1 is always the louder
    talker: an order that a network could go by.)

    Args:
      utterances: {talker: [path]}, paths relative to the corpus root, with slashes.
      count: number of mixtures.
      talkers: talkers of a mixture, 2 or 3.
      rng: random.Random; the same state draws the same list.

    Returns:
      [MixtureLine] of length `count`, no name twice.

    Raises:
      ValueError: there are fewer talkers than a mixture needs.
    """
    if count and len(utterances) < talkers:
        raise ValueError(
            f"{len(utterances)} talkers, but a mixture needs {talkers} different ones; give it more talkers"
        )
    everybody = sorted(utterances)
    lines = {}
    while len(lines) < count:
        paths = tuple(rng.choice(utterances[talker]) for talker in rng.sample(everybody, talkers))
        gain_db = rng.uniform(-MAX_GAIN_DB, MAX_GAIN_DB)
        line = MixtureLine(paths, gains_db=(f"{gain_db:.5g}", f"{-gain_db:.5g}", "0")[:talkers])
        lines.setdefault(line.name, line)
    return list(lines.values())


def _speech_band(x, sample_rate, lowpass):
    """`x` high-passed at 200 Hz and, if wanted, low-passed at 5500 Hz."""
    from scipy.signal import lfilter, zpk2tf

    warp = np.tan(_HIGHPASS_HZ * np.pi / sample_rate)
    numerator, denominator = zpk2tf(2 / (1 - _ZEROS * warp) - 1, 2 / (1 - _POLES * warp) - 1, 1)
    signs = (-1.0) ** np.arange(len(numerator))
    numerator *= np.dot(signs, denominator) / np.dot(signs, numerator)  # gain 1 at the Nyquist frequency
    x = lfilter(numerator, denominator, x)
    if lowpass:
        warp = np.tan(_LOWPASS_HZ * np.pi / sample_rate)
        numerator, denominator = zpk2tf(2 / (_ZEROS / warp - 1) + 1, 2 / (_POLES / warp - 1) + 1, 1)
        numerator *= denominator.sum() / numerator.sum()  # gain 1 at 0 Hz
        x = lfilter(numerator, denominator, x)
    return x


def _crossing(level_db, margin_db):
    """Level at which the margin over the threshold rises through 0, by linear interpolation."""
    crossings = np.flatnonzero((margin_db[:-1] < 0) & (margin_db[1:] >= 0))
    if not crossings.size:
        return level_db[-1] if margin_db[-1] <= 0 else level_db[0]
    j = crossings[0]
    return level_db[j] + (level_db[j + 1] - level_db[j]) / (1 - margin_db[j + 1] / margin_db[j])
