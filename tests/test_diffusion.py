"""Diffusion separation without a network: processes, samplers and losses against scores that are known."""

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from models.diffsep.losses import ScoreMatching
from models.diffsep.sampling import ExponentialSolver, KeyedNoise, PredictorCorrector, file_key
from models.diffsep.sde import MixSDE, PriorMixSDE, sample_times
from models.losses import assignment_cost

SAMPLES = 40


def signals(batch=2, sources=3, seed=0):
    """(mixture, sources)."""
    drawn = np.random.default_rng(seed).standard_normal((batch, sources, SAMPLES)).astype("float32")
    return tf.constant(drawn.sum(axis=1)), tf.constant(drawn)


def known_score(sde, sources, level=1.0):
    """The score of a mixture whose sources are known."""
    return lambda x, t: sde.score_of_estimate(x, t, sources, level)


def test_the_cheapest_assignment_is_found_for_any_number_of_sources():
    generator = np.random.default_rng(1)
    for n in range(1, 7):
        costs = generator.standard_normal((20, n, n)).astype("float32")
        expected = [matrix[scipy.optimize.linear_sum_assignment(matrix)].sum() for matrix in costs]
        np.testing.assert_allclose(assignment_cost(tf.constant(costs)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("process", [MixSDE, PriorMixSDE])
def test_states_have_the_moments_of_the_process(process):
    # Many short forward steps, against the closed form.
    sde, (mixture, sources) = process(3), signals(1)
    sources, mixture = (tf.repeat(x, 4000, axis=0) for x in (sources[:, :, :2], mixture[:, :2]))
    level = sde.level(mixture)
    x, steps = sources, 60
    for i in range(steps):
        change, deviation = sde.discretise(x, (i + 0.5) / steps, 1 / steps, level)
        x = x + change + deviation * tf.random.stateless_normal(x.shape, (i, 1))
    noise = (x - tf.reduce_mean(x, axis=0)) / level
    common = tf.reduce_mean(noise, axis=1)
    np.testing.assert_allclose(tf.reduce_mean(x, axis=0), sde.mean(sources, 1.0)[0], atol=0.05)
    expected = [float(v) for v in sde.variances(1.0)]
    apart = tf.reduce_sum(tf.square(noise - common[:, None]), axis=1) / 2  # of two degrees of freedom
    found = [float(tf.reduce_mean(3 * tf.square(common))), float(tf.reduce_mean(apart))]
    np.testing.assert_allclose(found, expected, rtol=0.06)


@pytest.mark.parametrize("process", [MixSDE, PriorMixSDE])
def test_known_sources_come_back_three_of_them_too(process):
    sde, (mixture, sources) = process(3), signals()
    noise = KeyedNoise(file_key(3, [0, 1]), 3, SAMPLES)
    score = known_score(sde, sources, sde.level(mixture))
    for sampler in (
        ExponentialSolver(sde, steps=2, solver="heun"),
        ExponentialSolver(sde, steps=4, fresh=1.0, schedule="snr", consistent=True),
        PredictorCorrector(sde, steps=30, exact=True),
        PredictorCorrector(sde, steps=30, exact=True, reuse=True),
    ):
        calls = []
        estimate = sampler(lambda x, t: calls.append(0) or score(x, t), mixture, noise)
        assert len(calls) == sampler.evaluations
        limit = 1e-3 if isinstance(sampler, ExponentialSolver) else 0.1
        assert np.sqrt(np.mean(np.square(estimate - sources))) < limit


def test_solvers_are_of_the_order_they_claim():
    """Sources N(0, 1) have a linear score; the flow then scales each subspace by the deviation of its states."""
    sde, (mixture, _) = MixSDE(2), signals(1, 2)
    x = tf.random.stateless_normal((1, 2, SAMPLES), (1, 2))

    def deviations(t):
        common, apart = sde.variances(t)
        return tf.sqrt(1.0 + common), tf.sqrt(sde.decay(t) ** 2 + apart)

    def score(x, t):
        return -sde.spread(x, *(1 / d**2 for d in deviations(t)))

    def error(steps, **options):
        solver = ExponentialSolver(sde, steps, t_eps=1 / steps, t_start=0.999, **options)
        # A start whose mean is what the first estimate says, so that nothing is corrected there.
        start = sde.estimate(x, 0.999, score(x, 0.999))
        noise = sde.divide_deviation(0.999, x - sde.mean(start, 0.999))
        found = solver(score, mixture, lambda i: noise, start=start)
        return float(tf.reduce_max(tf.abs(found - sde.spread(x, *(1 / d for d in deviations(0.999))))))

    first = [error(steps, solver="first") for steps in (16, 32)]
    assert 1.6 < first[0] / first[1] < 2.4
    for solver in ("multistep", "heun"):
        second = [error(steps, solver=solver) for steps in (16, 32)]
        assert second[0] / second[1] > 2.8 and second[1] < 0.3 * first[1]


def test_noise_depends_on_the_file_alone():
    keys = file_key(7, np.arange(3))
    assert len(set(keys.tolist())) == 3 and (file_key(8, np.arange(3)) != keys).all()
    whole = KeyedNoise(keys, 2, 1000)
    alone = KeyedNoise(keys[1:2], 2, 600)
    np.testing.assert_array_equal(whole(5)[1:2, :, :600], alone(5))
    drawn = np.stack([whole(i) for i in range(4)])
    assert abs(drawn.mean()) < 0.03 and abs(drawn.std() - 1) < 0.03
    assert np.abs(np.corrcoef(drawn.reshape(-1, 1000)) - np.eye(24)).max() < 0.15


def test_a_batch_in_the_graph_is_its_files_one_by_one():
    sde, (mixture, sources) = MixSDE(3), signals()
    keys = file_key(3, [0, 1])
    samplers = [PredictorCorrector(sde, 3), PredictorCorrector(sde, 3, corrector="langevin", snr=0.1)]
    for sampler in [*samplers, ExponentialSolver(sde, 3, fresh=0.5)]:

        @tf.function
        def run(mixture, sources, keys, sampler=sampler):
            return sampler(known_score(sde, sources * 0.9), mixture, KeyedNoise(keys, 3, SAMPLES), states=True)

        together, states, _ = run(mixture, sources, keys)
        assert states.shape == (3, 2, 3, SAMPLES)
        for i in range(2):
            one = slice(i, i + 1)
            noise = KeyedNoise(keys[one], 3, SAMPLES)
            alone = sampler(known_score(sde, sources[one] * 0.9), mixture[one], noise)
            np.testing.assert_allclose(together[one], alone, rtol=1e-5, atol=1e-4)


def test_times_are_as_dense_as_the_noise_is_strong():
    sde = MixSDE()
    uniform = tf.constant((np.arange(20000) + 0.5) / 20000, tf.float32)
    times = np.asarray(sample_times(sde, uniform, 0.03, "varprop"))
    edges = np.linspace(0.03, 1.0, 11)
    fine = np.linspace(0.03, 1.0, 2001)
    density = np.sqrt(np.asarray(sde.variance(fine)))
    expected = [density[(fine >= a) & (fine <= b)].mean() for a, b in zip(edges, edges[1:])]
    np.testing.assert_allclose(np.histogram(times, edges)[0] / 20000, expected / np.sum(expected), rtol=0.02)


# Losses -------------------------------------------------------------------------------------------


def loss_of(matching, score, mixture, sources, step=0):
    draws = matching.draw(file_key(1, np.arange(len(mixture))), step, SAMPLES)
    return np.asarray(matching(score, mixture, sources, draws))


@pytest.mark.parametrize("init_hack", range(8))
def test_the_score_of_the_sources_has_no_loss(init_hack):
    sde, (mixture, sources) = MixSDE(3), signals(6)
    # So that an order that the network cannot know makes no difference: it is told.
    matching = ScoreMatching(sde, source_order="none", init_hack=init_hack, t_rev_init=0.5, probability=0.5)
    draws = matching.draw(file_key(1, np.arange(6)), 4, SAMPLES)
    branch = np.asarray(draws["branch"]) < 0.5
    assert 0 < branch.sum() < 6
    told = sources if init_hack < 5 else tf.gather(sources, draws["order"], batch_dims=1)
    found = matching(known_score(sde, told), mixture, sources, draws)
    # Hack 2 wants noise where the state is not the noisy sources.
    late = np.asarray(draws["time"]) * 0.97 + 0.03 > 0.5
    assert np.all(np.asarray(found)[~late if init_hack == 2 else slice(None)] < 1e-6)


def test_the_order_of_the_sources_costs_nothing_where_it_should_not():
    sde, (mixture, sources) = MixSDE(4), signals(6, 4)
    swapped = known_score(sde, tf.gather(sources, [2, 0, 3, 1], axis=1))
    for init_hack, threshold, free in ((7, -10.0, True), (6, 100.0, True), (6, -100.0, False), (5, -10.0, False)):
        matching = ScoreMatching(sde, init_hack=init_hack, probability=0.5, mmnr_threshold=threshold)
        draws = matching.draw(file_key(1, np.arange(6)), 0, SAMPLES)
        found = np.asarray(matching(swapped, mixture, sources, draws))
        branch = np.asarray(draws["branch"]) < 0.5
        assert 0 < branch.sum() < 6 and np.all(found[branch] < 1e-6)
        assert np.all((found[~branch] < 1e-6) == free)


@pytest.mark.parametrize("init_hack", [0, 5, 6, 7])
def test_an_order_that_is_given_is_to_be_learnt(init_hack):
    sde, (mixture, sources) = MixSDE(2), signals(6, 2)
    matching = ScoreMatching(
        sde, source_order="pit" if init_hack == 0 else "random", init_hack=init_hack, probability=0.5
    )
    draws = matching.draw(file_key(1, np.arange(6)), 0, SAMPLES)
    given = np.array([True, False, True, True, False, True])
    for told, right in ((sources, True), (sources[:, ::-1], False)):
        found = np.asarray(matching(known_score(sde, told), mixture, sources, draws, tf.constant(given)))
        assert np.all((found[given] < 1e-6) == right)
        without = np.asarray(matching(known_score(sde, told), mixture, sources, draws))
        np.testing.assert_allclose(found[~given], without[~given], rtol=1e-4, atol=1e-9)


def test_draws_of_training_depend_on_example_and_step():
    matching = ScoreMatching(MixSDE(2))
    keys = file_key(1, np.arange(3))
    first = matching.draw(keys, 5, SAMPLES)
    again = tf.function(matching.draw)(keys[1:], tf.constant(5), SAMPLES)
    later = matching.draw(keys, 6, SAMPLES)
    for name, drawn in first.items():
        np.testing.assert_array_equal(drawn[1:], again[name])
    assert np.all(np.asarray(first["time"]) != np.asarray(later["time"]))
    with pytest.raises(ValueError, match="init_hack True"):
        ScoreMatching(MixSDE(2), init_hack=True)


@pytest.mark.parametrize("process", [MixSDE, PriorMixSDE])
def test_what_a_network_is_to_give_has_a_power_of_one_at_any_time(process):
    sde = process(3)
    drawn = np.random.default_rng(2).standard_normal((4, 3, 4000)).astype("float32") / 3**0.5
    mixture, sources = tf.constant(drawn.sum(axis=1)), tf.constant(drawn)
    level = sde.level(mixture)
    t = tf.constant([0.03, 0.3, 0.7, 1.0])
    x = sde.mean(sources, t) + sde.multiply_deviation(t, tf.random.stateless_normal(sources.shape, (1, 2)), level)
    guess = sde.guess(x, t, mixture)
    gain = sde.estimate_of_output(guess, t, tf.constant([[[2.0], [-1.0], [-1.0]]]), level)[:, 0] - guess[:, 0]
    wanted = 2.0 * (sources[:, :1] - guess[:, :1]) / gain[:, None]
    # Of the three directions of a state, two are of differences.
    np.testing.assert_allclose(1.5 * tf.reduce_mean(tf.square(wanted), axis=(1, 2)), 1.0, rtol=0.12)
    np.testing.assert_allclose(tf.reduce_sum(guess, axis=1), mixture, atol=1e-4)
