"""Both networks and the clustering behind them: shapes, causality, configuration, graph against eager."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import losses
from models.deep_casa import grouping
from models.deep_casa.dense_unet import DenseUNet
from models.deep_casa.grouping import OnlineClustering, SequentialGrouping
from models.layers import spectral
from nn.systems.deep_casa import clustering

SMALL_TCN = dict(blocks=2, dilations=2, units=6, bottleneck=5, embedding_dim=4)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dense_unet(**options):
    keras.utils.set_random_seed(1)
    return DenseUNet(**dict(channels=3, scales=2, bins=33) | options)


def tcn(**options):
    keras.utils.set_random_seed(1)
    return SequentialGrouping(**SMALL_TCN | dict(scales=2, bins=33) | options)


def inputs_of(model, frames=20, batch=1):
    mixture = random(batch, frames, model.bins, 2)
    if isinstance(model, DenseUNet):
        return mixture
    return mixture, random(batch, model.talkers, frames, model.bins, 2, seed=1)


@pytest.mark.parametrize("scales", [1, 2, 3, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bins", [65, 257])
def test_any_depth_and_window(scales, causal, bins):
    model = dense_unet(channels=2, scales=scales, bins=bins, causal=causal)
    for frames in (1, 9):
        assert model(random(2, frames, bins, 2)).shape == (2, 2, frames, bins, 2)
    model = tcn(scales=scales, bins=bins, causal=causal)
    assert model(inputs_of(model, 9)).shape == (1, 9, 1, 4)


@pytest.mark.parametrize("causal", [False, True])
def test_three_talkers(causal):
    model = dense_unet(talkers=3, causal=causal)
    assert model(inputs_of(model)).shape == (1, 3, 20, 33, 2)
    model = tcn(talkers=3, causal=causal)
    assert model(inputs_of(model)).shape == (1, 20, 3, 4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("make", [dense_unet, tcn])
def test_config_round_trip(make, causal):
    model = make(causal=causal, talkers=3)
    again = type(model).from_config(model.get_config())
    assert again.get_config() == model.get_config()
    again.set_weights(model.get_weights())
    inputs = inputs_of(model)
    np.testing.assert_array_equal(model(inputs), again(inputs))


@pytest.mark.parametrize("make", [dense_unet, tcn])
def test_a_causal_model_does_not_look_ahead(make):
    model = make(causal=True)
    inputs = inputs_of(model, 24)
    spoilt = tf.nest.map_structure(np.copy, inputs)
    for array in tf.nest.flatten(spoilt):
        array[..., 15:, :, :] = np.nan
    past = (slice(None), slice(None), slice(0, 15)) if make is dense_unet else (slice(None), slice(0, 15))
    before, after = np.asarray(model(inputs))[past], np.asarray(model(spoilt))[past]
    assert np.isfinite(after).all() and np.ptp(after) > 0
    np.testing.assert_allclose(after, before, atol=1e-6)
    # The frame that changes is heard at once.
    assert np.isnan(np.asarray(model(spoilt))).any()


@pytest.mark.parametrize("causal", [False, True])
def test_graph_equals_eager_behind_an_stft(causal):
    simul, seq = dense_unet(causal=causal), tcn(causal=causal)

    def separate(waveforms):
        mixture = spectral.stft(waveforms, 64, 32)
        estimates = simul(mixture)
        return estimates, seq((mixture, estimates)), spectral.istft(estimates, 64, 32)

    waveforms = 0.1 * random(2, 64 + 32 * 19)
    eager = separate(tf.constant(waveforms))
    graph = tf.function(separate, input_signature=[tf.TensorSpec([None, None])])(waveforms)
    for ours, theirs in zip(graph, eager):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("make", [dense_unet, tcn])
def test_training_drops_and_inference_does_not(make):
    model = make(**{"dropout": 0.5} if make is dense_unet else {"tap_keep": 0.3})
    inputs = inputs_of(model)
    np.testing.assert_array_equal(model(inputs), model(inputs))
    trained = [np.asarray(model(inputs, training=True)) for _ in range(6)]
    assert any(not np.array_equal(trained[0], other) for other in trained[1:])


# Clustering ---------------------------------------------------------------------------------------


def scene(talkers, frames=60, seed=0):
    """Well separated embeddings of shuffled estimates, their estimates, and the permutation of every frame."""
    random_state = np.random.default_rng(seed)
    orders = losses.permutations(talkers)
    drawn = random_state.integers(len(orders), size=frames)
    drawn[0] = 0
    centres = np.eye(talkers, 6)
    if talkers == 2:
        embeddings = np.where(drawn[:, None, None] == 0, centres[0], centres[1])  # one a frame
    else:
        embeddings = centres[orders[drawn]]  # one an estimate: the centre of its talker
    embeddings = embeddings + 0.05 * random_state.standard_normal(embeddings.shape)
    estimates = 1 + 0.1 * random_state.standard_normal((talkers, frames, 5, 2))
    return embeddings.astype(np.float32), estimates.astype(np.float32), drawn


def talker_orders(assignment, talkers):
    return losses.permutations(talkers)[np.asarray(assignment)]  # [frames, estimate]: its talker


def assert_same_up_to_names(ours, theirs):
    """Two namings of talkers: one renaming explains every frame."""
    renaming = {}
    for a, b in zip(ours.ravel(), theirs.ravel()):
        assert renaming.setdefault(a, b) == b
    assert len(set(renaming.values())) == len(renaming)


@pytest.mark.parametrize("talkers", [2, 3])
def test_whole_file_assignment_finds_the_talkers(talkers):
    embeddings, estimates, drawn = scene(talkers)
    assignment = clustering.whole_file_assignment(embeddings, estimates, seed=3)
    assert_same_up_to_names(talker_orders(assignment, talkers), talker_orders(drawn, talkers))
    np.testing.assert_array_equal(assignment, clustering.whole_file_assignment(embeddings, estimates, seed=3))


@pytest.mark.parametrize("talkers", [2, 3])
def test_online_clustering_finds_the_talkers_block_by_block(talkers):
    embeddings, estimates, drawn = scene(talkers)
    energies = np.sum(np.square(estimates), axis=(0, 2, 3))
    online = OnlineClustering(talkers)
    _, whole = online.assign(online.initial_state(6), embeddings, energies)
    assert_same_up_to_names(talker_orders(whole, talkers), talker_orders(drawn, talkers))
    state, blocks = online.initial_state(6), []
    for start, end in ((0, 1), (1, 7), (7, 30), (30, 60)):
        state, some = online.assign(state, embeddings[start:end], energies[start:end])
        blocks.append(np.asarray(some))
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_kmeans_depends_on_its_seed_alone():
    points = random(300, 5)
    before = clustering.kmeans(points, 4, seed=7)
    np.random.default_rng(0)
    np.random.seed(3)  # noqa: NPY002
    np.testing.assert_array_equal(clustering.kmeans(points, 4, seed=7), before)
    assert clustering.kmeans(points[:1], 2, seed=0).shape == (2, 5)


@pytest.mark.parametrize("talkers", [2, 3])
def test_permute_puts_estimates_in_talker_order(talkers):
    orders = losses.permutations(talkers)
    drawn = np.random.default_rng(0).integers(len(orders), size=20)
    estimates = np.broadcast_to(orders[drawn].T[..., None, None], (talkers, 20, 3, 2))  # the talker's number
    ordered = clustering.permute(estimates, drawn)
    np.testing.assert_array_equal(ordered, np.broadcast_to(np.arange(talkers)[:, None, None, None], ordered.shape))


def test_labels_name_orders_of_two_and_talkers_of_three():
    np.testing.assert_array_equal(grouping.embedding_labels(np.array([[0, 1]]), 2), [[[[1, 0]], [[0, 1]]]])
    labels = np.asarray(grouping.embedding_labels(np.array([[0, 3]]), 3))
    np.testing.assert_array_equal(labels.argmax(-1)[0], losses.permutations(3)[[0, 3]])
