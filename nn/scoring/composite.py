r"""Composite measures of enhanced speech: CSIG (the speech), CBAK (the background) and COVL (all), 1 is bad, 5 good.

    python nn/scoring/composite.py --wavs results/RUN/wav/test

--wavs is what nn/diffsep_evaluate.py --save_n writes: NNNN.tgt0.wav, NNNN.enh0.wav and so on; or give --clean_folder
and --enhanced_folder. Writes SPLIT_covl.json, the measures of every file, and SPLIT_summary_covl.json, their means,
beside the folder wav (or into --output_folder). SPLIT is the name of the folder.

Regressions on PESQ (wide band), the weighted spectral slope, the log-likelihood ratio and the segmental SNR.
Source: Hu and Loizou, "Evaluation of objective quality measures for speech enhancement", 2008.
"""

import functools
import json
import os
import re

from feat.base.script import run_script

import numpy as np
from absl import flags
from numpy.typing import ArrayLike
from pesq import pesq as pesq_score

from feat.base.files import UserError, make_writable_directory, write_text
from feat.base.parallel import parallel_map
from feat.signals.audio import read_resampled

RATE = 16000  # Hz that files are brought to
MEASURES = ("csig", "cbak", "covl")
FRAME_MS, OVERLAP = 30, 0.75
KEPT = 0.95  # of the frames, those with the lowest distance
FLOOR = 1e-10
SNR_RANGE_DB = (-10.0, 35.0)

# Critical bands: centres and widths in Hz.
CENTRES = (
    *range(50, 541, 70), 617.372, 703.378, 798.717, 904.128, 1020.38, 1148.30, 1288.72, 1442.54, 1610.70, 1794.16,
    1993.93, 2211.08, 2446.71, 2701.97, 2978.04, 3276.17, 3597.63,
)  # fmt: skip
WIDTHS = (
    *[70.0] * 7, 77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914, 140.423, 153.823, 168.154, 183.457, 199.776,
    217.153, 235.631, 255.255, 276.072, 298.126, 321.465, 346.136,
)  # fmt: skip


def frames(signal: ArrayLike, sample_rate: int) -> np.ndarray:
    """Windowed frames of a signal [samples]: [frames, frame samples], overlapping by three quarters."""
    width = round(FRAME_MS * sample_rate / 1000)
    hop = int((1 - OVERLAP) * width)
    count = int(len(signal) / hop - width / hop)
    if count < 1:
        raise ValueError(f"{len(signal)} samples are shorter than two frames")
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, width + 1) / (width + 1)))
    return np.lib.stride_tricks.sliding_window_view(signal, width)[::hop][:count] * window


def weighted_spectral_slope(clean: ArrayLike, processed: ArrayLike, sample_rate: int) -> np.ndarray:
    """Distance of the slopes between critical bands, those near peaks counting most: [frames] (Klatt, 1982)."""
    slopes, weights = zip(*(_slopes(frames(x, sample_rate), sample_rate) for x in (clean, processed)))
    weight = (weights[0] + weights[1]) / 2
    return np.sum(weight * (slopes[0] - slopes[1]) ** 2, axis=1) / np.sum(weight, axis=1)


def log_likelihood_ratio(clean: ArrayLike, processed: ArrayLike, sample_rate: int) -> np.ndarray:
    """How badly the linear prediction of the processed speech fits the clean: [frames], natural logarithm."""
    order = 10 if sample_rate < 10000 else 16
    correlation, predictor = linear_prediction(frames(clean, sample_rate), order)
    _, theirs = linear_prediction(frames(processed, sample_rate), order)
    lags = np.abs(np.subtract.outer(np.arange(order + 1), np.arange(order + 1)))
    matrix = correlation[:, lags]
    energies = [np.einsum("fi,fij,fj->f", a, matrix, a) for a in (theirs, predictor)]
    with np.errstate(invalid="ignore"):
        ratio = np.log(np.maximum(energies[0], FLOOR) / np.maximum(energies[1], FLOOR))
    return np.nan_to_num(ratio)


def linear_prediction(signals: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Autocorrelation and prediction-error filters of frames: ([frames, order + 1], [frames, order + 1])."""
    width = signals.shape[1]
    correlation = np.stack(
        [np.sum(signals[:, : width - lag] * signals[:, lag:], axis=1) for lag in range(order + 1)], axis=1
    )
    # Levinson and Durbin, all frames together; silent frames give NaN, as their filter is not defined.
    predictor = np.zeros((len(signals), order + 1))
    predictor[:, 0] = 1
    error = correlation[:, 0].copy()
    with np.errstate(invalid="ignore", divide="ignore"):
        for i in range(1, order + 1):
            reflection = -np.sum(predictor[:, :i] * correlation[:, i:0:-1], axis=1) / error
            predictor[:, 1 : i + 1] += reflection[:, None] * predictor[:, i - 1 :: -1][:, :i]
            error *= 1 - reflection**2
    # The measure was fitted with coefficients of single precision.
    return correlation, predictor.astype(np.float32).astype(np.float64)


def level_matched(clean: ArrayLike, processed: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both without their mean, the processed speech with the peak of the clean."""
    clean, processed = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (clean, processed))
    return clean, processed * (np.abs(clean).max() / np.abs(processed).max())


def segmental_snr(clean: ArrayLike, processed: ArrayLike, sample_rate: int) -> np.ndarray:
    """SNR in dB of every frame, within SNR_RANGE_DB, of signals that are `level_matched`: [frames]."""
    signal, noise = frames(clean, sample_rate), frames(clean - processed, sample_rate)
    ratio = np.sum(signal**2, axis=1) / (np.sum(noise**2, axis=1) + FLOOR)
    return np.clip(10 * np.log10(ratio + FLOOR), *SNR_RANGE_DB)


def lowest_mean(distances: np.ndarray) -> float:
    """Mean of the lowest KEPT of the frames."""
    return float(np.mean(np.sort(distances)[: round(KEPT * len(distances))]))


def parts(clean: ArrayLike, processed: ArrayLike, sample_rate: int = RATE) -> dict[str, float]:
    """What the composite measures are made of: "wss", "llr", "snr", "segsnr", "pesq".

    PESQ hears the signals as the segmental SNR leaves them, see `level_matched`, as in the reference.

    Raises:
      ValueError: the signals are too short, silent, or hold no speech for PESQ.
    """
    found = {
        "wss": lowest_mean(weighted_spectral_slope(clean, processed, sample_rate)),
        "llr": lowest_mean(log_likelihood_ratio(clean, processed, sample_rate)),
    }
    if not np.ptp(clean) or not np.ptp(processed):
        raise ValueError("silent")
    clean, processed = level_matched(clean, processed)
    found["snr"] = float(10 * np.log10(np.sum(clean**2) / max(np.sum((clean - processed) ** 2), FLOOR)))
    found["segsnr"] = float(np.mean(segmental_snr(clean, processed, sample_rate)))
    try:
        found["pesq"] = float(pesq_score(sample_rate, clean, processed, "wb" if sample_rate == RATE else "nb"))
    except RuntimeError as error:
        raise ValueError(f"PESQ: {error}") from error
    return found


def composite(found: dict[str, float]) -> dict[str, float]:
    """CSIG, CBAK and COVL of `parts`, each within 1 and 5."""
    wss, llr, segsnr, pesq = (found[name] for name in ("wss", "llr", "segsnr", "pesq"))
    measures = {
        "csig": 3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss,
        "cbak": 1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * segsnr,
        "covl": 1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss,
    }
    return {name: float(np.clip(value, 1, 5)) for name, value in measures.items()}


@functools.cache
def _filters(sample_rate, bins):
    """Critical-band filters, [bands, bins]."""
    centres, widths = (np.array(values) / (sample_rate / 2) * bins for values in (CENTRES, WIDTHS))
    distance = (np.arange(bins) - np.floor(centres)[:, None]) / widths[:, None]
    filters = np.exp(-11 * distance**2 + np.log(WIDTHS[0] / np.array(WIDTHS))[:, None])
    return np.where(filters > np.exp(-30 / (2 * 2.303)), filters, 0)


def _slopes(signals, sample_rate):
    """(slopes between the bands in dB, their weights), [frames, bands - 1] both."""
    size = 2 ** int(np.ceil(np.log2(2 * signals.shape[1])))
    power = np.abs(np.fft.rfft(signals, size)[:, : size // 2]) ** 2
    energy = 10 * np.log10(np.maximum(power @ _filters(sample_rate, size // 2).T, FLOOR))
    slope = np.diff(energy, axis=1)
    bands = slope.shape[1]
    # The nearest peak: uphill to the right, one short of it, or else uphill to the left.
    rising = slope > 0
    right = np.empty(slope.shape, int)
    left = np.empty(slope.shape, int)
    for i in range(bands - 1, -1, -1):
        after = right[:, i + 1] if i + 1 < bands else np.full(len(slope), bands)
        right[:, i] = np.where(rising[:, i], after, i)
    for i in range(bands):
        before = left[:, i - 1] if i else np.full(len(slope), -1)
        left[:, i] = np.where(rising[:, i], i, before)
    peak = np.take_along_axis(energy, np.where(rising, right - 1, left + 1), axis=1)
    inner = energy[:, :-1]
    return slope, 20 / (20 + energy.max(axis=1, keepdims=True) - inner) / (1 + peak - inner)


# Files --------------------------------------------------------------------------------------------


def pairs_of_folders(clean_folder, enhanced_folder):
    """{index: [(clean path, enhanced path) of every channel]} of N.tgtC.wav and N.enhC.wav.

    Raises:
      UserError: there are none, or an enhanced file is missing.
    """
    try:
        matches = [re.fullmatch(r"(\d+)\.tgt(\d+)\.wav", name) for name in sorted(os.listdir(clean_folder))]
    except OSError as error:
        raise UserError(f"{clean_folder}: {error.strerror}; check --wavs or --clean_folder") from error
    pairs = {}
    for match in filter(None, matches):
        index, channel = map(int, match.groups())
        enhanced = os.path.join(enhanced_folder, f"{index:04d}.enh{channel}.wav")
        if not os.path.exists(enhanced):
            raise UserError(f"{enhanced}: no such file, but there is {os.path.join(clean_folder, match[0])}")
        pairs.setdefault(index, []).append((os.path.join(clean_folder, match[0]), enhanced))
    if not pairs:
        raise UserError(f"{clean_folder}: no files like 0000.tgt0.wav; run nn/diffsep_evaluate.py --save_n -1")
    return dict(sorted(pairs.items()))


def measure_files(pair):
    """Measures of (clean path, enhanced path), and None for each where they are not defined."""
    clean, enhanced = (read_resampled(path, RATE) for path in pair)
    if len(clean) != len(enhanced):
        raise UserError(f"{pair[1]}: {len(enhanced)} samples, {pair[0]} has {len(clean)}; make it again")
    try:
        return composite(parts(clean, enhanced))
    except ValueError:
        return dict.fromkeys(MEASURES)


def define_flags():
    flags.DEFINE_string("wavs", None, "folder with the targets and the enhanced files, such as results/RUN/wav/test")
    flags.DEFINE_string("clean_folder", None, "folder of NNNN.tgt0.wav, if not --wavs")
    flags.DEFINE_string("enhanced_folder", None, "folder of NNNN.enh0.wav, if not --wavs")
    flags.DEFINE_string("output_folder", None, "takes the JSON; default: beside the folder wav of --wavs")
    flags.DEFINE_string("split", None, "start of the JSON's names; default: name of the folder")
    flags.DEFINE_bool("enhance", False, "the first channel alone, the speech")
    flags.DEFINE_integer("num_workers", 0, "processes; 0: one for every core", lower_bound=0)


def main(_):
    values = flags.FLAGS
    clean, enhanced = values.clean_folder or values.wavs, values.enhanced_folder or values.wavs
    if not clean or not enhanced:
        raise UserError("give --wavs, or --clean_folder and --enhanced_folder")
    enhanced = os.path.abspath(enhanced)
    split = values.split or os.path.basename(enhanced)
    folder = values.output_folder or os.path.dirname(os.path.dirname(enhanced))
    pairs = pairs_of_folders(clean, enhanced)
    if values.enhance:
        pairs = {index: some[:1] for index, some in pairs.items()}
    make_writable_directory(folder)
    jobs = [pair for some in pairs.values() for pair in some]
    found = iter(parallel_map(measure_files, jobs, values.num_workers, "composite measures"))
    results = {}
    for index, some in pairs.items():
        measured = [next(found) for _ in some]
        results[str(index)] = {name: [each[name] for each in measured] for name in MEASURES}
    every = {name: [v for row in results.values() for v in row[name] if v is not None] for name in MEASURES}
    summary = {name: float(np.mean(some)) if some else None for name, some in every.items()} | {"number": len(results)}
    for name, content in ((f"{split}_covl.json", results), (f"{split}_summary_covl.json", summary)):
        write_text(os.path.join(folder, name), json.dumps(content, indent=2) + "\n")
    shown = ", ".join(f"{name.upper()} {summary[name]:.3f}" for name in MEASURES if summary[name] is not None)
    print(f"{folder}/{split}_covl.json: {len(results)} files, {shown or 'none of them could be measured'}")


if __name__ == "__main__":
    define_flags()
    run_script(main)
