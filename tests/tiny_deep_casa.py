"""The smallest networks of Deep CASA, and checkpoints of them without training."""

import os

import tensorflow as tf

from models.deep_casa.dense_unet import DenseUNet
from models.deep_casa.grouping import SequentialGrouping
from nn.checkpoints import ours as checkpoint

RATE, FFT, HOP = 8000, 64, 32


def nets(talkers, causal, seed=0):
    """The smallest nets, their weights large enough to make a difference."""
    tf.keras.utils.set_random_seed(seed)
    bins = FFT // 2 + 1
    unet = DenseUNet(talkers=talkers, channels=2, scales=1, bins=bins, causal=causal)
    sizes = dict(blocks=1, dilations=2, units=6, bottleneck=4, embedding_dim=3, scales=1)
    sequential = SequentialGrouping(talkers=talkers, bins=bins, causal=causal, **sizes)
    for variable in unet.trainable_variables + sequential.trainable_variables:
        if variable.path.endswith("kernel"):
            variable.assign(8 * variable)
    return unet, sequential


def save(folder, unet, sequential, **more):
    """Checkpoints of nets, as training leaves them."""
    for system, model in (("dense_unet", unet), ("sequential_grouping", sequential)):
        if model is not None:
            run = os.path.join(folder, system)
            optimizer = tf.keras.optimizers.SGD()
            optimizer.build(model.trainable_variables)
            prefix = os.path.join(run, "tiny_model.ckpt_step_1")
            checkpoint.save(prefix, model, optimizer, {})
            checkpoint.mark_best(prefix)
            checkpoint.write_config(run, system, model, sample_rate=RATE, fft_size=FFT, hop_size=HOP, **more)
