"""What score networks learn from: denoising score matching, and what to do about the order of the sources.

A network S(x, t, m) is trained on x = mean(s, t) + L(t) z, with z ~ N(0, I), so that L S = -z. Where training is to
know that separation starts at the mixture's share mu = m / n instead of mean(s, 1), `init_hack` says how:

    0  not at all
    1  for t >= 1 - t_rev_init the state is moved to mu, and the target with it
    2  the state is moved towards mu as t goes from 1 - t_rev_init to 1; the target is z alone
    3  the same, and the target follows
    4  an example in N is at t = 1, moved to mu, and the target follows
    5  an example in 1 / init_hack_p is the same, under the order of the sources that suits the network best; others
       have their sources in random order
    6  the same; where the sources of the others, against the noise, are alike, the best order counts too
    7  the same; for the others the best order always counts

No order needs a call of its own: L^-1 mean(s_p) = A s / sqrt(ev1) + k (s_p - A s), k = exp(-d_lambda t) / sqrt(ev2),
and A s does not depend on the order p. The loss of an order is then the sum over i of |q_i - k s_p(i)|^2, whose q does
not depend on it either: a matter of an n x n matrix of costs.

Source: Scheibler et al., ICASSP 2023, section 3.3; reference repository fakufaku/diffusion-separation.
"""

import math

import keras
from keras import ops

from models.diffsep.sampling import key_seed
from models.diffsep.sde import TIME_SAMPLING, sample_times, wide
from models.losses import assignment_cost

ORDERS = ("power", "random", "pit", "none")
WEIGHTS = ("noise", "error")
INIT_HACKS = tuple(range(8))
DRAWS = 5  # kinds of random numbers for a step


class ScoreMatching:
    """The loss of a score network.

    Args:
        sde: of models.diffsep.sde.
        t_eps: shortest time of training.
        time_sampling: see models.diffsep.sde.sample_times.
        source_order: "power": quietest first; "random"; "pit": random, and the best where sources are alike against
            the noise, as for init_hack 6; "none": as they come. Of use for init_hack 0 to 4, but for "pit" to 0.
        init_hack: see above.
        t_rev_init: how long before 1 init_hack 1 to 3 begin.
        probability: of init_hack 4 to 7.
        weight: "noise": of the noise, as in the reference; "error": of the sources, over the error that the best linear
            guess from the state has, so that all times weigh alike.
        mmnr_threshold: dB; sources are alike if their mean square difference over all orders is so far above the noise
            at most.
        parity: in that case the noise that another order stands for has the wrong sign, as in the reference.
    """

    def __init__(
        self,
        sde,
        t_eps=0.03,
        time_sampling="uniform",
        source_order="power",
        init_hack=0,
        t_rev_init=0.03,
        probability=1.0 / 30,
        mmnr_threshold=-10.0,
        weight="noise",
        parity=False,
    ):
        if weight not in WEIGHTS:
            raise ValueError(f"weight {weight}: should be one of {', '.join(WEIGHTS)}")
        if source_order not in ORDERS:
            raise ValueError(f"source order {source_order}: should be one of {', '.join(ORDERS)}")
        if isinstance(init_hack, bool) or init_hack not in INIT_HACKS:
            raise ValueError(f"init_hack {init_hack}: should be a number from 0 to 7")
        if time_sampling not in TIME_SAMPLING:
            raise ValueError(f"time sampling {time_sampling}: should be one of {', '.join(TIME_SAMPLING)}")
        if source_order == "pit" and init_hack in (1, 2, 3, 4):
            raise ValueError(f"source order pit: does not go with init_hack {init_hack}")
        self.sde = sde
        self.t_eps = t_eps
        self.time_sampling = time_sampling
        self.source_order = source_order
        self.init_hack = init_hack
        self.t_rev_init = t_rev_init
        self.probability = probability
        self.mmnr_threshold = mmnr_threshold
        self.weight = weight
        self.parity = parity

    def draw(self, keys, step, samples):
        """Random numbers for a batch, decided by a key for every example and the number of the step.

        Args:
            keys: [batch] int32.
            step: int32 scalar.
            samples: of the sources.

        Returns:
            {"time": uniform [batch], "noise": normal [batch, n, samples], "branch": uniform [batch], "order": a random
            order of the sources, int32 [batch, n]}
        """
        n = self.sde.sources
        first = ops.cast(step, "int32") * DRAWS

        def of_example(key):
            def uniform(kind, shape):
                return keras.random.uniform(shape, seed=key_seed(key, first + kind))

            noise = keras.random.normal((samples, n), seed=key_seed(key, first))
            return uniform(1, ()), noise, uniform(2, ()), uniform(3, (n,))

        time, noise, branch, order = ops.map(of_example, ops.cast(keys, "int32"))
        order = ops.cast(ops.argsort(order, axis=-1), "int32")
        return {"time": time, "noise": ops.transpose(noise, (0, 2, 1)), "branch": branch, "order": order}

    def __call__(self, score, mixture, sources, draws, ordered=None):
        """Loss of every example, [batch].

        Args:
            score: (state, time [batch]) -> score, which knows the mixture; called once.
            mixture: normalised, [batch, samples].
            sources: in the mixture's measure, [batch, n, samples].
            draws: of `draw`.
            ordered: bool [batch]: the network is to learn the order that the sources come in; or None, nowhere.
        """
        sde, z = self.sde, draws["noise"]
        level = sde.level(mixture)
        t = sample_times(sde, draws["time"], self.t_eps, self.time_sampling)
        branch = draws["branch"] < self.probability
        if self.init_hack >= 4:
            t = ops.where(branch, 1.0, t)
        sources = self._in_order(sources, draws["order"], ordered)
        mean = sde.mean(sources, t)
        to_mixture = sde.mixture_mean(mixture) - mean
        moved = self._moved(t, branch)
        x = mean + sde.multiply_deviation(t, z, level)
        target = z
        if moved is not None:
            x = x + wide(moved) * to_mixture
            if self.init_hack != 2:
                target = z + wide(moved) * sde.divide_deviation(t, to_mixture, level)
        found = sde.multiply_deviation(t, score(x, t), level)
        losses = self._of_residual(found, target, z, t, level, sources, branch, ordered)
        return losses if self.weight == "noise" else losses * (1.0 + 1.0 / sde.known(t))

    def _of_residual(self, found, target, z, t, level, sources, branch, given):
        """Loss of L S, [batch], under the orders of the sources that are free."""
        at_mixture, residual = self.init_hack >= 5, found + target
        plain = _mean_square(residual)
        if not at_mixture and self.source_order != "pit":
            return plain
        ordered = self._any_order(residual, sources, t, level)
        free = (branch & at_mixture) | (self.init_hack == 7)
        if self._by_threshold:
            if self.parity:
                # At the mixture the reference has the sign right.
                ordered = ops.where(free, ordered, self._any_order(found + z, sources, t, level, -1.0))
            free = free | self._alike(sources, self.sde.multiply_deviation(t, z, level), t)
        if given is not None:
            free = free & ~given
        return ops.where(free, ordered, plain)

    @property
    def _by_threshold(self):
        return self.init_hack == 6 or (self.init_hack == 0 and self.source_order == "pit")

    def _in_order(self, sources, order, given=None):
        if self.init_hack < 5 and self.source_order == "power":
            order = ops.argsort(ops.var(sources, axis=2), axis=1)
        elif self.init_hack < 5 and self.source_order == "none":
            return sources
        if given is not None:
            order = ops.where(ops.expand_dims(given, 1), ops.arange(self.sde.sources, dtype=order.dtype), order)
        return ops.take_along_axis(sources, ops.expand_dims(order, 2), axis=1)

    def _moved(self, t, branch):
        """How far towards the mixture's share the state is, [batch]; None: not at all."""
        if self.init_hack == 0:
            return None
        if self.init_hack == 1:
            return ops.cast(t >= 1.0 - self.t_rev_init, "float32")
        if self.init_hack in (2, 3):
            return ops.clip((t - (1.0 - self.t_rev_init)) / self.t_rev_init, 0.0, 1.0)
        return ops.cast(branch, "float32")

    def _any_order(self, residual, sources, t, level, sign=1.0):
        """Mean square of L S + target under the best order of the sources, [batch].

        Args:
            residual: L S + target, under the order that `sources` have.
        """
        k = wide(self.sde.decay(t) / self.sde.deviations(t)[1]) * sign / level
        scaled = k * sources
        difference = ops.expand_dims(residual + scaled, 2) - ops.expand_dims(scaled, 1)  # [B, n, n, samples]
        return assignment_cost(ops.mean(ops.square(difference), axis=-1)) / self.sde.sources

    def _alike(self, sources, noise, t):
        """Whether the sources differ, over all orders, by little against the noise, [batch]."""
        n = self.sde.sources
        # Of all orders, (n - 1)! have source j in the place of source i.
        pairs = ops.expand_dims(sources, 2) - ops.expand_dims(sources, 1)
        squares = ops.sum(ops.mean(ops.square(pairs), axis=-1), axis=(1, 2)) / n
        squares = squares * (math.factorial(n - 1) / max(1, math.factorial(n) - 1)) * ops.square(self.sde.decay(t))
        ratio = squares / ops.maximum(_mean_square(noise), 1e-5)
        return ratio < 10.0 ** (self.mmnr_threshold / 10.0)


def _mean_square(x):
    """Over sources and samples, [batch]."""
    return ops.mean(ops.square(x), axis=(1, 2))
