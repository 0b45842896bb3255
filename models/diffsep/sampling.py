"""Reverse processes: from a mixture and noise to its sources, by calls of a score network.

`PredictorCorrector` is the reference's sampler, two calls a step. `ExponentialSolver` solves the linear part of the
process exactly, in both of its subspaces, and needs far fewer calls. Both are one loop in the graph.

A score is a function (state [batch, n, samples], time [batch]) -> [batch, n, samples] that knows the mixture. Noise is
a function (index) -> N(0, 1) like the state; draw 0 is the prior's.

Sources: Song et al., "Score-based generative modeling through stochastic differential equations", ICLR 2021 (predictor
and corrector); Lu et al., "DPM-Solver++", 2022 (exponential integrators); Karras et al., "Elucidating the design space
of diffusion-based generative models", 2022 (Heun); reference repository fakufaku/diffusion-separation.
"""

import keras
import numpy as np
from keras import ops

from models.diffsep.sde import time_grid

PREDICTORS = ("reverse_diffusion", "euler_maruyama", "none")
CORRECTORS = ("ald2", "ald", "langevin", "none")
PREDICTS = ("score", "sources")
SOLVERS = ("first", "multistep", "heun")


def score_of(model, sde, mixture, predicts="score", training=False):
    """The score of normalised mixtures [batch, samples] by a network, which looks at them once.

    Args:
        model: models.diffsep.ncsnpp.ScoreModel or models.diffsep.cdiffuse.CDiffuse.
        predicts: of PREDICTS, what the network gives: the score of the state, as in the reference; or, of the best
            linear guess of the sources, what makes it the sources, see models.diffsep.sde.MixSDE.estimate_of_output,
            from which the score follows.
    """
    prepared = model.prepare(mixture)

    def output(x, t):
        return model(x, t, prepared=prepared, training=training)

    if predicts == "score":
        return output
    level = sde.level(mixture)

    def score(x, t):
        # In place of the state, of which near the end most is noise.
        guess = sde.guess(x, t, mixture)
        return sde.score_of_estimate(x, t, sde.estimate_of_output(guess, t, output(guess, t), level), level)

    return score


# Noise --------------------------------------------------------------------------------------------


class _Key(keras.random.SeedGenerator):
    """A seed that is a tensor of two integers, which keras.random takes in this form only."""

    def __init__(self, value):
        self.value = value

    def next(self, ordered=True):
        return self.value


def key_seed(first, second):
    """A seed of two int32 scalars, for keras.random."""
    return _Key(ops.stack([first, second]))


class KeyedNoise:
    """Noise that a key for every file decides, whatever else is in the batch, and however long the padding.

    Args:
        keys: [batch] int32, of `file_key`.
        sources: n.
        samples: of the states.
    """

    def __init__(self, keys, sources, samples):
        self.keys = ops.cast(keys, "int32")
        self.shape = (samples, sources)

    def __call__(self, index):
        """N(0, 1), [batch, sources, samples]."""
        second = ops.cast(index, "int32")

        def draw(key):
            return keras.random.normal(self.shape, seed=key_seed(key, second))

        # Samples first: what comes before does not depend on how many follow.
        return ops.transpose(ops.map(draw, self.keys), (0, 2, 1))


class RecordedNoise:
    """Noise that was drawn before.

    Args:
        draws: [draws, batch, n, samples].
    """

    def __init__(self, draws):
        self.draws = ops.convert_to_tensor(draws)

    def __call__(self, index):
        return ops.take(self.draws, index, axis=0)


def file_key(seed, index):
    """int32 key of a file, by the seed of all and its place in the set: numpy, any shape of `index`."""
    state = np.asarray(index, np.uint64) + (np.uint64(seed) << np.uint64(32))
    with np.errstate(over="ignore"):  # splitmix64
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (state >> np.uint64(33)).astype(np.int32)


# Samplers -----------------------------------------------------------------------------------------


class Sampler:
    """What all samplers share.

    Args:
        sde: of models.diffsep.sde.
        grid: (times [N], lengths of the steps [N]), of models.diffsep.sde.time_grid.
        consistent: let the estimates sum to the mixture, as the sources do.

    Attributes:
        steps: N.
        t_start: the first time.
    """

    def __init__(self, sde, grid, consistent=False):
        self.sde = sde
        self.times, self.lengths = (values.astype("float32") for values in grid)
        self.steps = len(self.times)
        self.t_start = float(self.times[0])
        self.consistent = consistent

    @property
    def evaluations(self):
        """Calls of the network for a batch."""
        raise NotImplementedError

    def __call__(self, score, mixture, noise, start=None, states=False):
        """Separates normalised mixtures.

        Args:
            score, noise: see above.
            mixture: [batch, samples].
            start: None, or estimates of the sources [batch, n, samples] to start around instead of the mixture's share,
                for times that start below 1.
            states: also give all states of the way, [N, batch, n, samples], and their means without noise.

        Returns:
            estimates [batch, n, samples], or (estimates, states, means).
        """
        level = self.sde.level(mixture)
        times, lengths = ops.convert_to_tensor(self.times), ops.convert_to_tensor(self.lengths)

        def call(x, t):
            found = score(x, ops.broadcast_to(ops.reshape(t, (1,)), ops.shape(x)[:1]))
            return ops.reshape(found, ops.shape(x))

        mean = self.sde.mixture_mean(mixture) if start is None else self.sde.mean(start, self.t_start)
        x = mean + self.sde.multiply_deviation(self.t_start, noise(0), level)
        carry, step = self._begin(call, mixture, x, mean, level, noise)

        def walk(i, carry):
            return step(i, ops.take(times, i), ops.take(lengths, i), carry)

        if states:

            def scanned(carry, i):
                carry = walk(i, carry)
                return carry, carry

            carry, way = ops.scan(scanned, carry, ops.arange(self.steps, dtype="int32"))
            return self._end(carry, mixture), way["state"], way["state_mean"]

        def without_states(carry):
            return {name: value for name, value in carry.items() if not name.startswith("state")}

        carry = ops.fori_loop(0, self.steps, lambda i, x: without_states(walk(i, x)), without_states(carry))
        return self._end(carry, mixture)

    def _begin(self, call, mixture, x, mean, level, noise):
        """What goes through the loop, {"x", "mean", "state", "state_mean", ...}, and its step.

        Args:
            call: (state, time) -> score.
            x: the first state.
            mean: what it is without noise.

        Returns:
            (carry, (index, time, length, carry) -> carry).
        """
        raise NotImplementedError

    def _end(self, carry, mixture):
        return self._share(carry["mean"], mixture) if self.consistent else carry["mean"]

    def _share(self, estimate, mixture):
        """The estimate, with its error of the sum taken off all sources alike."""
        return estimate + self.sde.mixture_mean(mixture) - ops.mean(estimate, axis=1, keepdims=True)


class PredictorCorrector(Sampler):
    """At every time some steps of a corrector, then one of a predictor.

    Args:
        sde, consistent: see Sampler.
        steps, t_eps, schedule, exact, t_start: see models.diffsep.sde.time_grid.
        predictor, corrector: of PREDICTORS, CORRECTORS.
        snr: r, size of the corrector's steps.
        corrector_steps: at every time.
        denoise: give the mean of the last state, without its noise.
        reuse: correctors take the sources that the predictor before pointed to, instead of calling the network; the
            first calls it once.
        parity: the corrector "langevin" takes one step size for the batch, as in the reference.
    """

    def __init__(
        self,
        sde,
        steps=30,
        t_eps=0.03,
        schedule="plain",
        exact=False,
        t_start=1.0,
        consistent=False,
        predictor="reverse_diffusion",
        corrector="ald2",
        snr=0.5,
        corrector_steps=1,
        denoise=True,
        reuse=False,
        parity=False,
    ):
        for name, known in ((predictor, PREDICTORS), (corrector, CORRECTORS)):
            if name not in known:
                raise ValueError(f"{name}: should be one of {', '.join(known)}")
        super().__init__(sde, time_grid(steps, t_eps, schedule, exact, t_start, sde), consistent)
        self.predictor = predictor
        self.corrector = corrector
        self.snr = snr
        self.corrector_steps = 0 if corrector == "none" else corrector_steps
        self.denoise = denoise
        self.reuse = reuse and self.corrector_steps > 0 and predictor != "none"
        self.parity = parity

    @property
    def evaluations(self):
        predictions = self.steps * (self.predictor != "none")
        return predictions + (1 if self.reuse else self.steps * self.corrector_steps)

    def _begin(self, call, mixture, x, mean, level, noise):
        sde = self.sde
        draws = self.corrector_steps + (self.predictor != "none")  # of noise, at a time

        def step(i, t, length, carry):
            x = mean = carry["x"]
            for k in range(self.corrector_steps):
                s = sde.score_of_estimate(x, t, carry["estimate"], level) if self.reuse else call(x, t)
                x, mean = self._correct(x, t, s, noise(1 + draws * i + k), level)
            found = {"state": x, "state_mean": mean}
            if self.predictor != "none":
                s = call(x, t)
                if self.reuse:
                    found["estimate"] = sde.estimate(x, t, s, level)
                change, deviation = sde.discretise_reverse(x, t, s, length, level)
                mean = x - change
                x = mean + deviation * noise(draws * (i + 1))
            return found | {"x": x, "mean": mean}

        carry = {name: x for name in ("x", "mean", "state", "state_mean")}
        if self.reuse:
            carry["estimate"] = sde.estimate(x, self.t_start, call(x, self.times[0]), level)
        return carry, step

    def _end(self, carry, mixture):
        return super()._end(carry if self.denoise else carry | {"mean": carry["x"]}, mixture)

    def _correct(self, x, t, score, noise, level):
        """(state, its mean) after a step of the corrector."""
        if self.corrector == "langevin":
            ratio = _norm(noise), _norm(score)
            if self.parity:
                ratio = tuple(ops.mean(norm) for norm in ratio)
            step = 2.0 * ops.square(self.snr * ratio[0] / ratio[1])
        elif self.corrector == "ald":
            step = 2.0 * ops.square(self.snr * self.sde.deviations(t)[0] * level)
        else:
            shaped = self.sde.multiply_deviation(t, score, level)
            mean = x + 2.0 * self.snr**2 * self.sde.multiply_deviation(t, shaped, level)
            return mean + 2.0 * self.snr * self.sde.multiply_deviation(t, noise, level), mean
        mean = x + step * score
        return mean + ops.sqrt(2.0 * step) * noise, mean


def _norm(x):
    """Euclidean norm of every example, [batch, 1, 1]."""
    return ops.sqrt(ops.sum(ops.square(x), axis=(1, 2), keepdims=True))


class ExponentialSolver(Sampler):
    """Solves for the sources that the score points to, which change slowly; all else is done exactly.

    A step from t to s takes the estimate D of the sources as constant:

        x(s) = mean(D, s) + k (x(t) - mean(D, t)) + noise,

    where k makes the deviation at s, and is another number in each of the process's two subspaces. The first step
    knows better: the reverse process starts around the mixture's share, not around mean(D, 1). This difference is no
    noise, and is taken out of the state, so that no later state has a part of it.

    Args:
        sde, steps, t_eps, t_start: see Sampler.
        schedule: "plain" or "linear", "log", "snr"; t_eps is the last time, from which the last step goes to 0.
        consistent: let all estimates on the way sum to the mixture.
        solver: "first": D of this time; "multistep": extrapolated from the step before (DPM-Solver++(2M)); "heun": the
            mean of those at both ends, two calls a step.
        fresh: how much of the deviation is drawn anew, from 0, an ordinary differential equation, to 1, the reverse
            process.
    """

    def __init__(
        self,
        sde,
        steps=10,
        t_eps=0.03,
        schedule="plain",
        t_start=1.0,
        consistent=False,
        solver="multistep",
        fresh=0.0,
    ):
        if solver not in SOLVERS:
            raise ValueError(f"solver {solver}: should be one of {', '.join(SOLVERS)}")
        super().__init__(sde, time_grid(steps, t_eps, schedule, True, t_start, sde, to_zero=True), consistent)
        self.solver = solver
        self.fresh = fresh

    @property
    def evaluations(self):
        return 2 * self.steps - 1 if self.solver == "heun" else self.steps

    def _begin(self, call, mixture, x, mean, level, noise):
        def estimate(x, t):
            found = self.sde.estimate(x, t, call(x, t), level)
            return self._share(found, mixture) if self.consistent else found

        def step(i, t, length, carry):
            s, x = t - length, carry["x"]
            last = i == self.steps - 1
            s = ops.where(last, 0.0, s)
            found = used = estimate(x, t)
            x = x + ops.where(i == 0, 1.0, 0.0) * (self.sde.mean(found, t) - mean)
            if self.solver == "multistep":
                before = ops.take(self.times, ops.maximum(i - 1, 0))
                used = found + ops.where((i == 0) | last, 0.0, 1.0) * self._slope(
                    found - carry["estimate"], before, t, s
                )
            drawn = noise(i + 1) if self.fresh else None
            moved = self._move(x, used, t, s, level, drawn)
            if self.solver == "heun":
                at_end = ops.cond(last, lambda: found, lambda: estimate(moved, s))
                moved = self._move(x, 0.5 * (found + at_end), t, s, level, drawn)
            return {"x": moved, "mean": found, "estimate": found, "state": x, "state_mean": self.sde.mean(found, t)}

        return {"x": x, "mean": x, "estimate": x, "state": x, "state_mean": x}, step

    def _move(self, x, estimate, t, s, level, noise):
        """The state at s, of that at t and the sources."""
        kept, drawn = [], []
        for at_t, at_s, less in zip(self.sde.variances(t), self.sde.variances(s), (0.0, 2.0 * self.sde.d_lambda)):
            new = self.fresh**2 * at_s * (1.0 - at_s / at_t * ops.exp(less * (s - t)))
            kept.append(ops.sqrt((at_s - new) / at_t))
            drawn.append(ops.sqrt(new))
        moved = self.sde.mean(estimate, s) + self.sde.spread(x - self.sde.mean(estimate, t), *kept)
        return moved if noise is None else moved + self.sde.spread(noise, *drawn) * level

    def _slope(self, change, before, t, s):
        """Half of the change of the estimate from `before` to t, carried on to s."""
        rise = []
        for common in (True, False):
            at = [self._log_ratio(time, common) for time in (before, t, s)]
            rise.append(0.5 * (at[2] - at[1]) / ops.where(at[1] > at[0], at[1] - at[0], 1.0))
        return self.sde.spread(change, *rise)

    def _log_ratio(self, t, common):
        """Logarithm of the ratio of what the sources have at t to its deviation, in one of the two subspaces."""
        variance = ops.maximum(self.sde.variances(t)[0 if common else 1], 1e-12)
        return -0.5 * ops.log(variance) - (0.0 if common else self.sde.d_lambda * t)
