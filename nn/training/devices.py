"""Where training runs: one device, several, several machines; and in which precision."""

import json
import os

import keras
import tensorflow as tf
from absl import flags

from feat.base.files import UserError, brief
from feat.batches import common

FLAGS = flags.FLAGS


def define_device_flags():
    """Flags of every training script."""
    flags.DEFINE_integer("num_gpus", -1, "GPUs of this machine to train on; -1: all there are", lower_bound=-1)
    flags.DEFINE_integer(
        "num_virtual_devices", 0, "cut the CPU into so many devices, to try out training on several", lower_bound=0
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        ["float32", "bfloat16", "float16"],
        "of the layers; STFT, norms, losses, weights and optimiser stay float32. float16 scales the loss",
    )
    flags.DEFINE_enum(
        "jit_compile", "auto", ["auto", "on", "off"], "XLA; auto: on GPUs, where all batches have one length"
    )


def make_strategy():
    """The tf.distribute strategy that TF_CONFIG and the flags ask for; to be made before anything else runs.

    TF_CONFIG that names several workers: MultiWorkerMirroredStrategy. Several devices: MirroredStrategy.
    Sets the precision of the layers made from now on.

    Raises:
        UserError: TF_CONFIG is not understood, or devices are asked for that are not there.
    """
    set_precision()
    if FLAGS.num_virtual_devices:
        _split_cpu(FLAGS.num_virtual_devices)
    workers = _workers_of_tf_config()
    if workers > 1:
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (RuntimeError, ValueError, tf.errors.OpError) as error:
            raise UserError(f"TF_CONFIG: the cluster does not start ({brief(error)})") from error
    gpus = [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
    if FLAGS.num_gpus >= 0:
        if FLAGS.num_gpus > len(gpus):
            raise UserError(f"--num_gpus {FLAGS.num_gpus}: {len(gpus)} GPU(s) are here; lower it")
        gpus = gpus[: FLAGS.num_gpus]
    devices = gpus
    if FLAGS.num_virtual_devices:
        devices = [cpu.name for cpu in tf.config.list_logical_devices("CPU")]
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.OneDeviceStrategy(devices[0] if devices else "/cpu:0")


def set_precision():
    """Sets the precision of the layers made from now on to that of the flags."""
    keras.mixed_precision.set_dtype_policy("float32" if FLAGS.precision == "float32" else f"mixed_{FLAGS.precision}")


def _split_cpu(count):
    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * count
    if len(tf.config.get_logical_device_configuration(cpu) or []) == count:
        return
    try:
        tf.config.set_logical_device_configuration(cpu, parts)
    except RuntimeError as error:
        raise UserError(f"--num_virtual_devices {count}: TensorFlow runs already ({error})") from error


def _workers_of_tf_config():
    """Number of machines that train, from the environment variable TF_CONFIG; 1 if it is not set."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text or "{}")
        cluster = config.get("cluster", {})
        count = len(cluster.get("chief", [])) + len(cluster.get("worker", []))
        if count > 1:
            kind, index = config["task"]["type"], int(config["task"]["index"])
            cluster[kind][index]
            if kind not in ("chief", "worker"):
                raise UserError(f"TF_CONFIG: task {kind} does not train; start the script on chief and workers only")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"TF_CONFIG: {text[:200]!r} is not understood ({error!r}); see the README") from error
    return count


def several_workers(strategy):
    """Whether processes of several machines train together."""
    return strategy.cluster_resolver is not None and bool(strategy.cluster_resolver.cluster_spec().jobs)


def is_chief(strategy):
    """Whether this process writes checkpoints and logs."""
    if not several_workers(strategy):
        return True
    resolver = strategy.cluster_resolver
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_type in (None, "worker") and not resolver.task_id


def distribute(strategy, make_batches):
    """The pieces of every global batch, each on its replica.

    Args:
        make_batches: feat.batches.common.Share -> tf.data.Dataset of pieces.
    """
    if strategy.num_replicas_in_sync == 1:
        # The iterators of tf.distribute tune themselves although feat.batches.common.pieces says not to.
        return make_batches(common.Share())

    def of_this_process(context):
        count = strategy.num_replicas_in_sync // context.num_input_pipelines
        return make_batches(common.Share(strategy.num_replicas_in_sync, context.input_pipeline_id * count, count))

    return strategy.distribute_datasets_from_function(of_this_process)


def jit_compile(fixed_lengths):
    """Whether XLA compiles the training step. On CPU it makes depthwise convolutions many times slower."""
    if FLAGS.jit_compile == "auto":
        return fixed_lengths and bool(tf.config.list_physical_devices("GPU"))
    return FLAGS.jit_compile == "on"
