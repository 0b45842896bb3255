"""TensorFlow graphs of functions."""

import tensorflow as tf


def plain(function):
    """The function as it stands, for where TensorFlow would rewrite it by AutoGraph.

    Nothing in this house has Python branches or loops over tensors, and the rewriting is a fifth of the tracing.
    """
    return tf.autograph.experimental.do_not_convert(function)


def compiled(function, *signature, **options):
    """tf.function, traced once.

    Args:
        signature: a tf.TensorSpec, or a nest of them, for each argument.
        options: others of tf.function.
    """
    return tf.function(plain(function), input_signature=signature or None, autograph=False, **options)
