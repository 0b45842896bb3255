"""The one training loop: strategy, step, validation, learning rate, checkpoints, logs, resume.

A system's script builds a Task; `train` does the rest. The same command gives the same weights on the same
machine, and goes on where it was after being killed.
"""

import collections
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from tqdm import tqdm

from feat import dataset
from feat.files import UserError, make_writable_directory, write_text
from nn import checkpoint, learning_rate

FLAGS = flags.FLAGS


@dataclasses.dataclass
class Task:
    """What a system brings to the loop.

    Attributes:
        system: name of the model, as in config.json.
        model: keras.Model with `settings`, its constructor arguments.
        optimizer: keras optimiser.
        objective: (batch, training) -> (loss [batch], {metric: [batch] or scalar}). In training it runs
            on each replica's share of the batch.
        training_batches: (epoch from 0, batches to skip) -> tf.data.Dataset of global batches.
        validation_batches: () -> tf.data.Dataset.
        epochs: learning_rate.Epochs.
        rule: learning-rate rule.
        score: the metric that decides which checkpoint is best; "loss" is the objective itself.
        higher_is_better: of the score.
        worst_score: of an untrained model in the original's bookkeeping.
        config: what config.json says besides, by the names of flags.
        check_inputs: checks the files behind the batches again, after one could not be read; raises UserError.
        pictures: (folder, step) -> None, writes summaries inside the default summary writer.
    """

    system: str
    model: Any
    optimizer: Any
    objective: Callable
    training_batches: Callable
    validation_batches: Callable
    epochs: learning_rate.Epochs
    rule: Any
    score: str
    higher_is_better: bool
    worst_score: float
    config: dict = dataclasses.field(default_factory=dict)
    check_inputs: Callable = lambda: None
    pictures: Callable = lambda folder, step: None


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        folder: of checkpoints, config.json, flags.txt, pictures and TensorBoard logs.
        exp_name: start of the checkpoints' names.
        resume_model: checkpoint to start from, unless the folder holds one.
        clip_norm: largest global norm of the gradients; 0: no limit.
        log_steps: steps between two lines of numbers.
        save_steps: steps between checkpoints within an epoch; 0: none.
        keep_checkpoints: how many of the newest to keep, besides the best; 0: all.
        finish: validate and save after the last step.
        strategy: tf.distribute strategy that the model was made in.
    """

    folder: str
    exp_name: str
    resume_model: str = ""
    clip_norm: float = 0.0
    log_steps: int = 50
    save_steps: int = 0
    keep_checkpoints: int = 0
    finish: bool = True
    strategy: Any = None


def define_training_flags(learning_rate, lr_decay, epoch=200, batch_size=1):
    """Flags of every training script; the defaults are the system's."""
    flags.DEFINE_enum("is_deploy", "0", ["0", "1", "2"], "0 trains, 1 infers, 2 exports for the next stage")
    flags.DEFINE_string("time_stamp", "test", "name of the run: models/<time_stamp>")
    flags.DEFINE_string("resume_model", "", "checkpoint prefix, ours or the original's, to start from or infer with")
    flags.DEFINE_float("learning_rate", learning_rate, "initial or highest learning rate", lower_bound=0.0)
    flags.DEFINE_float("lr_decay", lr_decay, "factor of the original learning-rate rule")
    flags.DEFINE_enum(
        "lr_schedule",
        "original",
        ["original", "cosine", "linear"],
        "original: decays when validation stops improving; the others rise for --warmup_steps, then fall to 0",
    )
    flags.DEFINE_integer("warmup_steps", 100, "steps of the rise", lower_bound=0)
    flags.DEFINE_integer("epoch", epoch, "passes over the training list", lower_bound=1)
    flags.DEFINE_integer("batch_size", batch_size, "global batch, all devices together", lower_bound=1)
    flags.DEFINE_integer("is_adam", 1, "1: Adam, 0: momentum 0.9; see --optimizer")
    flags.DEFINE_enum("optimizer", None, ["adam", "adamw", "momentum"], "overrides --is_adam")
    flags.DEFINE_float("clip_norm", 0.0, "largest global norm of the gradients; 0: no limit", lower_bound=0.0)
    flags.DEFINE_integer("seed", 0, "of the weights, the order, the crops, the mixtures and the drop-out")
    flags.DEFINE_integer("num_gpus", -1, "GPUs to train on; -1: all there are", lower_bound=-1)
    flags.DEFINE_integer("cv_utterances", 500, "validate on so many lines of the cv list; 0: all", lower_bound=0)
    flags.DEFINE_integer("log_steps", 50, "steps between two lines of numbers in TensorBoard", lower_bound=1)
    flags.DEFINE_integer("save_steps", 0, "also save every so many steps; 0: at epochs only", lower_bound=0)
    flags.DEFINE_integer("keep_checkpoints", 0, "keep the newest so many, and the best; 0: all", lower_bound=0)
    flags.DEFINE_integer("pictures", 3, "validation mixtures to draw and play in TensorBoard", lower_bound=0)


def options_from_flags(strategy):
    """TrainOptions of the flags."""
    return TrainOptions(
        folder=run_folder(),
        exp_name=FLAGS.exp_name,
        resume_model=FLAGS.resume_model,
        clip_norm=FLAGS.clip_norm,
        log_steps=FLAGS.log_steps,
        save_steps=FLAGS.save_steps,
        keep_checkpoints=FLAGS.keep_checkpoints,
        finish=not FLAGS.parity,
        strategy=strategy,
    )


def run_folder():
    """exp/<exp_name>/models/<time_stamp>"""
    return os.path.join("exp", FLAGS.exp_name, "models", FLAGS.time_stamp)


def optimizer_name():
    """Of --optimizer and --is_adam."""
    return FLAGS.optimizer or ("adam" if FLAGS.is_adam else "momentum")


def rule_from_flags(epochs, patience):
    """The learning-rate rule that the flags ask for."""
    if FLAGS.lr_schedule == "original":
        return learning_rate.OriginalRule(epochs, FLAGS.learning_rate, FLAGS.lr_decay, patience)
    return learning_rate.AnnealedRule(epochs, FLAGS.learning_rate, FLAGS.lr_schedule, FLAGS.warmup_steps)


def make_strategy():
    """One device, or a MirroredStrategy over the GPUs that --num_gpus allows."""
    gpus = tf.config.list_logical_devices("GPU")
    if FLAGS.num_gpus >= 0:
        if FLAGS.num_gpus > len(gpus):
            raise UserError(f"--num_gpus {FLAGS.num_gpus}: {len(gpus)} GPU(s) are here; lower it")
        gpus = gpus[: FLAGS.num_gpus]
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus])
    return tf.distribute.OneDeviceStrategy(gpus[0].name if gpus else "/cpu:0")


def write_flags(folder):
    """Writes flags.txt, the project's flags as they stand; --flagfile takes it."""
    lines = [
        flag.serialize()
        for module, its_flags in sorted(FLAGS.flags_by_module_dict().items())
        if not module.startswith(("absl.", "tensorflow", "tensorboard"))
        for flag in its_flags
        if flag.value is not None and flag.name not in ("is_deploy", "resume_model")
    ]
    write_text(os.path.join(folder, "flags.txt"), "\n".join(filter(None, lines)) + "\n")


def train(task, options):
    """Trains to the end; gives the LoopState. Goes on from the newest whole checkpoint of the folder, if any."""
    make_writable_directory(options.folder)
    checkpoint.remove_leftovers(options.folder)
    state = learning_rate.LoopState(rate=task.rule.initial, best_score=task.worst_score)
    with options.strategy.scope():
        task.optimizer.build(task.model.trainable_variables)
        state = _resume(task, options, state)
    checkpoint.write_config(options.folder, task.system, task.model, **task.config)
    write_flags(options.folder)
    if state.step > task.epochs.total and state.validated_step == state.step:
        print(f"{options.folder}: trained to the end, {task.epochs.total} steps; raise --epoch to go on")
        return state
    if state.step > 1:
        print(f"{options.folder}: going on at step {state.step} of {task.epochs.total}")
    run = _Run(task, options, state)
    try:
        learning_rate.run_epochs(
            task.epochs,
            task.rule,
            state,
            train_step=run.train_step,
            validate=run.validate,
            save=run.save,
            higher_is_better=task.higher_is_better,
            save_steps=options.save_steps,
            finish=options.finish,
        )
    except tf.errors.ResourceExhaustedError as error:
        raise UserError(
            f"{options.folder}: out of memory in step {state.step} ({error.message.splitlines()[0]});"
            " lower --batch_size or set --segment_seconds, and run it again"
        ) from error
    finally:
        run.close()
    print(
        f"{options.folder}: {task.epochs.total} steps, best validation {task.score} {state.best_score:.3f}"
        f" at step {state.best_step}"
    )
    return state


def _resume(task, options, state):
    """Restores what the folder holds, or else what --resume_model names; gives the LoopState to go on with."""
    reader = checkpoint.latest_whole(options.folder)
    if reader is None:
        if options.resume_model:
            reader = checkpoint.Reader(options.resume_model)
            checkpoint.restore_weights(reader, task.system, task.model)
            kept = checkpoint.restore_optimizer(reader, task.model, task.optimizer)
            print(f"{reader.prefix}: weights {'and optimiser ' if kept else ''}restored; starting at step 1")
        return state
    if options.resume_model and checkpoint.resolve(options.resume_model) != reader.prefix:
        raise UserError(
            f"{options.folder}: holds {os.path.basename(reader.prefix)}, so --resume_model {options.resume_model}"
            " would be passed over; leave it out to go on, or choose another --time_stamp"
        )
    stored = checkpoint.read_loop_state(reader)
    if stored is None:
        raise UserError(
            f"{reader.prefix}: not from this training loop; to start from it, choose another --time_stamp"
            " and give it as --resume_model"
        )
    config = checkpoint.read_config(reader.prefix) or {}
    for flag, value in task.config.items():
        if config.get(flag, value) != value:
            raise UserError(
                f"{options.folder}: trained with --{flag} {config[flag]}, but --{flag} is {value};"
                " give the same, or another --time_stamp"
            )
    checkpoint.restore_weights(reader, task.system, task.model)
    if not checkpoint.restore_optimizer(reader, task.model, task.optimizer):
        raise UserError(
            f"{reader.prefix}: holds no state of the optimiser {task.optimizer.name};"
            " use the flags it was trained with, or another --time_stamp"
        )
    state = learning_rate.LoopState(**stored["state"])
    # A run killed right after its best checkpoint was written has not marked it yet.
    best = _prefix(options, state.best_step)
    if os.path.exists(best + checkpoint.INDEX):
        checkpoint.mark_best(best)
    return state


def _prefix(options, step):
    return os.path.join(options.folder, f"{options.exp_name}_model.ckpt_step_{step}")


def make_train_step(model, optimizer, objective, strategy, batch_size, element_spec, clip_norm=0.0):
    """The compiled training step: (global batch, learning rate) -> {"loss", "gradient_norm", metrics}, scalars.

    Args:
        objective: see Task.
        batch_size: of the global batch; the loss is the mean over it.
        element_spec: of the batches, lengths free.
        clip_norm: largest global norm of the gradients after all replicas' are summed; 0: no limit.
    """
    replicas = strategy.num_replicas_in_sync
    variables = model.trainable_variables

    def replica_step(batch, rate):
        with tf.GradientTape() as tape:
            losses, metrics = objective(batch, training=True)
            # Summed over replicas this is the mean over the global batch.
            loss = tf.reduce_sum(losses) / batch_size
        gradients = tape.gradient(loss, [v.value for v in variables])
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm = tf.linalg.global_norm(gradients)
        scale = 1.0 / replicas  # the optimiser sums over replicas once more
        if clip_norm:
            scale = scale * tf.minimum(1.0, clip_norm / (norm + 1e-12))
        optimizer.learning_rate.assign(rate)
        optimizer.apply([gradient * scale for gradient in gradients], variables)
        means = {name: tf.reduce_mean(value) / replicas for name, value in metrics.items()}
        return {"loss": loss, "gradient_norm": norm / replicas} | means

    @tf.function(input_signature=[element_spec, tf.TensorSpec([], tf.float32)])
    def train_step(batch, rate):
        per_replica = strategy.run(replica_step, args=(batch, rate))
        return {k: strategy.reduce(tf.distribute.ReduceOp.SUM, v, axis=None) for k, v in per_replica.items()}

    return train_step


class _Run:
    """The parts of a training run that `learning_rate.run_epochs` puts in order."""

    def __init__(self, task, options, state):
        self.task = task
        self.options = options
        self.strategy = options.strategy
        self.step_function = None
        self.validation_function = None
        self.batches = None
        self.epoch = None
        self.pending = collections.defaultdict(list)
        self.writer = tf.summary.create_file_writer(os.path.join(options.folder, "tensorboard"))
        self.bar = tqdm(
            total=task.epochs.total, initial=state.step - 1, unit="step", desc="train", dynamic_ncols=True,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,
        )
        self.logged_at = time.monotonic()

    def train_step(self, step, rate):
        """One optimiser step on the next batch."""
        epoch, place = divmod(step - 1, self.task.epochs.steps)
        if self.epoch != epoch:
            batches = self.task.training_batches(epoch, place)
            distributed = self.strategy.experimental_distribute_dataset(batches)
            if self.step_function is None:
                self.step_function = make_train_step(
                    self.task.model,
                    self.task.optimizer,
                    self.task.objective,
                    self.strategy,
                    self.task.epochs.batch_size,
                    distributed.element_spec,
                    self.options.clip_norm,
                )
            self.batches, self.epoch = dataset.checked(distributed, self.task.check_inputs), epoch
        metrics = self.step_function(next(self.batches), tf.constant(rate, tf.float32))
        for name, value in metrics.items():
            self.pending[name].append(value)
        self.bar.update()
        if step % self.options.log_steps == 0 or step == self.task.epochs.total:
            self._log(step, rate)

    def validate(self, step):
        """Mean of the metrics over the validation set; gives the score."""
        if self.pending:
            self._log(step - 1, None)
        batches = self.task.validation_batches()
        if self.validation_function is None:

            @tf.function(input_signature=[batches.element_spec])
            def validation_function(batch):
                loss, metrics = self.task.objective(batch, training=False)
                return {"loss": tf.reduce_mean(loss)} | {k: tf.reduce_mean(v) for k, v in metrics.items()}

            self.validation_function = validation_function
        totals, count = collections.defaultdict(float), 0
        for batch in dataset.checked(batches, self.task.check_inputs):
            for name, value in self.validation_function(batch).items():
                totals[name] += float(value)
            count += 1
        means = {name: total / count for name, total in totals.items()}
        with self.writer.as_default():
            for name, value in means.items():
                tf.summary.scalar(f"validation/{name}", value, step - 1)
            self.task.pictures(os.path.join(self.options.folder, "pictures"), step - 1)
        self.writer.flush()
        shown = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        self.bar.write(f"after {step - 1} of {self.task.epochs.total} steps: validation {shown}", file=sys.stdout)
        sys.stdout.flush()
        self.logged_at = time.monotonic()
        if not math.isfinite(means[self.task.score]):
            raise UserError(
                f"{self.options.folder}: validation {self.task.score} is {means[self.task.score]} before step {step};"
                " lower --learning_rate or set --clip_norm, and start under another --time_stamp"
            )
        return means[self.task.score]

    def save(self, state, is_best):
        """Writes the checkpoint of a state."""
        prefix = _prefix(self.options, state.step)
        checkpoint.save(prefix, self.task.model, self.task.optimizer, {"state": dataclasses.asdict(state)})
        if is_best:
            checkpoint.mark_best(prefix)
        if self.options.keep_checkpoints:
            for step, old in checkpoint.numbered(self.options.folder)[: -self.options.keep_checkpoints]:
                if step != state.best_step:
                    checkpoint.remove(old)

    def close(self):
        self.bar.close()
        self.writer.close()

    def _log(self, step, rate):
        """Means since the last time, to TensorBoard and the progress bar."""
        means = {name: float(np.mean([float(v) for v in values])) for name, values in self.pending.items()}
        count = len(self.pending["loss"])
        self.pending.clear()
        seconds = time.monotonic() - self.logged_at
        self.logged_at = time.monotonic()
        with self.writer.as_default():
            for name, value in means.items():
                tf.summary.scalar(f"train/{name}", value, step)
            if rate is not None:
                tf.summary.scalar("train/learning_rate", rate, step)
            tf.summary.scalar("train/steps_per_second", count / max(seconds, 1e-9), step)
        self.bar.set_postfix({name: f"{value:.2f}" for name, value in means.items()}, refresh=False)


def seed_everything(seed):
    """Seeds Python, NumPy and Keras, so that a new model's weights depend on the seed alone."""
    keras.utils.set_random_seed(seed)
