"""What the benchmarks of the systems share: sizes from flags, and batches of noise."""

import numpy as np
import tensorflow as tf
from absl import flags

FLAGS = flags.FLAGS

# Constructor arguments of networks of the Conv-TasNet family that flags set.
TASNET_SIZES = {
    "repeats": "n_tcn_block",
    "dilations": "n_dilation_each_block",
    "units": "n_dilated_units",
    "bottleneck": "n_bottle",
}


def sizes_given(names):
    """{constructor argument: value} of the flags that were given.

    Args:
        names: {constructor argument: flag}.
    """
    return {name: FLAGS[flag].value for name, flag in names.items() if FLAGS[flag].present}


def tensors(batch):
    """{name: tensor} of {name: array}."""
    return {key: tf.constant(value) for key, value in batch.items()}


def normal(*shape):
    """float32 noise of a shape, the same at every call."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)
