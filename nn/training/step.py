"""The compiled training step: gradients, their sum over replicas, guards, clipping, update, moving average."""

import contextlib
import math

import tensorflow as tf
from tensorflow.python.eager import context  # there is no public way to its caches

from feat.base.graph import compiled

NORM_HISTORY = 10000  # gradient norms that a percentile is of
FIRST_SCALE = 2.0**15  # of the loss in float16
SCALE_UP_AFTER = 2000  # good steps before it is doubled


class TrainStep:
    """One optimiser step on a global batch, on all replicas of a strategy.

    Gradients are summed over replicas before anything else is done with them, so that every replica then does the
    same to its own copy of the weights, and two replicas train as one device does. A step whose loss or gradient
    is not finite changes nothing.

    Args:
        model: keras.Model, made in the strategy's scope.
        optimizer: of nn.training.optimizers, built in the strategy's scope.
        objective: see nn.training.task.Task.
        strategy: tf.distribute strategy.
        batch_size: examples in a step, all replicas and pieces together; the loss is the mean over them.
        clip_norm: largest global norm of the summed gradient; 0: no limit.
        clip_percentile: the limit is this percentile of the last 10000 norms, this step's included, instead; 0: not.
        clip_pieces: of the pieces that make a step, limit the sum after each, as fakufaku/diffusion-separation does.
        accumulate: batches whose gradients make a step.
        ema_decay: of the moving average of the weights, see `average_decay`; 0: none.
        scale_loss: multiply the loss against the underflow of float16, by as much as gradients stay finite.
        jit_compile: let XLA compile forward and backward pass.
        audio_seconds: batch -> seconds in it, a scalar tensor.
        least_loss: examples with a loss up to this do not count; None: all count. The loss is then the mean of those
            that do, of all replicas and pieces, and a step without any is skipped.
        largest_loss: a step with such a loss or more is skipped; None: none is.

    A skipped step changes nothing, the optimiser's count of steps included.
    """

    def __init__(
        self,
        model,
        optimizer,
        objective,
        strategy,
        batch_size,
        clip_norm=0.0,
        accumulate=1,
        ema_decay=0.0,
        scale_loss=False,
        jit_compile=False,
        clip_percentile=0.0,
        clip_pieces=False,
        audio_seconds=lambda batch: tf.constant(0.0),
        least_loss=None,
        largest_loss=None,
    ):
        self.optimizer = optimizer
        self.objective = objective
        self.strategy = strategy
        self.batch_size = batch_size
        self.clip_norm = clip_norm
        self.clip_percentile = clip_percentile
        self.clip_pieces = clip_pieces and accumulate > 1 and bool(clip_norm or clip_percentile)
        self.accumulate = accumulate
        self.ema_decay = ema_decay
        self.audio_seconds = audio_seconds
        self.least_loss = least_loss
        self.largest_loss = largest_loss
        self.weights = model.trainable_variables
        # Such as the moving statistics of batch norm: the forward pass changes them before a guard can look.
        self.statistics = [v for v in model.non_trainable_variables if v.dtype == "float32"]
        self.metric_names = []
        with strategy.scope():
            self.averages = [tf.Variable(w.value, trainable=False) for w in self.weights] if ema_decay else []
            self.scale = tf.Variable(FIRST_SCALE, trainable=False) if scale_loss else None
            self.good_steps = tf.Variable(0, trainable=False) if scale_loss else None
            self.norms = NormHistory(clip_percentile) if clip_percentile else None
            self.sums = [_replica_sum(w.shape) for w in self.weights] if accumulate > 1 else []
        if jit_compile:
            self._gradients = compiled(self._gradients, jit_compile=True)
        self._functions = {}
        # TensorFlow keeps a kernel of some 40 KB for every variable that was made.
        context.context().clear_kernel_cache()

    @property
    def state(self):
        """{name: tf.Variable} of what a checkpoint must hold besides weights and optimiser."""
        state = {weight.path.split("/", 1)[1]: average for weight, average in zip(self.weights, self.averages)}
        if self.scale is not None:
            state |= {"loss_scale": self.scale, "good_steps": self.good_steps}
        if self.norms is not None:
            state |= {"gradient_norms": self.norms.values, "gradient_norms_seen": self.norms.seen}
        return state

    def restart_averages(self):
        """Lets the moving average start from the weights as they are now."""
        for average, weight in zip(self.averages, self.weights):
            average.assign(weight.value)

    @contextlib.contextmanager
    def averaged_weights(self):
        """Puts the moving average in the place of the weights meanwhile, if there is one."""
        kept = [weight.numpy() for weight, _ in zip(self.weights, self.averages)]
        for weight, average in zip(self.weights, self.averages):
            weight.assign(average.read_value())
        try:
            yield
        finally:
            for weight, value in zip(self.weights, kept):
                weight.assign(value)

    def compile(self, element_spec):
        """Makes the functions for batches of this spec."""
        rate = tf.TensorSpec([], tf.float32)
        if self.accumulate == 1:
            self._functions["whole"] = compiled(self._whole, element_spec, rate)
        else:
            self._functions["piece"] = compiled(self._piece, element_spec)
            self._functions["apply"] = compiled(self._apply_pieces, tf.TensorSpec([None], tf.float32), rate)

    def __call__(self, batches, rate):
        """One step.

        Args:
            batches: list of `accumulate` batches of the strategy's distributed dataset.
            rate: learning rate.

        Returns:
            {"loss", "gradient_norm", "audio_seconds", "bad": 1 if the step was skipped because of numbers that are
            not finite, although the loss is not scaled up, metrics}, scalar tensors; "loss_scale" too where the loss
            is scaled, "left_out" where losses have limits: 1 if the step was skipped because of them. Loss and
            gradient_norm are then NaN.
        """
        rate = tf.constant(rate, tf.float32)
        if self.accumulate == 1:
            return self._functions["whole"](batches[0], rate)
        numbers = sum(self._functions["piece"](batch) for batch in batches)
        return self._functions["apply"](numbers, rate)

    # In cross-replica context -------------------------------------------------------------------------

    def _whole(self, batch, rate):
        def replica(batch, rate):
            before = self._read_statistics()
            gradients, numbers = self._gradients(batch)
            *gradients, numbers = self._sum_over_replicas([*gradients, numbers])
            found = self._apply(gradients, numbers, rate)
            self._keep_statistics(found["finite"], before)
            return found

        return self._advance(self.strategy.run(replica, (batch, rate)))

    def _piece(self, batch):
        def replica(batch):
            before = self._read_statistics()
            gradients, numbers = self._gradients(batch)
            for total, gradient in zip(self.sums, gradients):
                total.assign_add(gradient)
            (numbers,) = self._sum_over_replicas([numbers])
            if self.clip_pieces:
                numbers = tf.concat([numbers, [self._clip_sums()]], axis=0)
            self._keep_statistics(tf.math.is_finite(numbers[0]), before)
            return numbers

        return self._same_everywhere(self.strategy.run(replica, (batch,)))

    def _apply_pieces(self, numbers, rate):
        def replica(numbers, rate):
            gradients = self._sum_over_replicas([tf.identity(total) for total in self.sums])
            with tf.control_dependencies(gradients):
                for total in self.sums:
                    total.assign(tf.zeros_like(total))
            return self._apply(gradients, numbers, rate)

        return self._advance(self.strategy.run(replica, (numbers, rate)))

    def _advance(self, per_replica):
        found = {name: self._same_everywhere(value) for name, value in per_replica.items() if name != "finite"}
        left_out = found.get("left_out", tf.constant(0.0))
        self.optimizer.iterations.assign_add(1 - tf.cast(left_out, self.optimizer.iterations.dtype))
        return found

    def _same_everywhere(self, per_replica):
        """The value that all replicas have."""
        return self.strategy.experimental_local_results(per_replica)[0]

    # In replica context -------------------------------------------------------------------------------

    def _sum_over_replicas(self, tensors):
        if self.strategy.num_replicas_in_sync == 1:
            return tensors
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)

    def _read_statistics(self):
        return [tf.identity(statistic.value) for statistic in self.statistics]

    def _keep_statistics(self, finite, before):
        for statistic, old in zip(self.statistics, before):
            _assign(statistic.value, tf.where(finite, statistic.value, old))

    def _gradients(self, batch):
        """Gradients of this replica's piece of the batch, and its numbers.

        These are [loss, audio seconds, share of the batch that counts, metrics...].
        """
        with tf.GradientTape() as tape:
            losses, metrics = self.objective(batch, training=True)
            # Summed over replicas and pieces this is the mean over the batch, or the part of it that counts.
            counted = tf.constant(1.0)
            if self.least_loss is not None:
                counts = tf.cast(losses > self.least_loss, losses.dtype)
                losses = tf.where(counts > 0, losses, 0.0)
                counted = tf.reduce_sum(counts) / self.batch_size
            loss = tf.reduce_sum(losses) / self.batch_size
            scaled = loss if self.scale is None else loss * self.scale
        # What leads nowhere, such as the state behind CDiffuse's last block, stays as it is.
        zero = tf.UnconnectedGradients.ZERO
        gradients = tape.gradient(scaled, [w.value for w in self.weights], unconnected_gradients=zero)
        self.metric_names = list(metrics)
        means = [tf.reduce_mean(value) for value in metrics.values()]
        return gradients, tf.stack([loss, self.audio_seconds(batch), counted, *means])

    def _clip_sums(self):
        """Limits the gradient of the pieces so far; gives its norm before, as a number that is summed over replicas."""
        norm = tf.linalg.global_norm(self._sum_over_replicas([tf.identity(total) for total in self.sums]))
        factor = self._limit(norm)
        for total in self.sums:
            total.assign(tf.identity(total) * factor)
        return norm * self.strategy.num_replicas_in_sync

    def _limit(self, norm):
        """What a gradient of this norm is multiplied by."""
        limit = self.norms.limit(norm) if self.norms is not None else self.clip_norm
        return tf.minimum(1.0, limit / (norm + 1e-12))

    def _apply(self, gradients, numbers, rate):
        """Updates this replica's weights from summed gradients and numbers; gives the numbers of the step."""
        scale = 1.0 if self.scale is None else tf.identity(self.scale)
        loss, audio_seconds = numbers[0], numbers[1]
        left_out = tf.constant(False)
        factor = 1.0 / scale
        if self.least_loss is not None:
            left_out = numbers[2] <= 0.0
            share = tf.where(left_out, 1.0, numbers[2])
            loss, factor = loss / share, factor / share
        if self.largest_loss is not None:
            left_out |= loss >= self.largest_loss
        norm = tf.linalg.global_norm(gradients) * factor
        finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        clip = bool(self.clip_norm or self.clip_percentile) and not self.clip_pieces
        if clip:
            factor = factor * self._limit(norm)
        if clip or self.scale is not None or self.least_loss is not None:
            gradients = [gradient * factor for gradient in gradients]
        tf.cond(finite & ~left_out, lambda: self._update(gradients, rate), tf.no_op)
        bad = tf.cast(~finite & ~left_out, tf.float32)
        found = {"finite": finite, "loss": loss, "audio_seconds": audio_seconds, "gradient_norm": norm}
        if self.least_loss is not None or self.largest_loss is not None:
            found["left_out"] = tf.cast(left_out, tf.float32)
            found |= {name: tf.where(left_out, math.nan, found[name]) for name in ("loss", "gradient_norm")}
        if self.scale is not None:
            bad *= tf.cast(scale <= 1.0, tf.float32)
            found["loss_scale"] = scale
            self._rescale(finite)
        means = numbers[3:] / (self.strategy.num_replicas_in_sync * self.accumulate)
        names = [*self.metric_names, *["gradient_norm"] * self.clip_pieces]  # of the sums before they were limited
        return found | {"bad": bad} | {name: means[i] for i, name in enumerate(names)}

    def _update(self, gradients, rate):
        self.optimizer.update(gradients, rate)
        decay = average_decay(self.ema_decay, self.optimizer.iterations.value + 1)
        for average, weight in zip(self.averages, self.weights):
            _assign(average, decay * average + (1.0 - decay) * weight.value)
        return tf.no_op()

    def _rescale(self, finite):
        good = tf.where(finite, self.good_steps + 1, 0)
        up = good >= SCALE_UP_AFTER
        scale = tf.where(finite, tf.where(up, 2.0 * self.scale, self.scale), tf.maximum(0.5 * self.scale, 1.0))
        _assign(self.scale, scale)
        _assign(self.good_steps, tf.where(up, 0, good))


class NormHistory:
    """The last gradient norms, and a percentile of them as the limit of the next.

    Args:
        percentile: from 0 to 100.

    Source: the percentile clipper of fakufaku/diffusion-separation, which keeps all norms, but not in checkpoints.
    """

    def __init__(self, percentile):
        self.percentile = percentile
        self.values = tf.Variable(tf.fill([NORM_HISTORY], math.inf), trainable=False)
        self.seen = tf.Variable(0, trainable=False)

    def limit(self, norm):
        """Keeps a norm and gives the limit, a scalar; a norm that is not finite is not kept."""
        finite, seen = tf.math.is_finite(norm), tf.identity(self.seen)
        place = (tf.range(NORM_HISTORY) == seen % NORM_HISTORY) & finite
        values = tf.where(place, norm, self.values)
        seen += tf.cast(finite, seen.dtype)
        _assign(self.values, values)
        _assign(self.seen, seen)
        count = tf.minimum(seen, NORM_HISTORY)
        index = tf.cast(tf.cast(count, tf.float64) * (self.percentile / 100.0), tf.int32)
        return tf.sort(values)[tf.clip_by_value(index, 0, tf.maximum(count - 1, 0))]


def average_decay(limit, steps):
    """Decay of the moving average of the weights at a step, counted from 1: min(limit, (1 + n) / (10 + n))."""
    steps = tf.cast(steps, tf.float32)
    return tf.minimum(limit, (1.0 + steps) / (10.0 + steps))


def _replica_sum(shape):
    """A variable of which every replica has a value of its own."""
    return tf.Variable(
        tf.zeros(shape),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def _assign(variable, value):
    """This replica's copy alone, which tf.Variable.assign would first agree on with the others."""
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
