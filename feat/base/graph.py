"""TensorFlow graphs of functions."""

import functools
import sys

import tensorflow as tf
from tensorflow.python.util.tf_stack import StackTraceFilter  # there is no public way to it

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


class OwnFrames(StackTraceFilter):
    """While it is entered, TensorFlow notes where an operation was made without the frames of the packages below.

    Those are most of the stack, and 5 KB an operation when its graph first runs: 140 MiB for a training step of Deep
    CASA's first stage, a tenth of its process. Errors then name the line of a network that they come from.
    """

    def get_filtered_filenames(self):
        # TensorFlow takes the last frames away, which should be its own.
        last = ("tensorflow.python.framework.ops", "tensorflow.python.util.tf_stack")
        return {
            module.__file__
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] in ("absl", "keras", "tensorflow")
            and name not in last
            and getattr(module, "__file__", None)
        }


def compiled(function, *signature, **options):
    """tf.function, traced once.

    Args:
        signature: a tf.TensorSpec, or a nest of them, for each argument.
        options: others of tf.function.
    """

    @functools.wraps(function, updated=())
    def traced(*arguments):
        with OwnFrames():
            return function(*arguments)

    return tf.function(plain(traced), input_signature=signature or None, autograph=False, **options)
