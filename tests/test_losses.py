"""Losses and the permutations behind them, against answers known from how the signals are made."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from feat.signals import stft
from models import losses
from models.layers import spectral


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("talkers", [2, 3, 4])
def test_frame_pit_undoes_a_known_shuffling(talkers):
    references = random(2, talkers, 7, 5, 2)
    orders = losses.permutations(talkers)
    drawn = np.random.default_rng(1).integers(len(orders), size=(2, 7))
    # Estimate i is talker order[i], with a little noise.
    estimates = np.stack(
        [[references[b, orders[drawn[b, t]], t] for t in range(7)] for b in range(2)]
    ).transpose(0, 2, 1, 3, 4) + 0.01 * random(2, talkers, 7, 5, 2, seed=2)  # fmt: skip
    costs = losses.frame_costs(estimates, references)
    assignment = np.asarray(losses.frame_assignment(costs))
    np.testing.assert_array_equal(assignment, drawn)
    ordered = np.asarray(losses.permute_frames(keras.ops.convert_to_tensor(estimates), assignment))
    np.testing.assert_allclose(ordered, references, atol=0.1)


def test_frame_costs_are_mean_absolute_differences():
    estimates, references = random(1, 3, 2, 4, 2), random(1, 3, 2, 4, 2, seed=1)
    costs = np.asarray(losses.frame_costs(estimates, references))
    for p, order in enumerate(itertools.permutations(range(3))):
        expected = sum(np.abs(estimates[0, i, 1] - references[0, j, 1]).sum() for i, j in enumerate(order)) / 8
        np.testing.assert_allclose(costs[0, 1, p], expected, rtol=1e-5)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 25.0])
def test_snr_is_what_the_noise_was_scaled_to(snr_db):
    signal, noise = random(3, 800).astype(np.float64), random(3, 800, seed=1).astype(np.float64)
    noise *= np.linalg.norm(signal, axis=-1, keepdims=True) / np.linalg.norm(noise, axis=-1, keepdims=True)
    estimate = signal + 10 ** (-snr_db / 20) * noise
    snr = losses.snr(estimate.astype(np.float32), signal.astype(np.float32))
    np.testing.assert_allclose(snr, snr_db, atol=1e-3)


def test_snr_of_silence_and_of_perfection_is_finite_with_finite_gradients():
    references = np.stack([np.zeros(100), np.ones(100), np.ones(100)]).astype(np.float32)
    estimates = tf.Variable(np.stack([np.ones(100), np.ones(100), np.zeros(100)]).astype(np.float32))
    with tf.GradientTape() as tape:
        values = losses.snr(estimates, references)
    np.testing.assert_allclose(values, [0, 80, 0], atol=1e-4)
    gradient = tape.gradient(values, estimates).numpy()
    assert np.isfinite(gradient).all() and not gradient[0].any() and gradient[2].any()


@pytest.mark.parametrize("talkers", [2, 3])
def test_utterance_pit_takes_the_best_order(talkers):
    references = random(2, talkers, 500)
    order = np.roll(np.arange(talkers), 1)
    noisy = references + 0.1 * random(2, talkers, 500, seed=3)
    expected = np.mean(np.asarray(losses.snr(noisy, references)), axis=-1)
    np.testing.assert_allclose(losses.utterance_pit_snr(noisy[:, order], references), expected, rtol=1e-5)


def test_grouping_loss_is_the_weighted_difference_of_affinities():
    v, w = random(2, 6, 4), np.abs(random(2, 6, seed=1))
    y = np.eye(3, dtype=np.float32)[np.random.default_rng(2).integers(3, size=(2, 6))]
    expected = [
        1e4 * np.sum(np.square(np.diag(w[b]) @ (v[b] @ v[b].T - y[b] @ y[b].T) @ np.diag(w[b]))) for b in range(2)
    ]
    np.testing.assert_allclose(losses.grouping_loss(v, y, w), expected, rtol=1e-4)


def test_grouping_targets_weigh_what_is_at_stake():
    costs = np.array([[[1, 3], [2, 2], [5, 1], [9, 0]]], np.float32)
    assignment, weights = losses.grouping_targets(costs, np.array([[1, 1, 1, 0]], np.float32))
    np.testing.assert_array_equal(assignment, [[0, 0, 1, 1]])
    np.testing.assert_allclose(weights, [[2 / 6, 0, 4 / 6, 0]], rtol=1e-6)
    assert not np.asarray(losses.grouping_targets(np.ones((1, 4, 2), np.float32))[1]).any()


# STFT ---------------------------------------------------------------------------------------------

WINDOWS = [(256, 64), (512, 128), (128, 64), (64, 16), (100, 30), (64, 24), (256, 100)]


@pytest.mark.parametrize(("fft_size", "hop_size"), WINDOWS)
@pytest.mark.parametrize("extra", [0, 1, 7])
def test_stft_equals_the_one_of_the_features(fft_size, hop_size, extra):
    signal = random(2, fft_size + 11 * hop_size + extra)
    expected = stft.stft(signal, fft_size, hop_size)
    ours = np.asarray(spectral.stft(signal, fft_size, hop_size))
    np.testing.assert_allclose(ours[..., 0] + 1j * ours[..., 1], expected, atol=1e-4)


@pytest.mark.parametrize(("fft_size", "hop_size"), WINDOWS)
@pytest.mark.parametrize("parity", [False, True])
def test_istft_equals_the_one_of_the_features(fft_size, hop_size, parity):
    spectra = random(3, 9, fft_size // 2 + 1, 2)
    spectra[:, :, [0, -1], 1] = 0
    expected = stft.istft(spectra[..., 0] + 1j * spectra[..., 1], None, fft_size, hop_size, parity)
    ours = np.asarray(spectral.istft(spectra, fft_size, hop_size, parity=parity))
    assert ours.shape == expected.shape
    inside = slice(fft_size, -fft_size)
    np.testing.assert_allclose(ours[:, inside], expected[:, inside], atol=1e-4)
    if not parity:
        np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(("fft_size", "hop_size"), WINDOWS)
def test_istft_inverts_stft(fft_size, hop_size):
    signal = random(2, fft_size + 15 * hop_size)
    again = np.asarray(spectral.istft(spectral.stft(signal, fft_size, hop_size), fft_size, hop_size))
    inside = slice(fft_size, -fft_size)
    np.testing.assert_allclose(again[:, inside], signal[:, inside], atol=1e-4)


def test_padding_frames_do_not_count_in_the_window_sum():
    signal = random(2, 64 + 16 * 20)
    spectra = np.array(spectral.stft(signal, 64, 16))
    spectra[1, 12:] = 0
    alone = np.asarray(spectral.istft(spectra[1:, :12], 64, 16))
    mask = losses.frame_mask(np.array([21, 12]), 21)
    together = np.asarray(spectral.istft(spectra[:, None], 64, 16, frame_mask=mask))
    np.testing.assert_allclose(together[1, 0, : alone.shape[1]], alone[0], atol=1e-5)
    assert not together[1, 0, alone.shape[1] :].any()
