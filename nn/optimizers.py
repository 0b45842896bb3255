"""Optimisers as TF 1 computed them."""

import keras
from keras import ops


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

    def update_step(self, gradient, variable, learning_rate):
        m = self.momentums[self._get_variable_index(variable)]
        self.assign(m, ops.add(ops.multiply(m, self.momentum), ops.cast(gradient, variable.dtype)))
        self.assign_sub(variable, ops.multiply(m, ops.cast(learning_rate, variable.dtype)))


def make_optimizer(name, learning_rate, beta_2=0.999):
    """ "adam" (beta_1 0.9, epsilon 1e-8 as TF 1), "adamw" (weight decay 0.01) or "momentum" (0.9)."""
    if name == "momentum":
        return Momentum(learning_rate)
    if name == "adamw":
        return keras.optimizers.AdamW(learning_rate, 0.01, beta_1=0.9, beta_2=beta_2, epsilon=1e-8, name=name)
    return keras.optimizers.Adam(learning_rate, beta_1=0.9, beta_2=beta_2, epsilon=1e-8, name=name)
