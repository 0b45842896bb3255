"""TensorFlow graphs of functions."""

import tensorflow as tf

# Without a GPU, the rewriting of graphs before they first run (grappler) makes no network of this house faster, and
# takes a third of the time until the first step. Memory goes either way: 80 MiB less for Binaural TasNet without it,
# 100 more for stage 1.
if not tf.config.list_physical_devices("GPU"):
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


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
