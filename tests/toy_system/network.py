"""The network."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("deep_casa.toy")
class Toy(keras.Model):
    """Filters that separate nothing yet. Call: [batch, samples] -> [batch, talkers, samples].

    Args:
        talkers: number of outputs.
        taps: samples of a filter.
    """

    def __init__(self, talkers=2, taps=3, **options):
        super().__init__(name="toy", **options)
        self.settings = {"talkers": talkers, "taps": taps}
        self.filters = layers.Conv1D(talkers, taps, padding="same", use_bias=False, name="filters")
        self.filters.build((None, None, 1))
        self.built = True

    def call(self, mixture):
        return ops.swapaxes(self.filters(mixture[..., None]), 1, 2)
