"""The stochastic process of diffusion separation: from separated sources to noise around their mixture, and back.

    dx = -d_lambda P x dt + g(t) dw,    g(t) = sigma_min rho^t sqrt(2 ln rho),    rho = sigma_max / sigma_min

A = 1 1^T / n is the mean over the n sources, P = I - A what is left. Both subspaces decouple, so everything the process
does is a number for each of them: `common` for what all sources share (A), `apart` for their differences (P). The
difference decays, until all sources are the mixture's share m / n.

States are [batch, n, samples], mixtures [batch, samples], times [batch] or scalar, in [0, 1].

Source: Scheibler et al., "Diffusion-based generative speech source separation", ICASSP 2023; reference repository
fakufaku/diffusion-separation.
"""

import math

import numpy as np
from keras import ops

SCHEDULES = ("plain", "linear", "log", "revlog", "snr")
TIME_SAMPLING = ("uniform", "varprop")


def wide(x):
    """[batch] or scalar -> [batch, 1, 1] or [1, 1, 1], beside states."""
    return ops.reshape(ops.cast(x, "float32"), (-1, 1, 1))


class MixSDE:
    """The process whose noise has one level.

    Args:
        sources: n, how many the mixture has.
        d_lambda: decay of the differences, the paper's gamma.
        sigma_min, sigma_max: noise at the sources and, nearly, at the mixture.
    """

    power = 1.0  # of the mixture, over the square of the noise's level

    def __init__(self, sources=2, d_lambda=2.0, sigma_min=0.05, sigma_max=0.5):
        self.sources = sources
        self.d_lambda = d_lambda
        self.sigma_min = sigma_min
        self.log_rho = math.log(sigma_max / sigma_min)

    # Noise of a mixture --------------------------------------------------------------------------------

    def level(self, mixture):
        """What the noise is multiplied by, which the `level` of other methods stands for: a number."""
        return 1.0

    # Forward -------------------------------------------------------------------------------------------

    def spread(self, x, common, apart):
        """(common A + apart P) x; both factors are numbers, [batch], or anything that stands beside states."""
        common, apart = (factor if len(ops.shape(factor)) > 1 else wide(factor) for factor in (common, apart))
        mean = ops.mean(x, axis=1, keepdims=True)
        return apart * x + (common - apart) * mean

    def matrix(self, common, apart):
        """common A + apart P: [batch, n, n]."""
        share = np.full((self.sources, self.sources), 1.0 / self.sources, "float32")
        return wide(common) * share + wide(apart) * (np.eye(self.sources, dtype="float32") - share)

    def drift(self, x):
        """Of the forward process, per unit of time."""
        return -self.d_lambda * (x - ops.mean(x, axis=1, keepdims=True))

    def diffusion(self, t, level=1.0):
        """g(t), to stand beside states."""
        scale = self.sigma_min * math.sqrt(2.0 * self.log_rho)
        return scale * ops.exp(self.log_rho * wide(t)) * level

    def decay(self, t):
        """What the differences between sources are multiplied by in the mean at t."""
        return ops.exp(-self.d_lambda * ops.cast(t, "float32"))

    def mean(self, x0, t):
        """Of the state at t, if it was x0 at 0."""
        return self.spread(x0, 1.0, self.decay(t))

    def variances(self, t):
        """(common, apart), of the state at t, for a level of 1: the eigenvalues of L(t)^2."""
        t = ops.cast(t, "float32")
        twice = 2.0 * (self.log_rho + self.d_lambda)
        common = self.sigma_min**2 * ops.expm1(2.0 * self.log_rho * t)
        apart = self.sigma_min**2 * ops.exp(-2.0 * self.d_lambda * t) * ops.expm1(twice * t)
        return common, apart / (1.0 + self.d_lambda / self.log_rho)

    def variance(self, t):
        """Mean of the two, whatever n is."""
        common, apart = self.variances(t)
        return 0.5 * (common + apart)

    def deviations(self, t):
        """(common, apart), square roots of the variances: the eigenvalues of L(t)."""
        return tuple(ops.sqrt(variance) for variance in self.variances(t))

    def multiply_deviation(self, t, x, level=1.0):
        """L(t) x"""
        return self.spread(x, *self.deviations(t)) * level

    def divide_deviation(self, t, x, level=1.0):
        """L(t)^-1 x"""
        common, apart = self.deviations(t)
        return self.spread(x, 1.0 / common, 1.0 / apart) / level

    def discretise(self, x, t, step, level=1.0):
        """(change of the mean, deviation of the noise) of a forward step of this length."""
        return self.drift(x) * step, self.diffusion(t, level) * step**0.5

    # Backward ------------------------------------------------------------------------------------------

    def mixture_mean(self, mixture):
        """The mixture's share as every source: [batch, n, samples]."""
        return ops.repeat(ops.expand_dims(mixture / self.sources, 1), self.sources, axis=1)

    def prior(self, mixture, noise, level=1.0, t=1.0):
        """The state that a reverse process starts from; `noise` is N(0, I)."""
        return self.mixture_mean(mixture) + self.multiply_deviation(t, noise, level)

    def reverse_drift(self, x, t, score, level=1.0, flow=False):
        """Of the reverse process, per unit of time as it falls; `flow`: of the ordinary differential equation."""
        share = 0.5 if flow else 1.0
        return self.drift(x) - share * ops.square(self.diffusion(t, level)) * score

    def discretise_reverse(self, x, t, score, step, level=1.0):
        """(what a step of this length takes off the state, deviation of the noise that it adds)."""
        change, deviation = self.discretise(x, t, step, level)
        return change - ops.square(deviation) * score, deviation

    def estimate(self, x, t, score, level=1.0):
        """The sources that the score at (x, t) points to (Tweedie's formula)."""
        common, apart = self.variances(t)
        mean = x + self.spread(score, common, apart) * level**2
        return self.spread(mean, 1.0, 1.0 / self.decay(t))

    def known(self, t):
        """Power of the differences between sources over that of their noise, in the state at t."""
        return self.power / self.sources * ops.square(self.decay(t)) / self.variances(t)[1]

    def guess(self, x, t, mixture):
        """The best linear guess of the sources from the state; their sum is the mixture, [batch, samples]."""
        known = self.known(t)
        skip = wide(known / (1.0 + known) / self.decay(t))
        return self.mixture_mean(mixture) + self.spread(skip * x, 0.0, 1.0)

    def estimate_of_output(self, guess, t, output, level=1.0):
        """Sources of what a network gives that is to have a power of about 1 at any time (Karras et al., 2022).

        Args:
            guess: of `guess`.
            output: [batch, n, samples]; comes on top, as large as the guess's error. Has a say in the differences
                between the sources alone.
        """
        known = self.known(t)
        gain = ops.sqrt(known / (1.0 + known) * self.variances(t)[1]) / self.decay(t)
        return guess + self.spread(wide(gain) * level * output, 0.0, 1.0)

    def score_of_estimate(self, x, t, estimate, level=1.0):
        """The score at (x, t) if the sources were known: the inverse of `estimate`."""
        common, apart = self.variances(t)
        return self.spread(self.mean(estimate, t) - x, 1.0 / common, 1.0 / apart) / level**2


class PriorMixSDE(MixSDE):
    """The process whose noise follows the level of the mixture, sample by sample, for speech enhancement.

    Args:
        sources, d_lambda, sigma_min, sigma_max: see MixSDE.
        avg_len: samples over which the level is measured.
        parity: the mean of the prior is half the mixture, however many sources there are, as in the reference.
    """

    power = 4.0  # the level is half of the mixture's

    def __init__(self, sources=2, d_lambda=2.0, sigma_min=0.05, sigma_max=0.5, avg_len=510, parity=False):
        super().__init__(sources, d_lambda, sigma_min, sigma_max)
        self.avg_len = avg_len
        self.parity = parity

    def level(self, mixture):
        """[batch, samples] -> [batch, 1, samples]: half the level around every sample, 0.005 at least."""
        samples, side = ops.shape(mixture)[1], self.avg_len // 2
        power = ops.pad(ops.expand_dims(ops.square(mixture), 2), [(0, 0), (side, side), (0, 0)])
        power = ops.average_pool(power, self.avg_len, strides=1, padding="valid", data_format="channels_last")
        power = ops.transpose(power[:, :samples], (0, 2, 1))
        return 0.5 * ops.sqrt(ops.maximum(power, 1e-4))

    def mixture_mean(self, mixture):
        mean = super().mixture_mean(mixture)
        return 0.5 * self.sources * mean if self.parity else mean


PROCESSES = {"MixSDE": MixSDE, "PriorMixSDE": PriorMixSDE}


def normalise(mixture, sources=None):
    """Mixture of mean 0 and deviation 1 for every example, and its sources in the same measure.

    The mean is taken off every source, as the reference does, so that their sum has another mean than the mixture.

    Args:
        mixture: [batch, samples].
        sources: [batch, n, samples], or None.

    Returns:
        (mixture, sources, (mean, deviation)); the last two are [batch, 1, 1], for `denormalise`. Deviations are at
        least 1e-5.
    """
    mean = ops.mean(mixture, axis=1, keepdims=True)
    count = ops.cast(ops.shape(mixture)[1] - 1, "float32")
    deviation = ops.sqrt(ops.sum(ops.square(mixture - mean), axis=1, keepdims=True) / count)
    deviation = ops.maximum(deviation, 1e-5)
    measure = tuple(ops.expand_dims(x, 1) for x in (mean, deviation))
    scaled = None if sources is None else (sources - measure[0]) / measure[1]
    return (mixture - mean) / deviation, scaled, measure


def denormalise(x, measure):
    """The inverse of `normalise`, for anything in its measure."""
    mean, deviation = measure
    return x * deviation + mean


# Times --------------------------------------------------------------------------------------------


def time_grid(steps, t_eps, schedule="plain", exact=False, t_start=1.0, sde=None, to_zero=False):
    """Times of the steps of a reverse process, falling, and the lengths of these steps.

    Args:
        steps: N.
        t_eps: shortest time.
        schedule: "plain": N times, equally far apart, the last of them t_eps; "linear": N + 1 such times, the last of
            which, t_eps, is no step any more; "log": the same, equally far apart in the logarithm of time ("revlog" is
            the same grid); "snr": N times, equally far apart in the logarithm of the ratio of the differences between
            sources to their noise.
        exact: every step is as long as the grid says, up to t_eps, or to 0 where t_eps is a step itself. Otherwise all
            are t_start / N, as in the reference, although the grid says otherwise.
        t_start: longest time.
        sde: the process, for "snr".
        to_zero: t_eps is a step itself, whatever the schedule.

    Returns:
        (times [N], lengths [N]), float64.
    """
    if steps < 1:
        raise ValueError(f"{steps} steps: at least one is needed")
    to_zero |= schedule in ("plain", "snr")
    points = steps if to_zero else steps + 1
    if schedule in ("plain", "linear"):
        grid = np.linspace(t_start, t_eps, points)
    elif schedule in ("log", "revlog"):
        grid = np.geomspace(t_start, t_eps, points)
    elif schedule == "snr":
        grid = _snr_grid(sde, points, t_eps, t_start)
    else:
        raise ValueError(f"schedule {schedule}: should be one of {', '.join(SCHEDULES)}")
    grid = np.append(grid, 0.0) if to_zero else grid
    lengths = -np.diff(grid) if exact else np.full(steps, t_start / steps)
    return grid[:-1], lengths


def _snr_grid(sde, points, t_eps, t_start):
    fine = np.geomspace(t_start, t_eps, 4097)
    twice = 2.0 * (sde.log_rho + sde.d_lambda)
    ratio = -np.log(np.expm1(twice * fine))  # of decay^2 to the variance of the differences, but for a factor
    return np.interp(np.linspace(ratio[0], ratio[-1], points), ratio, fine)


def sample_times(sde, uniform, t_eps, strategy="uniform"):
    """Times to train at, [batch], in [t_eps, 1].

    Args:
        uniform: [batch], in [0, 1).
        strategy: "uniform", or "varprop": as dense as the noise is strong, sqrt(variance(t)). The reference draws by
            rejection; here the distribution function is inverted.
    """
    if strategy == "uniform":
        return t_eps + (1.0 - t_eps) * uniform
    if strategy != "varprop":
        raise ValueError(f"time sampling {strategy}: should be one of {', '.join(TIME_SAMPLING)}")
    fine = np.linspace(t_eps, 1.0, 4097)
    common = np.expm1(2.0 * sde.log_rho * fine)
    apart = np.exp(-2.0 * sde.d_lambda * fine) * np.expm1(2.0 * (sde.log_rho + sde.d_lambda) * fine)
    density = np.sqrt(common + apart / (1.0 + sde.d_lambda / sde.log_rho))
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    table = np.interp(np.linspace(0.0, 1.0, 1025), below / below[-1], fine).astype("float32")
    place = uniform * 1024.0
    left = ops.minimum(ops.cast(ops.floor(place), "int32"), 1023)
    part = place - ops.cast(left, "float32")
    table = ops.convert_to_tensor(table)
    return (1.0 - part) * ops.take(table, left) + part * ops.take(table, left + 1)
