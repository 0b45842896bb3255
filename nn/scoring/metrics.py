"""Scores of separated speech, and the order in which the estimates match the talkers. NumPy only.

Signals are real arrays `[talkers, samples]` of any float type; row k of `estimates` is scored against
row k of `references`, with float64 arithmetic, and every metric returns float64 `[talkers]`.

A score that is not defined is NaN, for the caller to count: no metric fails on a signal. That is so for
a silent signal (all samples equal), for one that is not finite, and where the package behind a metric
gives up. Decibels are limited to +-LIMIT_DB, so that a perfect estimate does not make a mean infinite.
"""

import contextlib
import itertools
import warnings
from importlib.metadata import version

import numpy as np
from numpy.typing import ArrayLike
from pesq import pesq as pesq_score
from scipy.optimize import linear_sum_assignment

LIMIT_DB = 100.0  # beyond what 16-bit samples can tell
SDR_FILTER_SAMPLES = 512
PESQ_MODES = {8000: "nb", 16000: "wb"}  # sample rate in Hz: narrow or wide band
PESQ_LONGEST_S = 20.0
DECIBEL_METRICS = ("si_sdr", "snr", "sdr")  # those whose improvement over the mixture is a difference

# What the packages raise on signals they cannot score; anything else is a bug and must be seen.
_UNSCORABLE = (RuntimeError, RuntimeWarning, ValueError, IndexError, ArithmeticError)

DEFINITIONS = {
    "si_sdr": (
        "scale-invariant signal-to-distortion ratio in dB, 10 log10(|a s|^2 / |a s - e|^2) with"
        f" a = <e, s> / |s|^2, means of estimate e and reference s removed, limited to +-{LIMIT_DB:g} dB;"
        " own code"
    ),
    "si_sdri": "SI-SDR of the estimate minus SI-SDR of the unprocessed mixture for the same talker, in dB",
    "snr": (
        "signal-to-noise ratio in dB, 10 log10(|s|^2 / |e - s|^2), means kept, level not matched,"
        f" limited to +-{LIMIT_DB:g} dB; own code"
    ),
    "snri": "SNR of the estimate minus SNR of the unprocessed mixture for the same talker, in dB",
    "sdr": (
        "BSS-eval signal-to-distortion ratio in dB over the whole signal, as SI-SDR but with the reference"
        f" filtered by the best {SDR_FILTER_SAMPLES}-tap FIR filter, means kept, solved exactly, limited to"
        f" +-{LIMIT_DB:g} dB; package fast_bss_eval {version('fast_bss_eval')}"
    ),
    "sdri": "SDR of the estimate minus SDR of the unprocessed mixture for the same talker, in dB",
    "pesq": (
        "PESQ as MOS-LQO, narrow band (P.862.1) at 8 kHz and wide band (P.862.2) at 16 kHz, 1 is bad and"
        f" 4.5 good, signals up to {PESQ_LONGEST_S:g} s; package pesq {version('pesq')}"
    ),
    "estoi": (
        "extended short-time objective intelligibility, 0 is bad and 1 good, at least 30 frames (0.4 s) of"
        f" speech; package pystoi {version('pystoi')}"
    ),
    "confusion": (
        "share of talkers confused: their estimate is nearer, in SI-SDR, to the rest of the mixture, in which they are"
        " not, than to them"
    ),
    "frame_accuracy": (
        "share of the frames of an utterance whose estimates go to the talkers that the references choose,"
        " under the one naming of the talkers that is best for the utterance"
    ),
    "frame_accuracy_weighted": (
        "frame accuracy with every frame counted by its share in the difference that the order makes to"
        " the pairwise cost, so that silent frames count nothing"
    ),
}


def si_sdr(estimates: ArrayLike, references: ArrayLike, zero_mean: bool = True, pairwise: bool = False) -> np.ndarray:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., ICASSP 2019).

    Args:
      estimates: [talkers, samples].
      references: [talkers, samples]; with `pairwise` the numbers of rows may differ.
      zero_mean: remove the mean of every signal first.
      pairwise: score every estimate against every reference.

    Returns:
      [talkers], or [references, estimates] if `pairwise`.
    """
    estimates, references = _signals(estimates, references, pairwise)
    if zero_mean:
        estimates, references = (x - x.mean(axis=-1, keepdims=True) for x in (estimates, references))
    estimates, references = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (estimates, references))
    cosine = references @ estimates.T if pairwise else np.sum(references * estimates, axis=-1)
    return _ratio_db(cosine**2, 1 - cosine**2)


def confusion(estimates: ArrayLike, references: ArrayLike, mixture: ArrayLike) -> np.ndarray:
    """1 for estimates that are nearer in SI-SDR to the others in the mixture than to the wanted talker, else 0.

    The others are what no multiple of the reference explains of the mixture, so that the levels of references and
    mixture need not agree.

    Args:
      estimates, references: [talkers, samples].
      mixture: [samples].

    Returns:
      [talkers], NaN where an SI-SDR is not defined.
    """
    references = np.array(references, np.float64)
    centred = references - references.mean(axis=-1, keepdims=True)
    shares = centred @ np.asarray(mixture, np.float64) / np.maximum(np.sum(centred**2, axis=-1), 1e-30)
    difference = si_sdr(estimates, mixture - shares[:, None] * references) - si_sdr(estimates, references)
    return np.where(np.isnan(difference), np.nan, difference > 0)


def detection(present: ArrayLike, absent: ArrayLike) -> dict[str, float]:
    """How well a confidence tells what is there from what is not.

    Args:
      present: [mixtures] confidences of talkers that are there.
      absent: [mixtures'] those of talkers that are not.

    Returns:
      "auc": area under the ROC curve, the share of pairs that are in the right order; "threshold": where both errors
      are nearest to each other; "equal_error_rate": their mean there.
    """
    present, absent = np.sort(np.asarray(present, np.float64)), np.sort(np.asarray(absent, np.float64))
    below = np.searchsorted(absent, present) + np.searchsorted(absent, present, side="right")
    every = np.unique(np.concatenate([present, absent]))
    thresholds = np.concatenate([every[:1], (every[1:] + every[:-1]) / 2])
    rates = np.array([list(error_rates(present, absent, threshold).values()) for threshold in thresholds])
    # Of several that are as good the one in the middle.
    gaps = np.abs(rates[:, 0] - rates[:, 1])
    best = np.flatnonzero(gaps == gaps.min())
    best = best[len(best) // 2]
    return {
        "auc": float(below.mean() / (2 * len(absent))),
        "equal_error_rate": float(rates[best].mean()),
        "threshold": float(thresholds[best]),
    }


def error_rates(present: ArrayLike, absent: ArrayLike, threshold: float) -> dict[str, float]:
    """Shares of those that are there but below a threshold, and of those that are not but not below it."""
    return {
        "false_reject": float(np.mean(np.asarray(present) < threshold)),
        "false_accept": float(np.mean(np.asarray(absent) >= threshold)),
    }


def snr(estimates: ArrayLike, references: ArrayLike) -> np.ndarray:
    """Plain signal-to-noise ratio in dB: no scaling, no removal of means."""
    estimates, references = _signals(estimates, references)
    return _ratio_db(np.sum(references**2, axis=-1), np.sum((estimates - references) ** 2, axis=-1))


def sdr(estimates: ArrayLike, references: ArrayLike) -> np.ndarray:
    """Signal-to-distortion ratio of BSS-eval in dB: what no 512-tap filter of the reference explains.

    Not defined (NaN) for signals shorter than the filter.
    """
    import fast_bss_eval  # which takes seconds where PyTorch is installed

    def score_talker(estimate, reference):
        if len(reference) < SDR_FILTER_SAMPLES:
            raise ValueError(f"{len(reference)} samples, the filter has {SDR_FILTER_SAMPLES}")
        # The package takes norms below 1e-6 for silence, hence unit norms. Its conjugate-gradient
        # option is no faster here and up to 0.3 dB off. `pairwise` is the one exact path that runs
        # on NumPy 2.
        estimate, reference = (x[None] / np.linalg.norm(x) for x in (estimate, reference))
        loss = fast_bss_eval.sdr_loss(
            estimate, reference, filter_length=SDR_FILTER_SAMPLES, clamp_db=LIMIT_DB, pairwise=True
        )
        return -loss.item()

    return _each_talker(score_talker, estimates, references)


def pesq(estimates: ArrayLike, references: ArrayLike, sample_rate: int, mode: str | None = None) -> np.ndarray:
    """PESQ (MOS-LQO): narrow band at 8000 Hz, wide band at 16000 Hz.

    Not defined (NaN) for signals that are too short (0.25 s), hold no speech, or last longer than
    PESQ_LONGEST_S.

    Args:
      mode: "nb" or "wb", for narrow band at 16000 Hz.

    Raises:
      ValueError: another `sample_rate`, or wide band at 8000 Hz.
    """
    if sample_rate not in PESQ_MODES:
        raise ValueError(f"PESQ is defined at {' and '.join(map(str, PESQ_MODES))} Hz, not at {sample_rate}")
    mode = mode or PESQ_MODES[sample_rate]
    if mode not in PESQ_MODES.values() or (mode, sample_rate) == ("wb", 8000):
        raise ValueError(f"PESQ {mode!r} at {sample_rate} Hz; it is nb, or at 16000 Hz wb")

    def score_talker(estimate, reference):
        # The package overflows its tables, in silence, at the 51st stretch of speech. A stretch and the
        # pause behind it take 0.4 s at least.
        if len(reference) > PESQ_LONGEST_S * sample_rate:
            raise ValueError(f"longer than {PESQ_LONGEST_S:g} s")
        return pesq_score(sample_rate, reference, estimate, mode)

    return _each_talker(score_talker, estimates, references)


def estoi(estimates: ArrayLike, references: ArrayLike, sample_rate: int, extended: bool = True) -> np.ndarray:
    """Extended short-time objective intelligibility, or the plain one. Not defined (NaN) below 0.4 s of speech."""
    from pystoi import stoi  # here, as training and separation wait for it otherwise

    def score_talker(estimate, reference):
        with warnings.catch_warnings(), _seeded():
            warnings.simplefilter("error", RuntimeWarning)  # "not enough frames" comes with a made-up score
            return stoi(reference, estimate, sample_rate, extended=extended)

    return _each_talker(score_talker, estimates, references)


def best_permutation(estimates: ArrayLike, references: ArrayLike) -> np.ndarray:
    """For every reference the index of its estimate, such that the sum of SI-SDR is largest.

    Args:
      estimates: [estimates, samples].
      references: [talkers, samples].

    Returns:
      int [talkers]: `estimates[best_permutation(estimates, references)]` is in the references' order.
    """
    matrix = np.nan_to_num(si_sdr(estimates, references, pairwise=True), nan=-LIMIT_DB)
    return linear_sum_assignment(matrix, maximize=True)[1]


def scale_invariant_scores(
    estimates: ArrayLike,
    references: ArrayLike,
    zero_mean: bool = False,
    clamp_db: float | None = LIMIT_DB,
    order_by: str | None = "si_sir",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """SI-SDR, and what it is made of: interference of the other talkers (SI-SIR) and artefacts (SI-SAR), in dB.

    A coherence is the share of an estimate's energy that lies along a reference, or in the span of all of them. That
    along its own reference gives the SDR, that in the span the SAR, the ratio of the two the SIR. Silent estimates
    get the lower limit. Source: Scheibler, "SDR - medium rare with fast computations", 2022 (fast_bss_eval).

    Args:
      estimates, references: [talkers, samples].
      zero_mean: remove the mean of every signal first.
      clamp_db: limit of all ratios; None: none.
      order_by: the ratio whose sum the order of the estimates makes largest; None: the order is kept.

    Returns:
      ({"si_sdr", "si_sir", "si_sar": [talkers]}, int [talkers], for every reference the index of its estimate).
    """
    along, inside = _coherences(estimates, references, zero_mean)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = {
            "si_sdr": along,
            "si_sir": np.nan_to_num(along / inside),
            "si_sar": np.broadcast_to(inside, along.shape),
        }
    pairwise = {name: _coherence_db(share, clamp_db) for name, share in ratios.items()}
    order = np.arange(len(along))
    if order_by is not None:
        # The assignment takes no infinite gains.
        order = linear_sum_assignment(np.clip(pairwise[order_by], -1e6, 1e6), maximize=True)[1]
    return {name: matrix[np.arange(len(order)), order] for name, matrix in pairwise.items()}, order


def _coherences(estimates, references, zero_mean=False):
    """([references, estimates], [estimates]): shares of energy along each reference, and in the span of all."""
    estimates, references = (np.asarray(x, np.float64) for x in (estimates, references))
    if estimates.ndim != 2 or estimates.shape != references.shape:
        raise ValueError(
            f"estimates {list(estimates.shape)} and references {list(references.shape)} should both be"
            " [talkers, samples]"
        )
    if zero_mean:
        estimates, references = (x - x.mean(axis=-1, keepdims=True) for x in (estimates, references))
    estimates, references = (
        x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6) for x in (estimates, references)
    )
    cosines = references @ estimates.T
    # References may be silent or alike, so that their products have no inverse.
    inside = np.sum(cosines * (np.linalg.pinv(references @ references.T, hermitian=True) @ cosines), axis=0)
    return cosines**2, inside


def _coherence_db(share, clamp_db):
    """Share of energy -> ratio to the rest in dB, within +-clamp_db."""
    least = 0.0 if clamp_db is None else 1 / (1 + 10 ** (clamp_db / 10))
    with np.errstate(divide="ignore"):
        if clamp_db is None:
            share = np.clip(share, 0, 1)
            return 10 * np.log10(share / (1 - share))
        # 1 - share is kept apart, as its rounding would limit the ratio.
        return 10 * np.log10(np.clip(share, least, 1) / np.clip(1 - share, least, 1))


METRICS = {
    "si_sdr": lambda estimates, references, sample_rate: si_sdr(estimates, references),
    "snr": lambda estimates, references, sample_rate: snr(estimates, references),
    "sdr": lambda estimates, references, sample_rate: sdr(estimates, references),
    "pesq": pesq,
    "estoi": estoi,
}


def score(
    estimates: ArrayLike, references: ArrayLike, sample_rate: int, metrics: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """The named METRICS of estimates that are in the references' order: {metric: [talkers]}."""
    return {metric: METRICS[metric](estimates, references, sample_rate) for metric in metrics}


def with_improvements(scores: dict[str, np.ndarray], mixture_scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`scores` with "si_sdri", "sdri", ... behind the metric: what is gained over the mixture, in dB."""
    extended = {}
    for metric, values in scores.items():
        extended[metric] = values
        if metric in DECIBEL_METRICS:
            extended[metric + "i"] = values - mixture_scores[metric]
    return extended


def frame_accuracy(assigned: ArrayLike, oracle: ArrayLike, weight: ArrayLike | None = None, talkers: int = 2) -> float:
    """Share of frames whose estimates go to the right talkers, under the best naming of the talkers.

    Talkers found by clustering have no names, so one relabelling of them, the best for the utterance,
    is allowed. With two talkers this is max(a, 1 - a).

    Args:
      assigned: int [frames, talkers], the talker to which each estimate of a frame goes; or int [frames],
        an index into the permutations of the talkers in lexicographic order (0 keeps, 1 swaps two talkers).
      oracle: the same, chosen with the references.
      weight: [frames], what each frame counts; all the same if None.
      talkers: number of talkers, needed for indices only.

    Returns:
      The share, or NaN if the weights sum up to nothing.

    Raises:
      ValueError: shapes disagree, or a row is no permutation.
    """
    assigned, oracle = (_explicit_permutations(x, talkers) for x in (assigned, oracle))
    weight = np.ones(len(assigned)) if weight is None else np.asarray(weight, np.float64)
    if assigned.shape != oracle.shape or weight.shape != assigned.shape[:1]:
        raise ValueError(
            f"assigned {list(assigned.shape)}, oracle {list(oracle.shape)} and weight {list(weight.shape)}"
            " should be [frames, talkers] twice and [frames]"
        )
    # Every frame is right under exactly one relabelling of the talkers; the best is right most often.
    relabelling = np.take_along_axis(oracle, np.argsort(assigned, axis=1), axis=1)
    _, group = np.unique(relabelling, axis=0, return_inverse=True)
    right = np.bincount(group.ravel(), weight)
    total = weight.sum()
    return float(right.max() / total) if total > 0 else float("nan")


def _signals(estimates, references, pairwise=False):
    """Both as float64 [talkers, samples]; signals that cannot be scored are filled with NaN."""
    estimates, references = (np.array(x, np.float64) for x in (estimates, references))
    shapes = [x.shape[1:] if pairwise else x.shape for x in (estimates, references)]
    if estimates.ndim != 2 or references.ndim != 2 or shapes[0] != shapes[1] or references.shape[1] == 0:
        raise ValueError(
            f"estimates {list(estimates.shape)} and references {list(references.shape)}"
            " should both be [talkers, samples]"
        )
    for signals in (estimates, references):
        signals[~np.isfinite(signals).all(axis=1)] = np.nan
        signals[np.ptp(signals, axis=1) == 0] = np.nan
    return estimates, references


def _ratio_db(signal_energy, noise_energy):
    """Energy ratio in dB, limited to +-LIMIT_DB; NaN stays NaN."""
    with np.errstate(divide="ignore"):
        # Rounding can leave the noise of a perfect estimate just below 0.
        ratio_db = 10 * np.log10(signal_energy / np.maximum(noise_energy, 0))
    return np.clip(ratio_db, -LIMIT_DB, LIMIT_DB)


def _each_talker(score_talker, estimates, references):
    """[talkers] of score_talker(estimate, reference); NaN where it is not defined or fails."""
    scores = []
    for estimate, reference in zip(*_signals(estimates, references), strict=True):
        try:
            unscorable = np.isnan(estimate[0] + reference[0])
            scores.append(np.nan if unscorable else score_talker(estimate, reference))
        except _UNSCORABLE:
            scores.append(np.nan)
    return np.array(scores, np.float64)


@contextlib.contextmanager
def _seeded():
    """Gives NumPy's global generator, which pystoi draws from, one fixed state for a while."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def _explicit_permutations(permutations, talkers):
    """Permutations as int [frames, talkers], from that or from lexicographic indices [frames]."""
    permutations = np.asarray(permutations)
    if permutations.ndim == 1:
        every = np.array(list(itertools.permutations(range(talkers))))
        if not np.isin(permutations, range(len(every))).all():
            raise ValueError(f"an index outside 0...{len(every) - 1}, the permutations of {talkers} talkers")
        permutations = every[permutations.astype(int)]
    if permutations.ndim != 2 or np.any(np.sort(permutations, axis=1) != np.arange(permutations.shape[1])):
        raise ValueError(f"{list(permutations.shape)}: not a permutation of the talkers in every frame")
    return permutations
