"""Scores against answers known from how the signals are built, or computed another way."""

import itertools

import fast_bss_eval
import numpy as np
import pesq as pesq_package
import pystoi
import pytest
from scipy.linalg import solve_toeplitz
from scipy.signal import lfilter

from nn.scoring import metrics

RATE = 8000


def orthonormal(count, samples=2000, seed=0):
    """[count, samples] zero-mean signals of energy 1 that are orthogonal to each other."""
    noise = np.random.default_rng(seed).standard_normal((samples, count))
    return np.linalg.qr(noise - noise.mean(axis=0))[0].T


def speech_like(talkers, seconds, seed=0, rate=RATE):
    """[talkers, samples] noise with a tilted spectrum, switched on and off as syllables are."""
    rng = np.random.default_rng(seed)
    samples = int(seconds * rate)
    noise = lfilter([1], [1, -0.8], rng.standard_normal((talkers, samples)))
    syllables = np.repeat(rng.uniform(0, 1, (talkers, samples // 800 + 1)) ** 2, 800, axis=1)
    return 0.1 * noise * syllables[:, :samples]


def least_squares_sdr(estimate, reference, taps):
    """SDR by the normal equations of the best filter, correlations summed in the time domain."""
    start = len(reference) - 1  # of the lags 0, 1, ... in a full correlation
    autocorrelation = np.correlate(reference, reference, "full")[start : start + taps]
    correlation = np.correlate(estimate, reference, "full")[start : start + taps]
    target = np.convolve(reference, solve_toeplitz(autocorrelation, correlation))
    distortion = np.pad(estimate, (0, taps - 1)) - target
    return 10 * np.log10(np.sum(target**2) / np.sum(distortion**2))


@pytest.mark.parametrize("si_sdr_db", [-20.0, 0.0, 17.7, 60.0])
@pytest.mark.parametrize("scale", [-3.0, 1e-4, 1.0])
def test_si_sdr_of_orthogonal_noise(si_sdr_db, scale):
    reference, noise = orthonormal(2)
    estimate = scale * (reference + 10 ** (-si_sdr_db / 20) * noise)
    assert metrics.si_sdr([estimate], [7 * reference]) == pytest.approx(si_sdr_db, abs=1e-6)


def test_si_sdr_pairwise_is_references_by_estimates():
    first, second, noise = orthonormal(3)
    estimates = [first + 0.1 * second, 0.5 * second + 0.05 * noise, first + second + noise]
    expected = [
        [20, -100, -10 * np.log10(2)],
        [-20, 20, -10 * np.log10(2)],
    ]
    matrix = metrics.si_sdr(estimates, [first, second], pairwise=True)
    assert matrix == pytest.approx(np.array(expected), abs=1e-6)


def test_si_sdr_zero_mean():
    reference = orthonormal(1)
    offset = reference + 0.01
    assert metrics.si_sdr(offset, reference) == pytest.approx(metrics.LIMIT_DB)
    expected = -10 * np.log10(reference.size * 0.01**2)
    assert metrics.si_sdr(offset, reference, zero_mean=False) == pytest.approx(expected)


def test_si_sdr_equals_fast_bss_eval():
    references = speech_like(3, 0.5)
    estimates = references + 0.3 * speech_like(3, 0.5, seed=1)
    for zero_mean in (False, True):
        theirs = -fast_bss_eval.sdr_loss(estimates, references, filter_length=1, zero_mean=zero_mean, pairwise=True)
        ours = metrics.si_sdr(estimates, references, zero_mean=zero_mean, pairwise=True)
        assert ours == pytest.approx(theirs, abs=1e-8)


def test_snr_counts_level_and_offset():
    reference = orthonormal(1)
    samples = reference.size
    assert metrics.snr(1.1 * reference, reference) == pytest.approx(20)
    assert metrics.snr(reference + 0.1 / np.sqrt(samples), reference) == pytest.approx(20)


def test_sdr_is_the_least_squares_projection():
    references = speech_like(2, 0.5)
    rng = np.random.default_rng(1)
    echoed = lfilter(rng.standard_normal(300) * 0.98 ** np.arange(300), [1], references)
    estimates = echoed + 0.3 * echoed[::-1] + 0.01 * rng.standard_normal(references.shape) + 0.002
    expected = [least_squares_sdr(estimates[k], references[k], metrics.SDR_FILTER_SAMPLES) for k in (0, 1)]
    assert metrics.sdr(estimates, references) == pytest.approx(expected, abs=1e-6)
    assert metrics.sdr(1e-7 * estimates, 50 * references) == pytest.approx(expected, abs=1e-6)


def test_sdr_forgives_a_filter_and_si_sdr_does_not():
    references = speech_like(1, 1.0)
    references[:, -600:] = 0  # so that no echo is cut off
    estimates = lfilter([1, 0, 0.5, -0.7], [1], references)
    assert metrics.sdr(estimates, references) > 90
    assert metrics.si_sdr(estimates, references) < 10


def test_perfect_and_hopeless_estimates_stay_finite():
    reference, other = orthonormal(2, samples=RATE)
    for metric in (metrics.si_sdr, metrics.snr, metrics.sdr):
        assert metric([reference], [reference]) == pytest.approx(metrics.LIMIT_DB, abs=1e-3)
    assert metrics.si_sdr([other], [reference]) == pytest.approx(-metrics.LIMIT_DB)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), *itertools.permutations(range(3)), (3, 1, 4, 0, 2)])
def test_best_permutation(order):
    references = speech_like(len(order), 0.3)
    estimates = 0.2 * references[list(order)] + 0.01 * speech_like(len(order), 0.3, seed=1)
    best = metrics.best_permutation(estimates, references)
    assert estimates[best] == pytest.approx(0.2 * references, abs=0.02)
    assert [order[k] for k in best] == sorted(order)


def test_best_permutation_maximises_the_sum():
    rng = np.random.default_rng(0)
    references = rng.standard_normal((4, 500))
    estimates = rng.standard_normal((4, 4)) @ references
    matrix = metrics.si_sdr(estimates, references, pairwise=True)
    sums = {order: matrix[range(4), order].sum() for order in itertools.permutations(range(4))}
    assert tuple(metrics.best_permutation(estimates, references)) == max(sums, key=sums.get)


def test_best_permutation_with_a_silent_estimate():
    references = speech_like(3, 0.3)
    estimates = references[[2, 0, 1]].copy()
    estimates[1] = 0
    assert list(metrics.best_permutation(estimates, references)) == [1, 2, 0]


@pytest.mark.parametrize("spoilt", ["estimates", "references"])
@pytest.mark.parametrize("value", [0.0, 0.25, np.nan, np.inf])
def test_a_signal_that_cannot_be_scored_is_nan_and_alone(spoilt, value):
    references = speech_like(2, 1.0)
    signals = {"references": references, "estimates": references + 0.1 * references[::-1]}
    whole = metrics.score(**signals, sample_rate=RATE, metrics=tuple(metrics.METRICS))
    signals[spoilt] = signals[spoilt].copy()
    signals[spoilt][0, slice(None) if np.isfinite(value) else 5] = value
    scores = metrics.score(**signals, sample_rate=RATE, metrics=tuple(metrics.METRICS))
    for metric, values in scores.items():
        assert np.isnan(values[0]), metric
        assert values[1] == pytest.approx(whole[metric][1]), metric


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"estimates \[2, 10\] and references \[2, 11\]"):
        metrics.snr(np.ones((2, 10)), np.ones((2, 11)))
    with pytest.raises(ValueError, match=r"estimates \[3, 10\]"):
        metrics.si_sdr(np.ones((3, 10)), np.ones((2, 10)))
    with pytest.raises(ValueError, match=r"references \[2, 0\]"):
        metrics.si_sdr(np.ones((2, 0)), np.ones((2, 0)), pairwise=True)


@pytest.mark.parametrize(("rate", "mode"), [(8000, "nb"), (16000, "wb")])
def test_pesq_band_and_argument_order(rate, mode):
    reference = speech_like(1, 1.5, rate=rate)
    estimate = reference + 0.3 * speech_like(1, 1.5, seed=1, rate=rate)
    expected = pesq_package.pesq(rate, reference[0], estimate[0], mode)
    assert expected != pesq_package.pesq(rate, estimate[0], reference[0], mode)
    assert metrics.pesq(estimate, reference, rate) == pytest.approx(expected)
    assert metrics.pesq(reference, reference, rate) > 4.5


def test_pesq_where_it_is_not_defined():
    speech = speech_like(2, 1.0)
    references = speech.copy()
    references[0, 1:] = 0  # a click at the start is not speech: NoUtterancesError
    with pytest.raises(pesq_package.NoUtterancesError):
        pesq_package.pesq(RATE, references[0], speech[0], "nb")
    scores = metrics.pesq(speech, references, RATE)
    assert np.isnan(scores[0]) and scores[1] > 4
    assert np.isnan(metrics.pesq(speech[:, :1000], speech[:, :1000], RATE)).all()
    with pytest.raises(ValueError, match="at 8000 and 16000 Hz, not at 44100"):
        metrics.pesq(speech, speech, 44100)


def test_pesq_does_not_reach_its_overflow():
    # 60 stretches of speech write beyond the tables of the package and give a wrong number or a crash.
    bursts = np.random.default_rng(0).standard_normal((60, RATE // 2))
    reference = np.pad(bursts, ((0, 0), (0, RATE // 2))).reshape(1, -1)
    assert np.isnan(metrics.pesq(reference, reference, RATE)).all()


def test_estoi():
    references = speech_like(2, 1.0)
    references[0, 2000:5000] = 0  # there, the package scores noise of its own
    estimates = references + 0.1 * references[::-1]
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    scores = metrics.estoi(estimates, references, RATE)
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(6)
    assert (metrics.estoi(estimates, references, RATE) == scores).all()
    assert scores[1] == pytest.approx(pystoi.stoi(references[1], estimates[1], RATE, extended=True), abs=1e-6)
    assert metrics.estoi(references[1:], references[1:], RATE) == pytest.approx(1)
    assert np.isnan(metrics.estoi(references[:, :2500], references[:, :2500], RATE)).all()


def test_improvements_are_differences():
    references = speech_like(2, 0.5)
    mixture = np.tile(references.sum(axis=0), (2, 1))
    estimates = references + 0.1 * references[::-1]  # 20 dB less of the other talker
    names = ("si_sdr", "snr", "sdr", "estoi")
    scores, mixture_scores = (metrics.score(x, references, RATE, names) for x in (estimates, mixture))
    improved = metrics.with_improvements(scores, mixture_scores)
    assert list(improved) == ["si_sdr", "si_sdri", "snr", "snri", "sdr", "sdri", "estoi"]
    assert improved["snri"] == pytest.approx(20)
    assert improved["sdri"] == pytest.approx(metrics.sdr(estimates, references) - metrics.sdr(mixture, references))


def test_frame_accuracy_of_two_talkers_ignores_their_names():
    oracle = np.array([0, 0, 1, 1, 0])
    assigned = np.array([0, 1, 1, 1, 0])
    assert metrics.frame_accuracy(assigned, oracle) == pytest.approx(0.8)
    assert metrics.frame_accuracy(1 - assigned, oracle) == pytest.approx(0.8)
    weight = [1, 6, 1, 1, 1]
    assert metrics.frame_accuracy(assigned, oracle, weight) == pytest.approx(0.6)
    assert np.isnan(metrics.frame_accuracy(assigned, oracle, np.zeros(5)))


def test_frame_accuracy_of_three_talkers_is_the_best_relabelling():
    rng = np.random.default_rng(0)
    permutations = np.array(list(itertools.permutations(range(3))))
    assigned, oracle = rng.integers(0, 6, (2, 40))
    oracle[:25] = 3
    assigned[:20] = 4
    weight = rng.uniform(size=40)
    right = [(renamed[permutations[assigned]] == permutations[oracle]).all(axis=1) for renamed in permutations]
    for weights in (np.ones(40), weight):
        expected = max(np.average(frames, weights=weights) for frames in right)
        assert metrics.frame_accuracy(assigned, oracle, weights, talkers=3) == pytest.approx(expected)
        explicit = metrics.frame_accuracy(permutations[assigned], permutations[oracle], weights)
        assert explicit == pytest.approx(expected)


def test_frame_accuracy_refuses_what_is_no_permutation():
    with pytest.raises(ValueError, match="an index outside 0...1"):
        metrics.frame_accuracy([0, 1, 2], [0, 1, 1])
    with pytest.raises(ValueError, match="not a permutation"):
        metrics.frame_accuracy([[0, 0]], [[0, 1]])
    with pytest.raises(ValueError, match=r"weight \[3\]"):
        metrics.frame_accuracy([0, 1], [0, 1], [1, 1, 1])


def test_every_metric_is_defined_in_words():
    assert set(metrics.DEFINITIONS) == {
        *metrics.METRICS,
        *(metric + "i" for metric in metrics.DECIBEL_METRICS),
        "confusion",
        "frame_accuracy",
        "frame_accuracy_weighted",
    }
    assert all(". " not in text for text in metrics.DEFINITIONS.values())  # one sentence
    assert "pesq 0." in metrics.DEFINITIONS["pesq"]


def test_confusion_is_to_be_nearer_to_the_others():
    target, *others = orthonormal(3)
    mixture = 0.3 * target + sum(others)  # at another level than the reference
    estimates = [target + 0.9 * sum(others) / np.sqrt(2), target + 1.1 * sum(others) / np.sqrt(2), 0 * target]
    found = metrics.confusion(estimates, [5 * target] * 3, mixture)
    np.testing.assert_array_equal(found, [0, 1, np.nan])


def test_detection_rates():
    found = metrics.detection([0.9, 0.4, 0.8], [0.1, 0.5, 0.2])
    assert found == pytest.approx({"auc": 8 / 9, "equal_error_rate": 1 / 3, "threshold": 0.45})
    assert metrics.error_rates([0.9, 0.4, 0.8], [0.1, 0.5, 0.2], 0.6) == {"false_reject": 1 / 3, "false_accept": 0}
    told = metrics.detection([0.8, 0.7], [-0.1, 0.3])
    assert told == pytest.approx({"auc": 1, "equal_error_rate": 0, "threshold": 0.5})
    assert metrics.detection([0.5, 0.5], [0.5, 0.5])["auc"] == 0.5
