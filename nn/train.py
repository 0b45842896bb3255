"""The one training loop: validation, learning rate, checkpoints, logs, guards, resume.

A system's script builds a Task; `train` does the rest. The same command gives the same weights on the same
machine, and goes on where it was after being killed.
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams import api as hparams

from feat import dataset
from feat.files import UserError, brief, make_writable_directory, write_text
from feat.graph import compiled
from feat.parallel import progress
from nn import checkpoint, cost, devices, learning_rate
from nn.step import TrainStep

FLAGS = flags.FLAGS

# Of a model's constructor arguments those that a run may go on without: they count in training or at its start alone.
MAY_CHANGE = ("dropout", "tap_keep", "initialization", "init_scale", "seed")


@dataclasses.dataclass
class Task:
    """What a system brings to the loop.

    Attributes:
        system: name of the model, as in config.json.
        model: keras.Model with `settings`, its constructor arguments.
        optimizer: of nn.optimizers.
        objective: (batch, training) -> (loss [batch], {metric: [batch] or scalar}). In training it runs
            on each replica's piece of the batch.
        training_batches: (epoch from 0, batches to skip, feat.dataset.Share) -> tf.data.Dataset of pieces.
        validation_batches: (feat.dataset.Share) -> tf.data.Dataset of single examples; index -1 does not count.
        epochs: learning_rate.Epochs.
        rule: learning-rate rule.
        score: the metric that decides which checkpoint is best; "loss" is the objective itself.
        higher_is_better: of the score.
        worst_score: of an untrained model in the original's bookkeeping.
        seconds_per_frame: of the lengths in batches.
        length_key: under which batches have their lengths, [batch].
        config: what config.json says besides, by the names of flags; a run that goes on must have the same.
        notes: what it says besides that may change.
        check_inputs: checks the files behind the batches again, after one could not be read; raises UserError.
        names_of: (epoch, indices of its batch) -> names of the mixtures; epoch None: of the validation set.
        pictures: (folder, step) -> None, writes summaries inside the default summary writer.
        fixed_lengths: all training batches have one length.
        count_macs: multiply-accumulates of a forward pass on a batch; None: nn.cost counts them.
        least_loss, largest_loss: see TrainStep.
        evaluate: () -> {name: mean} of validation besides, with the averaged weights in place; for what takes so long
            that it is not done for all of the validation set. The score may be among these.
        validate_epochs: epochs between validations.
        resume_goes_on: --resume_model goes on at the step and in the schedule of the checkpoint; otherwise it starts at
            step 1 with its weights and optimiser, as the original of Deep CASA does.
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
    seconds_per_frame: float
    config: dict = dataclasses.field(default_factory=dict)
    notes: dict = dataclasses.field(default_factory=dict)
    check_inputs: Callable = lambda: None
    names_of: Callable = lambda epoch, indices: [f"line {i + 1}" for i in indices]
    pictures: Callable = lambda folder, step: None
    fixed_lengths: bool = False
    length_key: str = "frames"
    count_macs: Callable | None = None
    least_loss: float | None = None
    largest_loss: float | None = None
    evaluate: Callable = dict
    validate_epochs: int = 1
    resume_goes_on: bool = True


class DrawnData:
    """What the data of all systems have in common.

    Attributes:
        training: mixtures on disk; or None, and then
        pool: recordings that are mixed anew in every epoch.
        validation: mixtures on disk.
        examples: in an epoch.
        batch_size: of the global batch.

    Those with a pool have `drawn_files`: (epoch, count) -> paths of the pool, and numbers of those that the `count`
    mixtures of the epoch are made of, int64 [count, files]; below 0: none.
    """

    training = pool = validation = None

    def names_of(self, epoch, indices):
        """Names of the mixtures that have these indices in the batches of an epoch; None: in those of validation."""
        if epoch is None:
            return [self.validation.names[index] for index in indices]
        if self.pool is None:
            return [self.training.names[index] for index in indices]
        paths, files = self.drawn_files(epoch, self.examples // self.batch_size * self.batch_size)
        return [" + ".join(paths[i] for i in files[index] if i >= 0) for index in indices]

    def check(self):
        """Looks at the headers of all files again. Raises UserError."""
        self.validation.check()
        (self.training or self.pool).check()


def require_corpus(segment):
    """Raises UserError unless --dynamic_mixing has a corpus to draw from, and a length to draw.

    Args:
        segment: samples of a mixture, from --segment_seconds.
    """
    if not FLAGS.corpus_folder or not segment:
        raise UserError("--dynamic_mixing needs --corpus_folder, and --segment_seconds above 0")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        folder: of checkpoints, config.json, flags.txt, pictures and TensorBoard logs.
        exp_name: start of the checkpoints' names.
        strategy: tf.distribute strategy that the model was made in.
        resume_model: checkpoint to start from, unless the folder holds one.
        load: the same, but its weights alone; a classifier of other classes starts anew.
        clip_norm, clip_percentile, clip_pieces, accumulate, ema_decay, scale_loss, jit_compile: see TrainStep.
        max_bad_steps: steps in a row whose loss or gradient is not finite, after which training stops.
        log_steps: steps between two lines of numbers.
        save_steps: steps between checkpoints within an epoch; 0: none.
        keep_checkpoints: how many of the newest to keep, besides the best; 0: all.
        finish: validate and save after the last step.
        dry_run: train a few steps, say what the whole would cost, and write nothing.
        profile_steps: (first, last) step of a TensorBoard profile, or None.
        weight_histograms: show the weights' distribution at every validation.
    """

    folder: str
    exp_name: str
    strategy: Any
    resume_model: str = ""
    load: str = ""
    clip_norm: float = 0.0
    clip_percentile: float = 0.0
    clip_pieces: bool = False
    accumulate: int = 1
    ema_decay: float = 0.0
    scale_loss: bool = False
    jit_compile: bool = False
    max_bad_steps: int = 20
    log_steps: int = 50
    save_steps: int = 0
    keep_checkpoints: int = 0
    finish: bool = True
    dry_run: bool = False
    profile_steps: tuple | None = None
    weight_histograms: bool = False


def define_training_flags(learning_rate, lr_decay, epoch=200, batch_size=1):
    """Flags of every training script; the defaults are the system's."""
    devices.define_device_flags()
    flags.DEFINE_enum("is_deploy", "0", ["0", "1", "2"], "0 trains, 1 infers, 2 exports for the next stage")
    flags.DEFINE_string("time_stamp", "test", "name of the run: models/<time_stamp>")
    flags.DEFINE_string("resume_model", "", "checkpoint prefix, ours or the original's, to start from or infer with")
    flags.DEFINE_string("load", "", "checkpoint whose weights alone to start from: optimiser and steps start afresh")
    flags.DEFINE_float("learning_rate", learning_rate, "initial or highest learning rate", lower_bound=0.0)
    flags.DEFINE_float("lr_decay", lr_decay, "factor of the original learning-rate rule")
    flags.DEFINE_enum(
        "lr_schedule",
        "original",
        ["original", "cosine", "linear", "onecycle", "plateau"],
        "original: decays when validation stops improving; cosine and linear rise for --warmup_steps, then fall to 0;"
        " onecycle rises for a fifth of the steps, then falls, and turns Adam's beta_1 the other way; plateau: times"
        " --lr_decay at the third epoch in a row without improvement, ends training after six",
    )
    flags.DEFINE_integer("warmup_steps", 100, "steps of the rise", lower_bound=0)
    flags.DEFINE_integer("epoch", epoch, "passes over the training list", lower_bound=1)
    flags.DEFINE_integer("batch_size", batch_size, "global batch, all devices together", lower_bound=1)
    flags.DEFINE_integer("accumulate", 1, "batches whose gradients make one step", lower_bound=1)
    flags.DEFINE_integer("is_adam", 1, "1: Adam, 0: momentum 0.9; see --optimizer")
    flags.DEFINE_enum("optimizer", None, ["adam", "adamw", "momentum"], "overrides --is_adam")
    flags.DEFINE_float("clip_norm", 0.0, "largest global norm of the gradients; 0: no limit", lower_bound=0.0)
    flags.DEFINE_float(
        "ema_decay", 0.0, "of the moving average of the weights, which validation and inference take; 0: none", 0.0, 1.0
    )
    flags.DEFINE_integer(
        "max_bad_steps", 20, "stop after so many steps in a row whose loss or gradient is not finite", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "of the weights, the order, the crops, the mixtures and the drop-out")
    flags.DEFINE_integer("cv_utterances", 500, "validate on so many lines of the cv list; 0: all", lower_bound=0)
    flags.DEFINE_integer("log_steps", 50, "steps between two lines of numbers in TensorBoard", lower_bound=1)
    flags.DEFINE_integer("save_steps", 0, "also save every so many steps; 0: at epochs only", lower_bound=0)
    flags.DEFINE_integer("keep_checkpoints", 0, "keep the newest so many, and the best; 0: all", lower_bound=0)
    flags.DEFINE_integer("pictures", 3, "validation mixtures to draw and play in TensorBoard", lower_bound=0)
    flags.DEFINE_bool("weight_histograms", True, "how the weights are distributed, in TensorBoard at every validation")
    flags.DEFINE_bool("dry_run", False, "say what training would cost, from a few steps, and write nothing")
    flags.DEFINE_list("profile_steps", [], "first,last step of a profile for TensorBoard")


def options_from_flags(strategy, task, finish=True):
    """TrainOptions of the flags; finish: validate and save after the last step."""
    try:
        profile = tuple(map(int, FLAGS.profile_steps)) or None
        if profile and not (len(profile) == 2 and 0 < profile[0] <= profile[1]):
            raise ValueError
    except ValueError:
        raise UserError(f"--profile_steps {','.join(FLAGS.profile_steps)}: give first,last, such as 10,15") from None
    return TrainOptions(
        folder=run_folder(),
        exp_name=os.path.basename(os.path.normpath(FLAGS.exp_name)),  # which may be a folder in a folder
        strategy=strategy,
        resume_model=FLAGS.resume_model,
        load=FLAGS.load,
        clip_norm=FLAGS.clip_norm,
        accumulate=FLAGS.accumulate,
        ema_decay=FLAGS.ema_decay,
        scale_loss=FLAGS.precision == "float16",
        jit_compile=devices.jit_compile(task.fixed_lengths),
        max_bad_steps=FLAGS.max_bad_steps,
        log_steps=FLAGS.log_steps,
        save_steps=FLAGS.save_steps,
        keep_checkpoints=FLAGS.keep_checkpoints,
        finish=finish,
        dry_run=FLAGS.dry_run,
        profile_steps=profile,
        weight_histograms=FLAGS.weight_histograms,
    )


def run_folder():
    """exp/<exp_name>/models/<time_stamp>"""
    return os.path.join("exp", FLAGS.exp_name, "models", FLAGS.time_stamp)


def optimizer_name():
    """Of --optimizer and --is_adam."""
    return FLAGS.optimizer or ("adam" if FLAGS.is_adam else "momentum")


def epochs_from_flags(examples, whole=False, source=""):
    """learning_rate.Epochs of the flags, for so many training examples; source: where they come from."""
    return learning_rate.Epochs(examples, FLAGS.batch_size * FLAGS.accumulate, FLAGS.epoch, whole, source)


def rule_from_flags(epochs, patience, higher_is_better=True):
    """The learning-rate rule that the flags ask for.

    Args:
        patience: of the original rule, epochs.
        higher_is_better: of the score.
    """
    if FLAGS.lr_schedule == "onecycle":
        return learning_rate.OneCycleRule(epochs.total, FLAGS.learning_rate)
    if FLAGS.lr_schedule == "plateau":
        return learning_rate.PlateauRule(
            FLAGS.learning_rate, higher_is_better, FLAGS.lr_decay, steps=epochs.steps, stop=6
        )
    if FLAGS.lr_schedule == "original":
        return learning_rate.OriginalRule(epochs, FLAGS.learning_rate, FLAGS.lr_decay, patience)
    return learning_rate.AnnealedRule(epochs, FLAGS.learning_rate, FLAGS.lr_schedule, FLAGS.warmup_steps)


def project_flags():
    """[flag] of the project's own that have a value, but for those that say what to do now."""
    return [
        flag
        for module, its_flags in sorted(FLAGS.flags_by_module_dict().items())
        if not module.startswith(("absl.", "tensorflow", "tensorboard"))
        for flag in its_flags
        if flag.value is not None and flag.name not in ("is_deploy", "resume_model", "dry_run")
    ]


def train(task, options):
    """Trains to the end; gives the LoopState. Goes on from the newest whole checkpoint of the folder, if any."""
    chief = devices.is_chief(options.strategy)
    if chief and not options.dry_run:
        make_writable_directory(options.folder)
        checkpoint.remove_leftovers(options.folder)
    state = learning_rate.LoopState(rate=task.rule.initial, best_score=task.worst_score)
    with options.strategy.scope():
        task.optimizer.build(task.model.trainable_variables)
    step = TrainStep(
        task.model,
        task.optimizer,
        task.objective,
        options.strategy,
        task.epochs.batch_size,
        clip_norm=options.clip_norm,
        clip_percentile=options.clip_percentile,
        clip_pieces=options.clip_pieces,
        accumulate=options.accumulate,
        ema_decay=options.ema_decay,
        scale_loss=options.scale_loss,
        jit_compile=options.jit_compile,
        audio_seconds=lambda batch: task.seconds_per_frame * tf.reduce_sum(tf.cast(batch[task.length_key], tf.float32)),
        least_loss=task.least_loss,
        largest_loss=task.largest_loss,
    )
    state, begun_here = _resume(task, options, step, state)
    _require_same_step(options, state)
    print(_batch_line(task, options))
    if options.dry_run:
        cost.print_forecast(task, options, step)
        return state
    if chief:
        started_from = options.resume_model or options.load
        if begun_here:
            started_from = (checkpoint.read_config(_prefix(options, state.step)) or {}).get("started_from", "")
        more = task.config | task.notes | {"started_from": started_from}
        checkpoint.write_config(options.folder, task.system, task.model, **more)
        write_text(
            os.path.join(options.folder, "flags.txt"),
            "\n".join(filter(None, (flag.serialize() for flag in project_flags()))) + "\n",
        )
    if state.step > task.epochs.total and state.validated_step == state.step:
        print(f"{options.folder}: trained to the end, {task.epochs.total} steps; raise --epoch to go on")
        return state
    if begun_here and state.step > 1:
        print(f"{options.folder}: going on at step {state.step} of {task.epochs.total}")
    with Run(task, options, step, state, chief) as run:
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
            every=task.validate_epochs,
            after_step=run.stop_if_asked,
        )
        run.look_at_last_step()
    early = "" if state.step > task.epochs.total else ", where it stopped improving"
    print(
        f"{options.folder}: {state.step - 1} steps{early}, best validation {task.score} {state.marked_score:.3f}"
        f" at step {state.marked_step}"
    )
    return state


def _batch_line(task, options):
    """What a step is made of."""
    replicas = options.strategy.num_replicas_in_sync
    size = task.epochs.batch_size
    parts = [f"global batch {size}"]
    if replicas > 1:
        parts.append(f"on {replicas} devices")
    if options.accumulate > 1:
        parts.append(f"in {options.accumulate} parts of {size // options.accumulate}")
    return f"{options.folder}: {', '.join(parts)}; {task.epochs.steps} steps an epoch, {task.epochs.total} in all"


def _resume(task, options, step, state):
    """Restores what the folder holds, or else what --resume_model or --load names.

    Returns:
        the LoopState to go on with, and whether it is the folder's own.
    """
    reader = checkpoint.latest_whole(options.folder)
    if reader is None:
        if options.resume_model and options.load:
            raise UserError("--resume_model and --load: give one of them, the checkpoint to start from")
        source = options.resume_model or options.load
        return _start_from(checkpoint.open_reader(source), task, options, step, state) if source else state, False
    config = checkpoint.read_config(reader.prefix) or {}
    # The same command again goes on, also one that started from another checkpoint.
    for flag, given in (("resume_model", options.resume_model), ("load", options.load)):
        if given and given != config.get("started_from") and checkpoint.resolve(given) != reader.prefix:
            raise UserError(
                f"{options.folder}: holds {os.path.basename(reader.prefix)}, so --{flag} {given}"
                " would be passed over; leave it out to go on, or choose another --time_stamp"
            )
    stored = checkpoint.read_loop_state(reader)
    if stored is None:
        raise UserError(
            f"{reader.prefix}: not from this training loop; to start from it, choose another --time_stamp"
            " and give it as --resume_model"
        )
    for flag, value in task.config.items():
        if config.get(flag, value) != value:
            raise UserError(
                f"{options.folder}: trained with --{flag} {config[flag]}, but --{flag} is {value};"
                " give the same, or another --time_stamp"
            )
    checkpoint.restore_weights(reader, task.system, task.model)
    _require_same_model(options, config, task.model)
    if not checkpoint.restore_optimizer(reader, task.model, task.optimizer):
        raise UserError(
            f"{reader.prefix}: holds no state of the optimiser {task.optimizer.name};"
            " use the flags it was trained with, or another --time_stamp"
        )
    if not checkpoint.restore_step(reader, step.state):
        raise UserError(
            f"{reader.prefix}: trained with another --ema_decay or --precision; give the same, or another --time_stamp"
        )
    _require_same_epochs(options, stored.get("epoch", {}), task.epochs)
    state = learning_rate.LoopState(**stored["state"])
    # A run killed right after its best checkpoint was written has not marked it yet.
    best = _prefix(options, state.marked_step)
    if os.path.exists(best + checkpoint.INDEX) and devices.is_chief(options.strategy):
        checkpoint.mark_best(best)
    return state, True


def _start_from(reader, task, options, step, state):
    """Restores a checkpoint of elsewhere; gives the LoopState to start with."""
    may_differ = ("classifier",) if options.load else ()
    checkpoint.restore_weights(reader, task.system, task.model, may_differ=may_differ)
    if options.load:
        step.restart_averages()
        print(f"{reader.prefix}: weights restored; starting at step 1")
        return state
    kept = checkpoint.restore_optimizer(reader, task.model, task.optimizer)
    restored = "weights and optimiser" if kept else "weights"
    stored = checkpoint.training_state(reader, task.epochs.steps) if task.resume_goes_on else None
    if not (stored and checkpoint.restore_step(reader, step.state)):
        step.restart_averages()
    if stored:
        # What is best is measured anew: the validation set may be another.
        state = dataclasses.replace(state, **stored)
        print(f"{reader.prefix}: {restored} restored; going on at step {state.step} of {task.epochs.total}")
        if state.step > task.epochs.total:
            print(f"{reader.prefix}: trained to the end; raise --epoch to go on, or start afresh with --load")
    else:
        print(f"{reader.prefix}: {restored} restored; starting at step 1")
    return state


def _require_same_epochs(options, before, now):
    """Raises UserError if the steps that were done were of another size, or of an epoch of another length.

    Args:
        before: {"batch_size", "examples"} of the checkpoint; empty in those that were written before these were.
        now: learning_rate.Epochs.
    """
    mend = "give the same, or another --time_stamp, where --resume_model PREFIX starts from this one"
    batch, examples = before.get("batch_size", now.batch_size), before.get("examples", now.examples)
    if batch != now.batch_size:
        size, times = now.batch_size // options.accumulate, options.accumulate
        raise UserError(
            f"{options.folder}: trained with {batch} example(s) a step, but --batch_size {size}"
            f" --accumulate {times} make it {now.batch_size}; {mend}"
        )
    if examples != now.examples:
        raise UserError(
            f"{options.folder}: trained with {examples} example(s) an epoch, but {now.source or 'the training set'} has"
            f" {now.examples} now; {mend}"
        )


def _require_same_model(options, config, model):
    """Raises UserError if a network of the same weights was trained, but one that computes otherwise."""
    now = json.loads(json.dumps(model.settings))
    for name, value in config.get("model", {}).items():
        if name not in MAY_CHANGE and now.get(name, value) != value:
            raise UserError(
                f"{options.folder}: its network was trained with {name} {value}, but the flags say {now[name]};"
                " give the same, or another --time_stamp"
            )


def _require_same_step(options, state):
    """Raises UserError unless all workers found the same checkpoint."""
    if not devices.several_workers(options.strategy):
        return
    per_replica = options.strategy.run(lambda: tf.constant(state.step, tf.float32))
    mean = float(options.strategy.reduce(tf.distribute.ReduceOp.MEAN, per_replica, axis=None))
    if mean != state.step:
        raise UserError(
            f"{options.folder}: this worker goes on at step {state.step}, others do not;"
            " all workers must see the same folder: put exp on a disk that they share"
        )


def _prefix(options, step):
    return os.path.join(options.folder, f"{options.exp_name}_model.ckpt_step_{step}")


class _Step(NamedTuple):
    """A training step that was started."""

    number: int
    epoch: int
    batches: list
    bad: Any


class Run:
    """The parts of a training run that `learning_rate.run_epochs` puts in order."""

    def __init__(self, task, options, step, state, chief):
        self.task = task
        self.options = options
        self.strategy = options.strategy
        self.step = step
        self.state = state
        self.chief = chief
        self.validation_function = None
        self.batches = None
        self.epoch = None
        self.started_at = state.step
        self.pending = collections.defaultdict(list)
        self.last_step = None
        self.bad_steps = []  # in a row
        self.named = set()  # mixtures whose steps were left out
        self.signal = None
        self.handlers = {}
        self.profiling = False
        tensorboard = os.path.join(options.folder, "tensorboard")
        self.writer = tf.summary.create_file_writer(tensorboard) if chief else tf.summary.create_noop_writer()
        self.bar = progress(None, "train", task.epochs.total, initial=state.step - 1, unit="step", disable=not chief)
        self.logged_at = time.monotonic()

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self.handlers[number] = signal.signal(number, self._ask_to_stop)
        if self.chief:
            with self._writing():
                hparams.hparams({flag.name: _plain(flag.value) for flag in project_flags()})
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.profiling:
            tf.profiler.experimental.stop()
        self.bar.close()
        with contextlib.suppress(tf.errors.OpError):
            self.writer.close()
        if isinstance(error, tf.errors.OpError) and devices.several_workers(self.strategy):
            raise UserError(
                f"{self.options.folder}: another worker stopped ({brief(error)});"
                " start the same command on all workers, they go on from the last checkpoint"
            ) from error

    def _ask_to_stop(self, number, frame):
        if self.signal is not None:  # asked twice: at once
            raise KeyboardInterrupt(number)
        self.signal = number

    def stop_if_asked(self, state):
        """After SIGTERM or SIGINT: saves and leaves."""
        if self.signal is None:
            return
        self.save(state, False)
        self.bar.write(f"{self.options.folder}: saved after {state.step - 1} steps", file=sys.stdout)
        raise KeyboardInterrupt(self.signal)

    def train_step(self, step, rate):
        """One optimiser step on the next batches."""
        epoch, place = divmod(step - 1, self.task.epochs.steps)
        if self.epoch != epoch:
            self._open(epoch, place)
        batches = [next(self.batches) for _ in range(self.options.accumulate)]
        self._profile(step)
        if hasattr(self.task.rule, "beta_1") and hasattr(self.task.optimizer, "current_beta_1"):
            self.task.optimizer.current_beta_1.assign(self.task.rule.beta_1(self.state))
        try:
            found = self.step(batches, rate)
        except (tf.errors.ResourceExhaustedError, tf.errors.AbortedError) as error:
            # oneDNN, on CPU, says no more than that it could not create a primitive.
            if isinstance(error, tf.errors.AbortedError) and "could not create a primitive" not in error.message:
                raise
            raise self._out_of_memory(step, epoch, batches, error) from error
        for name, value in found.items():
            self.pending[name].append(value)
        # Looks at the step before, so that no device has to wait.
        self.look_at_last_step()
        self.last_step = _Step(step, epoch, batches, found["bad"])
        self.bar.update()
        if step % self.options.log_steps == 0 or step == self.task.epochs.total:
            self._log(step, rate)

    def _open(self, epoch, place):
        distributed = devices.distribute(
            self.strategy,
            lambda share: self.task.training_batches(epoch, place * self.options.accumulate, share),
        )
        if self.epoch is None:
            self.step.compile(distributed.element_spec)
        self.batches, self.epoch = dataset.checked(distributed, self.task.check_inputs), epoch

    def look_at_last_step(self):
        """Names the mixtures of the last step, if it was left out; ends training after too many in a row."""
        done, self.last_step = self.last_step, None
        if done is None:
            return
        if not float(done.bad):
            self.bad_steps.clear()
            return
        self.bad_steps.append(done)
        self._name_mixtures(done)
        if len(self.bad_steps) >= self.options.max_bad_steps:
            names = [name for some in self.bad_steps for name in self._names(some.epoch, some.batches)]
            raise UserError(
                f"{self.options.folder}: loss or gradient was not finite in {len(self.bad_steps)} steps in a row, the"
                f" last of them {done.number}, on {', '.join(dict.fromkeys(names))};"
                " look at these files with feat/doctor.py, lower --learning_rate or set --clip_norm"
            )

    def _name_mixtures(self, step):
        """Says which mixtures a step was left out for, once each."""
        names = np.array(self._names(step.epoch, step.batches))
        broken = np.concatenate(
            [
                _not_finite({key: self.strategy.experimental_local_results(value)[i] for key, value in batch.items()})
                for batch in step.batches
                for i in range(len(self.strategy.experimental_local_results(batch["index"])))
            ]
        )
        why = "its loss or gradient was not finite"
        if broken.any():
            names, why = names[broken], "numbers in it are not finite"
        new = [name for name in dict.fromkeys(names.tolist()) if name not in self.named]
        self.named.update(new)
        if new:
            self.bar.write(f"step {step.number} was left out: {', '.join(new)}: {why}", file=sys.stdout)
            sys.stdout.flush()

    def _values(self, batches, key):
        """[examples] of this process, of all replicas and batches."""
        return np.concatenate(
            [x.numpy() for batch in batches for x in self.strategy.experimental_local_results(batch[key])]
        )

    def _names(self, epoch, batches):
        return self.task.names_of(epoch, self._values(batches, "index"))

    def _out_of_memory(self, step, epoch, batches, error):
        frames = self._values(batches, self.task.length_key)
        name = self._names(epoch, batches)[int(np.argmax(frames))]
        return UserError(
            f"{self.options.folder}: out of memory in step {step}, whose longest mixture is {name} with"
            f" {frames.max() * self.task.seconds_per_frame:.1f} s ({brief(error)});"
            " lower --batch_size and raise --accumulate by as much, or set --segment_seconds, and run it again"
        )

    def _profile(self, step):
        if not self.options.profile_steps or not self.chief:
            return
        first, last = self.options.profile_steps
        if step == first:
            tf.profiler.experimental.start(os.path.join(self.options.folder, "tensorboard"))
            self.profiling = True
        elif self.profiling and step > last:
            tf.profiler.experimental.stop()
            self.profiling = False

    @contextlib.contextmanager
    def _writing(self):
        """Summaries go to the writer; a disk that refuses them is named."""
        try:
            with self.writer.as_default():
                yield
            self.writer.flush()
        except tf.errors.OpError as error:
            raise UserError(
                f"{self.options.folder}/tensorboard: cannot be written ({brief(error)});"
                " make room, then run the same command again"
            ) from error

    def validate(self, step):
        """Mean of the metrics over the validation set; gives the score."""
        self.look_at_last_step()
        if self.pending:
            self._log(step - 1, None)
        batches = devices.distribute(self.strategy, self.task.validation_batches)
        if self.validation_function is None:
            self.validation_function = make_validation_step(self.task.objective, self.strategy, batches.element_spec)
        totals = collections.defaultdict(float)
        with self.step.averaged_weights():
            for batch in dataset.checked(batches, self.task.check_inputs):
                if self.signal is not None:
                    break
                for name, value in self.validation_function(batch).items():
                    totals[name] += float(value)
            if self.signal is None:
                count = totals.pop("count")
                means = {name: total / count for name, total in totals.items()} | self.task.evaluate()
                self._show(means, step - 1)
        self.stop_if_asked(self.state)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        self.bar.write(f"after {step - 1} of {self.task.epochs.total} steps: validation {shown}", file=sys.stdout)
        sys.stdout.flush()
        self.logged_at = time.monotonic()
        if not math.isfinite(means[self.task.score]):
            raise UserError(
                f"{self.options.folder}: validation {self.task.score} is {means[self.task.score]} before step {step}"
                + self._why_not_finite()
            )
        return means[self.task.score]

    def _why_not_finite(self):
        """Goes through validation once more, a mixture at a time; names those whose loss or score is not finite."""
        batches = self.task.validation_batches()
        # Each process for itself, on one device.
        function = make_validation_step(self.task.objective, tf.distribute.get_strategy(), batches.element_spec)
        found, broken, count = [], [], 0
        with self.step.averaged_weights():
            for batch in dataset.checked(batches, self.task.check_inputs):
                sums = function(batch)
                count += 1
                if not all(math.isfinite(float(sums[name])) for name in {"loss", self.task.score} & set(sums)):
                    found += self.task.names_of(None, batch["index"].numpy())
                    broken += _not_finite(batch).tolist()
        learning = "lower --learning_rate or set --clip_norm, and start under another --time_stamp"
        if any(broken):
            names = [name for name, bad in zip(found, broken) if bad]
            return f": numbers in {_some(names)} are not finite; mend or make its files again, and run it again"
        # Where it is all of them, it is not for what is in them.
        return f"{', in ' + _some(found) if 0 < len(found) < count else ''}; {learning}"

    def _show(self, means, step):
        """Scalars and pictures of a validation."""
        if not self.chief:
            return
        with self._writing():
            for name, value in means.items():
                tf.summary.scalar(f"validation/{name}", value, step)
            for weight in self.task.model.trainable_variables if self.options.weight_histograms else ():
                histogram = histogram_pb(f"weights/{weight.path}", keras.ops.convert_to_numpy(weight))
                tf.summary.experimental.write_raw_pb(histogram.SerializeToString(), step)
            self.task.pictures(os.path.join(self.options.folder, "pictures"), step)

    def save(self, state, is_best):
        """Writes the checkpoint of a state."""
        if not self.chief:
            return
        prefix = _prefix(self.options, state.step)
        epochs = self.task.epochs
        loop = {
            "state": dataclasses.asdict(state),
            "epoch": {"batch_size": epochs.batch_size, "examples": epochs.examples},
        }
        checkpoint.save(prefix, self.task.model, self.task.optimizer, loop, self.step.state)
        if is_best:
            checkpoint.mark_best(prefix)
        if self.options.keep_checkpoints:
            for step, old in checkpoint.numbered(self.options.folder)[: -self.options.keep_checkpoints]:
                if step != state.marked_step:
                    checkpoint.remove(old)

    def _log(self, step, rate):
        """Means since the last time, to TensorBoard and the progress bar."""
        values = {name: np.array([float(v) for v in some]) for name, some in self.pending.items()}
        self.pending.clear()
        seconds = max(time.monotonic() - self.logged_at, 1e-9)
        self.logged_at = time.monotonic()
        skipped = int(values.pop("bad").sum())
        audio_seconds = values.pop("audio_seconds")
        if "left_out" in values:
            left_out = values.pop("left_out") > 0
            skipped += int(left_out.sum())
            for name in ("loss", "gradient_norm"):  # such steps have none
                values[name] = values[name][~left_out]
        means = {name: float(np.mean(some)) for name, some in values.items() if len(some)}
        numbers = {f"train/{name}": value for name, value in means.items()} | {
            "train/skipped_steps": skipped,
            "train/steps_per_second": len(audio_seconds) / seconds,
            "train/audio_seconds_per_second": float(np.sum(audio_seconds)) / seconds,
        }
        shown = {name: f"{value:.2f}" for name, value in means.items()}
        if rate is not None:
            numbers["train/learning_rate"] = rate
            shown["rate"] = f"{rate:.1e}"
        if skipped:
            shown["skipped"] = skipped
        with self._writing():
            for name, value in numbers.items():
                tf.summary.scalar(name, value, step)
        self.bar.set_postfix(shown, refresh=False)


def _not_finite(batch):
    """Which examples of a batch hold numbers that are not finite, bool [batch]."""
    return np.any(
        [
            [not np.isfinite(example).all() for example in value.numpy()]
            for value in batch.values()
            if value.dtype.is_floating
        ],
        axis=0,
    )


def _some(names, most=3):
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def make_validation_step(objective, strategy, element_spec):
    """Compiled (batch of single examples) -> {"count", "loss", metrics}, sums over replicas of those that count."""

    def replica(batch):
        loss, metrics = objective(batch, training=False)
        counts = tf.cast(batch["index"] >= 0, tf.float32)
        means = {"loss": loss} | metrics
        sums = {name: tf.reduce_sum(tf.where(counts > 0, value, 0.0)) for name, value in means.items()}
        return {"count": tf.reduce_sum(counts)} | sums

    def validation_step(batch):
        sums = strategy.run(replica, (batch,))
        return {k: strategy.reduce(tf.distribute.ReduceOp.SUM, v, axis=None) for k, v in sums.items()}

    return compiled(validation_step, element_spec)


def _plain(value):
    """A flag's value as HParams takes it."""
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def seed_everything(seed):
    """Seeds Python, NumPy and Keras, so that a new model's weights depend on the seed alone."""
    keras.utils.set_random_seed(seed)
