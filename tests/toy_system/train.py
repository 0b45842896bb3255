"""The command that trains the system on noise."""

from feat.base.script import run_script

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from nn.training import devices, loop
from nn.training import flags as training_flags
from nn.training.optimizers import make_optimizer
from nn.training.task import Task, seed_everything
from toy_system.network import Toy

FLAGS = flags.FLAGS
EXAMPLES = 4


def define_flags():
    training_flags.define_training_flags(learning_rate=1e-2, lr_decay=0.5, epoch=2)
    flags.DEFINE_string("exp_name", "toy", "name of the experiment: exp/<exp_name>")


def batch_of_noise(batch_size, samples=400, seed=0):
    """{"mixture" [batch, samples], "sources" [batch, talkers, samples], "samples", "index"}."""
    sources = np.random.default_rng(seed).standard_normal((batch_size, 2, samples)).astype(np.float32)
    lengths, index = np.full(batch_size, samples, np.int32), np.arange(batch_size, dtype=np.int32)
    batch = {"mixture": sources.sum(axis=1), "sources": sources, "samples": lengths, "index": index}
    return {name: tf.constant(value) for name, value in batch.items()}


def objective_of(model):
    def objective(batch, training=False):
        error = keras.ops.mean(keras.ops.square(model(batch["mixture"]) - batch["sources"]), axis=(1, 2))
        return error, {"error": error}

    return objective


def main(_):
    strategy = devices.make_strategy()
    with strategy.scope():
        seed_everything(FLAGS.seed)
        model = Toy()
        optimizer = make_optimizer(training_flags.optimizer_name(), FLAGS.learning_rate)
    epochs = training_flags.epochs_from_flags(EXAMPLES)

    def batches(epoch, skip, share):
        found = [batch_of_noise(FLAGS.batch_size, seed=epoch * EXAMPLES + i) for i in range(skip, epochs.steps)]
        return tf.data.Dataset.from_tensor_slices({key: tf.stack([each[key] for each in found]) for key in found[0]})

    task = Task(
        system="toy",
        model=model,
        optimizer=optimizer,
        objective=objective_of(model),
        training_batches=batches,
        validation_batches=lambda share: tf.data.Dataset.from_tensors(batch_of_noise(1, seed=99)),
        epochs=epochs,
        rule=training_flags.rule_from_flags(epochs, patience=3, higher_is_better=False),
        score="error",
        higher_is_better=False,
        worst_score=float("inf"),
        seconds_per_frame=1 / 8000,
        length_key="samples",
        config={"sample_rate": 8000},
    )
    loop.train(task, training_flags.options_from_flags(strategy, task))


if __name__ == "__main__":
    define_flags()
    run_script(main)
