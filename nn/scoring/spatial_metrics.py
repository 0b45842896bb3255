"""Scores of binaural separation: SNR, and what became of the differences between the ears. NumPy only.

Signals are `[talkers, samples, 2]`, left ear first. Talkers on the right have a positive time difference (their sound
is late at the left ear) and a negative level difference.

By default a time difference is looked for within +-LONGEST_US, between samples, and what is not defined, as that of a
silent ear, is NaN. The functions of the reference (speechbrain/speechbrain, recipes/BinauralWSJ0Mix) take any lag of
whole samples, and of the orders of the talkers the given one and its reverse, whichever is better, for times and
levels apart.
"""

import csv
import io

import numpy as np
from numpy.typing import ArrayLike
from scipy.fft import next_fast_len
from scipy.optimize import linear_sum_assignment

LONGEST_US = 1000.0  # a head is 0.7 ms wide
OVERSAMPLING = 8
REFERENCE_COLUMNS = ("snr", "snr_i", "delta_ITD", "delta_ILD")
COLUMNS = (*REFERENCE_COLUMNS, "delta_ITD_reference", "delta_ILD_reference")
DEFINITIONS = {
    "SNR": "10 log10(|s|^2 / |e - s|^2) in dB, means removed, mean over the ears and talkers, best order of talkers",
    "SNRi": "SNR less that of the mixture in place of every talker, in dB",
    "Delta ITD": f"mean over talkers of |ITD of e - ITD of s| in microseconds; GCC-PHAT within {LONGEST_US:g}"
    " microseconds, between samples; the order of talkers is that of the SNR",
    "Delta ILD": "mean over talkers of |ILD of e - ILD of s| in dB, in the same order",
    "as the reference": "whole samples, any lag; the given order of talkers or its reverse, whichever is better",
}


def pairwise_snr(estimates: ArrayLike, references: ArrayLike) -> np.ndarray:
    """Mean over the ears of the SNR of every estimate against every talker, dB: [estimates, talkers].

    The constants are the reference's: 80 dB above the energy for a perfect estimate, -80 dB for a silent talker.
    """
    estimates, references = (np.asarray(x, np.float64) for x in (estimates, references))
    estimates, references = (x - x.mean(axis=1, keepdims=True) for x in (estimates, references))
    noise = np.stack([np.sum((estimate - references) ** 2, axis=1) for estimate in estimates])
    signal = np.sum(references**2, axis=1)
    return np.mean(10 * np.log10(signal / (noise + 1e-8) + 1e-8), axis=-1)


def best_order(pairwise: np.ndarray) -> np.ndarray:
    """For every talker the estimate that makes the sum of `pairwise_snr` largest: int [talkers]."""
    rows, talkers = linear_sum_assignment(np.nan_to_num(pairwise, nan=-1e3), maximize=True)
    return rows[np.argsort(talkers)]


def time_difference(ears: ArrayLike, sample_rate: int, longest_us: float = LONGEST_US) -> float:
    """Interaural time difference of [samples, 2] in microseconds; NaN if an ear is silent.

    GCC-PHAT, interpolated OVERSAMPLING-fold, and by a parabola between those points.
    """
    ears = np.asarray(ears, np.float64)
    if not np.isfinite(ears).all() or not np.any(ears, axis=0).all():
        return float("nan")
    size = next_fast_len(2 * len(ears), real=True)
    left, right = np.fft.rfft(ears, size, axis=0).T
    cross = left * np.conj(right)
    magnitude = np.abs(cross)
    cross /= magnitude + 1e-6 * magnitude.max()
    correlation = np.fft.irfft(cross, OVERSAMPLING * size)
    rate = OVERSAMPLING * sample_rate
    longest = min(int(longest_us * 1e-6 * rate), OVERSAMPLING * len(ears) - 1)
    near = np.concatenate([correlation[len(correlation) - longest :], correlation[: longest + 1]])
    peak = int(np.argmax(near))
    lag = float(peak - longest)
    if 0 < peak < len(near) - 1:
        before, at, after = near[peak - 1 : peak + 2]
        bend = before - 2 * at + after
        lag += 0.5 * (before - after) / bend if bend < 0 else 0.0
    return 1e6 * lag / rate


def reference_time_difference(ears: ArrayLike, sample_rate: int) -> float:
    """The reference's: the lag of whole samples, however long, where |GCC-PHAT| is largest, in microseconds.

    The first of all lags if an ear is silent.
    """
    ears = np.asarray(ears, np.float32)
    size = 2 * len(ears)
    left, right = (np.fft.rfft(ear, size) for ear in ears.T)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.fft.irfft(left / np.abs(left) * np.conj(right / np.abs(right)), size)
    longest = size // 2 + 1
    both = np.concatenate([correlation[-longest:], correlation[:longest]])
    return 1e6 * (int(np.argmax(np.abs(both))) - longest) / sample_rate


def level_difference(ears: ArrayLike) -> float:
    """Interaural level difference of [samples, 2] in dB; NaN if an ear is silent."""
    left, right = np.sum(np.asarray(ears, np.float64) ** 2, axis=0)
    return float(10 * np.log10(left / right)) if left > 0 and right > 0 else float("nan")


def reference_level_difference(ears: ArrayLike) -> float:
    """The reference's, which has values for silent ears too."""
    left, right = np.sum(np.asarray(ears, np.float64) ** 2, axis=0)
    return float(10 * np.log10(left / (right + 1e-8) + 1e-8))


def reference_delta(of_estimates: np.ndarray, of_references: np.ndarray) -> float:
    """Mean difference of a cue, [talkers] twice, in the given order of the talkers or reversed: the smaller."""
    orders = (of_estimates, of_estimates[::-1])
    return min(float(np.mean(np.abs(of_references - order))) for order in orders)


def score(estimates: ArrayLike, references: ArrayLike, mixture: ArrayLike, sample_rate: int) -> dict:
    """Scores of one mixture.

    Args:
      estimates: [talkers, samples, 2], in any order.
      references: [talkers, samples, 2].
      mixture: [samples, 2].
      sample_rate: Hz.

    Returns:
      {one of COLUMNS: number}, and by talker, in the order of the references, [talkers]: "output" (number of the
      estimate), "itd", "itd_estimate", "ild", "ild_estimate".
    """
    estimates, references = np.asarray(estimates), np.asarray(references)
    if estimates.shape != references.shape or references.ndim != 3 or references.shape[-1] != 2:
        raise ValueError(
            f"estimates {list(estimates.shape)} and references {list(references.shape)} should both be"
            " [talkers, samples, 2]"
        )
    pairwise = pairwise_snr(estimates, references)
    order = best_order(pairwise)
    talkers = np.arange(len(references))
    snr = float(np.mean(pairwise[order, talkers]))
    baseline = float(np.mean(pairwise_snr(np.asarray(mixture)[None], references)))
    ordered = estimates[order]
    itd, itd_estimate = ([time_difference(x, sample_rate) for x in signals] for signals in (references, ordered))
    ild, ild_estimate = ([level_difference(x) for x in signals] for signals in (references, ordered))
    cues = {"itd": itd, "itd_estimate": itd_estimate, "ild": ild, "ild_estimate": ild_estimate}
    cues = {name: np.array(values) for name, values in cues.items()}
    as_before = {
        "delta_ITD_reference": [
            [reference_time_difference(x, sample_rate) for x in signals] for signals in (estimates, references)
        ],
        "delta_ILD_reference": [
            [reference_level_difference(x) for x in signals] for signals in (estimates, references)
        ],
    }
    return {
        "snr": snr,
        "snr_i": snr - baseline,
        "delta_ITD": float(np.mean(np.abs(cues["itd_estimate"] - cues["itd"]))),
        "delta_ILD": float(np.mean(np.abs(cues["ild_estimate"] - cues["ild"]))),
        **{name: reference_delta(*map(np.array, pair)) for name, pair in as_before.items()},
        "output": order + 1,
        **cues,
    }


def columns(parity: bool) -> dict:
    """{column of the CSV: one of COLUMNS}; in parity those of the reference alone, under its names."""
    if not parity:
        return {name: name for name in COLUMNS}
    return {name: name + "_reference" if "delta" in name else name for name in REFERENCE_COLUMNS}


def mean(values: list) -> float:
    """Mean of the values that are defined, NaN if there are none."""
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else float("nan")


def format_csv(names: list, scores: list, parity: bool = False) -> str:
    """A line for every utterance, and their means; the reference's test_results.csv, with more columns by default.

    Args:
      names: of the mixtures.
      scores: of each, see `score`.
    """
    shown = columns(parity)
    talkers = [] if parity or not scores else [f"s{c + 1}" for c in range(len(scores[0]["output"]))]
    cues = ("output", "itd", "itd_estimate", "ild", "ild_estimate")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["snt_id", *shown, *(f"{talker}_{cue}" for talker in talkers for cue in cues)])
    for name, found in zip(names, scores, strict=True):
        by_talker = [found[cue][c] for c in range(len(talkers)) for cue in cues]
        writer.writerow([name, *(found[key] for key in shown.values()), *by_talker])
    writer.writerow(
        ["avg", *(mean([found[key] for found in scores]) for key in shown.values()), *[""] * len(talkers) * len(cues)]
    )
    return text.getvalue()


def format_table(label: str, scores: list) -> str:
    """The means as a table in the form of the reference's README, with units, and what each number is."""
    means = {name: mean([found[name] for found in scores]) for name in COLUMNS}
    undefined = sum(not np.isfinite(found["delta_ITD"] + found["delta_ILD"]) for found in scores)
    lines = [
        "| | SNR (dB) | SNRi (dB) | Delta ITD (us) | Delta ILD (dB) | Delta ITD, Delta ILD as the reference |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| {label} | {means['snr']:.2f} | {means['snr_i']:.2f} | {means['delta_ITD']:.2f} | {means['delta_ILD']:.2f}"
        f" | {means['delta_ITD_reference']:.2f}, {means['delta_ILD_reference']:.2f} |",
        "",
        f"{len(scores)} mixtures; {undefined} with a silent ear, whose differences are not in the means.",
    ]
    return "\n".join([*lines, *(f"{name}: {text}." for name, text in DEFINITIONS.items())]) + "\n"
