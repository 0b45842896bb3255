"""Optimisers as TF 1 computed them, one TensorFlow kernel a variable.

Keras' own take about twenty operations a variable, which is most of the training graph of a large network: its
first step then takes half as long again. Their state is that of Keras' classes of the same name.
"""

import keras
import tensorflow as tf


class Adam(keras.optimizers.Adam):
    """Adam; with `weight_decay` AdamW, which takes rate * weight_decay * w off each weight first.

    Args:
        l2: l2 * w is added to each gradient, as PyTorch's Adam does with its weight decay.

    The decay of the first moment may change from step to step: `current_beta_1.assign` before a step. The
    correction for the first steps then takes its value of the step to the power of the steps, as PyTorch does.
    """

    def __init__(self, *arguments, l2=0.0, **options):
        super().__init__(*arguments, **options)
        self.l2 = l2
        # Not saved: whoever changes it does so before every step.
        self.current_beta_1 = tf.Variable(self.beta_1, trainable=False, dtype=tf.float32)

    def update(self, gradients, rate):
        """One step, in replica context, on this replica's copy of the weights.

        Args:
            gradients: of all variables, the same on every replica.
            rate: learning rate, scalar.
        """
        steps = tf.cast(self.iterations.value + 1, tf.float32)
        beta_1 = tf.identity(self.current_beta_1)
        # Made once: a number given as such is a constant of its own in the graph for every variable.
        beta_2, epsilon = tf.constant(self.beta_2), tf.constant(self.epsilon)
        powers = dict(beta1_power=tf.pow(beta_1, steps), beta2_power=tf.pow(beta_2, steps))
        for weight, m, v, gradient in zip(self._trainable_variables, self._momentums, self._velocities, gradients):
            if self.weight_decay:
                tf.raw_ops.ResourceApplyGradientDescent(
                    var=weight.value.handle, alpha=rate * self.weight_decay, delta=tf.identity(weight.value)
                )
            if self.l2:
                gradient = gradient + self.l2 * weight.value
            tf.raw_ops.ResourceApplyAdam(
                var=weight.value.handle,
                m=m.value.handle,
                v=v.value.handle,
                lr=rate,
                beta1=beta_1,
                beta2=beta_2,
                epsilon=epsilon,
                grad=gradient,
                **powers,
            )


class Momentum(keras.optimizers.Optimizer):
    """SGD with momentum in TF 1's form: m <- momentum m + g, w <- w - rate m.

    Keras' SGD keeps rate * m instead, which differs once the rate changes.
    """

    def __init__(self, learning_rate, momentum=0.9, name="momentum", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.momentums = [self.add_variable_from_reference(v, name="momentum") for v in variables]

    def update(self, gradients, rate):
        """As Adam.update."""
        momentum = tf.constant(self.momentum)
        for weight, m, gradient in zip(self._trainable_variables, self.momentums, gradients):
            tf.raw_ops.ResourceApplyMomentum(
                var=weight.value.handle, accum=m.value.handle, lr=rate, grad=gradient, momentum=momentum
            )


def make_optimizer(name, learning_rate, beta_2=0.999, l2=0.0):
    """ "adam" (beta_1 0.9, epsilon 1e-8 as TF 1), "adamw" (weight decay 0.01) or "momentum" (0.9).

    l2 is for the Adams, see there.
    """
    if name == "momentum":
        return Momentum(learning_rate)
    decay = 0.01 if name == "adamw" else None
    return Adam(learning_rate, beta_1=0.9, beta_2=beta_2, epsilon=1e-8, weight_decay=decay, l2=l2, name=name)
