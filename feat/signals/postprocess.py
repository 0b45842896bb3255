"""Filters that may be put behind a separated voice; none is unless it is asked for."""

import numpy as np

BAND_HZ = (1.0, 7500.0)
PARITY_BAND = (1.0, 15000.0)  # of the reference, divided by the rate once too often: 0.25 Hz to 3750 Hz at 16 kHz


def band_sections(sample_rate, low_hz=BAND_HZ[0], high_hz=BAND_HZ[1], order=5):
    """Second-order sections [order, 6] of a Butterworth band pass."""
    from scipy.signal import butter

    nyquist = sample_rate / 2
    if not 0 < low_hz < high_hz < nyquist:
        raise ValueError(f"band {low_hz} to {high_hz} Hz: should lie within 0 and {nyquist}, its lower end first")
    return butter(order, [low_hz / nyquist, high_hz / nyquist], btype="bandpass", output="sos")


def filter_audio(samples, sample_rate=16000, high_hz=None, low_hz=None, order=5, parity=False):
    """Band pass, once forward in time.

    Args:
        samples: [..., samples].
        high_hz, low_hz: edges; None: 7500 and 1 Hz.
        parity: as vitrioil/Speech-Separation, whose edges, by default 15000 and 1, come out as a quarter of their
            values at any rate.

    Returns:
        float64, of the same shape.
    """
    from scipy.signal import sosfilt

    band = PARITY_BAND if parity else BAND_HZ
    low, high = (edge if given is None else given for edge, given in zip(band, (low_hz, high_hz)))
    if parity:
        low, high = low / 4, high / 4
    return sosfilt(band_sections(sample_rate, low, high, order), samples)


def shelf_filter(gain_db, frequency_hz, slope, sample_rate, high):
    """(b, a) of a shelving filter, [3] each, a[0] being 1.

    Source: Bristow-Johnson, "Cookbook formulae for audio EQ biquad filter coefficients"; SoX's bass and treble.

    Args:
        gain_db: of the shelf.
        slope: of its edge, up to 1.
        high: the shelf lies above the frequency, otherwise below.
    """
    amplitude = 10 ** (gain_db / 40)
    angle = 2 * np.pi * frequency_hz / sample_rate
    alpha = np.sin(angle) / 2 * np.sqrt((amplitude + 1 / amplitude) * (1 / slope - 1) + 2)
    cosine = np.cos(angle)
    sign = -1 if high else 1
    more, less, edge = amplitude + 1, amplitude - 1, 2 * np.sqrt(amplitude) * alpha
    b = amplitude * np.array(
        [
            more - sign * less * cosine + edge,
            sign * 2 * (less - sign * more * cosine),
            more - sign * less * cosine - edge,
        ]
    )
    a = np.array(
        [
            more + sign * less * cosine + edge,
            -sign * 2 * (less + sign * more * cosine),
            more + sign * less * cosine - edge,
        ]
    )
    return b / a[0], a / a[0]


def shelf(samples, sample_rate=16000, gain_db=5.0, low_hz=500.0, high_hz=7000.0, slope=0.5):
    """More of what is below `low_hz`, as much less of what is above `high_hz`: [..., samples], float64."""
    from scipy.signal import lfilter

    samples = lfilter(*shelf_filter(gain_db, low_hz, slope, sample_rate, high=False), samples)
    return lfilter(*shelf_filter(-gain_db, high_hz, slope, sample_rate, high=True), samples)
